"""Lands rows in a process of its own: land.py '["delta:…", "merge", 20000, "monday", false]'.

The last of the arguments is whether the rows are placed in the table as files first.
"""

import json
import secrets
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from batchrouter.landing.sinks import Writing, files, open_sink
from batchrouter.landing.sinks.placed import TakesFiles
from core.sinks.kinds import SCHEMA, identity, rows

if __name__ == "__main__":
    files._GROUP_ROWS = 2000
    url, mode, count, run, is_placed = json.loads(sys.argv[1])
    sink = open_sink(url, None, Writing(mode, ("id",)))
    landed, who = rows(range(count), run), identity(run)
    if is_placed:
        assert isinstance(sink, TakesFiles)
        intake = sink.intake(SCHEMA, who)
        assert intake is not None
        placed = intake.place(secrets.token_hex(5), landed)
        sink.commit_files([placed], intake, SCHEMA, who)
    else:
        sink.write(landed, SCHEMA, who)

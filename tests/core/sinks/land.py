"""Lands rows in a process of its own: python land.py '["delta:…", "merge", 20000, "monday"]'."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from batchrouter.landing.sinks import Writing, files, open_sink
from core.sinks.kinds import SCHEMA, identity, rows

if __name__ == "__main__":
    files._GROUP_ROWS = 2000
    url, mode, count, run = json.loads(sys.argv[1])
    sink = open_sink(url, None, Writing(mode, ("id",)))
    sink.write(rows(range(count), run), SCHEMA, identity(run))

"""The command line as another account than the one that began the run.

    python stranger.py UID JOB ARGUMENTS…

Another account may not be able to read this interpreter's own files, so the job is carried out
once under a key of its own, which loads all that is needed, before the account is changed.
"""

import os
import sys
from contextlib import suppress

from batchrouter.cli import main as command_line


def main() -> None:
    uid, job, *arguments = sys.argv[1:]
    with suppress(SystemExit):
        command_line(["run", job, "--run-key", "loads all modules"])
    os.setgroups([])
    os.setgid(int(uid))
    os.setuid(int(uid))
    command_line(arguments)


if __name__ == "__main__":
    main()

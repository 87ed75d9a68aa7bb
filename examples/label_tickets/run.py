"""Run job.yaml offline, with the command line, on an embedded router.

    python examples/label_tickets/run.py

It leaves router/, runs/ and labelled/ beside the job. Given again, it finds the run landed, and
buys nothing. Another run key, as the first argument, is another run.
"""

import os
import subprocess
import sys
from pathlib import Path

from batchrouter.testing import running_router

FOLDER = Path(__file__).parent
BATCHROUTER = [sys.executable, "-m", "batchrouter"]


def main() -> None:
    run_key = sys.argv[1] if len(sys.argv) > 1 else "2026-11-22"
    # In this folder and not in a temporary one: a run that is interrupted finds its batch again.
    with running_router(FOLDER / "router") as router:
        env = {
            **os.environ,
            "BATCHROUTER_BASE_URL": router.base_url,
            "BATCHROUTER_API_KEY": router.api_key,
        }
        for command in (["check", "job.yaml"], ["run", "job.yaml", "--run-key", run_key]):
            print(f"$ batchrouter {' '.join(command)}", flush=True)
            subprocess.run([*BATCHROUTER, *command], cwd=FOLDER, env=env, check=True)  # noqa: S603 - our own command, no shell


if __name__ == "__main__":
    main()

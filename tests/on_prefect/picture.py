"""Take the picture of a flow run's page for the docs, in a real browser on a real server.

    .venv-prefect/bin/python tests/on_prefect/picture.py docs/prefect-flow-run.png

Needs chromium (Debian: `apt-get install chromium`).
"""

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from batchrouter.testing import running_router
from on_prefect.actors import DEPLOYMENT, deploy, save_account
from on_prefect.scene import job_of, make_table
from on_prefect.stage import running_stage


def take(path: Path) -> None:
    """Run one job and take its page."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        running_router() as router,
        running_stage(Path(scratch, "stage")) as stage,
    ):
        folder = Path(scratch)
        save_account("prod", stage, router.base_url, router.api_key)
        deploy()
        job = job_of(make_table(folder, 400), folder / "labelled", name="label-tickets")
        flow_run_id = stage.start_run(DEPLOYMENT, job=job, credentials="prod", run_key="2026-11-22")
        stage.wait_for(flow_run_id, "Completed")
        subprocess.run(
            [
                "chromium",
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--hide-scrollbars",
                f"--user-data-dir={folder / 'browser'}",
                "--window-size=1440,1500",
                "--virtual-time-budget=60000",
                f"--screenshot={path.resolve()}",
                f"http://127.0.0.1:{stage.port}/runs/flow-run/{flow_run_id}?tab=Artifacts",
            ],
            check=True,
            timeout=180,
        )


if __name__ == "__main__":
    take(Path(sys.argv[1]))

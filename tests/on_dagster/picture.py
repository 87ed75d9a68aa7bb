"""Take the pictures of a landed table's page for the docs, in a real browser on a real webserver.

    .venv-dagster/bin/python tests/on_dagster/picture.py docs/images

Needs chromium (Debian: `apt-get install chromium`).
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import dagster as dg
from dagster_batchrouter import BatchrouterResource
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))

from batchrouter import Job
from batchrouter.testing import running_router
from on_dagster.conftest import DAYS, definitions, lane, launch, ticket_job, write_tickets

TABLE = "lake/labelled"
_SHOWN = """
import os
from pathlib import Path
import dagster as dg
from dagster_batchrouter import BatchrouterResource
from on_dagster.conftest import DAYS, definitions, ticket_job
from batchrouter import Job
job = Job.model_validate(ticket_job(Path(os.environ["TEST_FOLDER"])))
defs = definitions(job, BatchrouterResource(), partitions_def=DAYS)
"""


def land_ten_days(folder: Path) -> None:
    """Materialize ten partitions of growing size into the instance of DAGSTER_HOME."""
    lanes = {"lanes": [lane("gpt-4o-mini", failure_rate=0.03)]}
    for number, day in enumerate(DAYS.get_partition_keys()):
        write_tickets(folder / "tickets" / f"{day}.csv", day, 40 + (number * 37) % 60)
    job = Job.model_validate(ticket_job(folder))
    with running_router(folder / "router", config=lanes) as router:
        account = BatchrouterResource(
            base_url=router.base_url,
            api_key=router.api_key,
            runs_url=str(folder / "runs"),
            poll_interval=0.5,
        )
        defs = definitions(job, account, partitions_def=DAYS)
        with dg.DagsterInstance.get() as instance:
            for day in DAYS.get_partition_keys():
                launch(defs, instance, f"{TABLE}_submission", TABLE, partition=day)


def look(page: Page, url: str, folder: Path) -> None:
    """Take the page, and the plots of its metadata."""
    page.goto(f"{url}/assets/{TABLE}", wait_until="networkidle", timeout=180_000)
    page.get_by_text("Columns", exact=True).first.wait_for(timeout=120_000)
    page.screenshot(path=folder / "dagster_asset.png")
    plots = page.get_by_role("button", name="Plots")
    plots.first.click()
    page.wait_for_timeout(5_000)
    plots.first.scroll_into_view_if_needed()
    plots.first.evaluate("element => element.scrollIntoView({block: 'start'})")
    page.wait_for_timeout(3_000)
    page.screenshot(path=folder / "dagster_plots.png")


def main(into: Path) -> None:
    """Show the ten days by a webserver, and take its pictures."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        home = folder / "home"
        home.mkdir()
        (home / "dagster.yaml").write_text("telemetry: {enabled: false}\nnux: {enabled: false}\n")
        os.environ |= {"DAGSTER_HOME": str(home), "TEST_FOLDER": scratch}
        land_ten_days(folder)
        (folder / "shown.py").write_text(_SHOWN)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [str(Path(sys.executable).with_name("dagster-webserver")), "-p", str(port)]
        webserver = subprocess.Popen(
            [*command, "-f", str(folder / "shown.py")],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(url)
            with sync_playwright() as playwright:
                options = ["--no-sandbox", "--disable-gpu"]
                browser = playwright.chromium.launch(
                    executable_path="/usr/bin/chromium", args=options
                )
                look(browser.new_page(viewport={"width": 1400, "height": 1000}), url, into)
                browser.close()
        finally:
            webserver.terminate()
            webserver.wait(60)


def wait_for(url: str, timeout_s: float = 240.0) -> None:
    """Wait until the webserver has loaded the definitions."""
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        with suppress(OSError), urllib.request.urlopen(f"{url}/server_info", timeout=5):
            return
        time.sleep(1)
    raise SystemExit("the webserver did not come")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

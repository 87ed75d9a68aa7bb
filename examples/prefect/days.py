"""One table a day: label the days that are not labelled yet, mapped over the days.

    prefect deploy --all        # label-tickets-days/days

Each day is a run of its own, named after the day. A day that was landed before costs nothing, so
a night that failed is made up for by the next one, and nobody keeps a list of what is done.
"""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from prefect import flow, unmapped
from prefect_batchrouter import cancel_on_cancellation, land_run, submit_job, wait_for_run

JOB = str(Path(__file__).with_name("job.yaml"))


@flow(name="label-tickets-days", on_cancellation=[cancel_on_cancellation])
def label_days(
    credentials: str = "prod", days: int = 7, until: date | None = None
) -> dict[str, dict[str, int]]:
    """Label the tickets of the newest days; returns each day's rows by status."""
    newest = until or datetime.now(UTC).date()
    wanted = [newest - timedelta(days=back) for back in range(days)]
    folder = Path(JOB).parent / "tickets"
    present = [str(day) for day in wanted if (folder / f"day={day}.csv").exists()]
    fixed: dict[str, Any] = {"job": unmapped(JOB), "credentials": unmapped(credentials)}
    each = {"params": [{"day": day} for day in present], "run_key": present}

    # All are bought before any is waited for: the waits overlap, and share one watcher.
    bought = submit_job.map(**fixed, **each)
    waited = wait_for_run.map(**fixed, **each, wait_for=[bought])
    receipts = land_run.map(**fixed, **each, wait_for=[waited]).result()
    return {day: receipt["rows"] for day, receipt in zip(present, receipts, strict=True)}

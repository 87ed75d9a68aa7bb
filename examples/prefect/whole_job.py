"""The whole job in one flow run, which sleeps without a process while the batch runs.

    prefect deploy --all        # reads prefect.yaml beside this file
    prefect-batchrouter setup --pool default --credentials prod
    prefect deployment run label-tickets/daily -p day=2026-11-22

The account is a saved block, made once:

    BatchrouterCredentials(base_url=…, api_key=…, runs_url=…).save("prod")
"""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect_batchrouter import cancel_on_cancellation, finish_run

JOB = str(Path(__file__).with_name("job.yaml"))


@flow(name="label-tickets", on_cancellation=[cancel_on_cancellation])
def label_tickets(day: str, credentials: str = "prod") -> dict[str, Any]:
    """Label the tickets of a day; the same day never buys twice."""
    return finish_run(JOB, credentials, params={"day": day}, run_key=day, wait="auto")

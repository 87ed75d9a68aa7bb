"""Every night: buy only the tickets that are new or have changed, whatever was labelled before.

    prefect deploy --all        # label-tickets-nightly/nightly, every night at two

The job reads all tickets, and buys those whose key and request the table does not hold yet. A night
that failed is made up for by the next one, and nobody keeps a list of what is done.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.logging import get_run_logger
from prefect_batchrouter import cancel_on_cancellation, finish_run

JOB = str(Path(__file__).with_name("incremental.yaml"))


@flow(name="label-tickets-nightly", on_cancellation=[cancel_on_cancellation])
def label_nightly(credentials: str = "prod", night: str | None = None) -> dict[str, Any]:
    """Label what is new; the same night never buys twice."""
    run_key = night or datetime.now(UTC).date().isoformat()
    receipt = finish_run(JOB, credentials, run_key=run_key)
    get_run_logger().info(
        "%s new or changed, %s unchanged", receipt["row_count"], receipt["unchanged"]
    )
    return receipt

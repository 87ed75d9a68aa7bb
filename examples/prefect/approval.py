"""A person approves the price before anything is bought; the flow run sleeps until then.

    prefect deploy --all
    prefect deployment run label-tickets-approved/on-demand -p day=2026-11-22

The quote is an artifact of the flow run. *Resume* in the UI asks for the answer. While nobody
answers, and later while the batch runs, no process is held.
"""

from pathlib import Path
from typing import Any

from prefect import flow, suspend_flow_run
from prefect.input import RunInput
from prefect.logging import get_run_logger
from prefect_batchrouter import cancel_on_cancellation, finish_run, quote_job

JOB = str(Path(__file__).with_name("job.yaml"))
FREE_USD = 0.01
"""What costs less needs nobody."""


class Approval(RunInput):
    """What the person fills in."""

    approved: bool = False


@flow(name="label-tickets-approved", on_cancellation=[cancel_on_cancellation])
def label_with_approval(
    day: str, credentials: str = "prod", free_usd: float = FREE_USD
) -> dict[str, Any] | None:
    """Label the tickets of a day, if its price is approved."""
    given: dict[str, Any] = {
        "job": JOB,
        "credentials": credentials,
        "params": {"day": day},
        "run_key": day,
    }
    # From its cache when the flow run comes back: the price that the person saw.
    quote = quote_job(**given)
    if float(quote["total_usd"]) > free_usd:
        # A key of letters, digits and dashes: with another one the flow run could not be resumed.
        answer = suspend_flow_run(
            wait_for_input=Approval.with_initial_data(
                description=f"{quote['item_count']:,} requests for at most {quote['total_usd']} USD"
            ),
            key="approval",
            timeout=7 * 24 * 3600,
        )
        if not answer.approved:
            get_run_logger().info("the price was not approved; nothing was bought")
            return None
    # If the price has risen meanwhile, nothing is bought above what was approved.
    return finish_run(**given, at_most_usd=quote["total_usd"])

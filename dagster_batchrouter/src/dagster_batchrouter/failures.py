"""Our errors as Dagster's: what a retry cannot cure is not retried."""

from collections.abc import Generator
from contextlib import contextmanager

import dagster as dg

from batchrouter.errors import APIError, BatchrouterError

FINAL_TAG = "batchrouter/final_error"
"""On a run that failed for a reason that no repetition cures: the error's code."""

_MOST_WAITS = 3


@contextmanager
def as_failures(context: dg.AssetExecutionContext, hint: str = "") -> Generator[None]:
    """Raise Dagster's exception for ours.

    - `dg.Failure(allow_retries=False)` for what a repetition cannot cure; the run is marked, so
      that the sensor does not try again either.
    - `dg.RetryRequested` after the time that the server asked for, three times at most.
    - `dg.Failure` otherwise, which a `RetryPolicy` repeats.

    Args:
        context: The step's.
        hint: What to do in Dagster, added to what no retry cures.
    """
    try:
        yield
    except BatchrouterError as error:
        retry_after_s = error.retry_after_s if isinstance(error, APIError) else None
        if error.retryable and retry_after_s is not None:
            raise dg.RetryRequested(
                max_retries=_MOST_WAITS, seconds_to_wait=retry_after_s
            ) from error
        if not error.retryable:
            context.instance.add_run_tags(context.run.run_id, {FINAL_TAG: error.code})
        raise failure_of(error, hint) from error


def failure_of(error: BatchrouterError, hint: str = "") -> dg.Failure:
    """The failure that tells an error, its code, and whether to repeat it.

    Example:
        >>> from batchrouter.errors import BudgetExceededError
        >>> failure = failure_of(BudgetExceededError("quoted $2 of $1"))
        >>> failure.allow_retries, failure.metadata["batchrouter/error_code"].text
        (False, 'budget_exceeded')
    """
    metadata: dict[str, str] = {"batchrouter/error_code": error.code}
    if isinstance(error, APIError) and error.request_id:
        metadata["batchrouter/request_id"] = error.request_id
    said = str(error) if error.retryable or not hint else f"{error} {hint}"
    return dg.Failure(description=said, metadata=metadata, allow_retries=error.retryable)

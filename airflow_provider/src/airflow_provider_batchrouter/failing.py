"""An error of ours → what Airflow does about it: try again, or not."""

from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def as_airflow() -> Generator[None]:
    """Fail the task for good where a retry cannot help; let the other errors through.

    Raises:
        AirflowFailException: For an error that is not retryable, with its code and message.
        BatchrouterError: A retryable one, as it is: the task's own ``retries`` decide.
    """
    from airflow.providers.common.compat.sdk import (  # noqa: PLC0415 - with the task
        AirflowFailException,
    )

    from batchrouter.errors import BatchrouterError  # noqa: PLC0415 - a DAG file need not pay

    try:
        yield
    except BatchrouterError as error:
        if error.retryable:
            raise
        raise AirflowFailException(f"{error.code}: {error}") from error

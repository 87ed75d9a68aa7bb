"""Cache keys tell accounts apart without telling secrets; retries follow the error tree."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.states import Failed
from prefect_batchrouter import BatchrouterCredentials, quote_job, submit_job
from prefect_batchrouter.policies import is_retryable, run_cache_key

from batchrouter.errors import BudgetExceededError, ServerError, TransportError
from on_prefect.scene import job_of


def key_of(task: Any = submit_job, **changes: Any) -> str | None:
    credentials = BatchrouterCredentials(
        base_url=changes.pop("base_url", "https://router.example"),
        api_key=changes.pop("api_key", "bk_live_first"),
        runs_url="/runs",
    )
    job = {**job_of(Path("/t.parquet"), Path("/labelled")), **changes.pop("job", {})}
    given = {"job": job, "credentials": credentials, "run_key": "k", **changes}
    return run_cache_key(SimpleNamespace(task=task), given)  # type: ignore[arg-type]  # all it reads


def test_the_same_step_of_the_same_run_has_the_same_key() -> None:
    assert key_of() == key_of()
    assert key_of() is not None


@pytest.mark.parametrize(
    "change",
    [
        {"api_key": "bk_live_second"},
        {"base_url": "https://other.example"},
        {"run_key": "other"},
        {"runs_url": "/elsewhere"},
        {"on_rerun": "rebuy"},
        {"at_most_usd": "1.00"},
        {"job": {"key": "text"}},
        {"job": {"budget": "1.00"}},
        {"job": {"sink": "/elsewhere"}},
        {"task": quote_job},
    ],
)
def test_what_decides_the_outcome_is_in_the_key(change: dict[str, Any]) -> None:
    assert key_of(**change) != key_of()


def test_a_job_that_cannot_be_read_has_no_key() -> None:
    assert key_of(job={"budget": "much"}) is None


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (TransportError("no reply"), True),
        (ServerError("it failed", status=503), True),
        (BudgetExceededError("too much"), False),
        (RuntimeError("not ours"), False),
    ],
)
def test_only_what_can_succeed_is_tried_again(error: Exception, *, again: bool) -> None:
    assert is_retryable(submit_job, SimpleNamespace(), Failed(data=error)) is again  # type: ignore[arg-type]  # not read

"""`GET /metrics`: read by a real Prometheus parser before and after a job, and kept from others."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from prometheus_client.parser import text_string_to_metric_families

from batchrouter import Client, Job, Run
from batchrouter.server.metrics import Metrics
from batchrouter.testing import RunningRouter, running_router
from crash.desk import CONFIG


def samples(router: RunningRouter, **headers: str) -> dict[tuple[str, ...], float]:
    """Every sample by name and labels."""
    answer = httpx.get(f"{router.base_url}/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items()))): (
            sample.value
        )
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def run_job(router: RunningRouter, root: Path, **changes: Any) -> Any:
    rows = pa.table({"id": list(range(10)), "text": [f"card {row}" for row in range(10)]})
    fields: dict[str, Any] = {
        "name": "label",
        "source": rows,
        "key": "id",
        "request": {"kind": "chat", "user": "{text}", "parameters": {"max_output_tokens": 8}},
        "route": {"models": ["quick"]},
        "budget": "5.00",
        "sink": str(root / "labelled"),
        **changes,
    }
    with Client(router.settings(runs_url=str(root / "runs"))) as client:
        return Run.open(Job.model_validate(fields), run_key="1", client=client).execute()


def test_a_job_shows_in_requests_items_and_money(tmp_path: Path) -> None:
    with running_router(tmp_path / "router", config=CONFIG) as router:
        before = samples(router)
        receipt = run_job(router, tmp_path)
        after = samples(router)

    created = (
        "batchrouter_http_request_seconds_count",
        "method=POST",
        "route=/v1/batches",
        "status=202",
    )
    done = (
        "batchrouter_items_total",
        "model=quick",
        "outcome=completed",
        "provider=simulated-quick",
    )
    spent = ("batchrouter_spent_usd",)
    assert created not in before
    assert after[created] == 1
    assert after[done] == 10
    assert before[spent] == 0
    assert after[spent] == pytest.approx(float(receipt.settled_usd), abs=1e-6)
    assert after["batchrouter_balance_usd",] == pytest.approx(100_000 - after[spent], abs=1e-6)
    assert after["batchrouter_reserved_usd",] == 0
    assert after["batchrouter_upload_bytes_total",] > 1000
    assert not [name for name in after if name[0] == "batchrouter_open_batches"]


def test_open_work_is_counted_while_it_is_open(tmp_path: Path) -> None:
    rows = pa.table({"id": list(range(10)), "text": ["card"] * 10})
    job = Job.model_validate({
        "name": "label",
        "source": rows,
        "key": "id",
        "request": {"kind": "chat", "user": "{text}", "parameters": {"max_output_tokens": 8}},
        "route": {"models": ["long"]},
        "budget": "5.00",
        "sink": str(tmp_path / "labelled"),
    })  # fmt: skip
    with (
        running_router(tmp_path / "router", config=CONFIG) as router,
        Client(router.settings(runs_url=str(tmp_path / "runs"))) as client,
    ):
        Run.open(job, run_key="1", client=client).submit()
        found = samples(router)

    assert sum(found[name] for name in found if name[0] == "batchrouter_open_batches") == 1
    assert found["batchrouter_open_items", "model=long", "provider=simulated-long"] == 10
    assert found["batchrouter_reserved_usd",] > 0


def test_beyond_loopback_they_are_shown_to_a_key_with_the_scope_only(
    open_surface: Callable[..., Any],
) -> None:
    surface = open_surface(is_loopback=False)

    def get(key: str | None) -> httpx.Response:
        with surface.client_for(key) as client:
            return client.get("/metrics")

    keyless, stranger = get(None), get("bk_live_none")
    customer, operator = get(surface.api_key), get(surface.mint("metrics"))

    assert keyless.status_code == stranger.status_code == 401
    assert customer.status_code == 403
    assert customer.json()["error"]["details"]["required"] == "metrics"
    assert "batchrouter_spent_usd 0.0" in operator.text


def test_what_strangers_send_makes_no_new_series() -> None:
    metrics = Metrics()
    for number in range(50):
        metrics.count_request(f"M{number}", None, 404, 0.1)

    counts = re.findall(
        rb"^batchrouter_http_request_seconds_count.*", metrics.exposed(), re.MULTILINE
    )

    assert len(counts) == 1
    assert b'method="other",route="none"' in counts[0]

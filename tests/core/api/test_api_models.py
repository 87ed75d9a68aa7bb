"""Answers are read tolerantly (contract section 8), and never loosely about money."""

from decimal import Decimal
from typing import Any

import pytest

from batchrouter.api.models import (
    ArtifactLink,
    Batch,
    BatchPage,
    ManifestFile,
    Money,
    Quote,
)
from batchrouter.errors import ProtocolError


@pytest.mark.parametrize(
    ("told", "read", "is_terminal"),
    [
        ("succeeded", "succeeded", True),
        ("completed", "succeeded", True),
        ("Canceled", "cancelled", True),
        ("cancelled", "cancelled", True),
        ("failed", "failed", True),
        ("expired", "expired", True),
        ("canceling", "cancelling", False),
        ("queued", "queued", False),
        ("in_progress", "in_progress", False),
        ("resting", "resting", False),
    ],
)
def test_states_are_read_in_our_spelling(told: str, read: str, *, is_terminal: bool) -> None:
    for name in ("state", "status"):
        batch = Batch.from_wire({"id": "batch_1", name: told})

        assert (batch.state, batch.is_terminal) == (read, is_terminal)


def test_our_own_name_wins_over_another() -> None:
    batch = Batch.from_wire({"id": "b", "state": "running", "status": "ok"})

    assert batch.state == "running"
    assert batch.model_extra == {"status": "ok"}


def test_a_wrapped_batch_with_an_id_of_another_kind_and_fields_nobody_knows() -> None:
    batch = Batch.from_wire({
        "batch": {"id": "bat_7", "status": "running", "mood": "fine", "lanes": None}
    })

    assert batch.id == "bat_7"
    assert batch.lanes == ()
    assert batch.model_extra == {"mood": "fine"}


@pytest.mark.parametrize(
    ("state", "completed", "has_output"),
    [
        ("succeeded", 0, True),
        ("cancelled", 3, True),
        ("cancelled", 0, False),
        ("failed", 1, True),
        ("running", 3, False),
    ],
)
def test_only_what_has_ended_has_output(state: str, completed: int, *, has_output: bool) -> None:
    batch = Batch.from_wire({"id": "b", "state": state, "counts": {"completed": completed}})

    assert batch.has_output is has_output


def test_a_quote_with_the_names_of_the_guides() -> None:
    quote = Quote.from_wire({
        "id": "qlock_1",
        "valid_until": "2026-11-22T08:10:00Z",
        "pricing_estimate": {"currency": "USD", "total": "1.0000001"},
    })

    assert quote.quote_id == "qlock_1"
    assert quote.expires_at.isoformat() == "2026-11-22T08:10:00+00:00"
    assert quote.quoted_total.amount == Decimal("1.000001"), "rounded up to the micro-dollar"


def test_the_other_answers() -> None:
    page = BatchPage.from_wire({"batches": [{"id": "b", "status": "completed"}]})
    uploaded = ManifestFile.from_wire({"id": "file_1", "models": None})
    link = ArtifactLink.from_wire({
        "output_file_url": "https://r2/x",
        "error_file_url": "https://e",
    })

    assert page.data[0].state == "succeeded"
    assert (page.has_more, page.next_cursor) == (False, None)
    assert (uploaded.file_id, uploaded.models) == ("file_1", ())
    assert link.url == "https://r2/x"


@pytest.mark.parametrize(
    "amount", [0.5, True, "NaN", "Infinity", "-1", "1e99", "0.0000000000001", None, [], ""]
)
def test_an_amount_that_is_not_exact_is_refused(amount: Any) -> None:
    with pytest.raises(ProtocolError, match="amount"):
        Money.from_wire({"currency": "usd", "amount": amount})


def test_another_currency_is_refused_because_budgets_are_in_usd() -> None:
    with pytest.raises(ProtocolError, match=r"currency.*'eur'"):
        Batch.from_wire({
            "id": "b",
            "state": "queued",
            "quoted_total": {"currency": "eur", "amount": "1"},
        })


@pytest.mark.parametrize("body", [None, [], "x", 3, {}, {"id": ""}, {"state": "queued"}])
def test_what_is_no_batch_is_refused(body: Any) -> None:
    with pytest.raises(ProtocolError, match="no Batch"):
        Batch.from_wire(body)


def test_a_signed_url_is_never_shown_nor_dumped() -> None:
    batch = Batch.from_wire({
        "id": "b",
        "state": "failed",
        "error_file_url": "https://r2.example/e?signature=hunter2",
        "webhook": {"url": "https://ann:hunter2@example.com/hook"},
        "partial_output": {
            "url": "https://u:hunter2@r2.example/p?signature=hunter2",
            "error_file_url": "https://r2.example/e?signature=hunter2",
        },
    })

    assert "hunter2" not in repr(batch)
    assert "hunter2" not in str(batch.partial_output)
    assert "r2.example/***" in repr(batch)
    assert batch.partial_output is not None
    assert "url" not in batch.partial_output.model_dump(exclude={"error_file_url"})


def test_a_protocol_error_names_fields_and_shows_no_value() -> None:
    with pytest.raises(ProtocolError) as caught:
        ArtifactLink.from_wire({"url": "", "bytes": "hunter2"})

    assert "bytes" in str(caught.value)
    assert "hunter2" not in str(caught.value)

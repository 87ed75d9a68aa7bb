"""Every line in any order, in any state: never a wrong row, always a status."""

import json
import random
from typing import Any

import fsspec
import pytest

from batchrouter.errors import LandingError, StorageError
from batchrouter.landing import index as index_module
from batchrouter.landing import lines as lines_module


def statuses(rows: list[dict[str, Any]]) -> list[str]:
    return [row["_status"] for row in rows]


def test_an_artifact_in_order_lands_row_by_row(kit: Any, run_folder: Any) -> None:
    run_folder.add_part(3, [kit.native(n) for n in range(3)])

    report = run_folder.land(kit.text_job)

    rows = run_folder.landed()
    assert [row["ticket_id"] for row in rows] == [0, 1, 2]
    assert [row["output"] for row in rows] == ["answer 0", "answer 1", "answer 2"]
    assert rows[1] | {
        "_completed_at": str(rows[1]["_completed_at"]),
        "_cost_usd": str(rows[1]["_cost_usd"]),
    } == {
        "ticket_id": 1,
        "subject": "subject 1 é",
        "output": "answer 1",
        "_status": "succeeded",
        "_error_code": None,
        "_error_message": None,
        "_raw_output": None,
        "_provider": "simulated-a",
        "_model": "gpt-4o-mini",
        "_input_tokens": 10,
        "_output_tokens": 2,
        "_cost_usd": "0.000001059000",
        "_batch_id": "batch_0",
        "_run_key": "2026-11-22",
        "_request_hash": "hash1",
        "_completed_at": "2026-11-22 10:00:00.123000+00:00",
    }
    assert list(rows[0]) == [
        "ticket_id",
        "subject",
        "output",
        "_status",
        "_error_code",
        "_error_message",
        "_raw_output",
        "_provider",
        "_model",
        "_input_tokens",
        "_output_tokens",
        "_cost_usd",
        "_batch_id",
        "_run_key",
        "_request_hash",
        "_completed_at",
    ]
    assert (report.rows, report.succeeded) == (3, 3)
    assert (report.input_tokens, report.output_tokens) == (30, 6)
    assert str(report.cost_usd) == "0.000003177000"
    assert type(report).from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_the_openai_dialect_lands_the_same_answers(kit: Any, run_folder: Any) -> None:
    body = kit.chat_body("yes") | {
        "model": "gpt-4o-mini-2024",
        "usage": {"prompt_tokens": 7, "completion_tokens": 1},
    }
    refused = {
        "error": {"message": "too long", "type": "invalid", "code": "context_length_exceeded"}
    }
    run_folder.add_part(
        4,
        [
            {
                "id": "r0",
                "custom_id": kit.item_id(0),
                "response": {"status_code": 200, "request_id": "x", "body": body},
                "error": None,
            },
            {
                "id": "r1",
                "custom_id": kit.item_id(1),
                "response": {"status_code": 400, "request_id": "x", "body": refused},
                "error": None,
            },
            {
                "id": "r2",
                "custom_id": kit.item_id(2),
                "response": None,
                "error": {"code": "expired", "message": "late"},
            },
            {"id": "r3", "custom_id": kit.item_id(3), "response": None, "error": None},
        ],
    )

    run_folder.land(kit.text_job)

    rows = run_folder.landed()
    assert (
        rows[0]["output"],
        rows[0]["_model"],
        rows[0]["_input_tokens"],
        rows[0]["_output_tokens"],
    ) == ("yes", "gpt-4o-mini-2024", 7, 1)
    told = [(row["_status"], row["_error_code"], row["_error_message"]) for row in rows[1:]]
    assert told == [
        ("failed", "context_length_exceeded", "too long"),
        ("failed", "expired", "late"),
        ("failed", "unknown_error", "the line has neither a response nor an error"),
    ]


@pytest.mark.parametrize(("seed", "rows_a_share"), [(0, 100_000), (1, 700), (2, 5_000)])
def test_a_shuffled_artifact_gives_the_same_table(
    kit: Any, run_folder: Any, monkeypatch: pytest.MonkeyPatch, seed: int, rows_a_share: int
) -> None:
    monkeypatch.setattr(index_module, "_ROWS_A_SHARE", rows_a_share)
    lines = [kit.native(n, kit.chat_body(f"answer {n} é")) for n in range(5000)]
    run_folder.add_part(5000, lines, skipped=())
    in_order = run_folder.land(kit.text_job)
    expected = (run_folder.table_path / "label--2026-11-22-0a1b2c/rows.parquet").read_bytes()
    random.Random(seed).shuffle(lines)
    artifact = run_folder.root / "artifact-0.jsonl"
    artifact.write_bytes(kit.encoded(lines))

    shuffled = run_folder.land(kit.text_job)

    assert (
        run_folder.table_path / "label--2026-11-22-0a1b2c/rows.parquet"
    ).read_bytes() == expected
    assert shuffled.succeeded == in_order.succeeded == 5000
    assert run_folder.rejects == []


def test_shares_of_the_ids_reject_and_miss_the_same_lines(
    kit: Any, run_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [kit.native(n, kit.chat_body(f"answer {n}")) for n in range(300) if n % 7]
    lines += [kit.native(n, kit.chat_body("late")) for n in range(0, 450, 3)]
    random.Random(5).shuffle(lines)
    run_folder.add_part(300, lines, skipped=())
    whole = run_folder.land(kit.text_job)
    rows, rejects = run_folder.landed(), run_folder.rejects
    for path in (run_folder.root / "rejects").iterdir():
        path.unlink()
    monkeypatch.setattr(index_module, "_ROWS_A_SHARE", 20)

    shared = run_folder.land(kit.text_job)

    assert whole.missing > 0
    assert whole.duplicate_lines > 0
    assert whole.unknown_lines == 50
    assert run_folder.landed() == rows
    assert run_folder.rejects == rejects
    assert {**shared.to_dict(), "duration_s": 0} == {**whole.to_dict(), "duration_s": 0}


def test_the_item_id_decides_and_not_the_sequence_number(kit: Any, run_folder: Any) -> None:
    run_folder.add_part(
        3,
        [
            kit.native(0, sequence_no=2),
            kit.native(1, customer_item_id="item of another run"),
            kit.native(2, sequence_no=0),
        ],
    )

    report = run_folder.land(kit.text_job)

    rows = run_folder.landed()
    assert [row["output"] for row in rows] == ["answer 0", None, "answer 2"]
    assert (rows[1]["_status"], rows[1]["_error_code"]) == ("missing", "no_line")
    assert report.unknown_lines == 1
    assert run_folder.rejects[0]["reason"] == "the item id is of no row of this part"


def test_the_first_readable_line_of_an_item_counts(kit: Any, run_folder: Any) -> None:
    lines = [kit.native(n) for n in range(4)]
    again = [kit.native(n, kit.chat_body("again")) for n in (1, 3)]
    run_folder.add_part(4, [lines[0], lines[1], again[0], lines[2], lines[3], again[1]])

    report = run_folder.land(kit.text_job)

    assert [row["output"] for row in run_folder.landed()] == [f"answer {n}" for n in range(4)]
    assert (report.duplicate_lines, report.unknown_lines) == (2, 0)
    assert all("again" in each["raw"] for each in run_folder.rejects)


def test_a_truncated_last_line_is_kept_aside_and_its_row_is_missing(
    kit: Any, run_folder: Any
) -> None:
    whole = kit.encoded([kit.native(n) for n in range(3)])
    run_folder.add_part(3, [whole[:-40]])

    report = run_folder.land(kit.text_job)

    assert statuses(run_folder.landed()) == ["succeeded", "succeeded", "missing"]
    assert (report.quarantined, report.missing) == (1, 1)
    rejected = run_folder.rejects[0]
    assert whole[rejected["byte_offset"] :].startswith(rejected["raw"].encode())
    assert report.reject_files == ("t0k3n-part-00000.jsonl",)


UGLY = {
    "not json": b"upstream connect error\n",
    "empty object": b"{}\n",
    "array": b"[1, 2]\n",
    "null": b"null\n",
    "id is a number": b'{"customer_item_id": 5, "output": null}\n',
    "nul bytes": b"\x00\x00\x00\n",
    "not utf-8": b'{"customer_item_id": "\xff\xfe"}\n',
    "NaN": b'{"customer_item_id": "item0000000000000000000001", "output": {"x": NaN}}\n',
    "deep": b'{"customer_item_id": "x", "output": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "two objects": b'{"customer_item_id": "item0000000000000000000001"} {}\n',
    "bom in the middle": b'\xef\xbb\xbf{"customer_item_id": "item0000000000000000000001"}\n',
    "lone surrogate id": b'{"customer_item_id": "\\ud800", "output": NaN}\n',
}


@pytest.mark.parametrize("name", UGLY)
def test_an_unreadable_line_is_quarantined_and_the_others_land(
    kit: Any, run_folder: Any, name: str
) -> None:
    run_folder.add_part(3, [kit.native(0), UGLY[name], kit.native(2)])

    report = run_folder.land(kit.text_job)

    assert statuses(run_folder.landed()) == ["succeeded", "missing", "succeeded"]
    assert report.quarantined == 1
    assert "raw" in run_folder.rejects[0] or "raw_base64" in run_folder.rejects[0]


def test_blank_lines_carriage_returns_and_a_leading_bom_are_passed_over(
    kit: Any, run_folder: Any
) -> None:
    body = kit.encoded([kit.native(n) for n in range(3)]).replace(b"\n", b"\r\n\r\n  \n")
    run_folder.add_part(3, [b"\xef\xbb\xbf" + body])

    report = run_folder.land(kit.text_job)

    assert (report.succeeded, report.quarantined) == (3, 0)


def test_an_unreadable_detail_does_not_lose_the_answer(kit: Any, run_folder: Any) -> None:
    huge = 10**30
    run_folder.add_part(
        6,
        [
            kit.native(0, cost=0.5, usage="many", completed_at=7),
            kit.native(1, usage={"input_tokens": huge, "output_tokens": -1}),
            kit.native(2, cost={"currency": "usd", "amount": "cheap"}, completed_at="yesterday"),
            kit.native(3, cost={"currency": "eur", "amount": "1.00"}),
            kit.native(4, provider=["x"], provider_model=None),
            kit.native(5, cost={"currency": "usd", "amount": "0.0000000000001"}),
        ],
    )

    report = run_folder.land(kit.text_job)

    rows = run_folder.landed()
    assert [row["output"] for row in rows] == [f"answer {n}" for n in range(6)]
    assert [row["_cost_usd"] is None for row in rows] == [True, False, True, True, False, True]
    assert [row["_input_tokens"] for row in rows] == [None, None, 10, 10, 10, 10]
    assert [row["_completed_at"] is None for row in rows] == [
        True,
        False,
        True,
        False,
        False,
        False,
    ]
    assert report.succeeded == 6


def test_failed_lines_keep_code_and_message(kit: Any, run_folder: Any) -> None:
    def failed(row: int, error: Any, **fields: Any) -> dict[str, Any]:
        return kit.native(row, None, **{"status": "failed", "error": error, **fields})

    run_folder.add_part(
        7,
        [
            failed(0, {"code": "content_policy", "message": "no"}),
            failed(1, {"code": None, "message": {"detail": "odd"}}),
            failed(2, "just text"),
            failed(3, None),
            kit.native(4, error={"code": "provider_error", "message": "but completed"}),
            kit.native(5, status="in_progress"),
            kit.native(6, status="succeeded"),
        ],
    )

    report = run_folder.land(kit.text_job)

    told = [(row["_error_code"], row["_error_message"]) for row in run_folder.landed()]
    assert told == [
        ("content_policy", "no"),
        ("unknown_error", '{"detail":"odd"}'),
        ("unknown_error", "just text"),
        ("unknown_error", "the line's status is 'failed', and it has no error"),
        ("provider_error", "but completed"),
        ("unknown_error", "the line's status is 'in_progress', and it has no error"),
        (None, None),
    ]
    assert (report.failed, report.succeeded) == (6, 1)
    assert report.error_codes == {"unknown_error": 4, "content_policy": 1, "provider_error": 1}


def test_skipped_rows_keep_their_place_and_reason(kit: Any, run_folder: Any) -> None:
    run_folder.add_part(5, [kit.native(0), kit.native(2), kit.native(4)], skipped=(1, 3))
    run_folder.add_part(2, None, skipped=(5, 6), batch_id=None, batch_state=None)

    report = run_folder.land(kit.text_job)

    rows = run_folder.landed()
    assert [row["ticket_id"] for row in rows] == list(range(7))
    assert statuses(rows) == [
        "succeeded",
        "skipped",
        "succeeded",
        "skipped",
        "succeeded",
        "skipped",
        "skipped",
    ]
    assert (rows[1]["_error_message"], rows[1]["_batch_id"]) == ("body is NULL", None)
    assert (report.skipped, report.succeeded) == (4, 3)


@pytest.mark.parametrize(
    ("state", "error", "expected"),
    [
        (
            "cancelled",
            None,
            ("missing", "cancelled", "the batch ended cancelled before this item was done"),
        ),
        (
            "canceled",
            None,
            ("missing", "cancelled", "the batch ended cancelled before this item was done"),
        ),
        ("expired", ("late", "24 h"), ("missing", "expired", "late: 24 h")),
        ("failed", ("no_lane", "all down"), ("failed", "batch_failed", "no_lane: all down")),
        ("failed", None, ("failed", "batch_failed", "the batch failed and told no reason")),
        ("succeeded", None, ("missing", "no_artifact", "no artifact came for this part")),
    ],
)
def test_rows_without_a_line_say_how_the_batch_ended(
    kit: Any, run_folder: Any, state: str, error: Any, expected: tuple[str, str, str]
) -> None:
    run_folder.add_part(2, [kit.native(0), kit.native(1)])
    run_folder.add_part(1, None, batch_state=state, batch_error=error)

    report = run_folder.land(kit.text_job)

    row = run_folder.landed()[2]
    assert (row["_status"], row["_error_code"], row["_error_message"]) == expected
    assert row["_batch_id"] == "batch_1"
    assert (report.rows, report.succeeded) == (3, 2)


def test_a_cancelled_part_lands_the_lines_that_came(kit: Any, run_folder: Any) -> None:
    run_folder.add_part(3, [kit.native(0)], batch_state="cancelled")

    run_folder.land(kit.text_job)

    assert [(r["_status"], r["_error_code"]) for r in run_folder.landed()] == [
        ("succeeded", None),
        ("missing", "cancelled"),
        ("missing", "cancelled"),
    ]


def test_an_empty_table_and_an_empty_artifact_land(kit: Any, run_folder: Any) -> None:
    run_folder.add_part(0, [])

    report = run_folder.land(kit.text_job)

    assert (report.rows, run_folder.landed()) == (0, [])


def test_extra_lines_after_the_last_row_are_rejected(kit: Any, run_folder: Any) -> None:
    run_folder.add_part(1, [kit.native(0), kit.native(0), kit.native(9), b"rest"])

    report = run_folder.land(kit.text_job)

    assert (report.duplicate_lines, report.unknown_lines, report.quarantined) == (1, 1, 1)
    assert report.succeeded == 1


def test_a_line_across_and_beyond_the_read_size_lands(
    kit: Any, run_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines_module, "CHUNK_BYTES", 64)
    monkeypatch.setattr(lines_module, "MAX_LINE_BYTES", 4096)
    monster = b'{"customer_item_id": "' + b"x" * 10_000 + b'"}\n'
    run_folder.add_part(3, [kit.native(0), monster, kit.native(1), kit.native(2)])

    report = run_folder.land(kit.text_job)

    assert report.succeeded == 3
    assert report.quarantined >= 1


def test_a_snapshot_that_is_not_the_promised_one_lands_nothing(kit: Any, run_folder: Any) -> None:
    part = run_folder.add_part(2, [kit.native(0), kit.native(1)])
    run_folder.parts = [type(part)(part.index, part.rows_path, 3, part.artifact_path)]

    with pytest.raises(LandingError, match="has 2 rows, and the run built 3"):
        run_folder.land(kit.text_job)

    assert not run_folder.table_path.exists()


def test_overlapping_snapshots_land_nothing(kit: Any, run_folder: Any) -> None:
    run_folder.add_part(2, [kit.native(0), kit.native(1)])
    run_folder.rows_so_far = 1
    run_folder.add_part(2, [kit.native(1), kit.native(2)])

    with pytest.raises(LandingError, match="source order"):
        run_folder.land(kit.text_job)

    assert not list(run_folder.table_path.rglob("*.parquet"))


def test_a_lost_artifact_file_is_a_storage_error_and_lands_nothing(
    kit: Any, run_folder: Any
) -> None:
    run_folder.add_part(1, [kit.native(0)])
    (run_folder.root / "artifact-0.jsonl").unlink()

    with pytest.raises(StorageError, match="artifact-0"):
        run_folder.land(kit.text_job)

    assert not list(run_folder.root.glob("lake/**/*"))


def test_the_run_folder_may_be_anywhere(kit: Any, run_folder: Any) -> None:
    run_folder.add_part(300, [kit.native(n) for n in reversed(range(300))])
    memory = fsspec.filesystem("memory")
    part = run_folder.parts[0]
    memory.pipe("/run/rows.parquet", (run_folder.root / "rows-0.parquet").read_bytes())
    memory.pipe("/run/artifact.jsonl", (run_folder.root / "artifact-0.jsonl").read_bytes() + b"?")
    there = type(part)(0, "/run/rows.parquet", 300, "/run/artifact.jsonl", "batch_0", "succeeded")

    report = run_folder.land(kit.text_job, fs=memory, parts=[there], rejects_dir="/run/rejects")

    assert (report.succeeded, report.quarantined) == (300, 1)
    assert memory.cat("/run/rejects/t0k3n-part-00000.jsonl").endswith(b'"raw":"?"}\n')

"""Items that are sent again: the same lines, in order, and one table of the newest answers."""

import json
import random
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchrouter.errors import DamagedManifestError, LandingError
from batchrouter.job import Job
from batchrouter.landing.land import LandingIdentity, LandingReport, PartToLand, land_parts
from batchrouter.landing.resending import (
    FAILED,
    INVALID,
    SentPart,
    build_round,
)
from batchrouter.landing.sinks import open_sink
from batchrouter.manifest.build import build_manifest
from batchrouter.manifest.built import BuiltManifest
from batchrouter.manifest.parts import PartLimits

FS = fsspec.filesystem("file")
COST = Decimal("0.000001059")
STATUS = {"answered": "succeeded", "failed": "failed", "invalid": "invalid_output"}
FATES = ("answered", "failed", "invalid", "missing")


class Rounds:
    """A job that was built and answered; each round's fate of a request is told by its text."""

    def __init__(self, kit: Any, folder: Path, job: Job, fates: Sequence[dict[str, str]]) -> None:
        self.kit, self.folder, self.job, self.fates = kit, folder, job, fates
        self.chance = random.Random(7)
        self.paid_usd = Decimal(0)
        self.folders = (f"{folder}/manifest", f"{folder}/rows")
        self.manifests = [
            build_manifest(
                job, fs=FS, manifest_dir=self.folders[0], rows_dir=self.folders[1], token="t0"
            )
        ]
        self.rounds = [self._answered(self.manifests[0])]

    def lines(self, manifest: BuiltManifest) -> list[dict[str, Any]]:
        paths = [Path(self.folders[0]) / part.manifest_path for part in manifest.parts]
        return [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]

    def _answered(self, manifest: BuiltManifest) -> list[PartToLand]:
        parts: list[PartToLand] = []
        for part in manifest.parts:
            path = Path(self.folders[0]) / part.manifest_path
            asked = [json.loads(line) for line in path.read_bytes().splitlines()]
            lines = [line for n, each in enumerate(asked) for line in self._answers(n, each)]
            self.chance.shuffle(lines)
            artifact = path.with_suffix(".artifact")
            artifact.write_bytes(self.kit.encoded(lines))
            parts.append(
                PartToLand(
                    part.index, f"{self.folders[1]}/{part.rows_path}", part.row_count,
                    str(artifact), f"batch_{len(self.manifests) - 1}_{part.index}", "succeeded",
                )
            )  # fmt: skip
        return parts

    def fate(self, resend_round: int, said: str) -> str:
        return self.fates[resend_round].get(said, "answered")

    def _answers(self, number: int, asked: dict[str, Any]) -> list[Any]:
        said = asked["input"]["messages"][-1]["content"]
        fate = self.fate(len(self.manifests) - 1, said)
        told = {"customer_item_id": asked["customer_item_id"]}
        if fate == "missing":
            return [b"{broken\n"] if number % 2 else []
        self.paid_usd += COST
        if fate == "failed":
            error = {"code": "provider_error", "message": said}
            return [self.kit.native(number, None, status="failed", error=error, **told)]
        text = "nonsense" if fate == "invalid" else json.dumps({"words": len(said.split())})
        return [self.kit.native(number, self.kit.chat_body(text), **told)]

    def resend(self, statuses: frozenset[str], **changes: Any) -> BuiltManifest | None:
        given: dict[str, Any] = {
            "fs": FS,
            "sent": self.sent(),
            "statuses": statuses,
            "folders": self.folders,
            "token": f"t{len(self.manifests)}",
            "limits": PartLimits.of(self.job.parts),
            "max_output_tokens": None,
        }
        built = build_round(self.job, **(given | changes))
        if built is not None:
            self.manifests.append(built)
            self.rounds.append(self._answered(built))
        return built

    def sent(self) -> list[SentPart]:
        return [
            SentPart(part, f"{self.folders[0]}/{built.manifest_path}", built.sha256)
            for part, built in zip(self.rounds[-1], self.manifests[-1].parts, strict=True)
            if built.item_count
        ]

    def land(self) -> tuple[LandingReport, list[dict[str, Any]]]:
        (self.folder / "rejects").mkdir(exist_ok=True)
        report = land_parts(
            self.job, fs=FS, parts=self.rounds[0], resent=self.rounds[1:],
            sink=open_sink(str(self.folder / "table")),
            identity=LandingIdentity("label", "r", "r-0"),
            rejects_dir=str(self.folder / "rejects"), token="t",
        )  # fmt: skip
        return report, pq.read_table(self.folder / "table").to_pylist()


def make_job(kit: Any, bodies: Sequence[str | None], **fields: Any) -> Job:
    table = pa.table({
        "ticket_id": pa.array(range(len(bodies)), pa.int64()),
        "subject": [f"s{n}" for n in range(len(bodies))],
        "body": pa.array(bodies, pa.string()),
    })
    request = {"kind": "chat", "user": "{body}", "output": {"words": {"type": "integer"}}}
    return kit.job(request, source=table, on_null="skip", **fields)


BODIES = st.lists(st.sampled_from([None, "a", "b b", "c", "d d d", "e", "f"]), max_size=24)
FATES_OF_ROUNDS = st.lists(
    st.dictionaries(st.sampled_from(["a", "b b", "c", "d d d", "e", "f"]), st.sampled_from(FATES)),
    min_size=4,
    max_size=4,
)


CASES = st.tuples(
    BODIES,
    FATES_OF_ROUNDS,
    st.integers(1, 6),
    st.booleans(),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(case=CASES)
def test_a_row_takes_what_its_newest_round_answered(
    kit: Any, tmp_path_factory: pytest.TempPathFactory, case: Any
) -> None:
    bodies, fates, max_items, dedupe, rounds = case
    folder = tmp_path_factory.mktemp("any")
    job = make_job(kit, bodies, dedupe=dedupe, parts={"max_items": max_items})
    run = Rounds(kit, folder, job, fates)
    expected = {body: [run.fate(0, body)] for body in bodies if body is not None}
    for number in range(1, max(rounds) + 1):
        wanted = (FAILED if number <= rounds[0] else frozenset[str]()) | (
            INVALID if number <= rounds[1] else frozenset[str]()
        )
        again = [
            body
            for body, told in expected.items()
            if len(told) == number and STATUS.get(told[-1], "missing") in wanted
        ]
        built = run.resend(wanted)
        asked = [] if built is None else run.lines(built)
        assert {each["input"]["messages"][-1]["content"] for each in asked} == set(again)
        for body in again:
            expected[body].append(run.fate(number, body))
        if built is None:
            break

    report, rows = run.land()

    assert [row["ticket_id"] for row in rows] == list(range(len(bodies)))
    for row, body in zip(rows, bodies, strict=True):
        if body is None:
            assert row["_status"] == "skipped"
            continue
        came = [fate for fate in expected[body] if fate != "missing"]
        assert row["_status"] == (STATUS[came[-1]] if came else "missing")
        assert row["words"] == (len(body.split()) if came[-1:] == ["answered"] else None)
        if not dedupe:
            assert (row["_cost_usd"] or 0) == COST * len(came)
    assert report.cost_usd == run.paid_usd
    assert sum((row["_cost_usd"] or 0 for row in rows), Decimal(0)) == run.paid_usd


def test_the_lines_are_those_that_were_sent(kit: Any, tmp_path: Path) -> None:
    job = make_job(kit, ["a", "c", "é\n“b”", "d d d"])
    run = Rounds(kit, tmp_path, job, [{"c": "failed", "é\n“b”": "missing"}, {}])

    built = run.resend(FAILED)

    assert built is not None
    [first], [again] = run.manifests[0].parts, built.parts
    lines = (tmp_path / "manifest" / first.manifest_path).read_bytes().splitlines(keepends=True)
    resent = (tmp_path / "manifest" / again.manifest_path).read_bytes()
    assert resent == b"".join(lines[1:3])
    assert (again.item_count, again.row_count, again.bytes) == (2, 2, len(resent))
    rows = pq.read_table(tmp_path / "rows" / again.rows_path)
    assert rows.column("_row").to_pylist() == [1, 2]
    assert rows.column("_line").to_pylist() == [0, 1]


def test_a_round_is_cut_at_the_limits(kit: Any, tmp_path: Path) -> None:
    bodies = [f"n{number:03d}" for number in range(20)]
    run = Rounds(kit, tmp_path, make_job(kit, bodies), [dict.fromkeys(bodies, "failed"), {}])
    line_bytes = run.manifests[0].parts[0].bytes // 20

    built = run.resend(FAILED, limits=PartLimits(max_bytes=3 * line_bytes))

    assert built is not None
    assert [part.item_count for part in built.parts] == [3] * 6 + [2]
    _, rows = run.land()
    assert {row["_status"] for row in rows} == {"succeeded"}


def test_a_round_that_would_send_nothing_leaves_no_file(kit: Any, tmp_path: Path) -> None:
    run = Rounds(kit, tmp_path, make_job(kit, ["a", "c"]), [{"a": "invalid"}, {}])
    before = sorted(tmp_path.rglob("*"))

    assert run.resend(FAILED) is None
    assert sorted(tmp_path.rglob("*")) == before
    assert run.resend(INVALID) is not None


@pytest.mark.parametrize("damage", ["gone", "cut", "changed"])
def test_a_manifest_that_is_not_what_was_built_is_not_copied(
    kit: Any, tmp_path: Path, damage: str
) -> None:
    run = Rounds(kit, tmp_path, make_job(kit, ["a", "c"]), [{"c": "failed"}, {}])
    path = tmp_path / "manifest" / run.manifests[0].parts[0].manifest_path
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(whole[:-40] if damage == "cut" else whole.replace(b'"a"', b'"b"'))
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(DamagedManifestError, match="part 0"):
        run.resend(FAILED)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_row_that_was_never_sent_lands_nothing(kit: Any, tmp_path: Path) -> None:
    run = Rounds(kit, tmp_path, make_job(kit, ["a", "c", "e"]), [{"c": "failed"}, {}])
    run.resend(FAILED)
    path = Path(run.rounds[1][0].rows_path)
    rows = pq.read_table(path)
    pq.write_table(rows.set_column(0, "_row", pa.array([77], pa.int64())), path)

    with pytest.raises(LandingError, match="sent again, near row 77"):
        run.land()
    assert not (tmp_path / "table").exists()


def test_costs_that_make_no_sense_do_not_stop_a_landing(kit: Any, tmp_path: Path) -> None:
    run = Rounds(kit, tmp_path, make_job(kit, ["a"]), [{"a": "invalid"}, {"a": "invalid"}])
    run.resend(INVALID)
    huge = {
        "usage": {"input_tokens": 2**63 - 1, "output_tokens": 1},
        "cost": {"currency": "usd", "amount": "9" * 26},
    }
    for parts in run.rounds:
        path = Path(parts[0].artifact_path or "")
        path.write_bytes(kit.encoded([{**json.loads(path.read_bytes()), **huge}]))

    _, [row] = run.land()

    assert row["_input_tokens"] == 2**63 - 1
    assert row["_output_tokens"] == 2
    assert row["_cost_usd"] == Decimal("9" * 26)

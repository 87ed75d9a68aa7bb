"""A deduplicated job lands the table of the plain one, whatever becomes of its lines."""

import json
import random
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchrouter.errors import LandingError
from batchrouter.job import Job
from batchrouter.landing import index as index_module
from batchrouter.landing.land import LandingIdentity, LandingReport, PartToLand, land_parts
from batchrouter.landing.sinks import open_sink
from batchrouter.manifest.build import build_manifest
from batchrouter.manifest.built import BuiltManifest

PAID = ("_cost_usd", "_input_tokens", "_output_tokens")
FATES = ("answered", "failed", "invalid", "missing")


class Bought:
    """A job that was built, and answered by what each request says and by nothing else."""

    def __init__(self, kit: Any, folder: Path, job: Job, fates: dict[str, str], seed: int) -> None:
        self._kit = kit
        self._fates = fates
        self._chance = random.Random(seed)
        self.job = job
        self.folder = folder
        self.paid_usd = Decimal(0)
        self.built = build_manifest(
            job, fs=fsspec.filesystem("file"), manifest_dir=f"{folder}/manifest",
            rows_dir=f"{folder}/rows", token="t",
        )  # fmt: skip
        self.parts = list(self._answered(self.built))

    def _answered(self, built: BuiltManifest) -> Iterator[PartToLand]:
        for part in built.parts:
            path = self.folder / "manifest" / part.manifest_path
            asked = [json.loads(line) for line in path.read_bytes().splitlines()]
            lines = [line for n, each in enumerate(asked) for line in self._answers(n, each)]
            self._chance.shuffle(lines)
            artifact = path.with_suffix(".artifact")
            artifact.write_bytes(self._kit.encoded(lines))
            yield PartToLand(
                part.index, str(self.folder / "rows" / part.rows_path), part.row_count,
                str(artifact), f"batch_{part.index}", "succeeded",
            )  # fmt: skip

    def _answers(self, number: int, asked: dict[str, Any]) -> list[Any]:
        said = asked["input"]["messages"][-1]["content"]
        fate = self._fates.get(said, "answered")
        told = {"customer_item_id": asked["customer_item_id"]}
        if fate == "missing":
            return [b"{broken\n"] if number % 2 else []
        self.paid_usd += Decimal("0.000001059")
        if fate == "failed":
            error = {"code": "content_policy", "message": said}
            return [self._kit.native(number, None, status="failed", error=error, **told)]
        text = "nonsense" if fate == "invalid" else json.dumps({"words": len(said.split())})
        return [self._kit.native(number, self._kit.chat_body(text), **told)]

    def land(self) -> tuple[LandingReport, list[dict[str, Any]]]:
        (self.folder / "rejects").mkdir(exist_ok=True)
        report = land_parts(
            self.job, fs=fsspec.filesystem("file"), parts=self.parts,
            sink=open_sink(str(self.folder / "table")),
            identity=LandingIdentity("label", "r", "r-0"),
            rejects_dir=str(self.folder / "rejects"), token="t",
        )  # fmt: skip
        return report, pq.read_table(self.folder / "table").to_pylist()


def _job(kit: Any, bodies: list[str | None], **fields: Any) -> Job:
    table = pa.table({
        "ticket_id": pa.array(range(len(bodies)), pa.int64()),
        "subject": [f"s{n}" for n in range(len(bodies))],
        "body": pa.array(bodies, pa.string()),
    })
    request = {"kind": "chat", "user": "{body}", "output": {"words": {"type": "integer"}}}
    return kit.job(request, source=table, on_null="skip", **fields)


def _stripped(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what tells who paid, and in which batch."""
    hidden = {*PAID, "_batch_id"}
    return [{name: value for name, value in row.items() if name not in hidden} for row in rows]


CASES = st.tuples(
    st.lists(st.sampled_from([None, "a", "b b", "c", "d d d", "e", "f"]), max_size=30),
    st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(FATES)),
    st.integers(1, 6),
    st.integers(0, 3),
)


@pytest.fixture(autouse=True, scope="module", params=[100_000, 2])
def rows_a_share(request: pytest.FixtureRequest) -> Iterator[None]:
    """All ids at once, and a share of two rows at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "_ROWS_A_SHARE", request.param)
        yield


# The kit has no state that one example could leave to the next.
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(case=CASES)
def test_the_table_is_that_of_the_plain_job(
    kit: Any, tmp_path_factory: pytest.TempPathFactory, case: Any
) -> None:
    bodies, by_letter, max_items, seed = case
    fates = {body: by_letter[body[0]] for body in bodies if body and body[0] in by_letter}
    folder = tmp_path_factory.mktemp("any")
    fields = {"parts": {"max_items": max_items}}
    plain = Bought(kit, folder / "plain", _job(kit, bodies, **fields), fates, seed)
    once = Bought(kit, folder / "once", _job(kit, bodies, dedupe=True, **fields), fates, seed)

    told, rows = once.land()
    plain_told, plain_rows = plain.land()

    assert _stripped(rows) == _stripped(plain_rows)
    assert told.cost_usd == once.paid_usd
    assert sum((row["_cost_usd"] or 0 for row in rows), Decimal(0)) == once.paid_usd
    assert (told.rows, told.succeeded, told.failed, told.invalid_output, told.missing) == (
        plain_told.rows, plain_told.succeeded, plain_told.failed, plain_told.invalid_output,
        plain_told.missing,
    )  # fmt: skip
    sent = {body for body in bodies if body is not None}
    assert once.built.item_count == len(sent)


def test_the_row_that_was_sent_pays_and_its_batch_is_named(kit: Any, tmp_path: Path) -> None:
    job = _job(kit, ["a", "b", "a", "a"], dedupe=True, parts={"max_items": 1})

    _, rows = Bought(kit, tmp_path, job, {}, 0).land()

    assert [row["_batch_id"] for row in rows] == ["batch_0", "batch_1", "batch_0", "batch_0"]
    assert [row["_input_tokens"] for row in rows] == [10, 10, 0, 0]
    assert [row["_output_tokens"] for row in rows] == [2, 2, 0, 0]
    assert [str(row["_cost_usd"]) for row in rows] == ["0.000001059000"] * 2 + ["0E-12"] * 2


def test_what_a_batch_ended_with_is_told_to_all_its_rows(kit: Any, tmp_path: Path) -> None:
    job = _job(kit, ["a", "b", "a"], dedupe=True, parts={"max_items": 1})
    bought = Bought(kit, tmp_path, job, {}, 0)
    first, second = bought.parts
    bought.parts = [
        PartToLand(0, first.rows_path, 1, None, "batch_0", "expired"), second,
    ]  # fmt: skip

    _, rows = bought.land()

    assert [(row["_status"], row["_error_code"]) for row in rows] == [
        ("missing", "expired"), ("succeeded", None), ("missing", "expired"),
    ]  # fmt: skip


def test_a_row_whose_item_nobody_sent_lands_nothing(kit: Any, tmp_path: Path) -> None:
    job = _job(kit, ["a", "b", "a"], dedupe=True)
    bought = Bought(kit, tmp_path, job, {}, 0)
    path = Path(bought.parts[0].rows_path)
    table = pq.read_table(path)
    ids = pa.array([*table["_item_id"].to_pylist()[:2], "z" * 26])
    pq.write_table(table.set_column(2, "_item_id", ids), path)

    with pytest.raises(LandingError, match="never sent"):
        bought.land()
    assert not (tmp_path / "table").exists()

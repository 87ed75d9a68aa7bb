"""A job is checked as a whole, and tells every problem with its path and what to do."""

import pickle
import subprocess
import sys
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from batchrouter.errors import BatchrouterError, JobError
from batchrouter.job import Chat, Embedding, Job, Parts, Raw, Retain, Route, Workflow

GOOD: dict[str, Any] = {
    "name": "label-tickets",
    "params": {"day": None, "shard": 0},
    "source": "data/day=${params.day}",
    "key": "ticket_id",
    "request": {"kind": "chat", "user": "{body}"},
    "route": {"models": ["gpt-4o-mini"]},
    "budget": "25.00",
    "sink": "lake/labelled",
}


class Label(BaseModel):
    intent: str
    urgent: bool = False


def _problems(**changes: Any) -> tuple[str, ...]:
    fields = {name: value for name, value in {**GOOD, **changes}.items() if value != "absent"}
    with pytest.raises(JobError) as caught:
        Job.model_validate(fields)
    return caught.value.problems


def test_the_designs_example_loads_from_yaml(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("""
name: label-tickets
params: {day: null}
source: data/tickets/day=${params.day}
key: ticket_id
request:
  kind: chat
  system: You label support tickets.
  user: "Subject: {subject}\\n\\n{body}"
  output:
    intent: {type: string, enum: [billing, bug, how_to]}
    urgent: {type: boolean}
  parameters: {max_output_tokens: 64, temperature: 0}
route: {models: [gpt-4o-mini, claude-haiku-4], privacy_tier: standard, allowed_regions: [global]}
budget: 25.00
sink: lake/tickets_labelled
keep: [subject, product]
on_null: error
""")

    job = Job.from_file(tmp_path / "job.yaml", {"day": "2026-11-22"})

    assert job.budget == Decimal("25.00")
    assert str(job.budget) == "25.00"
    assert job.resolved_source == "data/tickets/day=2026-11-22"
    assert job.key_columns == ("ticket_id",)
    assert job.operation == "responses"
    schema = job.request.output_schema()
    assert schema is not None
    assert schema["required"] == ["intent", "urgent"]
    assert schema["additionalProperties"] is False


def test_every_problem_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        "name: a b\nsourse: x\nkey: k\nrequest:\n  kind: chat\n  usr: '{a}'\n"
        "route: {models: [m]}\nsink: s\n"
    )

    with pytest.raises(JobError) as caught:
        Job.from_file(tmp_path / "job.yaml")

    told = "\n".join(caught.value.problems)
    assert "name: must be up to 100 letters" in told
    assert "(line 1)" in told
    assert "sourse: there is no such field; did you mean 'source'? (line 2)" in told
    assert "request.usr: there is no such field; did you mean 'user'? (line 6)" in told
    assert "budget: is missing; give the most that a run may cost in USD" in told
    assert all(problem in str(caught.value) for problem in caught.value.problems)


@pytest.mark.parametrize("field", ["mode", "keep", "incremental"])
def test_what_a_later_release_brings_is_not_accepted(field: str) -> None:
    problems = _problems(**{field: {"a": 1} if field in {"mode", "keep"} else 1})

    assert any(problem.startswith(f"{field}: ") for problem in problems)


@pytest.mark.parametrize("field", ["retry_failed", "retry_invalid"])
@pytest.mark.parametrize("rounds", [-1, 11, True, "1", 1.5, None])
def test_rounds_are_a_small_whole_number(field: str, rounds: Any) -> None:
    problems = _problems(**{field: rounds})

    assert [problem.partition(":")[0] for problem in problems] == [field]


@pytest.mark.parametrize(
    ("retain", "problem"),
    [
        ({"artifact": "7 days"}, "retain.artifact: must be a duration such as 90m, 12h, 7d or 4w"),
        ({"artifact": 7}, "retain.artifact: must be a duration with its unit"),
        ({"artifact": "0d"}, "retain.artifact: must be a duration"),
        ({"artifact": "-7d"}, "retain.artifact: must be a duration"),
        ({"artifact": "\uff17d"}, "retain.artifact: must be a duration"),
        ({"manifest": "99999w"}, "retain.manifest: must be at most 36500d"),
        ({"journal": "until_landed"}, "retain.journal: must be a duration such as 400d"),
        (
            {"artifact": "8d", "journal": "1w"},
            "retain.artifact: 8d is longer than the journal's 1w",
        ),
        ({"rows": "7d"}, "retain.rows: there is no such field"),
        ("7d", "retain: must be a mapping"),
    ],
)
def test_how_long_files_are_kept_is_checked_at_load(retain: Any, problem: str) -> None:
    [told] = _problems(retain=retain)

    assert told.startswith(problem)


def test_how_long_files_are_kept_decides_no_purchase() -> None:
    good = Job.model_validate({**GOOD, "params": {"day": "1", "shard": 0}})
    kept = good.model_copy(update={"retain": Retain(manifest="until_landed", journal="400d")})

    assert kept.fingerprint() == good.fingerprint()
    assert Job.model_validate(kept.model_dump()).retain == kept.retain


@pytest.mark.parametrize(
    ("budget", "kept"),
    [("25.00", "25.00"), (25, "25"), (25.1, "25.1"), (Decimal("0.05"), "0.05"), ("none", None)],
)
def test_budgets_are_exact(budget: Any, kept: str | None) -> None:
    job = Job.model_validate({**GOOD, "budget": budget})

    assert (None if job.budget is None else str(job.budget)) == kept


@pytest.mark.parametrize("budget", [None, "", "much", -1, True, "NaN", "1e-13", float("inf")])
def test_a_budget_that_is_no_amount_is_refused(budget: Any) -> None:
    assert any(
        "budget: " in problem and "`none`" in problem for problem in _problems(budget=budget)
    )


def test_a_missing_budget_is_refused() -> None:
    assert _problems(budget="absent")[0].startswith("budget: is missing")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"key": "_status"}, "key: '_status' is also a column that landing adds"),
        ({"key": ["a", "A"]}, "key: 'A' stands twice"),
        ({"keep": ["ticket_id"]}, "keep: 'ticket_id' is a key, which is carried anyway"),
        ({"keep": "output"}, "request.output: 'output' is also named by keep"),
        ({"keep": ["_Cost_USD"]}, "keep: '_Cost_USD' is also a column that landing adds"),
        (
            {"request": {"kind": "chat", "user": "x", "output": {"Ticket_ID": {"type": "string"}}}},
            "request.output: 'Ticket_ID' is also named by key; rename the property",
        ),
        (
            {"request": {"kind": "chat", "user": "x", "output": {"_row": {"type": "string"}}}},
            "request.output: '_row' is also a column that landing adds",
        ),
    ],
)
def test_names_that_clash_are_refused(changes: dict[str, Any], problem: str) -> None:
    assert any(told.startswith(problem) for told in _problems(**changes)), _problems(**changes)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"request": {"user": "x"}}, "request.kind: must be one of chat, embedding"),
        ({"request": {"kind": "chatt", "user": "x"}}, "request.kind: must be one of chat"),
        ({"request": "chat"}, "request: must be"),
        ({"request": {"kind": "chat", "user": 7}}, "request.user: must be text, not a whole"),
        ({"request": {"kind": "chat", "user": "${params.day}"}}, "request.user: ${params.…} works"),
        ({"request": {"kind": "chat", "user": "\ud800"}}, "request.user: holds half of a surr"),
        ({"route": {}}, "route: names neither models nor a workflow"),
        ({"key": []}, "key: is empty; give at least 1"),
        ({"parts": {"max_items": 0}}, "parts.max_items: must be at least 1"),
        ({"route": {"models": ["a"], "workflow": "w@v1"}}, "route: names models and a workflow"),
        ({"route": {"models": ["a", "a"]}}, "route.models: 'a' stands twice"),
        ({"route": {"models": ["a"], "privacy_tier": "zrd"}}, "route.privacy_tier: must be"),
        ({"route": {"workflow": "w@v1"}}, "route: a chat request needs route.models"),
        ({"request": {"kind": "workflow", "input": {"a": "x"}}}, "route: a workflow request"),
        ({"sink": "detla:lake/t"}, "sink: there is no sink 'detla'; did you mean 'delta'?"),
        ({"sink": "mysql://host/db"}, "sink: there is no sink 'mysql'; there are: delta, "),
        ({"sink": "postgres://host/db"}, "sink: a database is named by a connection"),
        ({"sink": "postgresql:warehouse"}, "sink: names no table after #: write postgresql:<co"),
        ({"sink": "postgresql:me:pw@host#t"}, "sink: has no name of a connection before #"),
        ({"sink": "iceberg:lake.t"}, "sink: names no catalog, namespace and table"),
        ({"sink": "parquet:"}, "sink: names nothing after parquet:"),
        ({"mode": "merge"}, "mode: parquet cannot merge: a folder of Parquet files has no commit"),
        ({"mode": "overwrite"}, "mode: parquet cannot overwrite"),
        ({"mode": "upsert"}, "mode: must be 'replace_run', 'append', 'over"),
        ({"sink": "delta:t", "incremental": True}, "incremental: needs `mode: merge`"),
        ({"sink": "delta:t", "keep": ["_job"]}, "keep: '_job' is also a column that landing adds"),
        ({"source": 7}, "source: must be a path"),
        ({"source": "x/${params.dya}"}, "source: uses the parameter 'dya'"),
        ({"sink": "x/${params.nix}"}, "sink: uses the parameter 'nix'"),
        ({"params": {"a": 1.5}}, "params: a is a number; parameters are text"),
        ({"params": {"a": True}}, "params: a is true or false"),
        ({"parts": {"max_items": 0}}, "parts.max_items: "),
        ({"on_null": "ignore"}, "on_null: must be 'error', 'empty' or 'skip'"),
        (
            {"request": {"kind": "raw", "body": "payload"}, "on_null": "empty"},
            "on_null: an empty body is no request",
        ),
        (
            {"request": {"kind": "chat", "user": "x", "parameters": {"max_tokens": 5}}},
            "request.parameters.max_tokens: has no place here: write max_output_tokens",
        ),
        (
            {"request": {"kind": "chat", "user": "x", "parameters": {"max_output_token": 5}}},
            "request.parameters.max_output_token: there is no such parameter; did you mean",
        ),
        (
            {"request": {"kind": "chat", "user": "x", "parameters": {"max_output_tokens": 0}}},
            "request.parameters.max_output_tokens: must be a whole number",
        ),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], problem: str) -> None:
    assert any(told.startswith(problem) for told in _problems(**changes)), _problems(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"source": "s3://key:hunter2hunter2@lake/t"},
        {"sink": "https://host/t?X-Amz-Signature=hunter2hunter2"},
        {"params": {"day": "https://u:hunter2hunter2@host/"}},
        {"request": {"kind": "chat", "user": "use bk_live_hunter2hunter2hunter2"}},
        {
            "request": {
                "kind": "chat",
                "user": "x",
                "parameters": {"k": "sk-proj-hunter2hunter2hunter2"},
            }
        },
    ],
)
def test_a_literal_credential_is_refused_and_not_repeated(changes: dict[str, Any]) -> None:
    problems = _problems(**changes)

    assert any("keep it in the environment" in problem for problem in problems)
    assert "hunter2" not in "".join(problems)


def test_parameters_take_the_type_of_their_default() -> None:
    job = Job.model_validate({**GOOD, "params": {"day": date(2026, 1, 1), "shard": 0}})

    filled = job.with_params({"day": "2026-11-22", "shard": "3"})

    assert filled.params == {"day": date(2026, 11, 22), "shard": 3}
    assert filled.resolved_source == "data/day=2026-11-22"
    with pytest.raises(JobError, match="params: shard: 'x' is not a whole number"):
        job.with_params({"shard": "x"})
    with pytest.raises(JobError, match=r"no parameter 'dya'; did you mean 'day'\?"):
        job.with_params({"dya": "x"})


def test_a_parameter_without_a_value_is_an_error_when_it_is_used() -> None:
    job = Job.model_validate(GOOD)

    with pytest.raises(JobError, match="source: the parameter 'day' has no value"):
        _ = job.resolved_source
    assert job.resolved_sink == "lake/labelled"


def test_a_credential_in_a_parameter_is_refused_when_it_is_given() -> None:
    with pytest.raises(JobError, match=r"params\.day: holds a password"):
        Job.model_validate(GOOD).with_params({"day": "s3://a:hunter2@b/"})


def test_parts_of_a_job_made_in_python_raise_the_same_error() -> None:
    with pytest.raises(JobError, match=r"Chat: user: is missing"):
        Chat()  # pyright: ignore[reportCallIssue] - the point of the test
    with pytest.raises(BatchrouterError):
        Parts(max_items=-1)


def test_output_is_a_pydantic_model_or_its_name() -> None:
    by_class = Chat(user="{a}", output=Label).output_schema()
    assert by_class is not None
    assert by_class["required"] == ["intent"]
    assert by_class["additionalProperties"] is False
    assert Chat(user="x", output="batchrouter.job.route:Route").output_schema() is not None


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("nowhere.at_all:Model", "output: cannot import nowhere.at_all"),
        ("batchrouter.job.route:Rout", "did you mean 'Route'?"),
        ("Label", "package.module:PydanticModel"),
        ({}, "names no property"),
        ({"a": "string"}, "output.a: must be a schema such as"),
        ({"a": {"type": "str"}}, "output.a: there is no type 'str'; did you mean 'string'?"),
        ({"a": {"type": "string", "enmu": ["x"]}}, "did you mean 'enum'?"),
        ({"a": {"type": "array", "items": {"type": "it"}}}, "output.a.items: there is no type"),
        ({"a": {"enum": []}}, "output.a: enum is empty"),
        ({"a": {"$ref": "#/$defs/X"}}, "leads nowhere"),
        (
            {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["b"]},
            "required names 'b'",
        ),
    ],
)
def test_a_wrong_output_schema_names_the_property(output: Any, problem: str) -> None:
    with pytest.raises(JobError) as caught:
        Chat(user="x", output=output)
    assert problem in str(caught.value)


def test_the_short_form_marks_optional_properties() -> None:
    nested = {"type": "object", "properties": {"x": {"type": "integer"}}}
    schema = Chat(
        user="x", output={"a": {"type": "string", "optional": True}, "b": nested}
    ).output_schema()

    assert schema == {
        "type": "object",
        "properties": {
            "a": {"type": "string"},
            "b": {**nested, "required": ["x"], "additionalProperties": False},
        },
        "required": ["b"],
        "additionalProperties": False,
    }


def test_operations_follow_the_request() -> None:
    def job(request: Any, route: Any) -> Job:
        return Job.model_validate({**GOOD, "request": request, "route": route})

    models, workflow = Route(models=["m"]), Route(workflow="w@v1")
    assert job(Embedding(input="{a}"), models).operation == "embeddings"
    assert job(Workflow(input={"text": "{a}"}), workflow).operation is None
    assert job(Raw(body="payload", operation="embeddings"), models).operation == "embeddings"


def test_the_fingerprint_changes_with_what_decides_the_purchase_only() -> None:
    job = Job.model_validate({**GOOD, "source": "t"})

    def changed(**changes: Any) -> set[str]:
        other = Job.model_validate({**GOOD, "source": "t", **changes}).fingerprint()
        return {part for part, value in job.fingerprint().items() if other[part] != value}

    assert changed(budget="1", sink="other", keep=["x"], parts={"max_items": 5}) == set()
    assert changed(name="other") == set()
    assert changed(source="u") == {"source"}
    assert changed(key=["a", "b"]) == {"key"}
    assert changed(request={"kind": "chat", "user": "{body}!"}) == {"request"}
    assert changed(on_null="skip") == {"request"}
    assert changed(route={"models": ["m"]}) == {"route"}
    assert changed(route={"models": ["gpt-4o-mini"], "privacy_tier": "standard"}) == set()
    assert all(value.startswith("1:") for value in job.fingerprint().values())


def test_a_job_survives_pickle_and_its_own_dump() -> None:
    job = Job.model_validate({**GOOD, "budget": "none", "request": Chat(user="{a}", output=Label)})

    assert pickle.loads(pickle.dumps(job)) == job
    plain = Job.model_validate(GOOD)
    assert Job.model_validate(plain.model_dump()) == plain
    assert Job.model_validate(plain.model_dump(mode="json")) == plain


def test_a_job_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Job.model_validate(GOOD).name = "other"  # pyright: ignore[reportAttributeAccessIssue] - the point of the test


def test_importing_a_job_loads_no_heavy_library() -> None:
    code = (
        "import sys; from batchrouter.job import Job;"
        "heavy = ('pyarrow', 'numpy', 'httpx', 'fsspec', 'yaml', 'msgspec');"
        "print([m for m in heavy if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert out.stdout.strip() == "[]"


def test_incremental_needs_a_table_that_keeps_its_rows() -> None:
    told = _problems(incremental=True)

    assert len(told) == 1
    assert told[0].startswith("incremental: needs `mode: merge`, not replace_run")

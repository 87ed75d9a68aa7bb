"""The command line without a router: help, usage, exit codes, and what a wrong word leads to."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from batchrouter import errors
from batchrouter.cli import failures
from batchrouter.cli.program import main, program
from batchrouter.errors import BatchrouterError

HEAVY = ("httpx", "pydantic", "pyarrow", "rich", "sqlalchemy", "fastapi", "yaml", "fsspec")


def cli(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capfd.readouterr()
    return int(ended.value.code or 0), said.out, said.err


@pytest.fixture
def job_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "tickets.jsonl"
    source.write_text('{"id": 1, "body": "hello"}\n{"id": 2, "body": "bye"}\n', "utf-8")
    path = tmp_path / "job.yaml"
    path.write_text(
        "name: tickets\nsource: tickets.jsonl\nkey: id\n"
        'request: {kind: chat, user: "{body}"}\n'
        "route: {models: [gpt-4o-mini]}\nbudget: 1\nsink: out\n",
        "utf-8",
    )
    return path


def test_help_names_every_command_and_loads_none() -> None:
    code = (
        "import sys\n"
        "from batchrouter.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )

    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )

    assert told.stderr.strip() == "[]"
    for name in program.commands or program.list_commands(None):  # type: ignore[arg-type]
        assert f"\n  {name}  " in told.stdout
    assert "Exit codes:" in told.stdout


@pytest.mark.parametrize("command", program.list_commands(None))  # type: ignore[arg-type]
def test_each_command_has_a_help_that_says_what_it_does(command: str, capfd) -> None:
    code, out, err = cli(capfd, command, "--help")

    assert (code, err) == (0, "")
    assert f"Usage: batchrouter {command}" in out
    assert len(out.splitlines()) > 4


def test_version(capfd) -> None:
    import batchrouter

    assert cli(capfd, "--version")[1] == f"batchrouter {batchrouter.__version__}\n"


def _tree(root: type[BatchrouterError] = BatchrouterError) -> list[type[BatchrouterError]]:
    return [root, *(found for child in root.__subclasses__() for found in _tree(child))]


def test_every_error_has_an_exit_code_of_the_table() -> None:
    for cls in _tree():
        if cls is BatchrouterError or not cls.__module__.startswith("batchrouter."):
            continue
        error = cls("no", status=400) if issubclass(cls, errors.APIError) else cls("no")
        code = failures.code_of(error)
        assert code in failures.EXIT_CODES, cls
        assert code != 1, f"{cls.__name__} would pass for a bug: give it a place in the table"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.JobError("x"), 2),
        (errors.MissingExtraError("x"), 2),
        (errors.DuplicateKeyError("x"), 3),
        (errors.BudgetExceededError("x"), 4),
        (errors.api_error("x", status=402), 4),
        (errors.api_error("x", status=401), 5),
        (errors.api_error("x", status=409), 5),
        (errors.api_error("x", status=429), 6),
        (errors.api_error("x", status=503), 6),
        (errors.TransportError("x"), 6),
        (errors.BatchFailedError("x"), 7),
        (errors.RunIdentityConflictError("x"), 8),
        (errors.SinkError("x"), 9),
        (errors.StorageError("x"), 10),
        (errors.WaitTimeoutError("x"), 11),
    ],
)
def test_the_kind_of_error_decides_the_exit_code(error: BatchrouterError, code: int) -> None:
    assert failures.code_of(error) == code


def test_an_unknown_command_is_a_usage_error(capfd) -> None:
    code, _, err = cli(capfd, "rum")

    assert code == 2
    assert "rum" in err


def test_a_job_file_that_is_not_there_is_a_usage_error(capfd) -> None:
    code, _, err = cli(capfd, "check", "nowhere.yaml")

    assert code == 2
    assert "nowhere.yaml" in err


def test_a_wrong_job_names_each_problem_and_shows_no_traceback(job_file, capfd) -> None:
    job_file.write_text("name: x\nbudjet: 5\n", "utf-8")

    code, out, err = cli(capfd, "check", str(job_file))

    assert (code, out) == (2, "")
    assert err.startswith("Error: ")
    assert "budjet" in err
    assert "source" in err
    assert "Traceback" not in err


def test_check_says_ok_and_shows_the_first_line(job_file, capfd) -> None:
    code, out, _ = cli(capfd, "check", str(job_file))

    assert code == 0
    assert out.startswith("ok")
    assert '"content":"hello"' in out


def test_check_as_json(job_file, capfd) -> None:
    code, out, _ = cli(capfd, "check", str(job_file), "--json")

    told = json.loads(out)
    assert code == 0
    assert told["problems"] == []
    assert json.loads(told["first_line"])["input"]["messages"][0]["content"] == "hello"


def test_check_names_a_column_that_the_source_lacks(job_file, capfd) -> None:
    job_file.write_text(job_file.read_text("utf-8").replace("{body}", "{boddy}"), "utf-8")

    code, _, err = cli(capfd, "check", str(job_file))

    assert code == 3
    assert "boddy" in err
    assert "body" in err


def test_a_parameter_must_have_a_name_and_a_value(job_file, capfd) -> None:
    code, _, err = cli(capfd, "check", str(job_file), "-p", "day")

    assert code == 2
    assert "'day' is not NAME=VALUE" in err


def test_an_undeclared_parameter_is_refused(job_file, capfd) -> None:
    code, _, err = cli(capfd, "check", str(job_file), "-p", "day=1")

    assert code == 2
    assert "day" in err


def test_parameters_fill_the_source(job_file, capfd) -> None:
    text = job_file.read_text("utf-8")
    job_file.write_text(
        "params: {name: null}\n" + text.replace("tickets.jsonl", "${params.name}.jsonl"), "utf-8"
    )

    assert cli(capfd, "check", str(job_file), "-p", "name=tickets")[0] == 0
    assert cli(capfd, "check", str(job_file), "--param", "name=nothing")[0] == 3


def test_a_run_without_a_key_says_how_to_get_one_and_builds_nothing(job_file, capfd) -> None:
    code, _, err = cli(capfd, "run", str(job_file), "--run-key", "1")

    assert code == 2
    assert "BATCHROUTER_API_KEY" in err
    assert not Path("runs").exists()


def test_a_run_needs_a_run_key(job_file, capfd) -> None:
    code, _, err = cli(capfd, "run", str(job_file))

    assert code == 2
    assert "--run-key" in err


def test_json_carries_the_error_as_the_one_document(job_file, capfd) -> None:
    code, out, err = cli(capfd, "run", str(job_file), "--run-key", "1", "--json")

    told = json.loads(out)["error"]
    assert told["code"] == "config_error"
    assert told["exit_code"] == code == 2
    assert told["retryable"] is False
    assert err.startswith("Error: ")


def test_an_unreachable_router_is_code_6_with_advice(job_file, capfd, monkeypatch) -> None:
    import socket

    monkeypatch.setenv("BATCHROUTER_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("BATCHROUTER_API_KEY", "bk_live_x")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        code, _, err = cli(capfd, "run", str(job_file), "--run-key", "1", "--base-url", url)

    assert code == 6
    assert "batchrouter doctor" in err
    assert "bk_live_x" not in err


def test_runs_of_an_empty_folder(tmp_path, capfd, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert cli(capfd, "runs", "list", "--json") == (0, "[]\n", "")
    assert "no runs" in cli(capfd, "runs", "list")[1]


@pytest.mark.parametrize("command", [["runs", "show", "x"], ["cancel"], ["land"]])
def test_a_run_that_is_not_there_is_not_created(command, job_file, capfd) -> None:
    arguments = command if command[0] == "runs" else [*command, str(job_file), "--run-key", "x"]

    code, _, err = cli(capfd, *arguments)

    assert code == 2
    assert "there is no run 'x'" in err
    assert not Path("runs").exists()


def test_doctor_of_a_bare_machine_says_what_to_set(tmp_path, capfd, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    code, out, _ = cli(capfd, "doctor")

    assert code == 2
    assert "ok    python" in out
    assert "fail  key" in out
    assert "→" in out
    assert not list(tmp_path.iterdir()), "it leaves nothing behind"


def test_doctor_does_not_show_secrets(tmp_path, capfd, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BATCHROUTER_API_KEY", "bk_live_very_secret")
    monkeypatch.setenv("BATCHROUTER_WEBHOOK_SECRET", "whsec_very_secret")
    monkeypatch.setenv(
        "BATCHROUTER_INBOX_URL", "postgresql+psycopg://ann:very_secret@127.0.0.1:1/x"
    )
    monkeypatch.setenv("BATCHROUTER_BASE_URL", "http://127.0.0.1:1")

    code, out, err = cli(capfd, "doctor")

    assert code == 6
    assert "very_secret" not in out + err
    assert "postgresql+psycopg://ann:***@127.0.0.1:1/x" in out


def test_doctor_as_json(tmp_path, capfd, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    code, out, _ = cli(capfd, "doctor", "--json")

    told = json.loads(out)
    assert code == 2
    assert told["ok"] is False
    assert {"level", "subject", "told", "advice", "exit_code"} == set(told["findings"][0])


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_doctor_sees_a_runs_folder_that_is_read_only(tmp_path, capfd) -> None:
    tmp_path.chmod(0o500)

    _, out, _ = cli(capfd, "doctor", "--runs-url", str(tmp_path / "runs"))

    assert "fail  runs" in out


def test_doctor_sees_a_runs_url_that_is_a_file(tmp_path, capfd) -> None:
    (tmp_path / "runs").write_text("", "utf-8")

    _, out, _ = cli(capfd, "doctor", "--runs-url", str(tmp_path / "runs"))

    assert "fail  runs" in out


def test_serve_checks_a_config(tmp_path, capfd) -> None:
    path = tmp_path / "router.toml"
    path.write_text("[[lanes]]\nprovider = 'openai'\n", "utf-8")

    assert cli(capfd, "serve", "--check")[0] == 0
    code, _, err = cli(capfd, "serve", "--check", "--config", str(path))

    assert code == 2
    assert "router.toml:1: lanes[0].region" in err


def test_serve_needs_a_folder(capfd) -> None:
    code, _, err = cli(capfd, "serve")

    assert code == 2
    assert "--data" in err


def test_keys_of_a_folder_without_a_router(tmp_path, capfd) -> None:
    code, _, err = cli(capfd, "keys", "create", "--data", str(tmp_path))

    assert code == 2
    assert "batchrouter serve --data" in err
    assert not list(tmp_path.iterdir())


def test_webhook_secrets_are_fresh_and_of_the_standard_form(capfd) -> None:
    first, second = cli(capfd, "webhooks", "secret")[1], cli(capfd, "webhooks", "secret")[1]

    assert first.startswith("whsec_")
    assert first != second


def test_a_webhook_receiver_needs_an_inbox_and_a_secret(capfd, tmp_path) -> None:
    code, _, err = cli(capfd, "webhooks", "serve")
    assert code == 2
    assert "BATCHROUTER_INBOX_URL" in err

    code, _, err = cli(capfd, "webhooks", "serve", "--inbox", f"sqlite:///{tmp_path}/inbox.db")
    assert code == 2
    assert "BATCHROUTER_WEBHOOK_SECRET" in err

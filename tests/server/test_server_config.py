"""`router.toml`: what is refused, where, and why; and what the built-in one serves."""

import subprocess
import sys

import pytest

from batchrouter.errors import ConfigError
from batchrouter.server.config import load_config

GOOD = """\
[[lanes]]
provider = "simulated-a"
region = "eu"
capacity_items = 10

[[lanes.models]]
name = "m"
input_usd_per_mtok = 0.1

[[lanes]]
provider = "simulated-b"
region = "us"
capacity_items = 10
models = [{ name = "m", input_usd_per_mtok = "0.2" }]

[[workflows]]
slug = "sort"
version = 1
models = ["m"]
user = "{body}"
output_schema = { type = "object", properties = { label = { type = "string" } } }
[[workflows.fields]]
name = "body"
"""


def load(tmp_path, text):
    path = tmp_path / "router.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def test_a_good_file_is_taken(tmp_path):
    config = load(tmp_path, GOOD)

    assert [lane.provider for lane in config.lanes] == ["simulated-a", "simulated-b"]
    assert config.lanes[0].models[0].input_units_per_token == 100_000


@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        ('region = "eu"', "region = ", 3, "Invalid value"),
        ('region = "eu"', "region = 7", 3, "lanes[0].region: "),
        ("input_usd_per_mtok = 0.1", "input_usd_per_mtok = -1", 8, "between 0 and"),
        ("input_usd_per_mtok = 0.1", "input_usd_per_mtok = 0.0000001", 8, "finer than 0.000001"),
        ("input_usd_per_mtok = 0.1", "input_usd_per_mtok = true", 8, "is not an amount"),
        ("input_usd_per_mtok = 0.1", "price = 0.1", 6, "input_usd_per_mtok: is missing"),
        (
            'region = "us"',
            'region = "us"\nspeed = 3',
            13,
            "lanes[1].speed: there is no such setting",
        ),
        (
            'region = "us"',
            'region = "us"\noptions = { fail_rate = 0.5 }',
            10,
            "options.fail_rate: unknown; there is seed",
        ),
        ('input_usd_per_mtok = "0.2"', 'input_usd_per_mtok = "x"', 14, "'x' is not an amount"),
        ('"simulated-b"', '"simulated-a"', 1, "two lanes are called 'simulated-a'"),
        ('"simulated-b"', '"openai"', 10, "must be called 'simulated-…'"),
        ('models = ["m"]', 'models = ["n"]', None, "the model 'n', which no lane serves"),
        ('name = "body"', 'name = "my body"', 23, "workflows[0].fields[0].name: "),
        (
            'user = "{body}"',
            'user = "{body}"\nenum_from = { label = "body" }',
            16,
            "no field of type",
        ),
        ("version = 1", "version = 0", 18, "greater than or equal to 1"),
        ("[[workflows]]", "[limits]\nquote_s = 0\n[[workflows]]", 17, "limits.quote_s: "),
        ("[[workflows]]", "[limit]\n[[workflows]]", 16, "limit: there is no such setting"),
    ],
)
def test_a_bad_file_is_refused_with_line_and_reason(tmp_path, old, new, line, reason):
    assert old in GOOD

    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD.replace(old, new, 1))

    message = str(caught.value)
    assert reason in message
    if line and line > 1:
        assert f"router.toml:{line}: " in message or f"line {line}, " in message


def test_every_problem_is_told_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD.replace('"eu"', "7").replace('"us"', "8"))

    assert len(str(caught.value).splitlines()) == 2


def test_a_file_that_is_not_there_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.toml")


def test_the_built_in_lanes_serve_the_contracts_examples():
    config = load_config()

    assert len(config.lanes) >= 4
    assert all(lane.provider.startswith("simulated-") for lane in config.lanes)
    models = {model.name for lane in config.lanes for model in lane.models}
    assert models >= {"gpt-4o-mini", "claude-haiku-4", "text-embedding-3-small"}
    for measure in ("region", "capacity_items", "privacy_tiers"):
        assert len({getattr(lane, measure) for lane in config.lanes}) > 1
    workflow = config.workflow("classify-support-tickets", 3)
    assert workflow is not None
    assert {field.name: field.required for field in workflow.fields} == {
        "subject": False,
        "body": True,
        "labels": False,
    }
    assert workflow.enum_from == {"intent": "labels"}


@pytest.mark.parametrize(("text", "exit_code"), [(GOOD, 0), ("lanes = 1", 2)])
def test_check_only_checks(tmp_path, text, exit_code):
    path = tmp_path / "router.toml"
    path.write_text(text)

    done = subprocess.run(
        [sys.executable, "-m", "batchrouter.server", "--config", str(path), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == exit_code
    assert ("is good" in done.stdout) == (exit_code == 0)
    assert list(tmp_path.iterdir()) == [path]

"""The OpenAPI document against the router: schemathesis, on a real socket, with its checks on."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from batchrouter.testing import running_router
from crash.desk import CONFIG

UNTRUE_BY_CONTRACT = {
    # An unknown id is a 404 for whoever may read, before any other field of the request is
    # looked at: that is how an id of another workspace stays unknown.
    "ensure_resource_availability",
    # A body that has the right shape may still be refused: lines that are no JSON in a manifest,
    # `model` beside `models`, a mean above its cap. JSON Schema has no words for these.
    "positive_data_acceptance",
    # The create is idempotent by its key, and a refused one may be sent again.
    "use_after_free",
}


MANY = 100
"""A schemathesis that finds nothing to ask finds nothing wrong either."""


def check(root: Path, *, phases: str, examples: int) -> str:
    """Run schemathesis in a process of its own; returns its report."""
    command = str(Path(sys.executable).with_name("schemathesis"))
    with running_router(root / "router", config=CONFIG) as router:
        done = subprocess.run(
            [
                command,
                "run",
                f"{router.base_url}/openapi.json",
                f"--header=Authorization: Bearer {router.api_key}",
                f"--phases={phases}",
                "--checks=all",
                f"--exclude-checks={','.join(sorted(UNTRUE_BY_CONTRACT))}",
                f"--max-examples={examples}",
                "--seed=7",
                "--generation-database=none",
                "--request-timeout=30",
                "--no-color",
            ],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=1500,
            check=False,
        )
        lines = [
            json.loads(line) for line in router.log_path.read_text().splitlines() if line[:1] == "{"
        ]
    report = done.stdout + done.stderr
    assert done.returncode == 0, report[-6000:]
    statuses = [line["status"] for line in lines if line.get("message") == "request"]
    assert len(statuses) > MANY
    assert max(statuses) < 500
    return report


def test_the_document_is_true(tmp_path: Path) -> None:
    assert re.search(r"\d+ generated", check(tmp_path, phases="coverage", examples=8))


@pytest.mark.drill
@pytest.mark.timeout(1800)
def test_the_document_is_true_at_length(tmp_path: Path) -> None:
    print(check(tmp_path, phases="coverage,fuzzing,stateful", examples=300)[-1500:])

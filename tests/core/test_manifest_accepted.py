"""The router takes the lines that a build writes, and reads the same ids and caps out of them."""

import json
from pathlib import Path

import pytest

from batchrouter.server.batches.lines import read_line

GOLDEN = json.loads((Path(__file__).parent / "golden" / "manifest.json").read_text("utf-8"))


@pytest.mark.parametrize("kind", GOLDEN)
def test_the_router_reads_every_line(kind: str) -> None:
    for text, item_id in zip(GOLDEN[kind]["lines"], GOLDEN[kind]["item_ids"], strict=True):
        line = read_line(text.encode())

        assert line.item_id == item_id

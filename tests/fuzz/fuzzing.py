"""Runs one fuzz target over a corpus that begins with its seeds and with JSON's own tokens."""

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import atheris

_TOKENS = (
    "{", "}", "[", "]", ":", ",", '""', "null", "true", "false", "-0", "1e309", "1E-400", "NaN",
    "18446744073709551616", "0.1", "\\\\u0000", "\\\\ud800", "\\\\ud83d\\\\ude00",
    "\\xe2\\x80\\xa8",
    "\\xff", '\\\\"', "customer_item_id", "custom_id", "operation", "input", "body", "output",
    "messages", "content", "choices", "status", "error", "usage", "sequence_no", "max_tokens",
)  # fmt: skip


def fuzz(one_input: Callable[[bytes], None], seeds: Sequence[bytes]) -> None:
    """Try the seeds, then fuzz as libFuzzer's options in `sys.argv` say."""
    for seed in seeds:
        one_input(seed)
    with tempfile.TemporaryDirectory(prefix="batchrouter-fuzz-") as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        for number, seed in enumerate(seeds):
            (corpus / str(number)).write_bytes(seed)
        words = Path(folder, "words")
        words.write_text("".join(f'"{_quoted(token)}"\n' for token in _TOKENS), encoding="utf-8")
        atheris.Setup([*sys.argv, f"-dict={words}", str(corpus)], one_input)
        atheris.Fuzz()


def _quoted(token: str) -> str:
    return token.replace('"', '\\"') if '\\"' not in token else token

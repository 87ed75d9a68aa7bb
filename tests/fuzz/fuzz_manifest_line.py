"""Coverage-guided fuzzing of the router's manifest check: `make fuzz`.

Any bytes are either refused by name, or a line whose id and input are what the exact parser
reads in them. Nothing else may be raised.
"""

import atheris
from fuzzing import fuzz

with atheris.instrument_imports(include=["batchrouter"]):
    from batchrouter.server import strict_json
    from batchrouter.server.batches.lines import LineError, read_line

SEEDS = (
    b'{"customer_item_id":"a","operation":"responses","input":{"input":"hi"}}',
    b'{"customer_item_id":"a","operation":"embeddings","input":{"input":["a","b"]},"model":"m"}',
    b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m",'
    b'"messages":[{"role":"user","content":"hi"}],"max_tokens":5}}',
    b'{"customer_item_id":"\\u0061","input":{"text":"\\ud83d\\ude00 1e309"},"metadata":{"k":"v"}}',
)


def one_line(data: bytes) -> None:
    try:
        line = read_line(data)
    except LineError as refused:
        assert refused.code
        assert str(refused)
        return
    # What the fast parser took, the exact one takes too, with the same meaning.
    exact = strict_json.loads(data)
    assert exact["customer_item_id" if line.dialect == "native" else "custom_id"] == line.item_id
    assert exact["input" if line.dialect == "native" else "body"] == line.input


if __name__ == "__main__":
    fuzz(one_line, SEEDS)

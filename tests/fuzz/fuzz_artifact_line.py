"""Coverage-guided fuzzing of the artifact's decoder: `make fuzz`.

Any line of an artifact is either unreadable (quarantined), or has an outcome with a status; and
whatever the outcomes hold can be written into the table's columns. Each input is tried as a line,
and as the text that a model answered with in a line that is good.
"""

import json

import atheris
from fuzzing import fuzz

with atheris.instrument_imports(include=["batchrouter"]):
    from batchrouter.job import Chat, Embedding
    from batchrouter.landing.envelope import UnreadableLineError, read_line
    from batchrouter.landing.outcomes import outcome_of
    from batchrouter.landing.outputs import open_reader

OUTPUT = {
    "label": {"type": "string", "enum": ["card", "refund"]},
    "score": {"type": ["number", "null"]},
    "count": {"type": "integer"},
    "at": {"type": "string", "format": "date-time"},
    "tags": {"type": "array", "items": {"type": "string"}},
    "more": {
        "type": "object",
        "properties": {
            "ok": {"type": "boolean"},
            "n": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        },
        "required": ["ok"],
    },
}  # fmt: skip
READERS = (
    open_reader(Chat(user="{a}", output=OUTPUT), operation="responses", vector_size=None),  # type: ignore[arg-type]
    open_reader(Chat(user="{a}"), operation="responses", vector_size=None),  # type: ignore[arg-type]
    open_reader(Embedding(input="{a}"), operation="embeddings", vector_size=3),  # type: ignore[arg-type]
)
STATUSES = {"succeeded", "failed", "invalid_output"}
SEEDS = (
    b'{"customer_item_id":"a","sequence_no":0,"status":"completed","output":{"choices":[{"message":'
    b'{"role":"assistant","content":"{\\"label\\":\\"card\\",\\"score\\":null,\\"count\\":1,'
    b'\\"at\\":\\"2026-01-01T00:00:00Z\\",\\"tags\\":[],\\"more\\":{\\"ok\\":true}}"}}]},'
    b'"usage":{"prompt_tokens":1,"completion_tokens":2},"completed_at":"2026-01-01T00:00:00Z"}',
    b'{"customer_item_id":"a","status":"failed","error":{"code":"c","message":"m"}}',
    b'{"custom_id":"a","response":{"status_code":200,"body":{"data":[{"embedding":[1,2,3]}]}}}',
    b'{"custom_id":"a","response":{"status_code":200,"body":{"output":[{"type":"message",'
    b'"content":[{"type":"output_text","text":"x"}]}]}},"error":null}',
    b'{"label":"refund","score":0.5,"count":3,"at":"2026-01-01T00:00:00+01:00","tags":["a"],'
    b'"more":{"ok":false,"n":7}}',
)


def one_input(data: bytes) -> None:
    one_line(data)
    text = data.decode("utf-8", "surrogateescape")
    message = {"role": "assistant", "content": text}
    answer = {"choices": [{"message": message}], "usage": {"prompt_tokens": 1}}
    line = {"customer_item_id": "a", "sequence_no": 0, "status": "completed", "output": answer}
    one_line(json.dumps(line).encode())


def one_line(data: bytes) -> None:
    for reader in READERS:
        try:
            line = read_line(data)
        except UnreadableLineError as unreadable:
            assert str(unreadable)
            return
        outcome = outcome_of(line, reader)
        assert outcome.status in STATUSES
        columns = reader.arrays([outcome.value])
        assert [len(column) for column in columns] == [1] * len(reader.fields)
        for column in columns:
            column.validate(full=True)


if __name__ == "__main__":
    fuzz(one_input, SEEDS)

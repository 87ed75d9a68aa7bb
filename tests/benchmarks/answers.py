"""Artifacts for manifests of any size, made by Arrow: a line of some 460 bytes for each item.

One answer in a hundred failed, and one in 2,048 does not fit its schema.
"""

import json
from pathlib import Path
from typing import Any

OUTPUT = {
    "intent": {"type": "string", "enum": ["billing", "bug", "refund"]},
    "urgent": {"type": "boolean"},
}
"""What the jobs ask for."""

_VARIANTS = 2_048
_WEIGHTS = (1, 37, 1369, 50653)
_ID_LENGTH = 26
_ANSWER = {"intent": "billing", "urgent": False}
_ITEM = {
    "batch_item_id": "item_00000000000000000000000000000000",
    "sequence_no": 0,
    "operation": "responses",
    "status": "completed",
    "provider": "simulated-a",
    "provider_model": "gpt-4o-mini",
    "attempt": 1,
    "usage": {"input_tokens": 40, "output_tokens": 9, "total_tokens": 49},
    "cost": {"currency": "usd", "amount": "0.000091800000"},
    "output": None,
    "error": None,
    "completed_at": "2026-11-22T10:00:00.123Z",
}


def answer(rows: Path, artifact: Path, *, all_succeed: bool = False) -> None:
    """Write an artifact with an answer to every item of a row snapshot, in its order."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    head = pa.scalar(b'{"customer_item_id":"', pa.binary())
    rests = pa.array([_rest(number) for number in range(_VARIANTS)], pa.binary())
    with artifact.open("wb") as file, pq.ParquetFile(rows, pre_buffer=False) as snapshot:
        for batch in snapshot.iter_batches(20_000, columns=["_item_id", "_skip_reason"]):
            ids = batch.filter(batch.column(1).is_null()).column(0)
            letters = np.frombuffer(ids.buffers()[2], np.uint8, _ID_LENGTH * len(ids))
            # By the id and not by the place: however a table is cut, a row has the same answer.
            some = letters.reshape(-1, _ID_LENGTH)[:, :4].astype(np.int64)
            numbers = some @ [0 if all_succeed else each for each in _WEIGHTS] % _VARIANTS
            rest = rests.take(pa.array(numbers))
            lines: Any = pc.binary_join_element_wise(head, ids.cast(pa.binary()), rest, b"")
            file.write(lines.buffers()[2])


def _rest(number: int) -> bytes:
    """Write what stands behind an item's id."""
    text = (
        "I would say billing."
        if number == 17
        else json.dumps(_ANSWER | {"urgent": number % 2 == 1})
    )
    message = {"role": "assistant", "content": text}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 40, "completion_tokens": 9, "total_tokens": 49},
    }
    answered: dict[str, Any] = {"output": body}
    if number % 100 == 50:
        error = {"code": "content_policy", "message": "refused"}
        answered = {"status": "failed", "error": error}
    return b'",' + json.dumps(_ITEM | answered, separators=(",", ":")).encode()[1:] + b"\n"

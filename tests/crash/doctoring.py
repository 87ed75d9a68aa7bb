"""Artifacts that the router keeps and vouches for, with lines that a test has changed."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from sqlalchemy import create_engine, text

from batchrouter.testing import RunningRouter

Line = dict[str, Any]


def doctor_artifact(router: RunningRouter, batch_id: str, change: Callable[[bytes], bytes]) -> None:
    """Replace what the router gives out for an ended batch."""
    engine = create_engine(f"sqlite:///{router.data_dir / 'router.db'}")
    with engine.begin() as conn:
        row = conn.execute(
            text("select artifact_key from batches where id = :id"), {"id": batch_id}
        ).one()
        artifact = router.data_dir / "objects" / str(row.artifact_key)
        changed = change(artifact.read_bytes())
        artifact.write_bytes(changed)
        conn.execute(
            text(
                "update batches set artifact_bytes = :size, artifact_sha256 = :sha256"
                " where id = :id"
            ),
            {"size": len(changed), "sha256": hashlib.sha256(changed).hexdigest(), "id": batch_id},
        )
    engine.dispose()


def doctor_lines(
    router: RunningRouter, batch_id: str, change: Callable[[int, Line], Line | bytes | None]
) -> None:
    """Change an artifact line by line; None leaves the line out."""

    def changed(artifact: bytes) -> bytes:
        lines = [change(n, json.loads(line)) for n, line in enumerate(artifact.splitlines())]
        return b"".join(
            line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n"
            for line in lines
            if line is not None
        )

    doctor_artifact(router, batch_id, changed)


def failed(line: Line, code: str = "provider_error") -> Line:
    """The line of an item that failed."""
    return {**line, "status": "failed", "output": None, "error": {"code": code, "message": "no"}}


def unfitting(line: Line) -> Line:
    """The line of an item whose answer is no JSON."""
    message = {"role": "assistant", "content": "nonsense"}
    body = {"object": "chat.completion", "choices": [{"message": message, "finish_reason": "stop"}]}
    return {**line, "output": body}


def say_cancelled(router: RunningRouter, batch_id: str, *, completed: int) -> None:
    """Have the router say that an ended batch was cancelled when so many items were done."""
    engine = create_engine(f"sqlite:///{router.data_dir / 'router.db'}")
    with engine.begin() as conn:
        conn.execute(
            text(
                "update batches set state = 'cancelled', completed = :completed,"
                " cancelled = total - :completed where id = :id"
            ),
            {"id": batch_id, "completed": completed},
        )
    engine.dispose()

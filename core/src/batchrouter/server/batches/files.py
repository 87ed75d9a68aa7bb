"""Manifests that were taken in: their rows, and inline items stored as one of them."""

import json
from typing import Any

from sqlalchemy import Connection, Row

from batchrouter import killpoints
from batchrouter.server.batches.intake import Intake, ManifestFacts
from batchrouter.server.services import Services
from batchrouter.server.storage.clock import now_us, rfc3339
from batchrouter.server.storage.ids import new_id
from batchrouter.server.storage.tables import files

__all__ = ["file_to_wire", "insert_file", "keep_file", "object_key", "open_intake", "store_items"]

_MAX_NAME_CHARACTERS = 255


def object_key(file_id: str) -> str:
    """Where a manifest's bytes are."""
    return f"manifests/{file_id}.jsonl"


def open_intake(services: Services, file_id: str) -> Intake:
    """Begin to take a manifest in."""
    return Intake(
        services.objects,
        object_key(file_id),
        services.folder.scratch,
        services.config.limits,
    )


def store_items(services: Services, file_id: str, items: list[dict[str, Any]]) -> ManifestFacts:
    """Check inline items as manifest lines and store them as a manifest.

    Raises:
        APIError: `invalid_manifest`; line 1 is the first item. Nothing is kept.
        StoreFullError: The store has no room.
    """
    with open_intake(services, file_id) as intake:
        for item in items:
            intake.feed(_line(item))
        return intake.finish()


def keep_file(
    services: Services, workspace_id: str, file_id: str, filename: str, facts: ManifestFacts
) -> dict[str, Any]:
    """Write the row of a manifest whose object is durable; the object goes if that fails.

    Returns:
        The contract's file object.
    """
    try:
        with services.database.writing() as conn:
            row = insert_file(conn, workspace_id, file_id, filename, facts)
            wire = file_to_wire(row)
            killpoints.reached("files.before_commit")
    except BaseException:
        services.objects.delete(facts.object_key)
        raise
    killpoints.reached("files.after_commit")
    return wire


def insert_file(
    conn: Connection, workspace_id: str, file_id: str, filename: str, facts: ManifestFacts
) -> Row[Any]:
    """Write a manifest's row inside the caller's transaction."""
    statement = files.insert().values(
        id=file_id,
        workspace_id=workspace_id,
        filename=display_name(filename),
        bytes=facts.bytes,
        item_count=facts.item_count,
        dialect=facts.dialect,
        operation=facts.operation,
        models=json.dumps(facts.models),
        fields=json.dumps(facts.fields),
        input_tokens_estimate=facts.input_tokens_estimate,
        max_output_tokens=facts.max_output_tokens,
        sha256=facts.sha256,
        object_key=facts.object_key,
        created_at=now_us(),
    )
    return conn.execute(statement.returning(files)).one()


def display_name(filename: str) -> str:
    r"""Keep the last component of the caller's file name, for display.

    Example:
        >>> display_name("C:\\data\\tickets.jsonl"), display_name("../../etc/x"), display_name("")
        ('tickets.jsonl', 'x', 'manifest.jsonl')
    """
    last = filename.replace("\\", "/").rsplit("/", 1)[-1]
    printable = "".join(char for char in last if char.isprintable())
    return printable[:_MAX_NAME_CHARACTERS] or "manifest.jsonl"


def file_to_wire(row: Row[Any]) -> dict[str, Any]:
    """Write the contract's file object (section 4)."""
    return {
        "file_id": row.id,
        "filename": row.filename,
        "bytes": row.bytes,
        "item_count": row.item_count,
        "dialect": row.dialect,
        "operation": row.operation,
        "models": json.loads(row.models),
        "input_tokens_estimate": row.input_tokens_estimate,
        "sha256": row.sha256,
        "created_at": rfc3339(row.created_at),
    }


def new_file_id() -> str:
    """Mint a file id."""
    return new_id("file")


def _line(item: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(item, ensure_ascii=False, separators=(",", ":"))
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        # A lone surrogate: as an escape it reaches the line check, which names the line.
        return json.dumps(item, separators=(",", ":")).encode() + b"\n"

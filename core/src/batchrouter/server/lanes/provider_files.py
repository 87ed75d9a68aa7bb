"""The files of a provider's account: OpenAI's `/files`, which others have taken over as it is."""

from collections.abc import Iterable, Iterator

from batchrouter.server.lanes.provider import ProviderRefusedError
from batchrouter.server.lanes.wire import Wire

__all__ = ["ProviderFiles"]

_NOT_FOUND = 404


class ProviderFiles:
    """Input files that go up, and result files that come down.

    Args:
        wire: The account.
        path: Where files are, behind the base URL.
    """

    def __init__(self, wire: Wire, path: str) -> None:
        self._wire = wire
        self._path = path

    def upload(self, intent: str, lines: Iterable[bytes]) -> str:
        """Upload lines as a file of their own; returns its id."""
        content = b"\n".join(lines) + b"\n"
        file = (f"batchrouter-{intent}.jsonl", content, "application/jsonl")
        answer = self._wire.ask("POST", self._path, data={"purpose": "batch"}, files={"file": file})
        return str(answer["id"])

    def delete(self, file_id: str) -> None:
        """Delete a file; one that is not there is deleted already."""
        try:
            self._wire.ask("DELETE", f"{self._path}/{file_id}")
        except ProviderRefusedError as refusal:
            if refusal.status != _NOT_FOUND:
                raise

    def read(self, *file_ids: str | None) -> Iterator[bytes]:
        """Read files one behind the other, in blocks, each with a line end; None is passed over."""
        for file_id in filter(None, file_ids):
            yield from self._wire.read(f"{self._path}/{file_id}/content")
            yield b"\n"

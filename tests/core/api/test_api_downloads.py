"""A download resumes, verifies, asks for fresh URLs, and keeps the key to itself."""

import asyncio
import hashlib
import io
import logging
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from batchrouter.api.client import AsyncClient
from batchrouter.api.settings import Settings
from batchrouter.errors import (
    ArtifactError,
    BatchFailedError,
    ConflictError,
    GoneError,
    ProtocolError,
    StorageError,
    TransportError,
)

CONTENT = random.Random(7).randbytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Store:
    """The API and the object store of one artifact, with faults in the order they are given.

    A fault is a status, or ``("cut", n)`` to break off after n bytes; then it behaves.
    """

    def __init__(self, scripted: Any, *faults: Any, **link: Any) -> None:
        self.scripted = scripted
        self.faults = list(faults)
        self.link = {"bytes": len(CONTENT), "sha256": SHA256, **link}
        self.content = CONTENT
        self.ranges = True
        scripted.answer = self.answer

    @property
    def fetches(self) -> list[Any]:
        return [r for r in self.scripted.requests if r.path.startswith("/store/")]

    @property
    def links(self) -> list[Any]:
        return [r for r in self.scripted.requests if r.path.startswith("/v1/")]

    def answer(self, request: Any) -> bytes:
        if request.path.endswith("/artifact-url"):
            url = f"{self.scripted.base_url}/store/{len(self.links)}?signature=hunter2"
            return self.scripted.reply(200, {"batch_id": "b", "url": url, **self.link})
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, int):
            return self.scripted.reply(fault, b"<xml>", {"Retry-After": "0"})
        if isinstance(fault, str):
            return self.scripted.reply(302, headers={"Location": fault})
        return self.body(request, cut_after=fault[1] if fault else None)

    def body(self, request: Any, *, cut_after: int | None) -> bytes:
        start, status, headers = 0, 200, dict[str, str]()
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
        if asked and self.ranges:
            start, status = int(asked[1]), 206
            if start >= len(self.content):
                whole = {"Content-Range": f"bytes */{len(self.content)}"}
                return self.scripted.reply(416, headers=whole)
            last = len(self.content) - 1
            headers["Content-Range"] = f"bytes {start}-{last}/{len(self.content)}"
        sent = self.content[start:]
        cut = 0 if cut_after is None else max(0, len(sent) - cut_after)
        return self.scripted.reply(status, sent, headers, cut=cut)


def test_a_path_appears_whole_and_its_part_is_gone(
    scripted: Any, call: Any, tmp_path: Path
) -> None:
    store = Store(scripted)
    seen: list[tuple[int, int]] = []

    link = call(
        "download_artifact", "b", tmp_path / "a.jsonl", on_progress=lambda *at: seen.append(at)
    )

    assert link.sha256 == SHA256
    assert (tmp_path / "a.jsonl").read_bytes() == CONTENT
    assert names_in(tmp_path) == ["a.jsonl"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert len(store.fetches) == 1


def test_the_key_never_goes_to_the_store_and_the_url_to_no_log(
    scripted: Any, call: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    store = Store(scripted, 403, ("cut", 1000))

    call("download_artifact", "b", tmp_path / "a.jsonl")

    assert "hunter2" not in caplog.text
    for request in store.fetches:
        assert "authorization" not in request.headers
        assert "super_secret" not in str(request.headers)
        assert request.headers["accept-encoding"] == "identity"
    assert "/artifact-url" in caplog.text, "only the signed URLs are kept out of httpx's log"


def test_a_broken_connection_is_resumed_where_it_stopped(
    scripted: Any, call: Any, tmp_path: Path
) -> None:
    store = Store(scripted, ("cut", 1_000_000), ("cut", 500_000), 503)

    call("download_artifact", "b", tmp_path / "a.jsonl")

    assert (tmp_path / "a.jsonl").read_bytes() == CONTENT
    asked = [request.headers.get("range") for request in store.fetches]
    assert asked == [None, "bytes=1000000-", "bytes=1500000-", "bytes=1500000-"]
    assert len(store.links) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_an_expired_url_is_asked_for_anew(
    scripted: Any, call: Any, tmp_path: Path, status: int
) -> None:
    store = Store(scripted, ("cut", 1_000_000), status)

    call("download_artifact", "b", tmp_path / "a.jsonl")

    assert (tmp_path / "a.jsonl").read_bytes() == CONTENT
    assert [request.path[:8] for request in store.fetches] == ["/store/1", "/store/1", "/store/2"]
    assert store.fetches[-1].headers["range"] == "bytes=1000000-"


def test_a_writer_gets_every_byte_once_though_the_store_knows_no_ranges(
    scripted: Any, call: Any
) -> None:
    store = Store(scripted, ("cut", 1_234_567), ("cut", 2_000_000))
    store.ranges = False
    sink = io.BytesIO()

    call("download_artifact", "b", sink)

    assert sink.getvalue() == CONTENT
    assert len(store.fetches) == 3


def test_attempts_without_progress_are_bounded_and_leave_the_part(
    scripted: Any, call: Any, tmp_path: Path
) -> None:
    store = Store(scripted, ("cut", 1_500_000), *[503] * 50)

    with pytest.raises(TransportError, match="answered 503"):
        call("download_artifact", "b", tmp_path / "a.jsonl")

    assert (tmp_path / "a.jsonl.part").read_bytes() == CONTENT[:1_500_000]
    assert len(store.fetches) == 5


def test_a_url_that_never_opens_is_given_up(scripted: Any, call: Any, tmp_path: Path) -> None:
    store = Store(scripted, *[403] * 50)

    with pytest.raises(TransportError, match="answered 403"):
        call("download_artifact", "b", tmp_path / "a.jsonl")

    assert len(store.fetches) == 5


def test_another_process_goes_on_with_the_part(scripted: Any, call: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.part").write_bytes(CONTENT[:2_000_000])
    store = Store(scripted)

    call("download_artifact", "b", tmp_path / "a.jsonl")

    assert (tmp_path / "a.jsonl").read_bytes() == CONTENT
    assert store.fetches[0].headers["range"] == "bytes=2000000-"


@pytest.mark.parametrize(
    "part", [b"of another file", b"x" * (len(CONTENT) + 1), b"y" * len(CONTENT)]
)
def test_a_part_of_another_file_is_begun_anew(
    scripted: Any, call: Any, tmp_path: Path, part: bytes
) -> None:
    (tmp_path / "a.jsonl.part").write_bytes(part)
    Store(scripted)

    call("download_artifact", "b", tmp_path / "a.jsonl")

    assert (tmp_path / "a.jsonl").read_bytes() == CONTENT
    assert names_in(tmp_path) == ["a.jsonl"]


def test_a_part_that_is_whole_already_is_only_verified(
    scripted: Any, call: Any, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl.part").write_bytes(CONTENT)
    store = Store(scripted)

    call("download_artifact", "b", tmp_path / "a.jsonl")

    assert not store.fetches
    assert (tmp_path / "a.jsonl").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ({"sha256": "0" * 64}, "sha256"),
        ({"bytes": len(CONTENT) - 1}, "longer than the promised"),
        ({"bytes": len(CONTENT) + 1}, "another file is there"),
    ],
)
def test_what_was_not_promised_is_not_kept(
    scripted: Any, call: Any, tmp_path: Path, link: dict[str, Any], problem: str
) -> None:
    Store(scripted, **link)
    (tmp_path / "a.jsonl").write_bytes(b"from last time")

    with pytest.raises(ArtifactError, match=problem) as caught:
        call("download_artifact", "b", tmp_path / "a.jsonl")

    assert caught.value.retryable
    assert names_in(tmp_path) == ["a.jsonl"]
    assert (tmp_path / "a.jsonl").read_bytes() == b"from last time"


def test_a_server_that_promises_nothing_is_taken_at_its_content_length(
    scripted: Any, call: Any, tmp_path: Path
) -> None:
    Store(scripted, ("cut", 2_000_000), bytes=None, sha256=None)

    call("download_artifact", "b", tmp_path / "a.jsonl")

    assert (tmp_path / "a.jsonl").read_bytes() == CONTENT


def test_an_empty_artifact(scripted: Any, call: Any, tmp_path: Path) -> None:
    Store(scripted, bytes=0, sha256=hashlib.sha256(b"").hexdigest())

    call("download_artifact", "b", tmp_path / "a.jsonl")

    assert (tmp_path / "a.jsonl").read_bytes() == b""


def test_a_redirect_on_the_same_host_is_followed_and_one_elsewhere_refused(
    scripted: Any, call: Any, tmp_path: Path
) -> None:
    Store(scripted, "/store/elsewhere")
    call("download_artifact", "b", tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == CONTENT

    Store(scripted, "http://169.254.169.254/latest/meta-data")
    with pytest.raises(ProtocolError, match=r"to 169\.254\.169\.254: refused") as caught:
        call("download_artifact", "b", tmp_path / "b.jsonl")
    assert "hunter2" not in str(caught.value)

    Store(scripted, *["/store/round"] * 9)
    with pytest.raises(ProtocolError, match="without end"):
        call("download_artifact", "b", tmp_path / "c.jsonl")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "https://", "javascript:1"])
def test_a_url_that_is_no_web_address_is_refused(
    scripted: Any, call: Any, tmp_path: Path, url: str
) -> None:
    scripted.answers(scripted.reply(200, {"url": url}))

    with pytest.raises(ProtocolError, match="refused"):
        call("download_artifact", "b", tmp_path / "a.jsonl")


def test_a_compressed_answer_is_refused(scripted: Any, call: Any, tmp_path: Path) -> None:
    store = Store(scripted)
    gzip = scripted.reply(200, b"zz", {"Content-Encoding": "gzip"})
    scripted.answer = lambda r: gzip if r.path.startswith("/store") else store.answer(r)

    with pytest.raises(ProtocolError, match="compresses"):
        call("download_artifact", "b", tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [(409, "artifact_not_ready", ConflictError), (410, "artifact_expired", GoneError)],
)
def test_what_the_api_says_of_the_artifact_goes_through(
    scripted: Any, call: Any, tmp_path: Path, *, status: int, code: str, kind: type
) -> None:
    scripted.answers(scripted.reply(status, {"error": {"code": code, "message": "no"}}))

    with pytest.raises(kind, match=code):
        call("download_artifact", "b", tmp_path / "a.jsonl")

    assert names_in(tmp_path) == []


def test_partial_output_comes_with_the_batch(scripted: Any, call: Any, tmp_path: Path) -> None:
    url = f"{scripted.base_url}/store/partial"
    batch = {"id": "b", "state": "canceled", "partial_output": {"url": url, "sha256": SHA256}}
    store = Store(scripted)
    scripted.answer = lambda r: (
        scripted.reply(200, batch) if r.path.startswith("/v1/") else store.answer(r)
    )

    call("download_artifact", "b", tmp_path / "a.jsonl", partial=True)

    assert (tmp_path / "a.jsonl").read_bytes() == CONTENT
    assert scripted.requests[0].path == "/v1/batches/b?include_partial_output=true"


@pytest.mark.parametrize(
    ("state", "kind"), [("cancelled", BatchFailedError), ("cancelling", ArtifactError)]
)
def test_no_partial_output_is_an_error(
    scripted: Any, call: Any, tmp_path: Path, state: str, kind: type
) -> None:
    scripted.answers(scripted.reply(200, {"id": "b", "state": state}))

    with pytest.raises(kind, match=f"is {state} and offers no partial output"):
        call("download_artifact", "b", tmp_path / "a.jsonl", partial=True)


def test_a_full_disk_and_a_missing_folder_are_storage_errors(
    scripted: Any, call: Any, tmp_path: Path
) -> None:
    Store(scripted)

    with pytest.raises(StorageError, match="No such file"):
        call("download_artifact", "b", tmp_path / "absent" / "a.jsonl")
    with (
        pytest.raises(StorageError, match="No space left"),
        Path("/dev/full").open("wb", 0) as full,
    ):
        call("download_artifact", "b", full)


def test_a_download_does_not_block_the_event_loop(scripted: Any, settings: Settings) -> None:
    Store(scripted)

    class SlowDisk(io.BytesIO):
        def write(self, data: Any, /) -> int:
            time.sleep(0.1)
            return super().write(data)

    async def main() -> int:
        beats = 0
        async with AsyncClient(settings) as client:
            download = asyncio.ensure_future(client.download_artifact("b", SlowDisk()))
            while not download.done():
                await asyncio.sleep(0.01)
                beats += 1
            await download
        return beats

    assert asyncio.run(main()) > 15


@pytest.mark.parametrize("point", ["api.mid_download", "api.before_artifact_kept"])
def test_a_killed_download_is_resumed_by_the_next_process(
    scripted: Any, call: Any, settings: Settings, tmp_path: Path, point: str
) -> None:
    store = Store(scripted)
    target = tmp_path / "a.jsonl"
    script = (
        "from batchrouter.api.client import Client\n"
        f"client = Client(base_url={settings.base_url!r}, api_key='k')\n"
        f"client.download_artifact('b', {str(target)!r})\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "BATCHROUTER_KILL_AT": point},
        check=False,
    )

    assert killed.returncode == -9
    assert not target.exists()
    call("download_artifact", "b", target)

    assert target.read_bytes() == CONTENT
    taken_up = [request.headers.get("range") for request in store.fetches[1:]]
    assert taken_up == ([] if point == "api.before_artifact_kept" else taken_up)
    assert all(taken_up)

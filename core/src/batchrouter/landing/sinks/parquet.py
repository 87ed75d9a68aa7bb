"""A Parquet directory: one folder a run in it, with one file that is replaced atomically.

    <table>/<job>--<run>/rows.parquet          with `append`: rows-<purchase>.parquet
    <parent of the table>/.<table>.staging/<job>--<run>/<random>.tmp

Readers that glob see the old file or the new one, never both and never a half: locally the file
is written beside the table, synced, and renamed over the old one; on an object store it is
spooled to a local temporary file and put in one request, which such stores apply as a whole.
No name in the table starts with ``_`` (pyarrow passes over those) or holds ``=`` (readers would
make a column of it), and the staging folder is outside, as ``**`` globs read hidden folders too.
Two landings of one run at a time (an orphan and its successor) both write the same rows, and
both commit; a lock on each staged file tells a living landing from what a dead one left.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from batchrouter.errors import ConfigError, SinkError
from batchrouter.killpoints import reached
from batchrouter.landing.report import LandingIdentity
from batchrouter.landing.sinks import Commit, Writing
from batchrouter.landing.sinks.columns import differences, stored
from batchrouter.landing.sinks.files import write_file

FILE_NAME = "rows.parquet"

_NO_WHOLE_PUT = frozenset({"sftp", "ssh", "ftp", "smb", "hdfs", "webhdfs", "arrow_hdfs"})
_SAFE_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
_CREDENTIALS = re.compile(r"(?<=://)[^/@]*@")


class ParquetSink:
    """A directory of Parquet files, local or on an object store.

    Args:
        url: The table's root, a path or an fsspec URL.
        storage_options: Given to the filesystem; never shown.
        writing: The job's mode, `replace_run` or `append`.

    Raises:
        ConfigError: The URL's filesystem is unknown, not installed, or cannot replace a file as
            a whole.

    Example:
        >>> ParquetSink("s3://lake/tickets")  # doctest: +SKIP
        ParquetSink('s3://lake/tickets')
    """

    def __init__(
        self,
        url: str,
        storage_options: Mapping[str, Any] | None = None,
        writing: Writing | None = None,
    ) -> None:
        self._writing = writing or Writing()
        try:
            fs, root = fsspec.core.url_to_fs(url, **(storage_options or {}))
        except (ImportError, ValueError) as error:
            raise ConfigError(f"sink {_masked(url)}: {error}") from error
        protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        if protocols & _NO_WHOLE_PUT:
            raise ConfigError(
                f"sink {_masked(url)}: such a store cannot replace a file as a whole, so readers"
                " could see half a table; name a local path or an object store"
            )
        self._fs: fsspec.AbstractFileSystem = fs
        self._root = cast("str", root).rstrip("/")
        self._is_local = isinstance(fs, LocalFileSystem)
        self.location = self._root if self._is_local else _masked(url).rstrip("/")

    def __repr__(self) -> str:
        return f"ParquetSink({self.location!r})"

    def current_schema(self, identity: LandingIdentity) -> pa.Schema | None:
        """Give the columns of the table's other runs, None when there is no other.

        Raises:
            SinkError: The table cannot be read.
        """
        own = f"{self._root}/{_folder(identity)}/"
        with self._refusing("cannot be read"):
            self._fs.invalidate_cache()
            found = sorted(str(each) for each in self._fs.find(self._root))
            others = (each for each in found if each.endswith(".parquet"))
            other = next((each for each in others if not each.startswith(own)), None)
            if other is None:
                return None
            with self._fs.open(other, "rb") as file:
                return pq.read_schema(cast("Any", file))

    def check(self, schema: pa.Schema, identity: LandingIdentity) -> None:
        """See that the table is a folder with the same columns; order does not matter.

        Raises:
            SinkError: It is none, or has others, and the message names the columns; or it cannot
                be read, or not be written.
        """
        self._check_place()
        table = self.current_schema(identity)
        told = (
            differences(table, stored(schema), evolve=self._writing.evolve)
            if table is not None
            else []
        )
        if told:
            raise SinkError(
                f"the table {self.location} has other columns: {'; '.join(told)}. Nothing was"
                " written: name another sink, make the job's columns those of the table, or set"
                " `evolve: true`, which lets a table get columns"
            )

    def succeeded(
        self, identity: LandingIdentity, key_columns: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        """Refuse: a row of one file cannot replace that of another, so nothing is ever merged.

        Raises:
            SinkError: Always.
        """
        del identity, key_columns
        raise SinkError(
            f"the table {self.location} is a Parquet directory, where no row replaces another:"
            " `incremental` needs a table with `mode: merge`. Nothing was bought"
        )

    def _check_place(self) -> None:
        """Find out early, when nothing is bought yet, what a local disk would say at the end."""
        if not self._is_local:
            return
        root = Path(self._root)
        # The staging folder stands beside the table, so the folder above must take it, too.
        for place in (root, root.parent):
            there = next(each for each in (place, *place.parents) if os.path.lexists(each))
            if not there.is_dir():
                raise SinkError(
                    f"the table {self.location} must be a folder, and {there} is a file. It is as"
                    " it was: name another sink, or move the file away"
                )
            if not os.access(there, os.W_OK | os.X_OK):
                raise SinkError(
                    f"the table {self.location} cannot be written: {there} is read-only. The table"
                    " is as it was: name another sink, or give leave to write there"
                )

    def write(
        self, batches: Iterator[pa.RecordBatch], schema: pa.Schema, identity: LandingIdentity
    ) -> Commit:
        """Write the run's file beside the table and put it in its place; see `Sink.write`.

        Raises:
            SinkError: No room, no permission, or other columns. The table is as it was.
        """
        folder = _folder(identity)
        name = self._file_name(identity)
        reached("landing.before_write")
        with self._refusing("cannot be written"), self._staged(folder) as staged:
            rows = write_file(staged, batches, schema)
            size_bytes = staged.stat().st_size
            self.check(schema, identity)
            reached("landing.before_commit")
            self._commit(staged, f"{self._root}/{folder}", name)
        reached("landing.after_commit")
        return Commit(f"{self.location}/{folder}/{name}", rows, size_bytes)

    def _file_name(self, identity: LandingIdentity) -> str:
        """Another purchase of a run replaces its file, or with `append` stands beside it."""
        if self._writing.mode != "append":
            return FILE_NAME
        return f"rows-{hashlib.sha256(identity.purchase.encode()).hexdigest()[:10]}.parquet"

    @contextlib.contextmanager
    def _staged(self, folder: str) -> Generator[Path, None, None]:
        """Give a place to write to, and leave nothing there, of earlier landings neither."""
        if not self._is_local:
            with tempfile.TemporaryDirectory(prefix="batchrouter-landing-") as temporary:
                yield Path(temporary) / FILE_NAME
            return
        root = Path(self._root)
        staging = root.parent / f".{root.name}.staging"
        own = staging / folder
        own.mkdir(parents=True, exist_ok=True)
        for left in own.iterdir():
            _remove_if_dead(left)
        staged = own / f"{secrets.token_hex(8)}.tmp"
        try:
            with staged.open("xb") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                yield staged
        finally:
            staged.unlink(missing_ok=True)
            for emptied in (own, staging):
                with contextlib.suppress(OSError):
                    emptied.rmdir()

    def _commit(self, staged: Path, folder: str, name: str) -> None:
        reached("landing.mid_commit")
        if not self._is_local:
            self._fs.put_file(str(staged), f"{folder}/{name}")
            self._fs.invalidate_cache()
            return
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        _sync(staged)
        staged.replace(place / name)
        _sync(place)

    @contextlib.contextmanager
    def _refusing(self, what: str) -> Generator[None, None, None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise SinkError(
                f"the table {self.location} {what}: {error}. The table is as it was"
            ) from error


def _folder(identity: LandingIdentity) -> str:
    """Name the run's folder; a hash replaces what would not be safe as a name.

    Example:
        >>> _folder(LandingIdentity("label", "2026-11-22", "2026-11-22-0a1b2c"))
        'label--2026-11-22-0a1b2c'
    """
    return f"{_safe(identity.job_name)}--{_safe(identity.run_slug)}"


def _safe(name: str) -> str:
    if _SAFE_NAME.match(name):
        return name
    plain = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.")
    return f"x{plain}-{hashlib.sha256(name.encode()).hexdigest()[:10]}"


def _masked(url: str) -> str:
    return _CREDENTIALS.sub("", url)


def _remove_if_dead(staged: Path) -> None:
    """Remove a staged file unless a landing holds it; a lock dies with its process."""
    with contextlib.suppress(FileNotFoundError, BlockingIOError), staged.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        staged.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)

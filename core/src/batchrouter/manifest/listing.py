"""A path, glob or URL → the files of a table, in an order that is the same every time."""

import contextlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import fsspec
import pyarrow as pa

from batchrouter.errors import BatchrouterError, MissingExtraError, SourceError

FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".ipc": "arrow",
    ".feather": "arrow",
}
"""The format that each extension stands for; text formats may be compressed besides."""

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_TEXT_FORMATS = ("jsonl", "csv")
_EXTRAS = {
    "s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure",
    "abfss": "azure", "adl": "azure",
}  # fmt: skip
_STORE_LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "azure", "fsspec")
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_MAX_LINE = 300


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a table.

    Attributes:
        path: Its path on the file system.
        format: One of the values of `FORMATS`.
        partitions: The `name=value` folders above it; a Hive NULL is None.
    """

    path: str
    format: str
    partitions: dict[str, str | None] = field(default_factory=dict)


@contextlib.contextmanager
def reading(what: str) -> Generator[None, None, None]:
    """Turn what goes wrong while reading into a SourceError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise SourceError(f"source: {what} does not exist; check the path") from None
    except (OSError, pa.ArrowException, UnicodeError, EOFError) as error:
        told = (str(error) or type(error).__name__).splitlines()[0][:_MAX_LINE]
        raise SourceError(f"source: {what} cannot be read: {told}") from error
    except Exception as error:
        # A store's library has errors of its own, such as that there are no credentials.
        if type(error).__module__.partition(".")[0] not in _STORE_LIBRARIES:
            raise
        told = (str(error) or type(error).__name__).splitlines()[0][:_MAX_LINE]
        raise SourceError(f"source: {what} cannot be read: {told}") from error


def list_files(
    url: str, storage_options: Mapping[str, Any] | None = None
) -> tuple[fsspec.AbstractFileSystem, list[SourceFile]]:
    """Find the files of a table: one file, a glob's matches, or all visible ones below a folder.

    Names that start with `_` or `.` are invisible in a folder. Files come sorted by their path.

    Raises:
        SourceError: Nothing there, nothing matches, an extension that stands for no format, or
            files of several formats.
    """
    with reading(url):
        try:
            fs, path = fsspec.core.url_to_fs(url, **_options_for(url, storage_options))
        except ImportError as error:
            raise _missing(url, error) from None
        except ValueError as error:
            raise SourceError(f"source: {url}: {error}") from None
        paths = _paths(fs, path.rstrip("/") or path, url)
    files = [SourceFile(each, _format_of(each), _partitions_of(each)) for each in sorted(paths)]
    formats = sorted({each.format for each in files})
    if len(formats) > 1:
        raise SourceError(
            f"source: {url} holds files of several formats ({', '.join(formats)});"
            " choose one with a glob such as folder/*.parquet"
        )
    return fs, files


def _missing(url: str, error: ImportError) -> BatchrouterError:
    extra = _EXTRAS.get(url.partition("://")[0])
    if extra is None:
        return SourceError(f"source: {url}: {error}")
    return MissingExtraError.for_extra(extra, needed_for=f"source: {url}")


def _options_for(url: str, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Give the options to a store only: a path of this machine has none."""
    return dict(options or {}) if "://" in url else {}


def _paths(fs: fsspec.AbstractFileSystem, path: str, url: str) -> list[str]:
    if fs.isdir(path):
        found = [str(each) for each in fs.find(path) if _is_visible(str(each), path)]
        if not found:
            raise SourceError(f"source: the folder {url} holds no file; check the path")
        return found
    if fs.exists(path):
        return [path]
    if any(wild in path for wild in "*?["):
        matches = [str(each) for each in fs.glob(path)]
        found = [each for each in matches if fs.isfile(each)]
        if not found:
            raise SourceError(f"source: no file matches {url}; check the glob")
        return found
    raise SourceError(f"source: {url} does not exist; check the path")


def _is_visible(path: str, folder: str) -> bool:
    inside = path.removeprefix(folder)
    return not any(step.startswith(("_", ".")) for step in inside.split("/"))


def _format_of(path: str) -> str:
    name = path.rsplit("/", 1)[-1].lower()
    packed = next((each for each in COMPRESSIONS if name.endswith(each)), "")
    stem = name.removesuffix(packed)
    found = next((kind for end, kind in FORMATS.items() if stem.endswith(end)), None)
    if found is None or (packed and found not in _TEXT_FORMATS):
        advice = "; write JSON as lines and name it .jsonl" if stem.endswith(".json") else ""
        raise SourceError(
            f"source: {path}: its name does not tell its format; there are"
            f" {', '.join(FORMATS)}{advice}"
        )
    return found


def _partitions_of(path: str) -> dict[str, str | None]:
    pairs = (step.split("=", 1) for step in path.split("/")[:-1] if "=" in step.strip("="))
    return {
        unquote(name): None if value == _HIVE_NULL else unquote(value)
        for name, value in pairs
        if name
    }

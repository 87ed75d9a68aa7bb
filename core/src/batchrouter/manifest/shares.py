"""A build shared among processes: each renders row groups of the source, this one makes the parts.

A worker writes two files for a row group, in a temporary folder: its lines one after the other,
and an Arrow stream of its snapshot rows with each line's size. They come here in the source's
order, so that the parts, their cuts and their hashes are those of a build in one process.
"""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchrouter.errors import JobError, SourceError
from batchrouter.job import Job
from batchrouter.manifest.arrow import py_buffer
from batchrouter.manifest.kernel import SLICE_BYTES, Slice
from batchrouter.manifest.lines import line_shape
from batchrouter.manifest.snapshot import StagedRows, snapshot_schema
from batchrouter.manifest.sources import FileSource, Source, open_source
from batchrouter.manifest.storing import storing
from batchrouter.manifest.workers import Json, Work, Workers, process_count
from batchrouter.manifest.writing import BatchLines, BatchWriter

LEAST_ROWS = 50_000
"""A smaller table is built sooner than workers have started."""

_SIZE, _DIGEST = "_size", "_digest"
_DIGEST_TYPE = pa.binary(16)


class SharedRendering:
    """The batches of a source, rendered by workers."""

    def __init__(self, document: Json, source: FileSource, schema: pa.Schema, count: int) -> None:
        self._document = document
        self._source = source
        self._schema = schema
        self._count = count
        self.max_output_tokens: int | None = None
        """The largest output cap of the rows' own bodies so far."""

    @classmethod
    def of(cls, job: Job, source: Source, schema: pa.Schema) -> "SharedRendering | None":
        """Share a build if that is worth it and can be done; None otherwise."""
        if not isinstance(source, FileSource) or process_count() == 1:
            return None
        shares = source.shares()
        document = _document(job)
        if document is None or len(shares) < 2 or sum(s.row_count for s in shares) < LEAST_ROWS:  # noqa: PLR2004 - one has nobody to share with
            return None
        return cls(document, source, schema, min(process_count(), len(shares)))

    def batches(self) -> Iterator[BatchLines]:
        """Yield the batches in the source's order.

        Raises:
            BatchrouterError: What a worker raised, after the batches before it; or it died.
            StorageError: The temporary folder takes no more.
        """
        with storing(tempfile.gettempdir()):
            folder = tempfile.TemporaryDirectory(prefix="batchrouter-build-")
        setup = {"job": self._document, "files": self._source.paths, "folder": folder.name}
        units = [{"share": at} for at in range(len(self._source.shares()))]
        target = "batchrouter.manifest.shares:share_renderer"
        with folder, Workers(target, setup, self._count) as workers:
            for at, said in enumerate(workers.results(units)):
                self.max_output_tokens = max(
                    filter(None, (self.max_output_tokens, said["cap"])), default=None
                )
                yield from _staged(Path(folder.name), at, self._schema)


def _document(job: Job) -> Json | None:
    """Write the job as JSON from which a worker makes the very same lines; None if it cannot."""
    document = job.model_dump(mode="json")
    request = document["request"]
    if request.get("output") is not None:
        request["output"] = job.request.output_schema()
    try:
        copy = Job.model_validate(document)
    except JobError:
        return None
    return document if line_shape(copy) == line_shape(job) else None


def share_renderer(setup: Mapping[str, Any]) -> Work:
    """Open the source in a worker, and give the function that renders a share."""
    job = Job.model_validate(setup["job"])
    source = open_source(job)
    if not isinstance(source, FileSource) or source.paths != setup["files"]:
        raise SourceError("source: its files changed during the build; run it again")
    schema = snapshot_schema(job, source.schema)
    folder = Path(setup["folder"])
    shares = source.shares()

    def render(unit: Json) -> Json:
        writer = BatchWriter(job, schema)
        share = shares[unit["share"]]
        lines_path, rows_path = _paths(folder, unit["share"])
        row = share.first_row
        staged = schema.append(pa.field(_SIZE, pa.int64())).append(pa.field(_DIGEST, _DIGEST_TYPE))
        with (
            storing(str(folder)),
            lines_path.open("wb") as lines,
            pa.OSFile(str(rows_path), "wb") as file,
            pa.ipc.new_stream(file, staged) as rows,
        ):
            for batch in source.batches_of(writer.columns, share):
                rows.write_batch(_stage(writer.lines_of(batch, row), lines, staged))
                row += len(batch)
        return {"cap": writer.max_output_tokens}

    return render


def _stage(batch: BatchLines, lines: Any, schema: pa.Schema) -> pa.RecordBatch:
    sizes = np.zeros(batch.row_count, np.int64)
    for piece, sent in batch.slices:
        lines.write(piece.lines)
        sizes[sent] = np.diff(piece.ends, prepend=0)
        batch.snapshot.number(sent, 0)
    rows = batch.snapshot.until(batch.row_count)
    buffers = [None, py_buffer(batch.digests)]
    digests = pa.Array.from_buffers(_DIGEST_TYPE, batch.row_count, buffers)
    return pa.RecordBatch.from_arrays([*rows.columns, pa.array(sizes), digests], schema=schema)


def _paths(folder: Path, share: int) -> tuple[Path, Path]:
    return folder / f"{share}.jsonl", folder / f"{share}.arrows"


def _staged(folder: Path, share: int, schema: pa.Schema) -> Iterator[BatchLines]:
    """Read a share again, and remove it."""
    lines_path, rows_path = _paths(folder, share)
    with (
        storing(str(folder)),
        lines_path.open("rb", buffering=0) as lines,
        pa.OSFile(str(rows_path), "rb") as file,
        pa.ipc.open_stream(file) as stream,
    ):
        lines_path.unlink()
        rows_path.unlink()
        for batch in stream:
            sizes = batch.column(_SIZE).to_numpy()
            digests: Any = batch.column(_DIGEST)
            start = digests.offset * 16
            raw = memoryview(digests.buffers()[1])[start : start + len(batch) * 16]
            rows = batch.select(schema.names)
            first_row = rows.column("_row")[0].as_py()
            snapshot = StagedRows(schema, rows)
            yield BatchLines(first_row, len(batch), raw.tobytes(), _slices(lines, sizes), snapshot)


def _slices(
    lines: Any, sizes: npt.NDArray[np.int64]
) -> Iterator[tuple[Slice, npt.NDArray[np.int64]]]:
    sent = np.flatnonzero(sizes)
    ends = np.cumsum(sizes[sent])
    start = 0
    while start < len(sent):
        before = int(ends[start - 1]) if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + SLICE_BYTES, side="right")))
        data = lines.read(int(ends[end - 1]) - before)
        yield Slice(start, memoryview(data), ends[start:end] - before), sent[start:end]
        start = end

"""One Parquet file out of a stream of rows, in flat memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from batchrouter.killpoints import reached

_GROUP_ROWS = 131_072
_GROUP_BYTES = 32 << 20
"""A row group is the sink's share of the peak memory, and the least that a reader reads."""

_ZSTD_LEVEL = 1
"""Writing at level 1 costs a tenth of decoding; higher levels are for tables read for years."""


def write_file(
    path: Path | IO[bytes],
    batches: Iterator[pa.RecordBatch],
    schema: pa.Schema,
    footers: list[pq.FileMetaData] | None = None,
) -> int:
    """Write a file, or to an open one; what `batches` raises goes through, and leaves half a file.

    Args:
        path: The file.
        batches: Its rows.
        schema: Its columns.
        footers: Gets the file's footer, with counts and bounds.

    Returns:
        The number of rows.

    Raises:
        OSError: No room, or no permission.
    """
    rows = 0
    group: list[pa.RecordBatch] = []
    group_rows = group_bytes = 0
    with pq.ParquetWriter(
        cast("Any", path),
        schema,
        compression="zstd",
        compression_level=_ZSTD_LEVEL,
        metadata_collector=footers,
    ) as writer:
        for batch in batches:
            group.append(batch)
            group_rows += len(batch)
            group_bytes += batch.nbytes
            if group_rows >= _GROUP_ROWS or group_bytes >= _GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(group, schema), group_rows)
                reached("landing.mid_write")
                rows += group_rows
                group, group_rows, group_bytes = [], 0, 0
        if group:
            writer.write_table(pa.Table.from_batches(group, schema), group_rows)
    return rows + group_rows

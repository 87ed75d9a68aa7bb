"""Lines of a file with their byte offsets, in flat memory.

The file is read in pieces of 2 MiB that are cut at line ends, so that a line is copied twice
at most and the peak does not depend on the file.
"""

import sys
from collections.abc import Iterator
from typing import IO

CHUNK_BYTES = 2 << 20

MAX_LINE_BYTES = 64 << 20
"""A longer line is no answer to a line of 1 MiB (contract section 2); it is given in pieces."""

_BOM = b"\xef\xbb\xbf"


def read_lines(file: IO[bytes], *, from_byte: int = 0) -> Iterator[tuple[int, bytes]]:
    r"""Yield each line that is not blank, with the offset of its first byte.

    A byte order mark at the start of the file is passed over. A last line without its newline
    is yielded like any other: whether it is cut short is for the parser to find. A line longer
    than `MAX_LINE_BYTES` comes in pieces, none of which parses.

    Args:
        file: Seekable; it is left at its end.
        from_byte: The offset of a line's first byte.

    Example:
        >>> import io
        >>> list(read_lines(io.BytesIO(b'{"a":1}\n\n{"a":2}')))
        [(0, b'{"a":1}'), (9, b'{"a":2}')]
    """
    for at_byte, block in read_blocks(file, from_byte=from_byte):
        yield from split_lines(block, at_byte)


def read_blocks(
    file: IO[bytes], *, from_byte: int = 0, to_byte: int | None = None
) -> Iterator[tuple[int, bytes]]:
    """Yield the same file, or a range of it, in blocks of lines without the last one's newline."""
    file.seek(from_byte)
    at_byte = from_byte
    left_bytes = sys.maxsize if to_byte is None else to_byte - from_byte
    begun = b""
    while chunk := file.read(min(CHUNK_BYTES, left_bytes)):
        left_bytes -= len(chunk)
        whole, newline, rest = chunk.rpartition(b"\n")
        if newline:
            yield at_byte, begun + whole
            at_byte += len(begun) + len(whole) + 1
            begun = rest
        elif len(begun) < MAX_LINE_BYTES:
            begun += chunk
        else:
            yield at_byte, begun
            at_byte += len(begun)
            begun = chunk
    if begun:
        yield at_byte, begun


def split_lines(lines: bytes, at_byte: int) -> Iterator[tuple[int, bytes]]:
    """Cut a block; blank lines are left out."""
    for line in lines.split(b"\n"):
        if line and not line.isspace():
            if at_byte == 0 and line.startswith(_BOM):
                if line[len(_BOM) :].strip():
                    yield len(_BOM), line[len(_BOM) :]
            else:
                yield at_byte, line
        at_byte += len(line) + 1

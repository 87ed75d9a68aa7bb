"""Columns of text and the constants between them → lines of JSON, in C.

The library is plain C without Python's headers, called once for about a megabyte of lines, with
the interpreter's lock let go. Who calls it, keeps alive and in bounds what the addresses name.
"""

import ctypes
from pathlib import Path
from typing import Any

__all__ = ["Column", "Constant", "write_lines"]


class Column(ctypes.Structure):
    """The cells between two constants, as Arrow lays out a binary array.

    Attributes:
        offsets: Address of int32, one more than there are rows.
        data: Address of the bytes; the first offset need not be 0.
        is_safe: 1 if no byte needs an escape: not `"`, not a backslash, none below 32.
    """

    _fields_ = [
        ("offsets", ctypes.c_void_p),
        ("data", ctypes.c_void_p),
        ("is_safe", ctypes.c_int32),
    ]


class Constant(ctypes.Structure):
    """What stands before, between or behind the cells, escaped already.

    Attributes:
        data: The bytes; may be empty.
        bytes: How many.
    """

    _fields_ = [("data", ctypes.c_char_p), ("bytes", ctypes.c_int64)]


_library = ctypes.CDLL(str(Path(__file__).with_name("lines.so")))
_write: Any = _library.batchrouter_write_lines
_write.restype = ctypes.c_int64
_write.argtypes = [
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_int64,
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_void_p,
]


def write_lines(
    columns: "ctypes.Array[Column]",
    constants: "ctypes.Array[Constant]",
    *,
    start: int,
    rows: int,
    out_address: int,
    out_bytes: int,
    ends_address: int,
) -> int:
    """Write a line for each row from `start` on, while there is room.

    A row is begun only if it fits with every byte of its unsafe cells escaped, six bytes for one.

    Args:
        columns: The cells, in the line's order.
        constants: One more than columns; the first one begins a line, the last one ends it.
        start: The first row to write.
        rows: Where to stop; the count of rows in each column.
        out_address: Takes the lines.
        out_bytes: How much room it has.
        ends_address: Takes an int64 for each row that is written: the offset behind its last byte.

    Returns:
        How many rows were written; 0 when not even one has room.
    """
    if len(constants) != len(columns) + 1:
        raise ValueError(f"{len(columns)} columns want one constant more, not {len(constants)}")
    written: int = _write(
        columns, len(columns), constants, start, rows, out_address, out_bytes, ends_address
    )
    return written

"""What a process is told before it builds or lands.

glibc shall keep what is freed: both make and free a buffer of about a megabyte for each step of
each slice, and by default each goes back to the kernel, and every page of the next one is faulted
in anew, a quarter of the CPU.

pyarrow shall do without pandas in a process that runs nobody else's code. Where pandas is
installed, pyarrow imports it at its first conversion of any Python value, to know its classes:
about 0.6 s of CPU and 50 MB for nothing. It tries once; when that fails it goes on without, until
something asks for a pandas object. And Arrow shall allocate by jemalloc, which its Linux builds
have: with its default, mimalloc, a build takes 30 MB more, and the peak grows with the table.

A user's process is left as it is: `pa.array(series)` would not take a NaN for a NULL there, and
Arrow's allocator is theirs to choose.
"""

import functools
import os
import sys
import threading
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

from batchrouter.malloc import tell_malloc

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEPT_BYTES = 64 << 20
_MMAP_BYTES = 32 << 20
_POOL_VARIABLE = "ARROW_DEFAULT_MEMORY_POOL"

_ours: list[bool] = []


def own_process() -> None:
    """Say that this process runs our program and nothing else; costs nothing.

    Call it before pyarrow is imported, which reads its allocator's name once.
    """
    _ours.append(True)
    if _is_glibc():
        os.environ.setdefault(_POOL_VARIABLE, "jemalloc")


@functools.cache
def prepare_process() -> None:
    """Set the process up, once."""
    if _ours and "pandas" not in sys.modules:
        _leave_pandas_out()
    tell_malloc(_M_MMAP_THRESHOLD, _MMAP_BYTES)
    tell_malloc(_M_TRIM_THRESHOLD, _KEPT_BYTES)


class _Refusal(MetaPathFinder):
    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        del path, target
        if fullname == "pandas" and threading.get_ident() == self._thread:
            raise ModuleNotFoundError("pandas is left out of this one import", name=fullname)


def _leave_pandas_out() -> None:
    import pyarrow as pa  # noqa: PLC0415 - a command that builds nothing shall not load it

    refusal = _Refusal()
    sys.meta_path.insert(0, refusal)
    try:
        pa.scalar(0)
    finally:
        sys.meta_path.remove(refusal)


def _is_glibc() -> bool:
    """Tell where Arrow's own builds have jemalloc; another name would be warned of."""
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (AttributeError, OSError, ValueError):
        return False

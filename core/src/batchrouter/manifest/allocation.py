"""How glibc's allocator is told to keep what a build or a landing frees.

Both make and free a buffer of about a megabyte for each step of each slice. By default glibc gives
each back to the kernel, and every page of the next one is faulted in anew: a quarter of the CPU.
"""

import ctypes
import functools

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEPT_BYTES = 64 << 20
_MMAP_BYTES = 32 << 20


@functools.cache
def keep_freed_memory() -> None:
    """Let this process keep up to 64 MiB of freed memory; done once, nothing without glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)

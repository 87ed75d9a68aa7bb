"""What this process tells its allocator, where that is glibc's."""

import ctypes

__all__ = ["tell_malloc"]


def tell_malloc(option: int, value: int) -> None:
    """Call glibc's `mallopt`; without glibc, do nothing.

    Args:
        option: One of the `M_…` of malloc.h.
        value: What it is set to.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(option, value)

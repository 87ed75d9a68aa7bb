"""How many heaps the router's threads share.

glibc gives threads heaps of their own, eight for each core, and what is freed in one is of no use
to another: with some sixty threads (requests, workflows, SQLite's connections) memory went on
growing for tens of thousands of batches. Two are enough: Python holds its own lock through most
of what allocates.
"""

from batchrouter.malloc import tell_malloc

# malloc.h of glibc, M_ARENA_MAX.
_M_ARENA_MAX = -8
_HEAPS = 2


def share_heaps() -> None:
    """Let all threads that begin from now on share two heaps; without glibc, does nothing."""
    tell_malloc(_M_ARENA_MAX, _HEAPS)

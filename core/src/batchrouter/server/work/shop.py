"""What every step of the durable work needs at hand, and how a step waits.

A step waits on the `Pulse`: it is woken when a chunk is settled or a batch is cancelled, and it
leaves by `Suspended` when the router stops. That is no `Exception`, so that the durable engine
records nothing, and the step runs again when the router does.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy import Connection

from batchrouter.server.config import RouterConfig
from batchrouter.server.lanes.registry import LaneRegistry
from batchrouter.server.metrics import Metrics
from batchrouter.server.storage.database import Database
from batchrouter.server.storage.objects import Objects

__all__ = ["Bench", "Pulse", "Shop", "Suspended"]

T = TypeVar("T")

#: Steps that parse, generate or write at the same time. They share one interpreter: more of
#: them would only hold more chunks in memory.
BUSY_STEPS = 2


class Suspended(BaseException):
    """The router is stopping; the step's work is taken up again when it starts."""


class Pulse:
    """Wakes everybody who waits for something to change."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_stopping = False

    def beat(self) -> None:
        """Something has changed: wake all who wait."""
        with self._changed:
            self._changed.notify_all()

    def stop(self) -> None:
        """Make every present and later wait leave by `Suspended`."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()

    def wait(self, at_most_s: float) -> None:
        """Sleep until the next beat, or for so long.

        Raises:
            Suspended: The router is stopping.
        """
        with self._changed:
            if not self._is_stopping:
                self._changed.wait(at_most_s)
            if self._is_stopping:
                raise Suspended

    def check(self) -> None:
        """Leave by `Suspended` when the router is stopping."""
        if self._is_stopping:
            raise Suspended


class Bench:
    """Where steps compute: few threads, always the same ones.

    A step has a thread of its own, in which it waits. Were lines read and answers written there,
    each of these threads would keep its own freed memory (glibc has an arena a thread): 400 MB
    more for 16 chunks at once were measured.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(BUSY_STEPS, thread_name_prefix="batchrouter-bench")

    def do(self, work: Callable[[], T]) -> T:
        """Compute on the bench, and wait for the outcome, which may be an exception."""
        return self._threads.submit(work).result()

    def close(self) -> None:
        """Let the threads go; what is being computed is finished first."""
        self._threads.shutdown()


@dataclass(frozen=True, slots=True)
class Shop:
    """The tools of a step.

    Attributes:
        database: The tables: the truth.
        objects: Manifests, chunk results, artifacts.
        lanes: Who does the work.
        config: Workflows and limits.
        enqueue_chunk: Makes sure, in the caller's transaction, that a chunk will be worked on.
        enqueue_finish: The same, that a batch will be finished.
        worker: This process's name among several; empty for a router that is alone.
        pulse: See `Pulse`.
        metrics: Where settled items are counted.
        bench: Where a step computes, and never waits.
    """

    database: Database
    objects: Objects
    lanes: LaneRegistry
    config: RouterConfig
    enqueue_chunk: Callable[[Connection, str, int], None]
    enqueue_finish: Callable[[Connection, str], None]
    worker: str = ""
    pulse: Pulse = field(default_factory=Pulse)
    metrics: Metrics = field(default_factory=Metrics)
    bench: Bench = field(default_factory=Bench)

"""What tests of batchrouter stand on, ours and other people's: nothing in here is a mock.

`running_router` starts the embedded router in a process of its own, `FaultProxy` stands between
a client and a router and breaks what networks break, and `KILL_POINTS` names the places at which
a process can be made to die.

Example:
    >>> with running_router() as router:              # doctest: +SKIP
    ...     client = Client(router.settings())
"""

from batchrouter.testing.kill_points import (
    KILL_POINTS,
    RECEIVER_KILL_POINTS,
    ROUTER_KILL_POINTS,
    RUN_KILL_POINTS,
)
from batchrouter.testing.proxy import FaultProxy, Seen
from batchrouter.testing.router import RunningRouter, running_router

__all__ = [
    "KILL_POINTS",
    "RECEIVER_KILL_POINTS",
    "ROUTER_KILL_POINTS",
    "RUN_KILL_POINTS",
    "FaultProxy",
    "RunningRouter",
    "Seen",
    "running_router",
]

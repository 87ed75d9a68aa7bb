"""LLM batch jobs over tables: a locked price, a batch bought once, every row accounted for.

The names below load on first use: a DAG file is parsed every few seconds and must not pay
for httpx, pydantic or pyarrow that it does not touch.

Example:
    >>> import batchrouter
    >>> batchrouter.__version__.count(".")
    2
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from batchrouter._version import __version__

if TYPE_CHECKING:
    from batchrouter.api.client import AsyncClient, Client
    from batchrouter.api.settings import Settings
    from batchrouter.errors import BatchrouterError
    from batchrouter.job import Job
    from batchrouter.run import Done, Receipt, Run, Waiting

_HOMES = {
    "AsyncClient": "batchrouter.api.client",
    "BatchrouterError": "batchrouter.errors",
    "Client": "batchrouter.api.client",
    "Done": "batchrouter.run",
    "Job": "batchrouter.job",
    "Receipt": "batchrouter.run",
    "Run": "batchrouter.run",
    "Settings": "batchrouter.api.settings",
    "Waiting": "batchrouter.run",
}

__all__ = [
    "AsyncClient",
    "BatchrouterError",
    "Client",
    "Done",
    "Job",
    "Receipt",
    "Run",
    "Settings",
    "Waiting",
    "__version__",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'batchrouter' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

"""The command `batchrouter`: every command loads its own module, and only when it is asked for."""

from batchrouter.cli.program import main

__all__ = ["main"]

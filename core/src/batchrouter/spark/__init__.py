"""Building and landing on Apache Spark, with the kernels of the one-machine path.

A task renders or judges one partition and writes its files under a name of its own attempt; it
tells the driver their names, counts and hashes. Spark gives the driver the word of exactly one
attempt of each task, and only what that names is part of the run: so a task that was retried, or
ran twice by speculation, leaves one copy, and the other is litter. No row of a build comes to the
driver.

Executors need ``batchrouter-core[tables]`` and must see the run folder under the same URL.
"""

from batchrouter.spark.building import build_manifest
from batchrouter.spark.landing import land

__all__ = ["build_manifest", "land"]

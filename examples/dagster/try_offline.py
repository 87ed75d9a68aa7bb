"""Run a day of the project offline: an embedded router, both jobs, and the report.

    python try_offline.py [2026-11-02]

It leaves router/ and data/ in this folder. Given again, it finds the day landed, and buys nothing.
"""

import os
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def main() -> None:
    """Materialize a day, each table in one run with its submission, which waits for the batch."""
    import dagster as dg  # noqa: PLC0415 - after the environment is set
    from ticket_labels.definitions import defs  # noqa: PLC0415 - as above

    day = sys.argv[1] if len(sys.argv) > 1 else "2026-11-02"
    with dg.DagsterInstance.ephemeral() as instance:
        job = defs().resolve_implicit_global_asset_job_def()
        done = job.execute_in_process(instance=instance, partition_key=day)
    for event in done.get_asset_materialization_events():
        told = event.materialization.metadata
        cost = told.get("batchrouter/settled_usd")
        print(event.asset_key.to_user_string(), "" if cost is None else f"${cost.value:.6f}")


if __name__ == "__main__":
    from batchrouter.testing import running_router

    os.chdir(FOLDER)
    with running_router("router") as router:
        os.environ["BATCHROUTER_BASE_URL"] = router.base_url
        os.environ["BATCHROUTER_API_KEY"] = router.api_key
        main()

"""The same job on Apache Spark: built by its executors, bought in three batches, landed once.

    pip install 'batchrouter-core[all,spark]'
    python examples/spark/label_on_spark.py

Needs Java 17 or newer. Runs offline, on a Spark of two cores inside this process and an embedded
router with simulated answers. On a cluster of yours the session is the one you have already.
"""

import tempfile
from pathlib import Path

import pyarrow.dataset as ds
from pyspark.sql import SparkSession

from batchrouter import Job, Run
from batchrouter.testing import running_router

TICKETS = Path(__file__).parents[1] / "label_tickets" / "tickets.csv"


def main() -> None:
    spark = SparkSession.builder.master("local[2]").appName("label-tickets").getOrCreate()
    tickets = spark.read.csv(str(TICKETS), header=True).where("body is not null")
    with tempfile.TemporaryDirectory() as scratch, running_router() as router:
        folder = Path(scratch)
        job = Job(
            name="label-tickets",
            # Each partition is a part, and each part a batch of its own.
            source=tickets.repartition(3),
            key="ticket_id",
            request={
                "kind": "chat",
                "system": "You label support tickets.",
                "user": "Subject: {subject}\n\n{body}",
                "output": {
                    "intent": {"type": "string", "enum": ["billing", "delivery", "other"]},
                },
                "parameters": {"max_output_tokens": 32},
            },
            route={"models": ["gpt-4o-mini"]},
            budget="0.05",
            sink=folder / "labelled",
        )
        settings = router.settings(runs_url=str(folder / "runs"))
        with Run.open(job, run_key="2026-11-22", settings=settings) as run:
            receipt = run.execute(timeout_s=300)
        rows = ds.dataset(folder / "labelled", format="parquet").to_table()
        print(f"{receipt.rows['succeeded']} rows labelled in {receipt.batch_count} batches")
        print(f"{len(set(rows.column('ticket_id').to_pylist()))} tickets in the table, each once")
    spark.stop()


if __name__ == "__main__":
    main()

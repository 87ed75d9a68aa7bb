"""Embed a table, and search it: one vector a row, in a fixed-size list column.

    python examples/embeddings.py

The simulated lane's vectors have the right size and length and are the same at every run, but
they carry no meaning: with a real lane the neighbour would be the nearest text.
"""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from batchrouter import Client, Job, Run
from batchrouter.job import Embedding, Route
from batchrouter.testing import running_router

DIMENSIONS = 64
ARTICLES = pa.table({
    "slug": ["reset-password", "refund", "late-parcel", "forgot-password"],
    "title": ["Reset your password", "Ask for a refund", "My parcel is late", "Log in again"],
    "body": ["Open the login page.", "Within 14 days.", "Track it first.", "Use the mail."],
})


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, running_router() as router:
        folder = Path(scratch)
        job = Job(
            name="embed-articles",
            source=ARTICLES,
            key="slug",
            request=Embedding(input="{title}\n\n{body}", parameters={"dimensions": DIMENSIONS}),
            route=Route(models=["text-embedding-3-small"]),
            budget="0.01",
            sink=folder / "vectors",
            keep="title",
        )
        with Client(router.settings(runs_url=str(folder / "runs"))) as client:
            receipt = Run.open(job, run_key="first", client=client).execute()

        print(f"rows: {receipt.rows['succeeded']}, cost: {receipt.settled_usd:f} USD")
        table = ds.dataset(folder / "vectors").to_table()
        print(f"output: {table.schema.field('output').type}")

        vectors = np.array(table["output"].to_pylist())
        likeness = vectors @ vectors[0]
        print(f"length of the first: {np.linalg.norm(vectors[0]):.3f}")
        print(f"nearest to {table['slug'][0]}: {table['slug'][int(likeness[1:].argmax()) + 1]}")


if __name__ == "__main__":
    main()

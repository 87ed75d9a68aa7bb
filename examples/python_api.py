"""A job in Python, over a table in memory; the run, its receipt, and the table read back.

    python examples/python_api.py

Any object with `__arrow_c_stream__` is a source: a polars or pandas frame, a DuckDB relation, a
pyarrow table. The answer's schema is a pydantic model here.
"""

import tempfile
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.dataset as ds
from pydantic import BaseModel

from batchrouter import Client, Job, Run
from batchrouter.job import Chat, Route
from batchrouter.testing import running_router


class Label(BaseModel):
    """What the model answers for each review."""

    topic: Literal["food", "service", "price"]
    recommends: bool


REVIEWS = pa.table({
    "review_id": [1, 2, 3, 4],
    "stars": [5, 2, 4, 1],
    "text": [
        "The food was fresh, and we loved the soup.",
        "Slow service: we waited an hour for a table.",
        "Good value, the price of the lunch menu is fair.",
        'They wrote {"note": "no refunds"} on the bill, and the price was wrong.',
    ],
})


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, running_router() as router:
        folder = Path(scratch)
        job = Job(
            name="label-reviews",
            source=REVIEWS,
            key="review_id",
            request=Chat(
                system="Say what the review is about.",
                user="{stars} stars\n\n{text}",
                output=Label,
                parameters={"max_output_tokens": 32},
            ),
            route=Route(models=["gpt-4o-mini", "claude-haiku-4"]),
            budget="0.01",
            sink=folder / "reviews",
            keep="stars",
        )
        with Client(router.settings(runs_url=str(folder / "runs"))) as client:
            run = Run.open(job, run_key="2026-11-22", client=client)

            quote = run.quote()
            print(f"quote: {quote.item_count} items for at most {quote.total_usd} USD")
            print(f"why: {quote.why}")

            receipt = run.execute()
            print(f"settled: {receipt.settled_usd} of {receipt.quoted_usd} USD")
            print(f"rows: {receipt.rows}")

            again = Run.open(job, run_key="2026-11-22", client=client).execute()
            print(f"bought twice: {again.batch_ids != receipt.batch_ids}")

        table = ds.dataset(folder / "reviews").to_table().sort_by("review_id")
        for row in table.select(["review_id", "stars", "topic", "recommends"]).to_pylist():
            print(row)


if __name__ == "__main__":
    main()

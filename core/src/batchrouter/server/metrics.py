"""What the router tells Prometheus: what it did since its start, and how its books stand.

Counters live in the process; gauges are read from the tables at each scrape, by queries whose cost
grows with what is open, never with what the router has ever done. No label names a customer.
"""

from collections.abc import Iterable, Iterator
from decimal import Decimal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Connection, func, select

from batchrouter._version import __version__
from batchrouter.server.storage.database import Database
from batchrouter.server.storage.tables import batch_lanes, batches, chunks, events, workspaces

__all__ = ["Metrics"]

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600)


class Metrics:
    """The router's counters, and its books as gauges.

    Args:
        database: Where the gauges are read; None for counters alone.

    Example:
        >>> metrics = Metrics()
        >>> metrics.count_delivery("delivered")
        >>> b'batchrouter_webhook_deliveries_total{outcome="delivered"} 1.0' in metrics.exposed()
        True
    """

    def __init__(self, database: Database | None = None) -> None:
        self._registry = CollectorRegistry()
        self._requests = Histogram(
            "batchrouter_http_request_seconds",
            "Requests by route, and how long their answers took.",
            ["method", "route", "status"],
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        self._items = Counter(
            "batchrouter_items",
            "Items whose chunk was settled, by lane and outcome.",
            ["provider", "model", "outcome"],
            registry=self._registry,
        )
        self._cost = Counter(
            "batchrouter_provider_cost_usd",
            "What settled chunks cost at the lane's locked price, without the fee.",
            ["provider", "model"],
            registry=self._registry,
        )
        self._deliveries = Counter(
            "batchrouter_webhook_deliveries",
            "Tries to deliver an event: delivered, failed (tried again), gone (410: given up).",
            ["outcome"],
            registry=self._registry,
        )
        self._uploads = Counter(
            "batchrouter_upload_bytes", "Bytes of accepted manifests.", registry=self._registry
        )
        Info("batchrouter_build", "The router's version.", registry=self._registry).info({
            "version": __version__
        })
        ProcessCollector(registry=self._registry)
        if database is not None:
            self._registry.register(_Books(database))

    def count_request(self, method: str, route: str | None, status: int, elapsed_s: float) -> None:
        """Count an answered request; `route` is its template, None where none matched."""
        method = method if method in _METHODS else "other"
        self._requests.labels(method, route or "none", str(status)).observe(elapsed_s)

    def count_items(
        self, provider: str, model: str, *, completed: int, failed: int, cost_usd: Decimal
    ) -> None:
        """Count the items of a settled chunk."""
        self._items.labels(provider, model, "completed").inc(completed)
        self._items.labels(provider, model, "failed").inc(failed)
        self._cost.labels(provider, model).inc(float(cost_usd))

    def count_delivery(self, outcome: str) -> None:
        """Count one try of a webhook: `delivered`, `failed` or `gone`."""
        self._deliveries.labels(outcome).inc()

    def count_upload(self, size_bytes: int) -> None:
        """Count an accepted manifest."""
        self._uploads.inc(size_bytes)

    def exposed(self) -> bytes:
        """Write everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _Books(Collector):
    """The tables, as they are at the scrape."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def describe(self) -> Iterable[Metric]:
        """Name nothing before the first scrape: the tables are not read at registration."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Read the gauges in one transaction."""
        with self._database.reading() as conn:
            yield _open_batches(conn)
            yield _open_chunks(conn)
            yield _open_items(conn)
            yield from _money(conn)
            yield _pending_events(conn)


def _open_batches(conn: Connection) -> Metric:
    family = GaugeMetricFamily(
        "batchrouter_open_batches", "Batches that have not ended.", labels=["state"]
    )
    counted = select(batches.c.state, func.count()).where(batches.c.completed_at.is_(None))
    for state, count in conn.execute(counted.group_by(batches.c.state)):
        family.add_metric([state], count)
    return family


def _open_chunks(conn: Connection) -> Metric:
    family = GaugeMetricFamily(
        "batchrouter_open_chunks", "Chunks of batches that have not ended.", labels=["state"]
    )
    counted = (
        select(chunks.c.state, func.count())
        .join(batches, batches.c.id == chunks.c.batch_id)
        .where(batches.c.completed_at.is_(None))
    )
    for state, count in conn.execute(counted.group_by(chunks.c.state)):
        family.add_metric([state], count)
    return family


def _open_items(conn: Connection) -> Metric:
    family = GaugeMetricFamily(
        "batchrouter_open_items",
        "Items that lanes still owe to batches that have not ended.",
        labels=["provider", "model"],
    )
    left = batch_lanes.c.item_count - batch_lanes.c.completed - batch_lanes.c.failed
    owed = (
        select(batch_lanes.c.provider, batch_lanes.c.model, func.sum(left))
        .join(batches, batches.c.id == batch_lanes.c.batch_id)
        .where(batches.c.completed_at.is_(None))
        .group_by(batch_lanes.c.provider, batch_lanes.c.model)
    )
    for provider, model, items in conn.execute(owed):
        family.add_metric([provider, model], items)
    return family


def _money(conn: Connection) -> Iterator[Metric]:
    columns = {
        "balance": (workspaces.c.balance_micro, "Credits that are free to spend."),
        "reserved": (workspaces.c.reserved_micro, "Credits reserved for open batches."),
        "spent": (workspaces.c.spent_micro, "What all batches that have ended were charged."),
    }  # fmt: skip
    sums = conn.execute(select(*(func.sum(column) for column, _ in columns.values()))).one()
    for (name, (_, text)), micro in zip(columns.items(), sums, strict=True):
        yield GaugeMetricFamily(f"batchrouter_{name}_usd", text, value=(micro or 0) / 1_000_000)


def _pending_events(conn: Connection) -> Metric:
    due = select(func.count()).where(events.c.next_attempt_at.is_not(None))
    text = "Webhook events that wait for their first or next try."
    return GaugeMetricFamily(
        "batchrouter_webhook_events_pending", text, value=conn.execute(due).scalar_one()
    )

"""What a batch has ordered: its manifest, its locked terms, its workflow's prompt."""

from dataclasses import dataclass

from sqlalchemy import Connection, select

from batchrouter.server.config import RouterConfig
from batchrouter.server.quoting.plan import Plan, PlannedLane
from batchrouter.server.storage import tables
from batchrouter.server.work.lines import LineReader, Terms
from batchrouter.server.work.prompts import WorkflowPrompt

__all__ = ["Order", "OrderError", "load_order"]


class OrderError(Exception):
    """The batch cannot be run by this router as it is configured now."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Order:
    """The unchanging part of a batch.

    Attributes:
        manifest_key: The object with the lines.
        dialect: The manifest's, which is the artifact's too.
        total: Lines of the manifest.
        lanes: In the order of the quote, cut to the manifest.
        deadline_at: Microseconds since 1970 UTC.
    """

    batch_id: str
    manifest_key: str
    manifest_bytes: int
    dialect: str
    total: int
    plan: Plan
    lanes: tuple[PlannedLane, ...]
    deadline_at: int
    config: RouterConfig

    @property
    def is_workflow(self) -> bool:
        """Whether a workflow's outcome was bought."""
        return self.plan.workflow is not None

    def reader(self) -> LineReader:
        """Make a reader for the manifest's lines.

        Raises:
            OrderError: The batch's workflow is no longer configured.
        """
        prompt = _prompt(self.plan.workflow, self.config)
        return LineReader(self.dialect, self.plan.max_output_tokens, prompt)

    def id_reader(self) -> LineReader:
        """Make a reader for lines that no lane will see: it needs no prompt."""
        return LineReader(self.dialect, self.plan.max_output_tokens, is_workflow=self.is_workflow)

    def terms(self, lane_position: int) -> Terms:
        """Return the locked price of a lane."""
        lane = self.lanes[lane_position]
        return Terms(
            lane.input_units_per_token,
            lane.output_units_per_token,
            self.plan.fee_bps,
            lane.tiers,
        )


def load_order(conn: Connection, batch_id: str, config: RouterConfig) -> Order:
    """Read what a batch has ordered; whether it can still be run shows with `Order.reader`."""
    batches, files, quotes = tables.batches, tables.files, tables.quotes
    row = conn.execute(
        select(
            batches.c.total,
            batches.c.deadline_at,
            files.c.object_key,
            files.c.bytes,
            files.c.dialect,
            quotes.c.plan,
        )
        .join(files, files.c.id == batches.c.file_id)
        .join(quotes, quotes.c.id == batches.c.quote_id)
        .where(batches.c.id == batch_id)
    ).one()
    plan = Plan.from_json(row.plan)
    return Order(
        batch_id=batch_id,
        manifest_key=row.object_key,
        manifest_bytes=row.bytes,
        dialect=row.dialect,
        total=row.total,
        plan=plan,
        lanes=plan.lanes_for(row.total),
        deadline_at=row.deadline_at,
        config=config,
    )


def _prompt(reference: str | None, config: RouterConfig) -> WorkflowPrompt | None:
    if reference is None:
        return None
    slug, _, version = reference.rpartition("@v")
    workflow = config.workflow(slug, int(version))
    if workflow is None:
        raise OrderError(
            "workflow_not_found",
            f"{reference} is no longer configured: put it back, and quote anew",
        )
    return WorkflowPrompt(workflow)

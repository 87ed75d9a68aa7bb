"""The tables: the router's truth, which durable workflows only point into.

Times are integer microseconds since 1970 UTC (`*_at`). Money in sums is in units of 10^-12
dollar (`*_units`); credits are in micro-dollars (`*_micro`). JSON stands as text, so that the
bytes that were hashed or promised are the bytes that are kept.

Credits: `workspaces.balance_micro` is free to spend, `reserved_micro` is promised to open
batches, `spent_micro` was charged; their sum only changes when somebody tops up.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

__all__ = [
    "SCHEMA_VERSION",
    "api_keys",
    "batch_lanes",
    "batches",
    "chunks",
    "events",
    "facts",
    "files",
    "idempotency_keys",
    "key_calls",
    "key_limits",
    "key_purchases",
    "lane_health",
    "lane_items",
    "lane_pace",
    "lane_submissions",
    "metadata",
    "quotes",
    "schema_version",
    "workers",
    "workspaces",
]

SCHEMA_VERSION = 1
"""Raised with every change that an older router could not work with."""

metadata = MetaData()


def _counter(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, default=0, server_default="0")


schema_version = Table("schema_version", metadata, Column("version", Integer, nullable=False))

workspaces = Table(
    "workspaces",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(255), nullable=False, unique=True),
    _counter("balance_micro"),
    _counter("reserved_micro"),
    _counter("spent_micro"),
    Column("created_at", BigInteger, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("workspace_id", ForeignKey("workspaces.id"), nullable=False),
    Column("sha256", String(64), nullable=False, unique=True),
    # Comma-separated, out of quote, submit, read, cancel.
    Column("scopes", String(255), nullable=False),
    Column("label", String(255), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
)

# Of keys that have limits of their own; NULL is none.
key_limits = Table(
    "key_limits",
    metadata,
    Column("key_id", ForeignKey("api_keys.id"), primary_key=True),
    Column("requests_per_minute", Integer),
    # The most that its batches may come to, all together.
    Column("budget_micro", BigInteger),
)

# What keys with a budget have bought: the quoted total of an open batch, then what was charged.
key_purchases = Table(
    "key_purchases",
    metadata,
    Column("batch_id", String(64), primary_key=True),
    Column("key_id", String(64), nullable=False),
    Column("amount_micro", BigInteger, nullable=False),
    Index("key_purchases_by_key", "key_id"),
)

# How many calls each key has left, where several processes answer it: thousandths of a call.
key_calls = Table(
    "key_calls",
    metadata,
    Column("key_id", String(64), primary_key=True),
    Column("left_milli", BigInteger, nullable=False),
    # By the database's clock.
    Column("refilled_at", BigInteger, nullable=False),
)

quotes = Table(
    "quotes",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("workspace_id", ForeignKey("workspaces.id"), nullable=False),
    Column("kind", String(16), nullable=False),
    # The question with every default filled in, and the answer as it was sent.
    Column("request", Text, nullable=False),
    Column("answer", Text, nullable=False),
    # quoting/plan.py: lanes with ranges and unit prices, fallback order, token figures.
    Column("plan", Text, nullable=False),
    Column("item_count", BigInteger, nullable=False),
    Column("quoted_total_micro", BigInteger, nullable=False),
    Column("input_tokens_per_item", BigInteger, nullable=False),
    Column("max_output_tokens", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("accepted_batch_id", String(64)),
)

files = Table(
    "files",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("workspace_id", ForeignKey("workspaces.id"), nullable=False),
    Column("filename", String(255), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("item_count", BigInteger, nullable=False),
    Column("dialect", String(16), nullable=False),
    # NULL: the lines are for a workflow.
    Column("operation", String(32)),
    Column("models", Text, nullable=False),
    # For a workflow's lines: {field: {"count": lines that have it, "types": [...]}}.
    Column("fields", Text, nullable=False),
    Column("input_tokens_estimate", BigInteger, nullable=False),
    # The largest output cap that a line sets for itself; NULL when none does.
    Column("max_output_tokens", BigInteger),
    Column("sha256", String(64), nullable=False),
    Column("object_key", String(255), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("deleted_at", BigInteger),
)

batches = Table(
    "batches",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("workspace_id", ForeignKey("workspaces.id"), nullable=False),
    Column("quote_id", ForeignKey("quotes.id"), nullable=False, unique=True),
    Column("file_id", ForeignKey("files.id"), nullable=False),
    Column("state", String(16), nullable=False),
    # routing_mode, privacy_tier, allowed_regions, sla_tier, task of the quote.
    Column("request", Text, nullable=False),
    Column("metadata", Text, nullable=False),
    _counter("total"),
    _counter("running"),
    _counter("completed"),
    _counter("failed"),
    _counter("cancelled"),
    # Items that may have been sent to a provider more than once (a crash in mid-send).
    _counter("possibly_repeated"),
    Column("quoted_total_micro", BigInteger, nullable=False),
    # Hundredths of a percent: 590 is 5.90 %.
    Column("fee_bps", Integer, nullable=False),
    # With the fee: what is settled, and the worst case of the chunks being sent.
    _counter("settled_units"),
    _counter("in_flight_units"),
    # NULL until settled: then charged + released = quoted_total_micro.
    Column("charged_micro", BigInteger),
    Column("released_micro", BigInteger),
    Column("overrun_units", BigInteger),
    Column("webhook_url", Text),
    Column("webhook_secret_encrypted", LargeBinary),
    Column("progress_event_at", BigInteger),
    Column("cancel_requested_at", BigInteger),
    Column("deadline_at", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("completed_at", BigInteger),
    Column("artifact_key", String(255)),
    Column("artifact_bytes", BigInteger),
    Column("artifact_sha256", String(64)),
    Column("artifact_expires_at", BigInteger),
    # {"code", "message"} or NULL.
    Column("error", Text),
    Index("batches_by_creation", "workspace_id", "created_at", "id"),
    Index("batches_by_change", "workspace_id", "updated_at"),
    Index("batches_by_file", "file_id"),
    # Small however much has ended: what is read of open batches stays cheap.
    Index(
        "batches_open",
        "state",
        sqlite_where=text("completed_at IS NULL"),
        postgresql_where=text("completed_at IS NULL"),
    ),
)

batch_lanes = Table(
    "batch_lanes",
    metadata,
    Column("batch_id", ForeignKey("batches.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("quote_lane_id", String(64), nullable=False),
    Column("provider", String(128), nullable=False),
    Column("model", String(128), nullable=False),
    Column("region", String(64), nullable=False),
    # queued, running, succeeded, degraded, cancelled
    Column("state", String(16), nullable=False),
    _counter("first_item"),
    _counter("item_count"),
    _counter("completed"),
    _counter("failed"),
    # What providers take, without the fee; the fee follows from batches.fee_bps.
    _counter("quoted_subtotal_units"),
    _counter("settled_subtotal_units"),
    _counter("input_tokens"),
    _counter("output_tokens"),
)

chunks = Table(
    "chunks",
    metadata,
    Column("batch_id", ForeignKey("batches.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("lane_position", Integer, nullable=False),
    Column("first_item", BigInteger, nullable=False),
    Column("item_count", BigInteger, nullable=False),
    # The chunk's lines are the manifest's bytes [byte_start, byte_end).
    Column("byte_start", BigInteger, nullable=False),
    Column("byte_end", BigInteger, nullable=False),
    # planned, sending, done, cancelled, expired
    Column("state", String(16), nullable=False),
    _counter("attempts"),
    # With the fee: this chunk's worst case, while it is being sent.
    _counter("reserved_units"),
    Column("result_key", String(255)),
    Column("result_bytes", BigInteger),
    _counter("completed"),
    _counter("failed"),
    _counter("input_tokens"),
    _counter("output_tokens"),
    # What the provider takes for it, without the fee.
    _counter("cost_units"),
    Column("provider", String(128)),
    Column("model", String(128)),
    Column("updated_at", BigInteger, nullable=False),
    Index("chunks_by_state", "batch_id", "state"),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("workspace_id", ForeignKey("workspaces.id"), primary_key=True),
    Column("key", String(128), primary_key=True),
    Column("body_sha256", String(64), nullable=False),
    Column("batch_id", ForeignKey("batches.id"), nullable=False),
)

# How lanes' providers have answered lately; shared by all processes.
lane_health = Table(
    "lane_health",
    metadata,
    Column("provider", String(128), primary_key=True),
    # In a row, up to now.
    _counter("failures"),
    Column("failed_at", BigInteger),
    Column("reason", Text),
)

# How long lanes' providers have lately taken; shared by all processes.
lane_pace = Table(
    "lane_pace",
    metadata,
    Column("provider", String(128), primary_key=True),
    # From a chunk's arrival at the lane to its stored results, a moving mean.
    Column("chunk_ms", BigInteger, nullable=False),
    Column("noted_at", BigInteger, nullable=False),
)

# What lanes have handed to real providers: written before each step that could cost money.
lane_submissions = Table(
    "lane_submissions",
    metadata,
    # batch/chunk/lane/try, as work/sending.py names it.
    Column("key", String(255), primary_key=True),
    Column("batch_id", String(64), nullable=False),
    # The lane's name and its model at the provider.
    Column("provider", String(128), nullable=False),
    Column("model", String(128), nullable=False),
    # lanes/book.py: prepared, intended, unsettled, held, accepted, collected, refused
    Column("state", String(16), nullable=False),
    Column("item_count", BigInteger, nullable=False),
    # Estimate of the input, for limits on what a provider has queued.
    Column("input_tokens", BigInteger, nullable=False),
    # Borne by the provider's batch and by its items' ids; a new one for each create.
    Column("intent", String(32), unique=True),
    # By the provider's own clock.
    Column("intended_at", BigInteger),
    Column("input_file", String(255)),
    Column("provider_batch", String(255)),
    _counter("creates"),
    # {"code", "message", "is_retryable"} of what was refused, or why it is held.
    Column("trouble", Text),
    # Nothing is done before this time.
    _counter("next_at"),
    Column("is_cancelled", Integer, nullable=False, default=0, server_default="0"),
    Column("gave_way", Integer, nullable=False, default=0, server_default="0"),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Index("lane_submissions_by_batch", "batch_id"),
    Index("lane_submissions_by_state", "provider", "state"),
)

# Items of plain lanes that were sent, and their answers, where several workers share a database.
lane_items = Table(
    "lane_items",
    metadata,
    Column("key", String(255), primary_key=True),
    Column("sequence_no", BigInteger, primary_key=True),
    Column("batch_id", String(64), nullable=False),
    # NULL: it was sent, and no answer is known.
    Column("answer", LargeBinary),
    Index("lane_items_by_batch", "batch_id"),
)

events = Table(
    "events",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("batch_id", ForeignKey("batches.id"), nullable=False),
    Column("type", String(32), nullable=False),
    # The exact bytes that are signed and posted, at every try.
    Column("body", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    _counter("attempts"),
    Column("next_attempt_at", BigInteger),
    Column("delivered_at", BigInteger),
    Column("gave_up_at", BigInteger),
    UniqueConstraint("batch_id", "id"),
    Index("events_due", "next_attempt_at"),
)

# The processes that work on a shared database (work/lease.py); SQLite has one, and no row.
workers = Table(
    "workers",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("host", String(255), nullable=False),
    # By the database's clock.
    Column("started_at", BigInteger, nullable=False),
    Column("renewed_at", BigInteger, nullable=False),
    # Set once, by whoever took its work over, or by itself at its end.
    Column("taken_at", BigInteger),
)

# What all processes must agree on, such as which secret_key is in use.
facts = Table(
    "facts",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", String(255), nullable=False),
)

"""What the API answers, read tolerantly (contract section 8) and never loosely about money.

Tolerant: other names of the same thing (`status`, `valid_until`, ``{"batch": …}``), states
that nobody told us about (kept, and never taken for an end), unknown fields (kept, in
``model_extra``), null where a default stands. Strict: an amount is an exact decimal in USD or
the answer is refused with `ProtocolError`, because a budget is compared with it.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal
from typing import Annotated, Any, ClassVar, Self, cast
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from batchrouter.errors import ProtocolError
from batchrouter.money import parse_usd

TERMINAL_STATES = frozenset({"succeeded", "failed", "cancelled", "expired"})
"""Contract section 5. Any other state, known or not, means that the batch may go on."""

_STATE_SPELLINGS = {"completed": "succeeded", "canceled": "cancelled", "canceling": "cancelling"}
_MICRO_USD = Decimal("0.000001")


def _read_state(value: object) -> object:
    if not isinstance(value, str):
        return value
    lowered = value.strip().lower()
    return _STATE_SPELLINGS.get(lowered, lowered)


def _read_usd(value: object) -> Decimal:
    if not isinstance(value, str | int | Decimal):
        raise ValueError("is not an exact decimal amount")  # noqa: TRY004 - pydantic turns only ValueError into a field's problem
    return parse_usd(value)


def _read_currency(value: object) -> object:
    if isinstance(value, str) and value.lower() != "usd":
        raise ValueError(f"is {value!r}, and budgets are in usd")
    return "usd"


def _to_utc(value: datetime) -> datetime:
    return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


def _masked(name: str | None, value: Any) -> Any:
    """Hide what follows the host in every URL, unknown fields included: it may be signed."""
    if isinstance(value, Mapping):
        items = cast("Mapping[str, Any]", value).items()
        return {key: _masked(key, item) for key, item in items}
    if isinstance(value, str) and name is not None and (name == "url" or name.endswith("_url")):
        return f"{urlsplit(value).netloc.rpartition('@')[2]}/***"
    return value


Usd = Annotated[Decimal, BeforeValidator(_read_usd)]
UtcTime = Annotated[datetime, AfterValidator(_to_utc)]
State = Annotated[str, BeforeValidator(_read_state)]


class Wire(BaseModel):
    """Base of all answers: frozen, keeps unknown fields, knows other names of its own."""

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True)

    other_names: ClassVar[Mapping[str, str]] = {}
    """Other name → our name; used only where our name is absent."""

    @model_validator(mode="before")
    @classmethod
    def _read_tolerantly(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        given = cast("Mapping[str, Any]", value)
        fields = {
            name: item
            for name, item in given.items()
            if item is not None or name not in cls.model_fields
        }
        for other, name in cls.other_names.items():
            if name not in fields and fields.get(other) is not None:
                fields[name] = fields.pop(other)
        return cls._complete(fields)

    @classmethod
    def _complete(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Fill in what follows from the rest; a subclass says what."""
        return fields

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        return [(name, _masked(name, value)) for name, value in super().__repr_args__()]

    @classmethod
    def from_wire(cls, body: object, **facts: Any) -> Self:
        """Read a parsed reply, with facts of our own that the body cannot override.

        Raises:
            ProtocolError: It is not what the contract says; names the fields, shows no value.
        """
        try:
            if isinstance(body, Mapping):
                return cls.model_validate({**cast("Mapping[str, Any]", body), **facts})
            return cls.model_validate(body)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(str(step) for step in entry['loc']) or 'as a whole'}: {entry['msg']}"
                for entry in error.errors(include_url=False, include_input=False)[:5]
            )
            raise ProtocolError(
                f"the reply is no {cls.__name__} of the Batches API: {problems}"
            ) from None


class Money(Wire):
    """An exact amount in USD."""

    currency: Annotated[str, BeforeValidator(_read_currency)] = "usd"
    amount: Usd

    @model_validator(mode="before")
    @classmethod
    def _read_bare_amount(cls, value: Any) -> Any:
        return {"amount": value} if isinstance(value, str | int | Decimal) else value


class Price(Wire):
    """What something costs (USD), and how that divides where the server tells."""

    other_names = {"amount": "total"}

    currency: Annotated[str, BeforeValidator(_read_currency)] = "usd"
    provider_subtotal: Usd | None = None
    batchrouter_fee: Usd | None = None
    total: Usd


class QuoteLane(Wire):
    """One provider lane that a quote considered: taken with a share, or rejected and why."""

    quote_lane_id: str | None = None
    provider: str = ""
    model: str = ""
    region: str | None = None
    selected: bool = False
    item_count: int = 0
    price: Price | None = None
    estimated_completion_seconds: float | None = None
    rejection_code: str | None = None
    reason: str | None = None


class RoutingExplanation(Wire):
    """Why these lanes, in words."""

    summary: str = ""
    selected: tuple[Any, ...] = ()
    rejected: tuple[Any, ...] = ()
    fallback_order: tuple[Any, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _read_bare_summary(cls, value: Any) -> Any:
        return {"summary": value} if isinstance(value, str) else value


class WorkflowVersion(Wire):
    """The workflow that a quote is for, version resolved."""

    slug: str
    version: int | str


class Quote(Wire):
    """A locked price.

    `server_now` is the reply's ``Date``: measure the quote's age against it, not against this
    machine's clock. `dropped_fields` are the optional fields that this server did not know and
    that were therefore left out of the request.
    """

    other_names = {"id": "quote_id", "valid_until": "expires_at", "status": "state"}

    quote_id: str = Field(min_length=1)
    kind: str = "model"
    state: State = "active"
    created_at: UtcTime | None = None
    expires_at: UtcTime
    item_count: int = 0
    pricing_estimate: Price
    quoted_total: Money
    assumptions: dict[str, Any] = Field(default_factory=dict[str, Any])
    quote_lanes: tuple[QuoteLane, ...] = ()
    routing_explanation: RoutingExplanation | None = None
    workflow: WorkflowVersion | None = None
    server_now: UtcTime | None = None
    dropped_fields: tuple[str, ...] = ()

    @classmethod
    def _complete(cls, fields: dict[str, Any]) -> dict[str, Any]:
        price = fields.get("pricing_estimate")
        if "quoted_total" not in fields and isinstance(price, Mapping):
            total = cast("Mapping[str, Any]", price).get("total")
            if isinstance(total, str | int | Decimal):
                # The contract's own rounding: what is reserved is whole micro-dollars, up.
                fields["quoted_total"] = _read_usd(total).quantize(_MICRO_USD, ROUND_CEILING)
        return fields


class Counts(Wire):
    """How many items of a batch stand where."""

    total: int = 0
    pending: int = 0
    running: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0

    other_names = {"canceled": "cancelled"}


class Usage(Wire):
    """Tokens that a provider counted."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0


class BatchLane(Wire):
    """One provider lane of a batch, with its share and what it has settled."""

    other_names = {"status": "state"}

    quote_lane_id: str | None = None
    provider: str = ""
    model: str = ""
    region: str | None = None
    state: State = ""
    item_count: int = 0
    completed: int = 0
    failed: int = 0
    quoted_price: Price | None = None
    settled_price: Price | None = None
    usage: Usage | None = None


class Credits(Wire):
    """What a batch did to the workspace's credits (USD)."""

    reserved: Money | None = None
    charged: Money | None = None
    released: Money | None = None
    overrun: Money | None = None


class BillingReceipt(Wire):
    """Quoted against settled, per provider lane."""

    quoted_price: Price | None = None
    settled_price: Price | None = None
    provider_lanes: tuple[dict[str, Any], ...] = ()
    rejected_lanes: tuple[dict[str, Any], ...] = ()
    usage: Usage | None = None
    possibly_repeated: Any = None
    credits: Credits | None = None


class BatchError(Wire):
    """Why a batch failed as a whole."""

    code: str = ""
    message: str = ""

    @model_validator(mode="before")
    @classmethod
    def _read_bare_message(cls, value: Any) -> Any:
        return {"message": value} if isinstance(value, str) else value


class ArtifactLink(Wire):
    """A short-lived signed URL of an output file.

    The URL opens the file for anyone who has it: it is masked in reprs, as all URLs here, and
    left out of dumps.
    """

    other_names = {"output_file_url": "url", "valid_until": "expires_at", "size": "bytes"}

    batch_id: str = ""
    file_id: str | None = None
    url: str = Field(min_length=1, exclude=True)
    expires_at: UtcTime | None = None
    bytes: int | None = None
    sha256: str | None = None
    format: str = "jsonl"


class Batch(Wire):
    """A batch as the API sees it now.

    `state` is in our spelling; one that nobody told us about is kept and is not terminal.
    `replayed` is True when a create found its idempotency key already bound to this batch.
    """

    other_names = {"batch_id": "id", "status": "state"}

    id: str = Field(min_length=1)
    state: State
    quote_id: str | None = None
    input_file_id: str | None = None
    counts: Counts | None = None
    pricing_estimate: Price | None = None
    quoted_total: Money | None = None
    settled_total: Money | None = None
    lanes: tuple[BatchLane, ...] = ()
    routing_explanation: RoutingExplanation | None = None
    metadata: dict[str, str] = Field(default_factory=dict[str, str])
    created_at: UtcTime | None = None
    updated_at: UtcTime | None = None
    completed_at: UtcTime | None = None
    deadline_at: UtcTime | None = None
    artifact_expires_at: UtcTime | None = None
    error: BatchError | None = None
    billing_receipt: BillingReceipt | None = None
    partial_output: ArtifactLink | None = None
    server_now: UtcTime | None = None
    replayed: bool = False
    dropped_fields: tuple[str, ...] = ()

    @property
    def is_terminal(self) -> bool:
        """True when nothing of this batch can change any more."""
        return self.state in TERMINAL_STATES

    @property
    def has_output(self) -> bool:
        """True when an ended batch has lines to download.

        Of a ``succeeded`` one as its artifact, of any other as partial output.
        """
        if self.state == "succeeded":
            return True
        return self.is_terminal and self.counts is not None and self.counts.completed > 0

    @model_validator(mode="before")
    @classmethod
    def _unwrap(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "id" not in value and "batch_id" not in value:
            given = cast("Mapping[str, Any]", value)
            if isinstance(inner := given.get("batch"), Mapping):
                beside = {name: item for name, item in given.items() if name != "batch"}
                return {**beside, **cast("Mapping[str, Any]", inner)}
        return cast("Any", value)


class BatchPage(Wire):
    """One page of batches, newest first; `next_cursor` goes into ``after``."""

    other_names = {"batches": "data"}

    data: tuple[Batch, ...]
    has_more: bool = False
    next_cursor: str | None = None
    server_now: UtcTime | None = None
    dropped_fields: tuple[str, ...] = ()


class ManifestFile(Wire):
    """An uploaded manifest as the router read it."""

    other_names = {"id": "file_id", "size": "bytes"}

    file_id: str = Field(min_length=1)
    filename: str = ""
    bytes: int | None = None
    item_count: int | None = None
    dialect: str | None = None
    operation: str | None = None
    models: tuple[str, ...] = ()
    input_tokens_estimate: int | None = None
    sha256: str | None = None
    created_at: UtcTime | None = None

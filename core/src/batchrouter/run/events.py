"""What a journal can say: one immutable event a fact, in the order in which they became true.

Every event has the schema version of the journal; an older one is read, a newer one is an
error that names the version. No event holds a secret, a signed URL, a path outside the run
folder, or anything of the source but counts and hashes.
"""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

JOURNAL_VERSION = 2
"""2 brought rounds: a version that does not know them would take one's purchase for another's."""


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True)


class Opened(_Fact):
    """The run exists; ``fingerprint`` is what decides the purchase, hashed part by part.

    ``rounds`` is how many the job allowed then, for whoever has the run's names alone.
    """

    type: Literal["opened"] = "opened"
    job_name: str
    run_key: str
    fingerprint: dict[str, str]
    package_version: str
    rounds: int = 0


class Claimed(_Fact):
    """An attempt of the orchestrator has taken the run over."""

    type: Literal["claimed"] = "claimed"
    attempt: str


class GenerationOpened(_Fact):
    """Something is bought anew on demand; what earlier generations cost still counts.

    ``continues`` keeps what came of the generation before: only the rest is bought.
    """

    type: Literal["generation_opened"] = "generation_opened"
    generation: int
    fingerprint: dict[str, str]
    reason: str
    continues: bool = False


class Pinned(_Fact):
    """Which version of the source this generation reads, however often its build begins anew."""

    type: Literal["pinned"] = "pinned"
    generation: int
    source_version: str


class Built(_Fact):
    """The manifest and the row snapshot are complete, under the names given here."""

    type: Literal["built"] = "built"
    generation: int
    manifest: dict[str, Any]


class RoundBuilt(_Fact):
    """The items that are sent again in a round after the first, as a manifest of their own."""

    type: Literal["round_built"] = "round_built"
    generation: int
    round: int
    manifest: dict[str, Any]


EndOfRounds = Literal["nothing_to_resend", "over_budget", "refused", "no_manifest"]


class RoundsEnded(_Fact):
    """No further round is begun or bought in this generation; ``reason`` is for a person."""

    type: Literal["rounds_ended"] = "rounds_ended"
    generation: int
    round: int
    code: EndOfRounds
    reason: str


class PartQuote(_Fact):
    """One part's locked price."""

    part: int
    quote_id: str
    quoted_usd: Decimal
    expires_at: datetime
    input_tokens_per_item: int


class QuotedLane(_Fact):
    """One lane that a quote chose."""

    provider: str
    model: str
    region: str | None = None
    items: int
    price_usd: Decimal


class Quoted(_Fact):
    """Prices are locked for some parts; nothing is bought yet.

    ``clock_offset_s`` is the server's clock minus ours, so that a quote's age is measured
    against the clock that decides it.
    """

    type: Literal["quoted"] = "quoted"
    generation: int
    round: int = 0
    quotes: tuple[PartQuote, ...]
    lanes: tuple[QuotedLane, ...] = ()
    why: str = ""
    clock_offset_s: float


class Uploaded(_Fact):
    """A part's manifest is at the router."""

    type: Literal["uploaded"] = "uploaded"
    generation: int
    round: int = 0
    part: int
    file_id: str
    sha256: str
    input_tokens_estimate: int | None = None


class Intended(_Fact):
    """A purchase is about to be sent: from here on it may exist.

    ``body`` is what is sent, to the letter, but for the webhook, which holds a secret and
    which the API leaves out when it compares two bodies. ``account`` is a hash of the base URL
    and the key: what another account says of this purchase proves nothing.
    """

    type: Literal["intended"] = "intended"
    generation: int
    round: int = 0
    part: int
    key: str
    body: dict[str, Any]
    quote_id: str
    quoted_usd: Decimal
    clock_offset_s: float
    account: str


class Refused(_Fact):
    """The API has proved that an intent bought nothing and never will."""

    type: Literal["refused"] = "refused"
    generation: int
    round: int = 0
    part: int
    quote_id: str
    code: str
    drop_upload: bool = False


class Bought(_Fact):
    """A batch exists for an intent; ``how`` it was found."""

    type: Literal["bought"] = "bought"
    generation: int
    round: int = 0
    part: int
    batch_id: str
    quoted_usd: Decimal
    deadline_at: datetime | None = None
    clock_offset_s: float = 0.0
    how: Literal["accepted", "replayed", "adopted", "listed"]


class CancelAsked(_Fact):
    """Someone wants the run to stop; what was bought is being cancelled."""

    type: Literal["cancel_asked"] = "cancel_asked"
    reason: str


class Stopped(_Fact):
    """A later part's price passed the budget: nothing more is bought in this generation."""

    type: Literal["stopped"] = "stopped"
    generation: int
    reason: str


class LaneOutcome(_Fact):
    """What one lane did and cost."""

    provider: str
    model: str
    items: int
    completed: int
    failed: int
    settled_usd: Decimal | None = None


class Ended(_Fact):
    """A batch is terminal; what it cost is settled."""

    type: Literal["ended"] = "ended"
    batch_id: str
    state: str
    completed: int
    failed: int
    settled_usd: Decimal | None
    lanes: tuple[LaneOutcome, ...] = ()
    error_code: str | None = None
    error_message: str | None = None


class Collected(_Fact):
    """A batch's artifact is in the run folder, whole and checked.

    ``artifact_name`` is None when the API has no output of an early end to give.
    """

    type: Literal["collected"] = "collected"
    batch_id: str
    artifact_name: str | None
    bytes: int
    sha256: str


class Landed(_Fact):
    """The table holds the rows of this generation; ``retain`` is what the job said of its files."""

    type: Literal["landed"] = "landed"
    generation: int
    report: dict[str, Any]
    retain: dict[str, str] | None = None


FolderPart = Literal["manifest", "artifact", "rows", "journal"]


class Removed(_Fact):
    """Parts of the folder no longer count: from here on their files are deleted.

    ``journal`` among them means the whole folder, this event with it.
    """

    type: Literal["removed"] = "removed"
    generation: int
    parts: tuple[FolderPart, ...]
    reason: str


Fact = Annotated[
    Opened
    | Claimed
    | GenerationOpened
    | Pinned
    | Built
    | RoundBuilt
    | RoundsEnded
    | Quoted
    | Uploaded
    | Intended
    | Refused
    | Bought
    | CancelAsked
    | Stopped
    | Ended
    | Collected
    | Landed
    | Removed,
    Field(discriminator="type"),
]


class Entry(BaseModel):
    """One journal file: a fact, its number, and when it was written by which version."""

    model_config = ConfigDict(frozen=True)

    version: int = JOURNAL_VERSION
    number: int
    at: datetime
    fact: Fact


class VersionOnly(BaseModel):
    """What every version of an entry has."""

    version: int


ENTRY = TypeAdapter(Entry)

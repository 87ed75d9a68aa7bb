"""What a journal adds up to: the state that every decision is made from.

Folding is the only way to change it, so a fresh process that reads the same events knows the
same things.
"""

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from batchrouter.run import events
from batchrouter.run.events import Entry


@dataclass(slots=True)
class PartState:
    """One part of a round: from its price to its batch."""

    index: int
    quote: events.PartQuote | None = None
    upload: events.Uploaded | None = None
    uploaded_at: datetime | None = None
    intent: events.Intended | None = None
    """An open intent: sent or about to be, and not yet settled."""
    intended_at: datetime | None = None
    bought: events.Bought | None = None
    bought_at: datetime | None = None


@dataclass(slots=True)
class Purchase:
    """A batch of any generation: what it may cost, and what it did."""

    generation: int
    round: int
    part: int
    batch_id: str
    quoted_usd: Decimal
    bought_at: datetime
    clock_offset_s: float
    ended: events.Ended | None = None
    collected: events.Collected | None = None

    @property
    def committed_usd(self) -> Decimal:
        """Settled when it has ended, else quoted."""
        if self.ended is not None and self.ended.settled_usd is not None:
            return self.ended.settled_usd
        return self.quoted_usd


@dataclass(slots=True)
class RunState:
    """All that the events say.

    Attributes:
        entry_count: Events read.
        opened: The first event; None for a run that does not exist yet.
        generation: The newest one; 0 unless something was bought anew on demand.
        first_generation: Where the newest one's rows begin: itself, unless it only buys the rest
            of those before it.
        round: The newest one, 0 being that of all items; it goes on over the generations that
            buy the rest.
        retry_count: Rounds since the last purchase that someone asked for.
        rest_round: The round that bought the rest of all rounds before it; 0 without one.
        is_rest_due: True from the demand for the rest until its round is built.
        fingerprint: What decides the newest generation's purchase.
        source_version: The version of the source that the newest generation reads, if it has any.
        manifest: The manifest of round 0, as it was recorded.
        resent: The manifests of the rounds after it.
        rounds_ended: Why no further round follows, once that is known.
        parts: The newest round's parts by index.
        purchases: Every batch of every generation by its id.
    """

    entry_count: int = 0
    opened: events.Opened | None = None
    opened_at: datetime | None = None
    last_at: datetime | None = None
    moved_at: datetime | None = None
    """When the last event came that was no removal."""
    claim: str | None = None
    claims: set[str] = field(default_factory=set[str])
    """Every attempt that ever took the run over."""
    generation: int = 0
    first_generation: int = 0
    round: int = 0
    retry_count: int = 0
    rest_round: int = 0
    is_rest_due: bool = False
    fingerprint: dict[str, str] = field(default_factory=dict[str, str])
    source_version: str | None = None
    manifest: dict[str, Any] | None = None
    built_at: datetime | None = None
    resent: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    rounds_ended: events.RoundsEnded | None = None
    quoted: events.Quoted | None = None
    parts: dict[int, PartState] = field(default_factory=dict[int, PartState])
    purchases: dict[str, Purchase] = field(default_factory=dict[str, Purchase])
    abandoned_usd: Decimal = Decimal(0)
    """Quoted sums of intents that a person gave up on: they may exist, so they count."""
    cancel_asked: events.CancelAsked | None = None
    stopped: events.Stopped | None = None
    landed: events.Landed | None = None
    landed_at: datetime | None = None
    removed: dict[events.FolderPart, datetime] = field(
        default_factory=dict[events.FolderPart, datetime]
    )
    """The parts of the folder that retention has taken from this generation, and when."""

    @property
    def committed_usd(self) -> Decimal:
        """What may be billed so far: settled, or quoted where it is open or may exist."""
        open_intents = sum(
            (part.intent.quoted_usd for part in self.parts.values() if part.intent), Decimal(0)
        )
        bought = sum((each.committed_usd for each in self.purchases.values()), Decimal(0))
        return bought + open_intents + self.abandoned_usd

    @property
    def current(self) -> list[Purchase]:
        """The batches that the table's rows are from, by round and part."""
        first = self.first_generation
        mine = [each for each in self.purchases.values() if each.generation >= first]
        return sorted(mine, key=lambda each: (each.round, each.part))

    @property
    def open_batches(self) -> list[Purchase]:
        """Those that have not ended."""
        return [each for each in self.current if each.ended is None]

    @property
    def open_intents(self) -> list[PartState]:
        """Parts whose purchase may or may not exist."""
        return [part for part in self.parts.values() if part.intent is not None]

    @property
    def has_bought(self) -> bool:
        """True when something was bought that the table's rows are from, or may have been."""
        return bool(self.current or self.open_intents)

    def apply(self, entry: Entry) -> None:
        """Fold one event in."""
        fact = entry.fact
        match fact:
            case events.Opened():
                self.opened, self.opened_at = fact, entry.at
                self.fingerprint = fact.fingerprint
            case events.Claimed():
                self.claim = fact.attempt
                self.claims.add(fact.attempt)
            case events.GenerationOpened():
                self._begin_generation(fact)
            case events.CancelAsked():
                self.cancel_asked = fact
            case events.Ended():
                self.purchases[fact.batch_id].ended = fact
            case events.Collected():
                self.purchases[fact.batch_id].collected = fact
                self.removed.pop("artifact", None)
            case _:
                if fact.generation == self.generation:
                    self._apply_to_generation(fact, entry.at)
        self.entry_count = entry.number
        self.last_at = entry.at
        if not isinstance(fact, events.Removed):
            self.moved_at = entry.at

    def _begin_generation(self, fact: events.GenerationOpened) -> None:
        self.abandoned_usd += sum(
            (part.intent.quoted_usd for part in self.open_intents if part.intent), Decimal(0)
        )
        self.generation = fact.generation
        self.fingerprint = fact.fingerprint
        self.parts = {}
        self.quoted = self.rounds_ended = None
        self.retry_count = 0
        self.is_rest_due = fact.continues
        if not fact.continues:
            self.first_generation = fact.generation
            self.source_version = self.manifest = self.built_at = None
            self.round = self.rest_round = 0
            self.resent = []
            self.removed = {}
        self.cancel_asked = self.stopped = self.landed = self.landed_at = None

    def _apply_to_generation(
        self,
        fact: events.Pinned
        | events.Built
        | events.RoundBuilt
        | events.RoundsEnded
        | events.Quoted
        | events.Uploaded
        | events.Intended
        | events.Refused
        | events.Bought
        | events.Stopped
        | events.Landed
        | events.Removed,
        at: datetime,
    ) -> None:
        match fact:
            case events.Pinned():
                self.source_version = fact.source_version
            case events.Built():
                self._adopt_manifest(fact, at)
            case events.RoundBuilt():
                self._begin_round(fact)
            case events.RoundsEnded():
                self.rounds_ended = fact
            case events.Stopped():
                self.stopped = fact
            case events.Landed():
                self.landed, self.landed_at = fact, at
            case events.Removed():
                self.removed |= dict.fromkeys(fact.parts, at)
            case _:
                if fact.round == self.round:
                    self._apply_to_round(fact, at)

    def _adopt_manifest(self, fact: events.Built, at: datetime) -> None:
        # The first one counts: what was bought was bought from it.
        if self.manifest is None:
            self.manifest, self.built_at = fact.manifest, at
            self.parts = _parts_of(fact.manifest)

    def _begin_round(self, fact: events.RoundBuilt) -> None:
        if fact.round == self.round + 1:
            self.round = fact.round
            self.resent.append(fact.manifest)
            self.parts, self.quoted = _parts_of(fact.manifest), None
            if self.is_rest_due:
                self.rest_round = fact.round
            else:
                self.retry_count += 1
            self.is_rest_due = False

    def _apply_to_round(
        self,
        fact: events.Quoted | events.Uploaded | events.Intended | events.Refused | events.Bought,
        at: datetime,
    ) -> None:
        if isinstance(fact, events.Quoted):
            self.quoted = fact
            for quote in fact.quotes:
                self.parts[quote.part].quote = quote
        else:
            self._apply_to_part(fact, self.parts[fact.part], at)

    def _apply_to_part(
        self,
        fact: events.Uploaded | events.Intended | events.Refused | events.Bought,
        part: PartState,
        at: datetime,
    ) -> None:
        match fact:
            case events.Uploaded():
                part.upload, part.uploaded_at = fact, at
            case events.Intended():
                part.intent, part.intended_at = fact, at
            case events.Refused():
                part.intent = part.quote = None
                if fact.drop_upload:
                    part.upload = None
            case events.Bought():
                part.intent = None
                part.bought, part.bought_at = fact, at
                self.purchases[fact.batch_id] = Purchase(
                    generation=fact.generation,
                    round=fact.round,
                    part=fact.part,
                    batch_id=fact.batch_id,
                    quoted_usd=fact.quoted_usd,
                    bought_at=at,
                    clock_offset_s=fact.clock_offset_s,
                )


def _parts_of(manifest: dict[str, Any]) -> dict[int, PartState]:
    return {index: PartState(index) for index in range(len(manifest["parts"]))}

"""What every step of a run works with, handed from step to step as one value."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from batchrouter.api.settings import Settings
from batchrouter.job import Job
from batchrouter.manifest.built import BuiltManifest
from batchrouter.run.decide import RetryRounds, rounds_told
from batchrouter.run.folder import RunFolder
from batchrouter.run.identity import RunIdentity
from batchrouter.run.journal import Journal
from batchrouter.run.progress import ProgressListener, nobody_listens
from batchrouter.run.state import RunState

if TYPE_CHECKING:
    from batchrouter.api.client import Client


@dataclass(slots=True)
class RunContext:
    """One attempt at one run.

    Attributes:
        given_job: None for a run that is known by its names alone, and then only cancelled.
        owns_client: True when the run opened its client, and so closes it.
        limit: Build only this many rows; None for all.
        tell: Takes progress.
    """

    given_job: Job | None
    identity: RunIdentity
    folder: RunFolder
    journal: Journal
    settings: Settings
    open_client: Callable[[], "Client"]
    owns_client: bool = True
    limit: int | None = None
    tell: ProgressListener = nobody_listens
    _client: "Client | None" = field(default=None, repr=False)
    _clock_offset_s: float | None = None

    @classmethod
    def of(
        cls,
        identity: RunIdentity,
        settings: Settings,
        client: "Client | None",
        *,
        given_job: Job | None = None,
        limit: int | None = None,
        tell: ProgressListener = nobody_listens,
    ) -> "RunContext":
        """Put together what a run's names and settings decide; nothing is read or opened yet."""
        folder = RunFolder.below(settings.runs_url, identity.folder, dict(settings.storage_options))
        return cls(
            given_job=given_job,
            identity=identity,
            folder=folder,
            journal=Journal(folder),
            settings=settings,
            open_client=_client_opener(client, settings),
            owns_client=client is None,
            limit=limit,
            tell=tell,
        )

    @property
    def job(self) -> Job:
        """What the run is for.

        Raises:
            RuntimeError: It is known by its names alone; the caller decided wrongly.
        """
        if self.given_job is None:
            raise RuntimeError("the run was opened by its names, without its job")
        return self.given_job

    @property
    def is_on_spark(self) -> bool:
        """True when the table is built and landed on Spark."""
        from batchrouter.spark.session import uses_spark  # noqa: PLC0415 - loads pyarrow

        return uses_spark(self.job)

    @property
    def state(self) -> RunState:
        """What the journal says, as far as it has been read."""
        return self.journal.state

    @property
    def client(self) -> "Client":
        """The API's client, opened on first use: a build needs none."""
        if self._client is None:
            self._client = self.open_client()
        return self._client

    def release_client(self) -> None:
        """Close the client if the run opened it; the next step opens another."""
        client, self._client = self._client, None
        if client is not None and self.owns_client:
            client.close()

    @property
    def manifests(self) -> list[BuiltManifest]:
        """The manifest of each round, that of all items first.

        Raises:
            RuntimeError: It is not built; the caller decided wrongly.
        """
        if self.state.manifest is None:
            raise RuntimeError("the manifest is not built yet")
        told = [self.state.manifest, *self.state.resent]
        return [BuiltManifest.from_dict(each) for each in told]

    @property
    def manifest(self) -> BuiltManifest:
        """The manifest of all items; as `manifests`."""
        return self.manifests[0]

    @property
    def to_send(self) -> BuiltManifest:
        """The newest round's manifest; as `manifests`."""
        return self.manifests[-1]

    @property
    def rounds(self) -> RetryRounds:
        """How many retry rounds the job allows; without it, what the journal has of that."""
        if self.given_job is None:
            return rounds_told(self.state)
        return RetryRounds(self.job.retry_failed, self.job.retry_invalid)

    @property
    def account(self) -> str:
        """Whom the run buys from and as whom, as 16 hex digits of a hash of a random key.

        Another account knows nothing of this one's quotes, so its "not found" proves nothing.
        """
        key = self.settings.api_key.get_secret_value() if self.settings.api_key else ""
        return hashlib.sha256(f"account\0{self.settings.base_url}\0{key}".encode()).hexdigest()[:16]

    @property
    def most_usd(self) -> Decimal | None:
        """The most that the run may cost: the job's budget, or the settings' cap if lower."""
        caps = [cap for cap in (self.job.budget, self.settings.max_run_usd) if cap is not None]
        return min(caps, default=None)

    def note_server_time(self, server_now: datetime | None) -> float | None:
        """Learn how far the server's clock is ahead of ours (s), from a reply's `Date`."""
        if server_now is not None:
            self._clock_offset_s = (server_now - datetime.now(UTC)).total_seconds()
        return self._clock_offset_s

    def server_now(self, recorded_offset_s: float) -> datetime:
        """The server's clock, by what it was ahead of ours when it last answered.

        What another attempt has recorded was measured against the clock of its own host, and
        counts only until this one has had an answer.
        """
        offset_s = self._clock_offset_s
        ahead = timedelta(seconds=recorded_offset_s if offset_s is None else offset_s)
        return datetime.now(UTC) + ahead

    def age_of(self, noted_at: datetime, recorded_offset_s: float) -> timedelta:
        """How long ago an attempt noted something, by the server's clock.

        Another host's clock may be hours off, and so may ours.

        Raises:
            TransportError: The server's clock is not known yet, and it does not answer.
        """
        if self._clock_offset_s is None:
            self.note_server_time(self.client.server_time())
        then = noted_at + timedelta(seconds=recorded_offset_s)
        return self.server_now(recorded_offset_s) - then


def _client_opener(client: "Client | None", settings: Settings) -> "Callable[[], Client]":
    """How a run comes to its client: the one that it was given, or one of its own."""

    def open_client() -> "Client":
        if client is not None:
            return client
        from batchrouter.api.client import Client  # noqa: PLC0415 - loads httpx

        return Client(settings)

    return open_client

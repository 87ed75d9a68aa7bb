"""Who a run is: the names under which it may buy once, and never again.

The orchestrator gives the run key (DAG, task and run; asset and partition; a date), never the
try number. From it follow the run's folder, the `Idempotency-Key` of each purchase, and the
metadata by which a batch is known again when its reply was lost.
"""

import hashlib
import re
from dataclasses import dataclass

from batchrouter.errors import ConfigError

_MOST_VALUE_CHARS = 500
"""The API's guides allow 512 characters in a value of a batch's metadata."""
_SLUG_CHARS = 60
_HASH_CHARS = 10
METADATA_PREFIX = "batchrouter_"
ROUND = f"{METADATA_PREFIX}round"


def _digest(*fields: str | int) -> str:
    """Hash fields so that no two lists of fields collide by concatenation."""
    whole = hashlib.sha256()
    for field in fields:
        encoded = str(field).encode()
        whole.update(len(encoded).to_bytes(8, "big"))
        whole.update(encoded)
    return whole.hexdigest()


def slug(text: str) -> str:
    """Make a readable folder name; unique only together with a hash.

    Example:
        >>> slug("scheduled__2026-11-22T00:00:00+00:00/map 3")
        'scheduled__2026-11-22t00-00-00-00-00-map-3'
    """
    plain = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")
    return plain[:_SLUG_CHARS].rstrip("-._") or "run"


def _bounded(value: str) -> str:
    if len(value) <= _MOST_VALUE_CHARS:
        return value
    return f"{value[: _MOST_VALUE_CHARS - 70]}… {_digest('value', value)}"


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """The three names that make a purchase the same purchase.

    Attributes:
        namespace: Keeps apart installations that share an account; by default the runs URL.
        job_name: The job's own name.
        run_key: What the orchestrator calls this execution.

    Example:
        >>> me = RunIdentity(namespace="prod", job_name="label", run_key="2026-11-22")
        >>> me.folder.startswith("label/2026-11-22-")
        True
        >>> me.idempotency_key(generation=0, part=0) == me.idempotency_key(generation=0, part=1)
        False
    """

    namespace: str
    job_name: str
    run_key: str

    def __post_init__(self) -> None:
        if not self.run_key.strip():
            raise ConfigError("run_key: is empty; name this execution, such as by its date")
        try:
            self.run_key.encode()
        except UnicodeEncodeError:
            raise ConfigError("run_key: holds half a character (a lone surrogate)") from None

    @property
    def run_id(self) -> str:
        """The whole identity as 64 hex digits; says nothing of what it was made from."""
        return _digest("run", self.namespace, self.job_name, self.run_key)

    @property
    def run_slug(self) -> str:
        """The run key for people, with a hash of job and key that keeps it unique."""
        return f"{slug(self.run_key)}-{_digest(self.job_name, self.run_key)[:_HASH_CHARS]}"

    @property
    def folder(self) -> str:
        """The run's folder below the runs URL."""
        return f"{slug(self.job_name)}/{self.run_slug}"

    def idempotency_key(self, *, generation: int, part: int, resend_round: int = 0) -> str:
        """The key under which the API accepts this purchase once (contract section 5)."""
        parts = (self.namespace, self.job_name, self.run_key, generation, resend_round, part)
        return f"br-{_digest('buy', *parts)}"

    def metadata(
        self,
        *,
        generation: int,
        part: int,
        manifest_sha256: str,
        route: str,
        resend_round: int = 0,
    ) -> dict[str, str]:
        """What a batch carries so that it is known again: strings only, eight pairs at most.

        Args:
            generation: Of the run.
            part: Of the round.
            manifest_sha256: Of the part.
            route: The fingerprint of the job's route: the same lines bought from another
                model are another purchase.
            resend_round: Told from 1 on: round 0 is what every batch was before there were rounds.
        """
        named = {
            "run_id": self.run_id,
            "job": self.job_name,
            "run_key": self.run_key,
            "generation": str(generation),
            "part": str(part),
            "manifest_sha256": manifest_sha256,
            "route": route,
        }
        if resend_round:
            named["round"] = str(resend_round)
        return {f"{METADATA_PREFIX}{name}": _bounded(value) for name, value in named.items()}

"""What came of a create whose reply was lost: found, never bought, or not to be known.

With metadata and input file the list decides. A create that is not listed ten minutes later is
made impossible before another one is sent: its input file is deleted, so that it fails the
provider's validation should it still arrive, and the list is read once more. Without them one
unowned batch of the right size in the right minutes may be it; anything else is held for a person.
"""

from enum import Enum

from batchrouter.server.lanes.book import Submission
from batchrouter.server.lanes.provider import Candidate, ProviderBatch, ProviderRefusedError

__all__ = ["LOOK_BACK_S", "Verdict", "reconcile"]

#: How far before the intent the list is read: clocks differ.
LOOK_BACK_S = 600.0
#: The provider's `Date` has whole seconds, and its `created_at` may come from another host.
_CLOCKS_S = 30.0
_US = 1_000_000


class Verdict(Enum):
    """What is known of a create."""

    FOUND = "found"
    NEVER_BOUGHT = "never bought"
    UNKNOWN = "unknown"
    TOO_EARLY = "too early"


def reconcile(
    api: ProviderBatch, submission: Submission, owned: frozenset[str], *, settle_s: float
) -> tuple[Verdict, str | None]:
    """Ask the provider about an unsettled submission.

    Args:
        api: The provider.
        submission: It bears the intent.
        owned: Provider batches that belong to other submissions.
        settle_s: How long after the intent a create may still show up in the list.

    Returns:
        The verdict, and with `FOUND` the provider's batch.

    Raises:
        ConnectionError: The provider did not answer; nothing was concluded.
    """
    intended_at = submission.intended_at or 0
    is_due = api.now_us() - intended_at >= int(settle_s * _US)
    if api.reconciles == "count":
        return _by_count(api, submission, owned, is_due=is_due)
    found = _by_metadata(api, submission)
    if found is not None:
        return Verdict.FOUND, found
    if not is_due:
        return Verdict.TOO_EARLY, None
    if submission.input_file is None:
        return Verdict.UNKNOWN, None
    try:
        api.delete_file(submission.input_file)
    except ProviderRefusedError:
        return Verdict.UNKNOWN, None
    found = _by_metadata(api, submission)
    return (Verdict.NEVER_BOUGHT, None) if found is None else (Verdict.FOUND, found)


def _listed(api: ProviderBatch, submission: Submission) -> list[Candidate]:
    since = (submission.intended_at or 0) - int(LOOK_BACK_S * _US)
    try:
        return list(api.listed(since))
    except ProviderRefusedError as refusal:
        raise ConnectionError(str(refusal)) from None


def _by_metadata(api: ProviderBatch, submission: Submission) -> str | None:
    for candidate in _listed(api, submission):
        if candidate.intent == submission.intent and candidate.input_file == submission.input_file:
            return candidate.id
    return None


def _by_count(
    api: ProviderBatch, submission: Submission, owned: frozenset[str], *, is_due: bool
) -> tuple[Verdict, str | None]:
    intended_at = submission.intended_at or 0
    fitting = [
        candidate.id
        for candidate in _listed(api, submission)
        if candidate.id not in owned
        and candidate.created_at >= intended_at - int(_CLOCKS_S * _US)
        and candidate.item_count in {None, submission.item_count}
    ]
    if len(fitting) == 1:
        return Verdict.FOUND, fitting[0]
    if fitting:
        return Verdict.UNKNOWN, None
    return (Verdict.UNKNOWN if is_due else Verdict.TOO_EARLY), None

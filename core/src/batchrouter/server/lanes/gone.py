"""A lane of a batch's plan that the configuration no longer has: it takes nothing any more.

It keeps its place in the order of the lanes, so that the lanes behind it keep theirs, by which
their submissions are found again.
"""

from collections.abc import Iterable, Iterator

from batchrouter.server.lanes.lane import LaneAnswer, LaneItem, LaneProgress

__all__ = ["GoneLane"]


class GoneLane:
    """Stands for a lane that was removed or renamed while a batch was open.

    Args:
        provider: The provider's name in the plan.
        model: The model's.

    Example:
        >>> GoneLane("p", "m").find("batch_1/0/0/1") is None
        True
    """

    def __init__(self, provider: str, model: str) -> None:
        self.provider = provider
        self.model = model
        # Nobody can be asked what it had accepted.
        self.is_local = True
        self.remembers = False
        self.retry_first_s = 0.0

    def worst_case(self, item: LaneItem) -> tuple[int, int]:
        """Nothing: it bills no more."""
        del item
        return 0, 0

    def find(self, key: str) -> str | None:
        """Nothing is known."""
        del key
        return None

    def submit(self, key: str, items: Iterable[LaneItem]) -> str:
        """Refuse, so that the next lane takes over.

        Raises:
            ConnectionError: Always.
        """
        del key, items
        raise ConnectionError(f"{self.provider} is no longer configured")

    def poll(self, handle: str) -> LaneProgress:
        """There is no submission to ask for.

        Raises:
            LookupError: Always.
        """
        raise LookupError(handle)

    def collect(self, handle: str, items: Iterable[LaneItem]) -> Iterator[LaneAnswer]:
        """There is nothing to collect.

        Raises:
            LookupError: Always.
        """
        del items
        raise LookupError(handle)

    def cancel(self, handle: str) -> None:
        """Nothing is running."""
        del handle

    def forget(self, batch_id: str) -> None:
        """Nothing was kept."""
        del batch_id

    def close(self) -> None:
        """There is nothing to let go of."""

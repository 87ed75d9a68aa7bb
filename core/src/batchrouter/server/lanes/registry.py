"""The lanes of a configuration, ready to send."""

from pathlib import Path

from batchrouter.errors import ConfigError
from batchrouter.server.config import LaneConfig, RouterConfig
from batchrouter.server.lanes.lane import Lane
from batchrouter.server.lanes.simulated import SimulatedLane, SimulatedOptions
from batchrouter.server.lanes.submissions import SubmissionLog

__all__ = ["LaneRegistry", "check_lane_options"]


def check_lane_options(lane: LaneConfig) -> SimulatedOptions:
    """Read the adapter's own options of a lane.

    Raises:
        ConfigError: Names the lane, the option and what is wrong with it.
    """
    try:
        return SimulatedOptions.from_mapping(lane.options)
    except ValueError as wrong:
        raise ConfigError(f"lane {lane.provider!r}: {wrong}") from None


class LaneRegistry:
    """Finds the lane of a provider and model.

    Args:
        config: The router's configuration.
        memory: Folder in which simulated providers keep what they have accepted.

    Raises:
        ConfigError: An option of a lane is wrong.
    """

    def __init__(self, config: RouterConfig, memory: Path) -> None:
        self._lanes: dict[tuple[str, str], Lane] = {}
        for lane in config.lanes:
            options = check_lane_options(lane)
            log = SubmissionLog(memory / f"{lane.provider.replace('/', '_')}.jsonl")
            for model in lane.models:
                simulated = SimulatedLane(lane.provider, model.provider_model, options, log)
                self._lanes[lane.provider, model.name] = simulated
                self._lanes.setdefault((lane.provider, model.provider_model), simulated)

    def find(self, provider: str, model: str) -> Lane | None:
        """Return the lane; None when the configuration no longer has it."""
        return self._lanes.get((provider, model))

"""The lanes of a configuration, ready to send: the one place that knows adapters by name."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from batchrouter.errors import ConfigError
from batchrouter.server.config import LaneConfig, RouterConfig
from batchrouter.server.lanes.anthropic_batch import VERSION, AnthropicBatch
from batchrouter.server.lanes.batch_lane import BatchLane
from batchrouter.server.lanes.book import Book
from batchrouter.server.lanes.health import LaneHealth
from batchrouter.server.lanes.item_journal import FolderJournals, Journals
from batchrouter.server.lanes.lane import Lane
from batchrouter.server.lanes.mistral_batch import MistralBatch
from batchrouter.server.lanes.openai_batch import OpenAIBatch
from batchrouter.server.lanes.openai_http import OpenAIHttpLane
from batchrouter.server.lanes.provider import ProviderBatch
from batchrouter.server.lanes.settings import LaneSettings, lane_settings, read_key
from batchrouter.server.lanes.shared_journal import SharedJournals
from batchrouter.server.lanes.simulated import SimulatedLane, SimulatedOptions
from batchrouter.server.lanes.submissions import SubmissionLog
from batchrouter.server.lanes.throttle import Throttle
from batchrouter.server.lanes.wire import Wire
from batchrouter.server.model_prices import ModelPrice
from batchrouter.server.storage.database import Database
from batchrouter.server.storage.objects import Objects

__all__ = ["LaneRegistry", "open_wire"]

_BATCH_APIS: Mapping[str, Callable[[Wire, str, LaneSettings], ProviderBatch]] = {
    "openai-batch": OpenAIBatch,
    "anthropic-batch": AnthropicBatch,
    "mistral-batch": MistralBatch,
}


class LaneRegistry:
    """Finds the lane of a provider and model.

    Args:
        config: The router's configuration.
        memory: Folder for what lanes keep outside the tables: simulated providers' memories,
            journals by item.
        database: The router's tables.
        objects: The router's objects.

    Raises:
        ConfigError: An option of a lane is wrong, or its key is not there.
    """

    def __init__(
        self, config: RouterConfig, memory: Path, database: Database, objects: Objects
    ) -> None:
        self._database = database
        self._objects = objects
        self._memory = memory
        self._lanes: dict[tuple[str, str], Lane] = {}
        for lane in config.lanes:
            try:
                built = list(self._build(lane))
            except ValueError as wrong:
                raise ConfigError(f"lane {lane.provider!r}: {wrong}") from None
            for model, one in built:
                self._lanes[lane.provider, model.name] = one
                self._lanes.setdefault((lane.provider, model.provider_model), one)

    def find(self, provider: str, model: str) -> Lane | None:
        """Return the lane; None when the configuration no longer has it."""
        return self._lanes.get((provider, model))

    def forget(self, batch_id: str) -> None:
        """Delete what lanes have kept for a batch that has ended."""
        for lane in set(self._lanes.values()):
            lane.forget(batch_id)

    def close(self) -> None:
        """Let go of every lane's threads and connections."""
        for lane in set(self._lanes.values()):
            lane.close()

    def _build(self, lane: LaneConfig) -> Iterable[tuple[ModelPrice, Lane]]:
        if lane.adapter == "simulated":
            return self._simulated(lane)
        settings = lane_settings(lane.adapter, lane.options)
        if lane.adapter == "openai-http":
            return self._plain(lane, settings)
        return self._batch(lane, settings)

    def _simulated(self, lane: LaneConfig) -> Iterable[tuple[ModelPrice, Lane]]:
        options = SimulatedOptions.from_mapping(lane.options)
        log = SubmissionLog(self._memory / f"{_file_name(lane.provider)}.jsonl")
        for model in lane.models:
            yield model, SimulatedLane(lane.provider, model.provider_model, options, log)

    def _plain(self, lane: LaneConfig, settings: LaneSettings) -> Iterable[tuple[ModelPrice, Lane]]:
        throttle = Throttle(
            settings.concurrency,
            requests_per_minute=settings.requests_per_minute,
            tokens_per_minute=settings.tokens_per_minute,
        )
        for model in lane.models:
            yield (
                model,
                OpenAIHttpLane(
                    lane.provider,
                    model.provider_model,
                    wire=open_wire(lane.adapter, settings),
                    throttle=throttle,
                    health=LaneHealth(self._database, lane.provider),
                    journals=self._journals(lane.provider, model.name),
                    settings=settings,
                ),
            )

    def _journals(self, provider: str, model: str) -> Journals:
        if self._database.is_shared:
            return SharedJournals(self._database, self._objects)
        return FolderJournals(self._memory / _file_name(provider) / _file_name(model))

    def _batch(self, lane: LaneConfig, settings: LaneSettings) -> Iterable[tuple[ModelPrice, Lane]]:
        for model in lane.models:
            wire = open_wire(lane.adapter, settings)
            yield (
                model,
                BatchLane(
                    lane.provider,
                    model.provider_model,
                    _BATCH_APIS[lane.adapter](wire, model.provider_model, settings),
                    Book(self._database, lane.provider, model.provider_model),
                    objects=self._objects,
                    health=LaneHealth(self._database, lane.provider),
                    tokens_per_byte=settings.tokens_per_byte,
                    settle_s=settings.settle_s,
                ),
            )


def open_wire(adapter: str, settings: LaneSettings) -> Wire:
    """Open the account that a lane's options name.

    Raises:
        ValueError: Its key is not there.
    """
    secret = read_key(settings)
    key = secret.get_secret_value() if secret else ""
    headers: dict[str, Any] = dict(settings.headers)
    if key:
        name, value = {
            "bearer": ("Authorization", f"Bearer {key}"),
            "api-key": ("api-key", key),
            "x-api-key": ("x-api-key", key),
        }[settings.auth]
        headers[name] = value
    if adapter == "anthropic-batch":
        headers.setdefault("anthropic-version", VERSION)
    return Wire(
        settings.base_url,
        headers,
        [key],
        timeout_s=settings.timeout_s,
        proxy=settings.proxy,
        connections=max(8, settings.concurrency),
    )


def _file_name(name: str) -> str:
    return name.replace("/", "_").replace(":", "_")

"""What `batchrouter lanes check` finds out: whether a lane's key, models, limits and prices hold.

It asks a provider for its list of models, which costs nothing, and holds prices against the dated
table in `prices.toml`.
"""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from importlib import resources
from typing import Any, Literal

from batchrouter.server.config import LaneConfig
from batchrouter.server.lanes.provider import ProviderRefusedError
from batchrouter.server.lanes.registry import open_wire
from batchrouter.server.lanes.settings import LaneSettings, lane_settings
from batchrouter.server.model_prices import ModelPrice

__all__ = ["LaneFinding", "examine_lane"]

_DENIED = frozenset({401, 403})
_HOW_FOUND_AGAIN = {
    "openai-batch": "by metadata and input file",
    "mistral-batch": "by metadata and input file",
    "anthropic-batch": "by time, count and item ids; else it is held for you",
    "openai-http": "not at all: up to `concurrency` items may be asked twice after a kill",
}


@dataclass(frozen=True, slots=True)
class LaneFinding:
    """One thing that was found out about a lane; `level` is ok, warn or fail."""

    level: Literal["ok", "warn", "fail"]
    lane: str
    subject: str
    told: str


def examine_lane(lane: LaneConfig) -> Iterator[LaneFinding]:
    """Try a lane, with requests that cost nothing.

    Example:
        >>> from batchrouter.server.config import load_config
        >>> next(examine_lane(load_config().lanes[0])).told
        'simulated: it buys nothing'
    """
    if lane.adapter == "simulated":
        yield LaneFinding("ok", lane.provider, "adapter", "simulated: it buys nothing")
        return
    settings = lane_settings(lane.adapter, lane.options)
    yield from _account(lane, settings)
    yield LaneFinding("ok", lane.provider, "limits", _limits(lane, settings))
    yield LaneFinding(
        "ok", lane.provider, "lost replies", f"found again {_HOW_FOUND_AGAIN[lane.adapter]}"
    )
    for model in lane.models:
        yield _price(lane, model)


def _account(lane: LaneConfig, settings: LaneSettings) -> Iterator[LaneFinding]:
    try:
        wire = open_wire(lane.adapter, settings)
    except ValueError as wrong:
        yield LaneFinding("fail", lane.provider, "key", str(wrong))
        return
    path = "/models" if lane.adapter.startswith("openai") else "/v1/models"
    try:
        listed = wire.ask("GET", path)
    except ProviderRefusedError as refusal:
        told = str(refusal)
        if refusal.status in _DENIED:
            told += ": is this the right key?"
            yield LaneFinding("fail", lane.provider, "key", told)
        else:
            yield LaneFinding("warn", lane.provider, "models", f"cannot be listed: {told}")
        return
    except ConnectionError as error:
        yield LaneFinding("fail", lane.provider, "server", f"{settings.base_url}: {error}")
        return
    finally:
        wire.close()
    yield LaneFinding("ok", lane.provider, "key", f"{settings.base_url} takes it")
    yield from _models(lane, listed)


def _models(lane: LaneConfig, listed: Any) -> Iterator[LaneFinding]:
    entries = listed.get("data") if isinstance(listed, dict) else listed
    known = {str(entry.get("id")) for entry in entries or [] if isinstance(entry, dict)}
    for model in lane.models:
        if model.provider_model in known:
            yield LaneFinding("ok", lane.provider, "model", f"{model.provider_model} is there")
        else:
            some = ", ".join(sorted(known)[:5]) or "none"
            told = f"{model.provider_model} is not listed; there is {some}"
            yield LaneFinding("fail", lane.provider, "model", told)


def _limits(lane: LaneConfig, settings: LaneSettings) -> str:
    if lane.adapter == "openai-http":
        limits = [f"{settings.concurrency} requests at a time"]
        if settings.requests_per_minute:
            limits.append(f"{settings.requests_per_minute:,} requests a minute")
        if settings.tokens_per_minute:
            limits.append(f"{settings.tokens_per_minute:,} tokens a minute")
    else:
        limits = [f"{settings.max_items:,} items and {settings.max_bytes:,} bytes a batch"]
        if settings.enqueued_tokens:
            limits.append(f"{settings.enqueued_tokens:,} tokens queued")
    return "; ".join(limits)


def _price(lane: LaneConfig, model: ModelPrice) -> LaneFinding:
    told = f"{model.provider_model}: {model.input_usd_per_mtok} in, {model.output_usd_per_mtok} out"
    table = _table()
    for entry in table["prices"]:
        if (entry["adapter"], entry["model"]) != (lane.adapter, model.provider_model):
            continue
        listed = ModelPrice.model_validate(
            {"name": model.name} | {k: v for k, v in entry.items() if k not in {"adapter", "model"}}
        )
        is_same = (
            listed.input_usd_per_mtok == model.input_usd_per_mtok
            and listed.output_usd_per_mtok == model.output_usd_per_mtok
            and listed.tier_units == model.tier_units
        )
        if is_same:
            return LaneFinding("ok", lane.provider, "price", f"{told}, as listed")
        tiers = f" and {len(listed.tiers)} tier(s)" if listed.tiers else ""
        return LaneFinding(
            "warn",
            lane.provider,
            "price",
            f"{told}; on {table['read_on']} the list had {listed.input_usd_per_mtok} in,"
            f" {listed.output_usd_per_mtok} out{tiers}: is yours newer, or your own?",
        )
    return LaneFinding("ok", lane.provider, "price", f"{told}; not in the table of known prices")


def _table() -> dict[str, Any]:
    text = resources.files("batchrouter.server.lanes").joinpath("prices.toml").read_text("utf-8")
    return tomllib.loads(text, parse_float=Decimal)

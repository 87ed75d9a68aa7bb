"""What the router serves: lanes and prices, workflows, limits, credits (`router.toml`).

Everything is checked at start; an error names the file, the line and the reason. Without a file
the router serves `default_router.toml`, which stands beside this module and shows every part.
"""

import json
import math
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, model_validator

from batchrouter.errors import ConfigError
from batchrouter.server.config_lines import line_of
from batchrouter.server.model_prices import ConfigPart, ModelPrice, Name, Usd

if TYPE_CHECKING:
    from batchrouter.server.lanes.settings import LaneSettings

__all__ = [
    "Assumption",
    "Credits",
    "LaneConfig",
    "Limits",
    "RouterConfig",
    "WorkflowConfig",
    "WorkflowField",
    "load_config",
]

PrivacyTier = Literal["standard", "restricted", "zdr"]
SlaTier = Literal["standard", "flex"]
Adapter = Literal["simulated", "openai-batch", "anthropic-batch", "mistral-batch", "openai-http"]

SLA_TIER_S: dict[str, int] = {"standard": 24 * 3600, "flex": 48 * 3600}
"""Seconds from create to the deadline, by SLA tier (contract section 3)."""

DEFAULT_CONFIG = "default_router.toml"


class LaneConfig(ConfigPart):
    """One way to have work done: a provider's batch API in a region, on its terms.

    Attributes:
        provider: Its name, unique; simulated ones are called `simulated-…`.
        adapter: The code that talks to it.
        region: Where the data is processed; a caller admits it by name, or all by `global`.
        privacy_tiers: The tiers that it meets.
        sla_tiers: The tiers that it offers.
        models: What it serves.
        capacity_items: The most items that it takes of one batch.
        estimated_completion_s: Seconds before its first answer, for the estimate.
        items_per_second: Its pace, for the estimate; a lane is not slowed down to it.
        paused: An operator took it out: quotes reject it as `provider_unhealthy`.
        options: The adapter's own (`lanes/`).
    """

    provider: Name
    adapter: Adapter = "simulated"
    region: Name
    privacy_tiers: tuple[PrivacyTier, ...] = ("standard",)
    sla_tiers: tuple[SlaTier, ...] = ("standard", "flex")
    models: Annotated[tuple[ModelPrice, ...], Field(min_length=1)]
    capacity_items: Annotated[int, Field(ge=1)]
    estimated_completion_s: Annotated[int, Field(ge=0)] = 60
    items_per_second: Annotated[float, Field(gt=0)] = 1000.0
    paused: bool = False
    options: Mapping[str, Any] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [model.name for model in self.models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"model {name!r} stands twice in lane {self.provider!r}")
        if self.adapter == "simulated" and not self.provider.startswith("simulated-"):
            raise ValueError(
                f"the simulated lane {self.provider!r} must be called 'simulated-…',"
                " so that nobody takes its answers for a provider's"
            )
        if self.adapter == "simulated":
            from batchrouter.server.lanes.simulated import SimulatedOptions  # noqa: PLC0415 - the lanes read this module

            SimulatedOptions.from_mapping(self.options)
            return self
        if self.provider.startswith("simulated-"):
            raise ValueError(f"the lane {self.provider!r} buys, and must not be called simulated")
        self._settings()
        for model in self.models:
            is_told = "output_usd_per_mtok" in model.model_fields_set
            if not is_told and set(model.tasks) != {"embeddings"}:
                raise ValueError(
                    f"model {model.name!r} in lane {self.provider!r} has no output_usd_per_mtok: an"
                    " unknown price is not zero; write 0 for a server of your own"
                )
        return self

    def _settings(self) -> "LaneSettings":
        from batchrouter.server.lanes.settings import lane_settings  # noqa: PLC0415 - as above

        return lane_settings(self.adapter, self.options)

    @cached_property
    def quoted_input_percent(self) -> int:
        """How much of an estimate's input tokens a quote of this lane locks, in percent.

        A lane that knows no tokenizer reserves each byte as `tokens_per_byte` tokens. Estimates
        count 4 bytes a token, and a manifest may be a tenth above its quote (contract section 5):
        with 440 percent every chunk fits under its own quote. What was not needed is released.
        """
        if self.adapter == "simulated":
            return 100
        return math.ceil(440 * self._settings().tokens_per_byte)


class WorkflowField(ConfigPart):
    """A field of a workflow line's `input`: a string, or a list of strings."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
    type: Literal["string", "string[]"] = "string"
    required: bool = True


class WorkflowConfig(ConfigPart):
    """An outcome to buy: the router chooses the model, the prompt is the workflow's own.

    Attributes:
        slug: Its name; callers write `slug@vN`.
        version: N.
        active: Whether `slug` alone may mean this version (the newest active one).
        fields: What a line's `input` holds.
        system: The system prompt.
        user: The user prompt; `{field}` is replaced, an absent optional field by nothing.
        output_schema: JSON Schema of the output object.
        enum_from: Output property → the `string[]` field that, where a line has it, gives the
            property's enum in place of the schema's.
        models: The models that satisfy the contract.
        input_tokens_per_item: Assumed mean of a line's own input, when a quote names none.
        output_tokens_per_item: Assumed mean of the output.
        max_output_tokens: Output cap of an item.
        parameters: Generation parameters of the request.
    """

    slug: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,99}$")]
    version: Annotated[int, Field(ge=1)]
    active: bool = True
    fields: Annotated[tuple[WorkflowField, ...], Field(min_length=1)]
    system: str = ""
    user: Annotated[str, Field(min_length=1)]
    output_schema: Mapping[str, Any]
    enum_from: Mapping[str, str] = {}
    models: Annotated[tuple[Name, ...], Field(min_length=1)]
    input_tokens_per_item: Annotated[int, Field(ge=1)] = 420
    output_tokens_per_item: Annotated[int, Field(ge=1)] = 64
    max_output_tokens: Annotated[int, Field(ge=1)] = 256
    parameters: Mapping[str, Any] = {}

    @property
    def reference(self) -> str:
        """`slug@vN`."""
        return f"{self.slug}@v{self.version}"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.output_tokens_per_item > self.max_output_tokens:
            raise ValueError("output_tokens_per_item is above max_output_tokens")
        properties = self.output_schema.get("properties", {})
        types = {field.name: field.type for field in self.fields}
        for output, field in self.enum_from.items():
            if output not in properties:
                raise ValueError(f"enum_from: {output!r} is no property of output_schema")
            if types.get(field) != "string[]":
                raise ValueError(f"enum_from: {field!r} is no field of type string[]")
        return self


class Assumption(ConfigPart):
    """Token figures of a task, for a quote that names none."""

    input_tokens_per_item: Annotated[int, Field(ge=1)] = 420
    output_tokens_per_item: Annotated[int, Field(ge=0)] = 64
    max_output_tokens: Annotated[int, Field(ge=0)] = 1024


class Assumptions(ConfigPart):
    """Token figures by task."""

    responses: Assumption = Assumption()
    embeddings: Assumption = Assumption(output_tokens_per_item=0, max_output_tokens=0)
    vision: Assumption = Assumption(input_tokens_per_item=1600)


class Limits(ConfigPart):
    """What one caller may send (contract section 2)."""

    json_body_bytes: Annotated[int, Field(ge=1024)] = 20 * 1024 * 1024
    inline_items: Annotated[int, Field(ge=1)] = 5_000
    manifest_bytes: Annotated[int, Field(ge=1)] = 5 * 1024**3
    manifest_lines: Annotated[int, Field(ge=1)] = 10_000_000
    manifest_line_bytes: Annotated[int, Field(ge=64)] = 1024 * 1024
    signed_url_s: Annotated[int, Field(ge=1)] = 900
    quote_s: Annotated[int, Field(ge=1)] = 600
    # Per API key; 0 is no limit.
    requests_per_minute: Annotated[int, Field(ge=0)] = 0
    quote_usd: Usd = Decimal(1_000_000)

    @model_validator(mode="after")
    def _check(self) -> Self:
        # Sums of 10^-12 dollar stand in 64-bit columns, which end at 9.2 million dollars.
        if self.quote_usd > Decimal(4_000_000):
            raise ValueError("quote_usd may be 4000000 at most")
        return self


Days = Annotated[float, Field(gt=0, le=36_500, allow_inf_nan=False)]


class Retention(ConfigPart):
    """For how long things are kept (contract section 2); a batch outlives all that is its own."""

    unused_upload_days: Days = 7
    manifest_after_end_days: Days = 7
    artifact_days: Days = 30
    quote_days: Days = 90
    event_days: Days = 30
    batch_days: Days = 400
    workflow_days: Days = 1
    sweep_every_s: Annotated[float, Field(ge=1, le=86_400)] = 3600

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("manifest_after_end_days", "artifact_days", "event_days", "workflow_days"):
            if getattr(self, name) > self.batch_days:
                raise ValueError(f"{name} is above batch_days: nothing outlives its batch")
        return self


class Workers(ConfigPart):
    """Processes that share a database.

    Attributes:
        lease_s: How long a worker may be silent before the others go on with its work. Above the
            time of a garbage collection or a paused machine; below what a batch may wait.
    """

    lease_s: Annotated[float, Field(ge=1, le=3600)] = 30.0


class Credits(ConfigPart):
    """What a fresh workspace may spend."""

    initial_usd: Usd = Decimal(1000)

    @property
    def initial_micro(self) -> int:
        """In micro-dollars."""
        return int(self.initial_usd * 1_000_000)


class RouterConfig(ConfigPart):
    """All of `router.toml`.

    Attributes:
        lanes: In no order: quotes sort them by price.
        workflows: What can be bought as an outcome.
        assumptions: Token figures by task.
        limits: What one caller may send.
        retention: For how long things are kept.
        credits: What a fresh workspace may spend.
        workers: Of processes that share a database.
        database: `postgresql://…`, for several processes on the same state; without it, SQLite in
            the data folder. `--database` and `BATCHROUTER_DATABASE` go before it.
        objects: `s3://bucket/prefix` for manifests, results and artifacts; without it, the data
            folder. `--objects` and `BATCHROUTER_OBJECTS` go before it.
        artifact_urls: `store` signs URLs of an object store's own, `router` has all downloads go
            through the router, for a store that callers do not reach.
        public_url: The base of signed URLs, when callers do not reach the router under the
            address that it listens on.
        allowed_hosts: Further names that a router on loopback goes by, such as that of a TLS
            proxy on the same machine.
    """

    lanes: Annotated[tuple[LaneConfig, ...], Field(min_length=1)]
    workflows: tuple[WorkflowConfig, ...] = ()
    assumptions: Assumptions = Assumptions()
    limits: Limits = Limits()
    retention: Retention = Retention()
    credits: Credits = Credits()
    workers: Workers = Workers()
    database: SecretStr | None = None
    objects: Annotated[str, Field(min_length=1)] | None = None
    artifact_urls: Literal["store", "router"] = "store"
    public_url: Annotated[str, Field(pattern=r"^https?://[^/?#\s]+(/[^?#\s]*)?$")] | None = None
    allowed_hosts: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]+$")], ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        providers = [lane.provider for lane in self.lanes]
        for provider in providers:
            if providers.count(provider) > 1:
                raise ValueError(f"two lanes are called {provider!r}")
        served = {model.name for lane in self.lanes for model in lane.models}
        references = [workflow.reference for workflow in self.workflows]
        for workflow in self.workflows:
            if references.count(workflow.reference) > 1:
                raise ValueError(f"two workflows are called {workflow.reference!r}")
            for model in workflow.models:
                if model not in served:
                    raise ValueError(
                        f"workflow {workflow.reference!r} wants the model {model!r},"
                        " which no lane serves"
                    )
        return self

    def lane(self, provider: str) -> LaneConfig | None:
        """Find a lane by its provider's name."""
        return next((lane for lane in self.lanes if lane.provider == provider), None)

    def workflow(self, slug: str, version: int | None = None) -> WorkflowConfig | None:
        """Find a workflow; without a version, the newest active one."""
        found = [
            workflow
            for workflow in self.workflows
            if workflow.slug == slug
            and (workflow.active if version is None else workflow.version == version)
        ]
        return max(found, key=lambda workflow: workflow.version, default=None)


def load_config(path: str | Path | None = None) -> RouterConfig:
    """Read and check a configuration; the built-in one when there is no path.

    Args:
        path: A TOML file, or a JSON file when it ends in `.json`.

    Raises:
        ConfigError: The file cannot be read, or is wrong; every problem is named with its line.

    Example:
        >>> len(load_config().lanes) >= 4
        True
    """
    if path is None:
        text = resources.files("batchrouter.server").joinpath(DEFAULT_CONFIG).read_text("utf-8")
        name = DEFAULT_CONFIG
    else:
        name = str(path)
        try:
            text = Path(path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{name}: cannot be read: {error}") from None
    try:
        parse = _parse_json if name.endswith(".json") else _parse_toml
        data = parse(text)
    except ValueError as error:
        # Both parsers name line and column.
        raise ConfigError(f"{name}: {error}") from None
    try:
        return RouterConfig.model_validate(data)
    except ValidationError as error:
        items = error.errors(include_url=False)
        places = [item["loc"] for item in items]
        problems = [
            _problem(name, text, item)
            for item in items
            # A list that lost its wrong entries is not too short besides.
            if not any(place[: len(item["loc"])] == item["loc"] != place for place in places)
        ]
        raise ConfigError("\n".join(problems)) from None


_REASONS = {"missing": "is missing", "extra_forbidden": "there is no such setting"}


def _parse_toml(text: str) -> Any:
    return tomllib.loads(text, parse_float=Decimal)


def _parse_json(text: str) -> Any:
    return json.loads(text, parse_float=Decimal)


def _problem(name: str, text: str, item: Any) -> str:
    path = item["loc"]
    line = None if name.endswith(".json") else line_of(text, path)
    place = f"{name}:{line}" if line else name
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    reason = _REASONS.get(item["type"]) or item["msg"].removeprefix("Value error, ")
    return f"{place}: {field.lstrip('.')}: {reason}" if path else f"{place}: {reason}"

"""Every setting of a client and its runs, from arguments or from the environment.

Nothing here opens a connection or imports an HTTP library: a DAG file may build `Settings`
while it is parsed. What must not be seen (key, webhook secret, storage options, passwords in
URLs) is masked in every repr.
"""

import ipaddress
import json
import os
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, cast
from urllib.parse import SplitResult, urlsplit, urlunsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from batchrouter.errors import ConfigError
from batchrouter.money import parse_usd

ENV_PREFIX = "BATCHROUTER_"
DEFAULT_BASE_URL = "https://api.batchrouter.dev"

_LOOPBACK_NAMES = {"localhost", "ip6-localhost"}
_URL_FIELDS = {"base_url", "runs_url", "inbox_url", "webhook_url", "namespace"}


def _parse_optional_usd(value: object) -> object:
    return parse_usd(value) if isinstance(value, str | int | float | Decimal) else value  # type: ignore[arg-type]  # a float is refused there, with the reason


class Settings(BaseModel):
    """What a client needs to know; frozen, so that a running client cannot change its mind.

    Build it from arguments, or with `from_env` from ``BATCHROUTER_<FIELD>`` variables.

    Attributes:
        base_url: Where the API is. ``http://`` is refused except on loopback.
        api_key: ``bk_live_…``; a client refuses to start without one, a build needs none.
        timeout_s: The longest silence (s) that a call bears: to connect, to write, to read;
            and the longest that a reply may take to come in once it has begun.
        upload_timeout_s: The longest wait (s) for the answer to an upload after its last byte:
            the router is still validating lines.
        max_attempts: How often a call that is safe to repeat is sent in all.
        retry_wait_s: The upper bound (s) of the first wait between attempts; it doubles.
        max_retry_wait_s: The most (s) that one call waits between its attempts, in total. A
            server that asks for a longer wait gets the error raised at once instead.
        runs_url: The folder of all runs, any fsspec URL.
        inbox_url: Where webhook events are kept: SQLAlchemy URL or fsspec folder.
        webhook_url: Where the router shall deliver; no webhook when left out.
        webhook_secret: What deliveries are signed with.
        namespace: Tells apart runs that share an account; see `identity_namespace`.
        max_run_usd: No job may cost more (USD), whatever its own budget says.
        poll_interval_s: How often (s) open batches are looked at.
        storage_options: What fsspec needs to open the URLs; from the environment as JSON.
        allow_http: Permit ``http://`` beyond loopback. The key then travels in clear.

    Raises:
        ConfigError: A value is wrong; the message has every problem as ``field: problem``.

    Example:
        >>> Settings(base_url="http://127.0.0.1:8765/").base_url
        'http://127.0.0.1:8765'
        >>> Settings(api_key="bk_live_1").api_key
        SecretStr('**********')
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    base_url: str = DEFAULT_BASE_URL
    api_key: SecretStr | None = None
    timeout_s: float = Field(default=30.0, gt=0, le=3600)
    upload_timeout_s: float = Field(default=600.0, gt=0, le=86_400)
    max_attempts: int = Field(default=5, ge=1, le=100)
    retry_wait_s: float = Field(default=0.5, gt=0, le=600)
    max_retry_wait_s: float = Field(default=120.0, ge=0, le=86_400)
    runs_url: str = Field(default="runs", min_length=1)
    inbox_url: str | None = None
    webhook_url: str | None = None
    webhook_secret: SecretStr | None = None
    namespace: str | None = None
    max_run_usd: Annotated[Decimal, BeforeValidator(_parse_optional_usd)] | None = None
    poll_interval_s: float = Field(default=10.0, gt=0, le=86_400)
    # Left out of dumps as of reprs: these are credentials as often as not.
    storage_options: Mapping[str, Any] = Field(default_factory=dict[str, Any], exclude=True)
    allow_http: bool = False

    if not TYPE_CHECKING:  # the checker keeps the signature that pydantic gives

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                # Not chained: pydantic's own message may show what was passed.
                raise ConfigError(_describe(error)) from None

    @classmethod
    def from_env(cls, **overrides: Any) -> Self:
        """Read ``BATCHROUTER_<FIELD>`` variables; an override that is not None wins.

        An empty variable counts as not set.

        Raises:
            ConfigError: A value is wrong, or an override is no setting.

        Example:
            >>> Settings.from_env(timeout_s=5).timeout_s
            5.0
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        found: dict[str, Any] = {}
        for name in cls.model_fields:
            text = os.environ.get(ENV_PREFIX + name.upper(), "").strip()
            if text and name not in given:
                found[name] = _parse_json(name, text) if name == "storage_options" else text
        try:
            return cls(**given, **found)
        except ConfigError as error:
            names = ", ".join(ENV_PREFIX + name.upper() for name in found)
            read = f" (read from the environment: {names})" if names else ""
            raise ConfigError(f"{error}{read}") from None

    def replace(self, **overrides: Any) -> Self:
        """Return a copy in which every override that is not None holds, checked again.

        Raises:
            ConfigError: As the constructor.
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        kept = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**{**kept, **given})

    @property
    def identity_namespace(self) -> str:
        """What identity keys are made with: `namespace`, else the runs URL made absolute.

        Two checkouts with runs folders of their own thus never share a purchase, and workers
        that share one folder always do.
        """
        if self.namespace is not None:
            return self.namespace
        scheme, separator, rest = self.runs_url.partition("://")
        if separator and scheme != "file":
            return self.runs_url.rstrip("/")
        return str(Path(rest if separator else self.runs_url).expanduser().resolve())

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, value: str) -> str:
        parts = _split_url(value.strip())
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("must be an http(s) URL such as https://api.batchrouter.dev")
        if parts.username or parts.password:
            raise ValueError("must hold no user or password; the key goes into api_key")
        if parts.query or parts.fragment:
            raise ValueError("must end after the path")
        # Every path below begins with /v1, and many people copy it along.
        path = parts.path.rstrip("/").removesuffix("/v1")
        return urlunsplit((parts.scheme, parts.netloc, path, "", ""))

    @field_validator("api_key", "webhook_secret")
    @classmethod
    def _check_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        text = value.get_secret_value().strip()  # `$(cat file)` keeps no newline, YAML does
        if not text or not text.isascii() or not text.isprintable() or " " in text:
            raise ValueError("must be printable ASCII without spaces, and not empty")
        return SecretStr(text)

    @model_validator(mode="after")
    def _check_clear_text(self) -> Self:
        parts = urlsplit(self.base_url)
        if parts.scheme == "http" and not self.allow_http and not is_loopback(parts.hostname or ""):
            raise ValueError(
                "base_url: http:// would send the key in clear: use https://, or set "
                "allow_http if the network in between is yours"
            )
        return self

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        shown: list[tuple[str | None, Any]] = []
        for name in type(self).model_fields:
            value = getattr(self, name)
            if name == "storage_options":
                value = dict.fromkeys(self.storage_options, "**********")
            elif name in _URL_FIELDS and value is not None:
                value = masked_url(value)
            shown.append((name, value))
        return shown


def resolve_settings(settings: Settings | None, **overrides: Any) -> Settings:
    """Return the settings, or those of the environment, with every override that is not None.

    Raises:
        ConfigError: A value is wrong, or an override is no setting.
    """
    if settings is None:
        return Settings.from_env(**overrides)
    return settings.replace(**overrides)


def is_loopback(host: str) -> bool:
    """Tell whether a host name or address can only be this machine.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("example.com")
        (True, True, False)
    """
    if host.lower().rstrip(".") in _LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def masked_url(url: str) -> str:
    """Return a URL that may be shown: without password, query and fragment.

    Example:
        >>> masked_url("postgresql://ann:secret@db/inbox?sslkey=x")
        'postgresql://ann:***@db/inbox?***'
    """
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        user = f"{parts.username or ''}:***@" if parts.password is not None else ""
        if not user and "@" in parts.netloc:
            user = "***@"  # a lone token before the @ is as good as a password
    except ValueError:
        return "***"
    rest = ("?***" if parts.query else "") + ("#***" if parts.fragment else "")
    if not parts.netloc:
        return url.partition("?")[0].partition("#")[0] + rest
    return f"{parts.scheme}://{user}{host}{parts.path}{rest}"


def _split_url(url: str) -> SplitResult:
    parts = urlsplit(url)
    _ = parts.port  # raises ValueError when it is no number
    return parts


def _parse_json(name: str, text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ConfigError(f"{ENV_PREFIX}{name.upper()}: must be a JSON object")
    return cast("dict[str, Any]", value)


def _describe(error: ValidationError) -> str:
    problems: list[str] = []
    for entry in error.errors(include_url=False, include_input=False, include_context=False):
        where = ".".join(str(step) for step in entry["loc"])
        told = entry["msg"].removeprefix("Value error, ")
        if entry["type"] == "extra_forbidden":
            told = "is no setting"
        problems.append(f"{where}: {told}" if where else told)
    return "; ".join(problems)

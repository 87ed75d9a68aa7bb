"""An Airflow connection → the settings of a client and its runs.

Base URL in ``host``, key in ``password``, the rest in the extra. What the connection does not
say comes from ``BATCHROUTER_…`` variables, as everywhere else.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from batchrouter import Settings

DEFAULT_CONNECTION = "batchrouter_default"

_NOT_SETTINGS = frozenset({"batch_page", "runs_are_shared"})
_LOCAL_EXECUTORS = frozenset({"LocalExecutor", "SequentialExecutor", "DebugExecutor"})


def settings_from(connection: Any, extra: Mapping[str, Any]) -> "Settings":
    """Build settings.

    Args:
        connection: Airflow's, of any of its classes.
        extra: Its extra as a mapping, passed apart since a triggerer reads it asynchronously.

    Raises:
        ConfigError: A field is wrong or is no setting; the message names the connection.
    """
    from batchrouter import Settings  # noqa: PLC0415 - a DAG file must not pay for it
    from batchrouter.errors import ConfigError  # noqa: PLC0415 - likewise

    given = {
        name: value
        for name, value in extra.items()
        if name not in _NOT_SETTINGS and value not in (None, "")
    }
    given |= {"base_url": _base_url(connection), "api_key": connection.password or None}
    try:
        settings = Settings.from_env(**given)
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"connection {connection.conn_id!r}: {error}") from None
    return settings.replace(runs_url=_anchored(settings))


def _base_url(connection: Any) -> str | None:
    host = (connection.host or "").strip()
    if not host:
        return None
    if "://" in host:
        return host
    # The URI form of a connection has its scheme and port apart.
    port = f":{connection.port}" if connection.port else ""
    return f"{connection.schema or 'https'}://{host}{port}"


def _anchored(settings: "Settings") -> str:
    """The runs URL; a relative one in AIRFLOW_HOME, since workers start in any folder."""
    if not _is_local(settings.runs_url) or settings.runs_url.startswith("file:"):
        return settings.runs_url
    return str(_airflow_home() / "batchrouter" / Path(settings.runs_url).expanduser())


def _airflow_home() -> Path:
    from airflow.configuration import AIRFLOW_HOME  # noqa: PLC0415 - loads all of the settings

    return Path(AIRFLOW_HOME)


def _is_local(url: str) -> bool:
    scheme = urlsplit(url).scheme if "://" in url else ""
    return scheme in {"", "file", "local"}


def check_runs_are_shared(settings: "Settings", extra: Mapping[str, Any], conn_id: str) -> None:
    """Refuse a runs URL that the next attempt, on another machine, would not find again.

    Raises:
        ConfigError: It is a local folder, and the executor runs tasks on other machines.
    """
    from airflow.providers.common.compat.sdk import conf  # noqa: PLC0415 - loads settings

    from batchrouter.errors import ConfigError  # noqa: PLC0415 - a DAG file must not pay for it

    if not _is_local(settings.runs_url) or extra.get("runs_are_shared") in (True, "true", "True"):
        return
    executors = str(conf.get("core", "executor", fallback="LocalExecutor"))
    if _names(executors) <= _LOCAL_EXECUTORS:
        return
    raise ConfigError(
        f"connection {conn_id!r}: runs_url is the local folder {settings.runs_url}, and the"
        f" executor ({executors}) runs tasks on other machines, where a retry would not find its"
        " run and what it bought. Set the connection's runs_url to storage that all workers reach,"
        ' such as s3://lake/_runs; or, if the folder is a shared mount, set "runs_are_shared":'
        " true in its extra."
    )


def _names(executors: str) -> set[str]:
    """The class names in ``[core] executor``: lists, teams, aliases and module paths."""
    found = [part.rpartition(":")[2] for part in re.split(r"[,;=]", executors) if part.strip()]
    names = {part.strip().rpartition(".")[2] for part in found}
    return {name for name in names if name.endswith("Executor")} or names

"""A connection's name → an open ADBC connection; what it opens never leaves this module.

A job names a connection, and the environment says what it is: a URL whose scheme is the driver,
or JSON with `driver`, `uri` and any other option of the driver. Drivers put the URL, or a piece
of it, into their messages, so every error of a connection goes through `Connections.refusing`.
"""

import contextlib
import json
import os
import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode

import pyarrow as pa

from batchrouter.errors import BatchrouterError, ConfigError, MissingExtraError
from batchrouter.job.source import connection_variable

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9_.+-]*)://")
_USER_INFO = re.compile(r"://([^/?#]*)@")
_DELIMITERS = re.compile(r"[/?#@:&=%\s]+")
_LEAST_SECRET = 3
_MASK = "***"
_MOST_TOLD = 500
_PUBLIC_OPTIONS = frozenset({"driver", "uri", "username", "user", "host", "port", "database"})
_POSTGRES = "postgresql"
_ALIASES = {"postgres": _POSTGRES, "sqlite3": "sqlite"}
_EXTRAS = {_POSTGRES: "postgres", "sqlite": "sqlite"}

POSTGRES_BOUNDS: Mapping[str, str] = {
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}
"""A server that does not answer, or has gone, is noticed; what the URL says itself holds."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A database that the environment names.

    Attributes:
        name: Its name in a job.
        driver: Which ADBC driver opens it, such as `postgresql`.
        uri: Where it is; holds credentials.
        options: What else the driver is told; may hold credentials.
    """

    name: str
    driver: str
    uri: str = field(default="", repr=False)
    options: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every text that must not be shown, the longest first."""
        found = {self.uri, *_secrets_of(self.uri)}
        found |= {value for name, value in self.options.items() if name not in _PUBLIC_OPTIONS}
        shown = {secret for each in found for secret in (each, unquote(each))}
        # A password with a slash is taken apart, and a part of it told as a wrong port.
        shown |= {piece for each in found - {self.uri} for piece in _DELIMITERS.split(each)}
        return tuple(sorted((s for s in shown if len(s) >= _LEAST_SECRET), key=len, reverse=True))

    def masked(self, text: str) -> str:
        """Take the secrets out of a text.

        Example:
            >>> Connection("w", "postgresql", "postgresql://me:hunter2@db/x").masked("no hunter2")
            'no ***'
        """
        for secret in self.secrets:
            text = text.replace(secret, _MASK)
        return _USER_INFO.sub(f"://{_MASK}@", text)

    @contextlib.contextmanager
    def refusing(self, told: Callable[[str], BatchrouterError]) -> Generator[None, None, None]:
        """Turn what a driver raises into an error of ours, without what it opens with.

        Args:
            told: Makes the error from the driver's message.
        """
        try:
            yield
        except BatchrouterError:
            raise
        except Exception as error:
            if not _is_drivers(error):
                raise
            # Not chained: the driver's own message is in the traceback then.
            raise told(self.masked(_message_of(error))) from None

    def open(self, *, read_only: bool = False, autocommit: bool = False) -> Any:
        """Connect.

        Returns:
            A DBAPI connection of ADBC; closing it rolls back.

        Raises:
            MissingExtraError: The driver is not installed.
            ConfigError: There is no such driver, or it takes no such URL.
        """
        try:
            return self._open(read_only=read_only, autocommit=autocommit)
        except ModuleNotFoundError:
            raise MissingExtraError.for_extra(
                _EXTRAS.get(self.driver, "adbc"), needed_for=f"connection {self.name!r}"
            ) from None

    def _open(self, *, read_only: bool, autocommit: bool) -> Any:
        if self.driver == _POSTGRES:
            driver = import_module("adbc_driver_postgresql.dbapi")
            return driver.connect(
                _bounded(self.uri), db_kwargs=dict(self.options), autocommit=autocommit
            )
        if self.driver == "sqlite":
            driver = import_module("adbc_driver_sqlite.dbapi")
            return driver.connect(self._sqlite_uri(read_only=read_only), autocommit=autocommit)
        manager = import_module("adbc_driver_manager.dbapi")
        if self.driver == "duckdb":
            options = {"path": self._path(), **self.options}
            if read_only:
                options["access_mode"] = "READ_ONLY"
            path = import_module("adbc_driver_duckdb").driver_path()
            return manager.connect(
                driver=path,
                entrypoint="duckdb_adbc_init",
                db_kwargs=options,
                autocommit=autocommit,
            )
        return self._open_installed(manager, autocommit=autocommit)

    def _open_installed(self, manager: Any, *, autocommit: bool) -> Any:
        """Open with a driver's Python package, or with a manifest of the driver manager."""
        options = dict(self.options)
        try:
            driver = import_module(f"adbc_driver_{self.driver}.dbapi")
        except ModuleNotFoundError:
            if self.uri:
                options["uri"] = self.uri
            return self._open_by_manifest(manager, options, autocommit=autocommit)
        given = (self.uri,) if self.uri else ()
        return driver.connect(*given, db_kwargs=options, autocommit=autocommit)

    def _open_by_manifest(self, manager: Any, options: dict[str, str], *, autocommit: bool) -> Any:
        try:
            return manager.connect(driver=self.driver, db_kwargs=options, autocommit=autocommit)
        except manager.ProgrammingError as error:
            if "Could not load" not in str(error):
                raise
            raise ConfigError(
                f"connection {self.name!r}: no ADBC driver {self.driver!r} is installed; install"
                f" it (pip install adbc-driver-{self.driver}, or as the driver's pages say)"
            ) from None

    def _path(self) -> str:
        found = _SCHEME.match(self.uri)
        path = unquote(self.uri[found.end() :] if found else self.uri).removeprefix("/")
        if not Path(path).is_file():
            raise ConfigError(
                f"connection {self.name!r}: there is no file {path}; check"
                f" {connection_variable(self.name)} ({self.driver}:///relative/path or"
                f" {self.driver}:////absolute/path)"
            )
        return path

    def _sqlite_uri(self, *, read_only: bool) -> str:
        # SQLite makes a file that is not there, and an empty database has no tables.
        return f"file:{quote(self._path())}?mode={'ro' if read_only else 'rw'}"


def connection_named(name: str) -> Connection:
    """Read what a connection is from the environment; nothing is opened.

    Raises:
        ConfigError: The variable is not set, or holds no URL and no JSON; the message names the
            variable, never what it holds.

    Example:
        >>> os.environ["BATCHROUTER_CONNECTION_HERE"] = "sqlite:///tickets.db"
        >>> connection_named("here")
        Connection(name='here', driver='sqlite')
        >>> del os.environ["BATCHROUTER_CONNECTION_HERE"]
    """
    variable = connection_variable(name)
    told = os.environ.get(variable, "").strip()
    if not told:
        raise ConfigError(
            f"connection {name!r} is unknown: set {variable} to its URL, such as"
            " postgresql://user:password@host/database"
        )
    if told.startswith("{"):
        return _from_json(name, variable, told)
    found = _SCHEME.match(told)
    if found is None:
        raise ConfigError(
            f"{variable} holds no URL; write driver://…, such as postgresql://host/database, or"
            ' JSON: {"driver": "…", "uri": "…"}'
        )
    return Connection(name, _driver(found.group(1)), told)


def _from_json(name: str, variable: str, told: str) -> Connection:
    try:
        given = json.loads(told)
    except ValueError:
        raise ConfigError(f"{variable} holds broken JSON; nothing of it is shown here") from None
    if not isinstance(given.get("driver"), str) or not all(
        isinstance(value, str) for value in given.values()
    ):
        raise ConfigError(f'{variable}: its JSON needs a "driver", and every value must be text')
    options = {key: value for key, value in given.items() if key not in {"driver", "uri"}}
    return Connection(name, _driver(given["driver"]), given.get("uri", ""), options)


def _driver(scheme: str) -> str:
    plain = scheme.lower().partition("+")[0]
    return _ALIASES.get(plain, plain)


def _secrets_of(uri: str) -> set[str]:
    """Find what of a URL is secret, however malformed the URL is."""
    found: set[str] = set()
    rest = uri.partition("://")[2]
    if "@" in rest:
        found.add(rest.rpartition("@")[0].partition(":")[2])
    query = uri.partition("?")[2]
    harmless = {"host", "hostaddr", "port", "dbname", "user", "sslmode", "application_name"}
    found |= {v for n, v in parse_qsl(query) if n not in harmless and not v.isdigit()}
    return found


def _bounded(uri: str) -> str:
    base, mark, query = uri.partition("?")
    said = {name for name, _ in parse_qsl(query, keep_blank_values=True)}
    added = urlencode({n: v for n, v in POSTGRES_BOUNDS.items() if n not in said})
    return f"{base}?{query}&{added}" if mark and query else f"{base}?{added}"


def _is_drivers(error: Exception) -> bool:
    return (
        isinstance(error, (OSError, pa.ArrowException, UnicodeError))
        or type(error).__module__.partition(".")[0].startswith("adbc_driver")
    )  # fmt: skip


def _message_of(error: Exception) -> str:
    """Take the driver's message, without its status and without the query."""
    text = str(error) or type(error).__name__
    text = re.split(r"\n+(?:Query was|Failed query|[Qq]uery):", text)[0]
    text = re.sub(r"^[A-Z_]+: ", "", text)
    told = " ".join(text.split())
    return told[:_MOST_TOLD].rstrip(". ")

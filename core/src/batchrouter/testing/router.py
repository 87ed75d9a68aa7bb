"""The embedded router on a real socket, in a process of its own that a test may kill."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from batchrouter.errors import ConfigError, TransportError

if TYPE_CHECKING:
    from batchrouter.api.settings import Settings

_START_TIMEOUT_S = 90.0
_STOP_TIMEOUT_S = 20.0
_LOOK_INTERVAL_S = 0.02
_LOG_TAIL_CHARS = 2_000


class RunningRouter:
    """An embedded router in its own process. Use `running_router`.

    Attributes:
        data_dir: Its folder: database, objects, `api_key`. Survives `kill` and `restart`.
        log_path: What it printed, over all its lives.
        base_url: Where it listens; the same after a restart.
        pid: Its process; another one after a restart.
    """

    def __init__(self, data_dir: Path, *, options: Sequence[str], log_path: Path) -> None:
        self.data_dir = data_dir
        self.log_path = log_path
        self.base_url = ""
        self.pid = 0
        self._options = tuple(options)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def api_key(self) -> str:
        """The key that the router minted at its first start, with every scope."""
        return (self.data_dir / "api_key").read_text(encoding="utf-8").strip()

    def settings(self, **overrides: Any) -> "Settings":
        """Build settings for this router; the environment is not read.

        Raises:
            ConfigError: An override is wrong or is no setting.
        """
        from batchrouter.api.settings import Settings  # noqa: PLC0415 - loads pydantic

        values: dict[str, Any] = {"base_url": self.base_url, "api_key": self.api_key}
        return Settings(**(values | overrides))

    def mint_key(self, scopes: Sequence[str], *, label: str = "test") -> str:
        """Mint one more key, while the router runs or not."""
        from batchrouter.server.serve import mint_key  # noqa: PLC0415 - loads SQLAlchemy

        return mint_key(self.data_dir, tuple(scopes), label)

    def start(self, env: Mapping[str, str] | None = None) -> None:
        """Start the process and wait until it answers `/readyz`.

        Args:
            env: Added to the environment, such as `BATCHROUTER_KILL_AT`. Other
                `BATCHROUTER_…` variables of the caller are not passed on.

        Raises:
            TransportError: It ended or did not answer within 90 s; the message has the end of
                its log.
        """
        address_path = self.data_dir / "address"
        address_path.unlink(missing_ok=True)
        kept = {k: v for k, v in os.environ.items() if not k.startswith("BATCHROUTER_")}
        port = urlsplit(self.base_url).port or 0
        command = [sys.executable, "-m", "batchrouter.server", "--data", str(self.data_dir)]
        command += ["--host", "127.0.0.1", *self._options]
        if "--port" not in self._options or port:
            command += ["--port", str(port)]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own module, no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**kept, **(env or {})},
            )
        self.pid = self._process.pid
        give_up_at = time.monotonic() + _START_TIMEOUT_S
        while not self._is_ready(address_path):
            if self._process.poll() is not None or time.monotonic() > give_up_at:
                self.kill()
                tail = self.log_path.read_text("utf-8", errors="replace")[-_LOG_TAIL_CHARS:]
                raise TransportError(f"the embedded router did not start. Its log ends:\n{tail}")
            time.sleep(_LOOK_INTERVAL_S)

    def _is_ready(self, address_path: Path) -> bool:
        try:
            self.base_url = address_path.read_text(encoding="utf-8").strip() or self.base_url
        except FileNotFoundError:
            return False
        return bool(self.base_url) and _answers(self.base_url, "/readyz")

    def kill(self) -> None:
        """Let it die as by a power cut (SIGKILL); its folder stays as it is."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Shut it down gracefully (SIGTERM); kill it when that takes over 20 s."""
        self._end(signal.SIGTERM)

    def send(self, how: signal.Signals) -> None:
        """Send its process a signal, such as SIGSTOP and SIGCONT."""
        if self._process is not None:
            self._process.send_signal(how)

    def restart(self, env: Mapping[str, str] | None = None) -> None:
        """Stop it if it runs, and start it again on the same folder and port.

        Raises:
            TransportError: As `start`.
        """
        self.stop()
        self.start(env)

    def wait_until_stopped(self, timeout_s: float = 60.0) -> None:
        """Wait until the process is suspended, such as by `BATCHROUTER_STOP_AT` (Linux).

        Raises:
            TimeoutError: It is not.
        """
        give_up_at = time.monotonic() + timeout_s
        while time.monotonic() < give_up_at:
            state = Path(f"/proc/{self.pid}/stat").read_text("ascii").rpartition(")")[2].split()[0]
            if state == "T":
                return
            time.sleep(_LOOK_INTERVAL_S)
        raise TimeoutError(f"the router was not suspended within {timeout_s} s")

    def wait_for_death(self, timeout_s: float = 30.0) -> int:
        """Wait until the process has ended by itself, such as at a kill point.

        Returns:
            Its exit status; negative is the signal.

        Raises:
            TimeoutError: It still lives.
        """
        if self._process is None:
            return 0
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the router still lives after {timeout_s} s") from None

    def _end(self, how: signal.Signals) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(how)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_TIMEOUT_S)


@contextmanager
def running_router(
    data_dir: str | Path | None = None,
    *,
    config: str | Path | Mapping[str, Any] | None = None,
    port: int = 0,
    public_url: str | None = None,
    env: Mapping[str, str] | None = None,
) -> Generator[RunningRouter]:
    """Run the embedded router in its own process while the block lasts.

    Args:
        data_dir: Its folder, made if absent and kept afterwards; default: a temporary one.
        config: A `router.toml` file, or its content as a mapping; default: the built-in
            simulated lanes.
        port: Default 0: one that is free.
        public_url: The base of the artifact URLs it signs, when a proxy stands in front.
        env: Added to its environment, such as `BATCHROUTER_KILL_AT`.

    Yields:
        The router, ready to answer.

    Raises:
        MissingExtraError: The server extra is not installed.
        TransportError: It did not start; the message has the end of its log.

    Example:
        >>> with running_router() as router:          # doctest: +SKIP
        ...     print(router.base_url)
        http://127.0.0.1:40123
    """
    _require_server()
    with tempfile.TemporaryDirectory(prefix="batchrouter-") as scratch:
        folder = Path(scratch, "router") if data_dir is None else Path(data_dir)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        options = ["--port", str(port)]
        if config is not None or public_url is not None:
            path = Path(scratch, "router.json")
            path.write_text(json.dumps(_config(config, public_url), default=str), "utf-8")
            options += ["--config", str(path)]
        router = RunningRouter(folder, options=options, log_path=folder / "router.log")
        try:
            router.start(env)
            yield router
        finally:
            router.stop()


def _require_server() -> None:
    from importlib.util import find_spec  # noqa: PLC0415 - rarely needed

    from batchrouter.errors import MissingExtraError  # noqa: PLC0415 - rarely needed

    if any(find_spec(name) is None for name in ("fastapi", "dbos", "obstore")):
        raise MissingExtraError.for_extra("server", needed_for="the embedded router")


def _config(
    config: str | Path | Mapping[str, Any] | None, public_url: str | None
) -> Mapping[str, Any]:
    if not isinstance(config, Mapping):
        path = Path(config) if config is not None else _built_in_config()
        try:
            # A price read as a float would have lost its last digits already.
            config = tomllib.loads(path.read_text("utf-8"), parse_float=Decimal)
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"config: {path} is no router.toml: {error}") from None
    return {**config, "public_url": public_url} if public_url is not None else config


def _built_in_config() -> Path:
    import batchrouter.server.config as server_config  # noqa: PLC0415 - loads pydantic

    return Path(server_config.__file__).with_name(server_config.DEFAULT_CONFIG)


def _answers(base_url: str, path: str) -> bool:
    from http.client import HTTPConnection, HTTPException  # noqa: PLC0415 - rarely needed

    parts = urlsplit(base_url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200  # noqa: PLR2004 - it says OK
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()

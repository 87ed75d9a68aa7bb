"""The data folder: what stands where."""

import os
from dataclasses import dataclass
from pathlib import Path

from batchrouter.errors import ConfigError

__all__ = ["SECRET_KEY_VARIABLE", "DataFolder"]

SECRET_KEY_VARIABLE = "BATCHROUTER_SECRET_KEY_FILE"  # noqa: S105 - names a variable


@dataclass(frozen=True, slots=True)
class DataFolder:
    """The paths under `--data DIR`.

    Example:
        >>> DataFolder(Path("router")).database.name
        'router.db'
    """

    root: Path

    @classmethod
    def open(cls, root: str | Path) -> "DataFolder":
        """Create the folder (mode 0700) when it is not there.

        Raises:
            ConfigError: It cannot be created, or is a file.
        """
        path = Path(root).absolute()
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"the data folder cannot be created: {error.strerror}") from error
        return cls(path)

    @property
    def database(self) -> Path:
        """The tables, and the durable workflows' own."""
        return self.root / "router.db"

    @property
    def objects(self) -> Path:
        """Manifests, chunk results, artifacts."""
        return self.root / "objects"

    @property
    def scratch(self) -> Path:
        """Spilled ids of uploads in progress; emptied at start."""
        return self.root / "scratch"

    @property
    def secret_key(self) -> Path:
        """The router's own key (`Vault`); several processes share one by its variable."""
        named = os.environ.get(SECRET_KEY_VARIABLE)
        return Path(named) if named else self.root / "secret_key"

    @property
    def api_key(self) -> Path:
        """The first API key, for `export BATCHROUTER_API_KEY=$(cat DIR/api_key)`."""
        return self.root / "api_key"

    @property
    def address(self) -> Path:
        """The URL that the router listens on."""
        return self.root / "address"

    @property
    def lock(self) -> Path:
        """Held by the one process that serves the folder."""
        return self.root / "lock"

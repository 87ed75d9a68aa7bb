"""Where a router keeps its state, and how to open it: by option, environment or `router.toml`."""

import os
from dataclasses import dataclass
from pathlib import Path

from batchrouter.server.config import RouterConfig
from batchrouter.server.storage.database import Database
from batchrouter.server.storage.folder import DataFolder
from batchrouter.server.storage.objects import Objects
from batchrouter.server.storage.schema import require_schema

__all__ = ["DATABASE_VARIABLE", "OBJECTS_VARIABLE", "Places"]

DATABASE_VARIABLE = "BATCHROUTER_DATABASE"
OBJECTS_VARIABLE = "BATCHROUTER_OBJECTS"


@dataclass(frozen=True, slots=True, repr=False)
class Places:
    """The data folder, and what is kept elsewhere.

    Attributes:
        folder: The data folder.
        database_url: `postgresql://…` with its password, or None for SQLite in the folder.
        objects_url: `s3://bucket/prefix` or the like, another folder, or None for the data folder.
    """

    folder: DataFolder
    database_url: str | None = None
    objects_url: str | None = None

    @classmethod
    def find(
        cls,
        data_dir: str | Path,
        config: RouterConfig | None = None,
        *,
        database: str | None = None,
        objects: str | None = None,
    ) -> "Places":
        """Choose by option, environment and configuration, in this order.

        Raises:
            ConfigError: The folder cannot be used.
        """
        configured = config.database.get_secret_value() if config and config.database else None
        return cls(
            DataFolder.open(data_dir),
            database or os.environ.get(DATABASE_VARIABLE) or configured,
            objects or os.environ.get(OBJECTS_VARIABLE) or (config.objects if config else None),
        )

    def open_objects(self) -> Objects:
        """Open the store of manifests, results and artifacts.

        Raises:
            ConfigError: It cannot be reached.
        """
        if self.objects_url is None:
            return Objects.local(self.folder.objects)
        return Objects.open(self.objects_url)

    def open_database(self) -> Database:
        """Open the tables; SQLite's are made when they are not there.

        Raises:
            ConfigError: A database is not there, or has another version's tables.
        """
        if self.database_url is None:
            return Database.open(self.folder.database)
        from batchrouter.server.storage.postgres import connect  # noqa: PLC0415 - only where one is used

        database = connect(self.database_url)
        try:
            require_schema(database)
        except BaseException:
            database.close()
            raise
        return database

"""The tables' version: SQLite's are made as the router starts, a shared database's by an operator.

Changes only ever add, so that processes of two releases may work beside each other while they
are replaced one by one: first `batchrouter migrate`, then the processes.
"""

from sqlalchemy import Connection, inspect, select

from batchrouter.errors import ConfigError
from batchrouter.server.storage import tables
from batchrouter.server.storage.database import Database

__all__ = ["create_schema", "migrate", "require_schema"]


def create_schema(database: Database) -> None:
    """Make what is not there; an existing schema must be of this version.

    Raises:
        ConfigError: It is of another one.
    """
    with database.writing() as conn:
        if not inspect(conn).has_table(tables.schema_version.name):
            tables.metadata.create_all(conn)
            conn.execute(tables.schema_version.insert().values(version=tables.SCHEMA_VERSION))
            return
        _require_version(conn)
        # A table that was added since does not disturb an older router.
        tables.metadata.create_all(conn)


def migrate(database: Database) -> list[str]:
    """Make or update a shared database: our tables, and the durable workflows' own.

    Returns:
        The tables that were made.

    Raises:
        ConfigError: It belongs to a newer router.
    """
    missing = _missing(database)
    create_schema(database)
    _migrate_workflows(database)
    return missing


def require_schema(database: Database) -> None:
    """See that `batchrouter migrate` has been run, by a router of this version.

    Raises:
        ConfigError: It has not; says what to do.
    """
    missing = _missing(database)
    if tables.schema_version.name in missing:
        raise ConfigError(
            "the database has no tables of a router yet: run `batchrouter migrate` on it once"
        )
    with database.reading() as conn:
        _require_version(conn)
    if missing:
        raise ConfigError(
            f"the database's schema is older than this router ({', '.join(missing)} are missing):"
            " run this version's `batchrouter migrate` on it; routers that run may go on meanwhile"
        )


def _migrate_workflows(database: Database) -> None:
    from dbos._serialization import DBOSPortableJSON  # noqa: PLC0415, PLC2701 - pinned 3.4; half a second
    from dbos._sys_db import SystemDatabase  # noqa: PLC0415, PLC2701 - the public call sets up LISTEN, which we do without

    workflows = SystemDatabase.create(
        system_database_url=database.url,
        engine_kwargs={"pool_size": 2},
        engine=None,
        schema="dbos",
        serializer=DBOSPortableJSON,
        executor_id=None,
        use_listen_notify=False,
    )
    try:
        # Under a lock of its own, which keeps two of these apart.
        workflows.run_migrations()
    finally:
        workflows.destroy()


def _missing(database: Database) -> list[str]:
    with database.reading() as conn:
        found = set(inspect(conn).get_table_names())
    return sorted(set(tables.metadata.tables) - found)


def _require_version(conn: Connection) -> None:
    found = conn.execute(select(tables.schema_version.c.version)).scalar_one()
    if found == tables.SCHEMA_VERSION:
        return
    where = "data folder" if conn.dialect.name == "sqlite" else "database"
    raise ConfigError(
        f"the {where} has schema version {found}, and this router works with"
        f" {tables.SCHEMA_VERSION}: install the router that wrote it, or use another {where}"
    )

"""Time as the tables hold it: integer microseconds since 1970 UTC."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, text

__all__ = ["database_now_us", "datetime_from_us", "now_us", "rfc3339", "us_from_datetime"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

# Whole milliseconds: a Julian day in a double is good to some 40 microseconds.
_NOW_MS = {
    "sqlite": "SELECT CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)",
    "postgresql": "SELECT CAST(floor(extract(epoch FROM clock_timestamp()) * 1000) AS BIGINT)",
}


def now_us() -> int:
    """Read this process's clock, in microseconds since 1970 UTC."""
    return us_from_datetime(datetime.now(UTC))


def database_now_us(conn: Connection) -> int:
    """Read the database's clock, which decides whether a quote has expired."""
    return int(conn.execute(text(_NOW_MS[conn.dialect.name])).scalar_one()) * 1000


def us_from_datetime(moment: datetime) -> int:
    """Turn an aware datetime into microseconds.

    Example:
        >>> us_from_datetime(datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC))
        1000000
    """
    return (moment - _EPOCH) // _MICROSECOND


def datetime_from_us(moment_us: int) -> datetime:
    """Turn microseconds into an aware UTC datetime."""
    return _EPOCH + moment_us * _MICROSECOND


def rfc3339(moment_us: int) -> str:
    """Write a time as the wire does: RFC 3339, UTC, milliseconds and `Z` (contract section 2).

    Example:
        >>> rfc3339(1_500_000)
        '1970-01-01T00:00:01.500Z'
    """
    return datetime_from_us(moment_us).strftime("%Y-%m-%dT%H:%M:%S.") + (
        f"{moment_us // 1000 % 1000:03d}Z"
    )

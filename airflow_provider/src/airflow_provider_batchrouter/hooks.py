"""The hook: an Airflow connection's account, as blocking and as awaited client."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseHook

from airflow_provider_batchrouter.accounts import (
    DEFAULT_CONNECTION,
    check_runs_are_shared,
    settings_from,
)

if TYPE_CHECKING:
    from batchrouter import AsyncClient, Client, Settings

_TEST_TIMEOUT_S = 15.0


class BatchrouterHook(BaseHook):
    """The account of a connection.

    Args:
        batchrouter_conn_id: The connection's id.

    Example:
        >>> with BatchrouterHook().get_client() as client:       # doctest: +SKIP
        ...     client.list_batches(limit=1)
    """

    conn_name_attr = "batchrouter_conn_id"
    default_conn_name = DEFAULT_CONNECTION
    conn_type = "batchrouter"
    hook_name = "Batchrouter"

    def __init__(self, batchrouter_conn_id: str = DEFAULT_CONNECTION) -> None:
        super().__init__()
        self.batchrouter_conn_id = batchrouter_conn_id

    @cached_property
    def _connection(self) -> Any:
        return self.get_connection(self.batchrouter_conn_id)

    @property
    def extra(self) -> dict[str, Any]:
        """The connection's extra."""
        return dict(self._connection.extra_dejson)

    @cached_property
    def settings(self) -> "Settings":
        """The settings that the connection stands for.

        Raises:
            ConfigError: A field of the connection is wrong.
        """
        return settings_from(self._connection, self.extra)

    @cached_property
    def run_settings(self) -> "Settings":
        """The settings for a run, whose folder every worker must find again.

        Raises:
            ConfigError: As `settings`, or the runs URL is local to one machine of many.
        """
        check_runs_are_shared(self.settings, self.extra, self.batchrouter_conn_id)
        return self.settings

    async def aget_settings(self) -> "Settings":
        """`settings`, for an event loop: neither the connection nor its secrets block it."""
        from airflow.providers.common.compat.connection import (  # noqa: PLC0415 - triggerer only
            get_async_connection,
            get_async_extra_dejson,
        )

        connection = await get_async_connection(self.batchrouter_conn_id, self)
        return settings_from(connection, await get_async_extra_dejson(connection))

    def get_conn(self) -> "Client":
        """As `get_client`, under the name that hooks have."""
        return self.get_client()

    def get_client(self) -> "Client":
        """Make a blocking client; close it, or use it as a context manager."""
        from batchrouter import Client  # noqa: PLC0415 - loads httpx

        return Client(self.settings)

    async def aget_client(self) -> "AsyncClient":
        """Make an awaited client; close it, or use it as an async context manager."""
        from batchrouter import AsyncClient  # noqa: PLC0415 - loads httpx

        return AsyncClient(await self.aget_settings())

    def test_connection(self) -> tuple[bool, str]:
        """Ask the API for one batch, without retries: reaches it, and the key may read."""
        from batchrouter import Client  # noqa: PLC0415 - loads httpx
        from batchrouter.errors import BatchrouterError  # noqa: PLC0415 - likewise

        try:
            settings = self.settings.replace(max_attempts=1, timeout_s=_TEST_TIMEOUT_S)
            with Client(settings) as client:
                client.list_batches(limit=1)
        except BatchrouterError as error:
            return False, str(error)
        return True, f"{settings.base_url} answers, and the key may read batches"

"""The account: where the router is, who asks, and where runs and webhook events are kept."""

from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from batchrouter import Settings

if TYPE_CHECKING:
    from batchrouter import Client
    from batchrouter.webhooks.inbox import Inbox

_SECRETS = frozenset({"api_key", "webhook_secret"})


class BatchrouterResource(dg.ConfigurableResource[Any]):
    """An account at a router. What is left out comes from ``BATCHROUTER_…`` variables.

    Give secrets as `dg.EnvVar`: Dagster shows a resource's literal values in its UI.

    Example:
        >>> resource = BatchrouterResource(base_url="http://127.0.0.1:8765", api_key="bk_live_1")
        >>> resource.settings.max_attempts
        5
        >>> "bk_live_1" in repr(resource)
        False
    """

    base_url: str | None = Field(default=None, description="Where the Batches API is.")
    api_key: str | None = Field(default=None, description="The key, as dg.EnvVar(…).")
    runs_url: str | None = Field(
        default=None,
        description=(
            "The folder of all runs, any fsspec URL that every worker reaches. It is also what"
            " purchases are told apart by, unless namespace says otherwise."
        ),
    )
    namespace: str | None = Field(
        default=None, description="Tells apart deployments that share an account."
    )
    max_run_usd: str | None = Field(
        default=None, description="No run may cost more (USD), whatever its job's budget says."
    )
    inbox_url: str | None = Field(
        default=None,
        description="Where a receiver keeps webhook events: SQLAlchemy URL or fsspec folder.",
    )
    webhook_url: str | None = Field(
        default=None, description="Where the router reaches that receiver."
    )
    webhook_secret: str | None = Field(
        default=None, description="What deliveries are signed with, as dg.EnvVar(…)."
    )
    request_timeout: float | None = Field(
        default=None, gt=0, description="The longest silence (s) of a request; default 30."
    )
    request_max_retries: int | None = Field(
        default=None, ge=0, description="Retries of a request that is safe to repeat; default 4."
    )
    request_retry_delay: float | None = Field(
        default=None, gt=0, description="The first wait (s) between them; it doubles; default 0.5."
    )
    poll_interval: float | None = Field(
        default=None, gt=0, description="How often (s) a waiting step looks at its batch."
    )

    @property
    def settings(self) -> Settings:
        """These values as settings of batchrouter, over those of the environment.

        Raises:
            ConfigError: A value is wrong.
        """
        retries = self.request_max_retries
        return Settings.from_env(
            base_url=self.base_url,
            api_key=self.api_key,
            runs_url=self.runs_url,
            namespace=self.namespace,
            max_run_usd=self.max_run_usd,
            inbox_url=self.inbox_url,
            webhook_url=self.webhook_url,
            webhook_secret=self.webhook_secret,
            timeout_s=self.request_timeout,
            max_attempts=None if retries is None else retries + 1,
            retry_wait_s=self.request_retry_delay,
            poll_interval_s=self.poll_interval,
        )

    def get_client(self) -> "Client":
        """Open a client of the API; use it in a `with` block.

        Raises:
            ConfigError: A value is wrong, or there is no key.
        """
        from batchrouter import Client  # noqa: PLC0415 - loads httpx

        return Client(self.settings)

    def get_inbox(self) -> "Inbox | None":
        """Open the inbox of webhook events, None when there is none; close it after use.

        Raises:
            ConfigError: No driver for its URL is installed.
            StorageError: It cannot be reached.
        """
        from batchrouter.webhooks.inbox import open_inbox  # noqa: PLC0415 - rarely needed

        settings = self.settings
        if settings.inbox_url is None:
            return None
        return open_inbox(settings.inbox_url, **settings.storage_options)

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        """Show fields as pydantic does, but for secrets."""
        shown = super().__repr_args__()
        return [
            (name, "**********" if name in _SECRETS and isinstance(value, str) else value)
            for name, value in shown
        ]

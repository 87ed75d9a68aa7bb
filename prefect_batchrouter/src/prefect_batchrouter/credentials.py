"""The account as a Prefect block: where the API is, the key, and where runs live."""

from typing import TYPE_CHECKING, Any

from prefect.blocks.abstract import CredentialsBlock
from prefect.types import SecretDict
from pydantic import Field, SecretStr

from batchrouter import Settings

if TYPE_CHECKING:
    from batchrouter import AsyncClient, Client

LOGO_URL = "https://batchrouter.dev/logo.png"
DOCUMENTATION_URL = "https://batchrouter.dev/docs/prefect"


class BatchrouterCredentials(CredentialsBlock):
    """An account at a batchrouter API, and the folder in which its runs are kept.

    Raises:
        ConfigError: By `settings` and all that uses it: a value is wrong, with the field's name.

    Example:
        Load a saved block and list the newest batches:

        ```python
        from prefect_batchrouter import BatchrouterCredentials

        credentials = BatchrouterCredentials.load("BLOCK_NAME")
        with credentials.get_client() as client:
            print(client.list_batches(limit=5).batches)
        ```
    """

    _block_type_name = "Batchrouter Credentials"
    _block_type_slug = "batchrouter-credentials"
    _logo_url = LOGO_URL  # pyright: ignore[reportAssignmentType] - as every block declares it
    _documentation_url = DOCUMENTATION_URL  # pyright: ignore[reportAssignmentType] - as above

    base_url: str = Field(
        default="https://api.batchrouter.dev", description="Where the API is, without a path."
    )
    api_key: SecretStr = Field(description="The account's key.")
    runs_url: str = Field(
        default="runs",
        description=(
            "The folder of all runs, any fsspec URL. Workers on several hosts need one that all of"
            " them reach, such as s3://lake/_runs."
        ),
    )
    namespace: str | None = Field(
        default=None,
        description="Tells apart runs that share an account; default: the runs URL.",
    )
    webhook_url: str | None = Field(
        default=None,
        description="Where the router delivers events: the public URL of the receiver.",
    )
    webhook_secret: SecretStr | None = Field(
        default=None, description="What deliveries are signed with, 8 to 256 characters."
    )
    inbox_url: str | None = Field(
        default=None,
        description="Where the receiver keeps events: a SQLAlchemy URL or an fsspec folder.",
    )
    max_run_usd: str | None = Field(
        default=None,
        description="No run may cost more than this many USD, whatever its job says.",
    )
    poll_interval_s: float = Field(
        default=10.0, gt=0, description="How often (s) open batches are looked at while polling."
    )
    storage_options: SecretDict = Field(
        default_factory=lambda: SecretDict({}),
        description="What fsspec needs to open the URLs, such as a bucket's keys.",
    )
    allow_http: bool = Field(
        default=False,
        description="Permit http:// beyond loopback; the key then travels in clear.",
    )

    def settings(self, *, runs_url: str | None = None, max_run_usd: Any = None) -> Settings:
        """Give the core's settings; the environment is not read.

        Args:
            runs_url: Instead of the block's own.
            max_run_usd: Counts if it is less than the block's own.

        Raises:
            ConfigError: A value is wrong.
        """
        given = self.model_dump(
            include={*Settings.model_fields} - {"max_run_usd", "storage_options"}
        )
        caps = [cap for cap in (self.max_run_usd, max_run_usd) if cap is not None]
        settings = Settings(
            **{name: value for name, value in given.items() if value is not None},
            storage_options=self.storage_options.get_secret_value(),
        )
        for cap in caps:
            capped = settings.replace(max_run_usd=cap)
            now, then = settings.max_run_usd, capped.max_run_usd
            if now is None or (then is not None and then < now):
                settings = capped
        return settings.replace(runs_url=runs_url)

    def get_client(self, *_args: Any, **_options: Any) -> "Client":
        """Open a client; the caller closes it.

        Raises:
            ConfigError: A value is wrong.
        """
        from batchrouter import Client  # noqa: PLC0415 - loads httpx

        return Client(self.settings())

    def get_async_client(self) -> "AsyncClient":
        """Open an asynchronous client; the caller closes it.

        Raises:
            ConfigError: A value is wrong.
        """
        from batchrouter import AsyncClient  # noqa: PLC0415 - loads httpx

        return AsyncClient(self.settings())

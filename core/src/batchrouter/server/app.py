"""The router as an ASGI app: the parts put together, and started and stopped with it."""

import asyncio
import contextlib
import inspect
import logging
import os
import signal
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from sqlalchemy import text
from starlette.concurrency import run_in_threadpool

from batchrouter._version import __version__
from batchrouter.errors import ConfigError
from batchrouter.server.config import RouterConfig
from batchrouter.server.http.described import describe
from batchrouter.server.http.downloads import downloads
from batchrouter.server.http.failures import add_error_handlers
from batchrouter.server.http.hosts import KnownHosts
from batchrouter.server.http.logs import RequestLog
from batchrouter.server.http.monitoring import monitoring
from batchrouter.server.http.rate_limit import OwnRateLimit, SharedRateLimit
from batchrouter.server.http.routes import routes
from batchrouter.server.http.uploads import uploads
from batchrouter.server.metrics import Metrics
from batchrouter.server.services import BatchEngine, Services
from batchrouter.server.storage.folder import DataFolder
from batchrouter.server.storage.places import Places
from batchrouter.server.storage.retention import clear_leftovers, end_retention
from batchrouter.server.storage.vault import Vault
from batchrouter.server.work.enqueuing import AcceptsOnly

__all__ = ["AppSettings", "Role", "create_app"]

Role = Literal["both", "api", "worker"]

_LOG = logging.getLogger("batchrouter.server")


@dataclass(frozen=True, slots=True)
class AppSettings:
    """How a router is put together.

    Attributes:
        data_dir: The data folder; created when it is not there.
        public_url: The base of signed URLs.
        is_loopback: Whether only this machine can reach the router.
        runs_batches: False for a router that accepts batches and lets them queue.
        database_url: `postgresql://…`; None for SQLite in the data folder.
        objects_url: `s3://…`, or None for the data folder.
        role: `api` answers callers, `worker` does the work, on the same database.
    """

    data_dir: Path
    config: RouterConfig
    public_url: str
    is_loopback: bool = True
    runs_batches: bool = True
    database_url: str | None = field(default=None, repr=False)
    objects_url: str | None = None
    role: Role = "both"


def create_app(settings: AppSettings) -> FastAPI:
    """Put the router together; it starts with the app's lifespan.

    Raises:
        ConfigError: The data folder or the database cannot be used, or belongs to a newer router.
    """
    if settings.role != "both" and settings.database_url is None:
        raise ConfigError(
            f"--role {settings.role} needs a database that others can reach: --database"
            " postgresql://…; on SQLite one process does it all"
        )

    def taken_over() -> None:
        app.state.is_taken_over = True
        # As an operator would: what is being answered is finished first.
        os.kill(os.getpid(), signal.SIGTERM)

    services = open_services(settings, taken_over=taken_over)
    app = FastAPI(
        title="batchrouter",
        version=__version__,
        summary="LLM batch jobs at a locked price.",
        lifespan=_lifespan,
        # A redirect would lead to wherever the request's `Host` says.
        redirect_slashes=False,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        **_without_its_own_telemetry(),
    )
    app.state.services = services
    is_shared = services.database.is_shared
    app.state.rate_limit = SharedRateLimit(services.database) if is_shared else OwnRateLimit()
    app.state.is_ready = False
    app.state.start_refused = None
    app.state.is_taken_over = False
    app.state.role = settings.role
    if settings.is_loopback:
        own = urlsplit(services.public_url).hostname or ""
        app.add_middleware(KnownHosts, names=(own, *settings.config.allowed_hosts))
    app.add_middleware(RequestLog, metrics=services.metrics)
    add_error_handlers(app)
    describe(app)
    if settings.role != "worker":
        # Uploads first: their path would also match `/v1/batches/{batch_id}` of another method.
        app.include_router(uploads)
        app.include_router(routes)
        app.include_router(downloads)
    app.include_router(monitoring)
    app.add_api_route("/healthz", _healthz, tags=["operation"], summary="Is it alive?")
    app.add_api_route("/readyz", _readyz(app), tags=["operation"], summary="Can it work?")
    return app


def _without_its_own_telemetry() -> dict[str, Any]:
    # Later releases of FastAPI tell OpenTelemetry of every request by themselves, and log
    # exceptions with their messages: these may quote a caller's data, and `RequestLog` does
    # the same without.
    if "telemetry" not in inspect.signature(FastAPI).parameters:
        return {}
    return {"telemetry": dict.fromkeys(("tracing", "metrics", "logs", "auto_configure"), False)}


def open_services(settings: AppSettings, *, taken_over: Callable[[], None]) -> Services:
    """Open the data folder, the database and everything in them; nothing runs yet.

    Args:
        settings: What to open.
        taken_over: Called when another worker has taken over the work of this one.
    """
    places = Places(DataFolder.open(settings.data_dir), settings.database_url, settings.objects_url)
    folder = places.folder
    objects = places.open_objects()
    database = places.open_database()
    metrics = Metrics(database)
    vault = Vault.open(folder.secret_key)
    if database.is_shared:
        vault.agree(database)
    engine: BatchEngine | None = None
    if not settings.runs_batches:
        pass
    elif settings.role == "api":
        engine = AcceptsOnly(database)
    else:
        from batchrouter.server.work.engine import Engine  # noqa: PLC0415 - DBOS takes half a second

        engine = Engine(database, objects, settings.config, folder, metrics, on_lost=taken_over)
    return Services(
        folder=folder,
        config=settings.config,
        database=database,
        objects=objects,
        vault=vault,
        engine=engine,
        public_url=settings.config.public_url or settings.public_url,
        is_loopback=settings.is_loopback,
        metrics=metrics,
    )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None]:
    services: Services = app.state.services
    started_s = time.time()
    if services.engine is not None:
        try:
            await services.engine.start()
        except ConfigError as error:
            # The server only logs what stops its start; whoever serves wants to say it.
            app.state.start_refused = error
            raise
    # The engine holds the folder's lock now, so what is older than this start has no owner.
    await run_in_threadpool(clear_leftovers, services, before_s=started_s)
    working = _works(services) if app.state.role != "api" else contextlib.nullcontext()
    async with working:
        app.state.is_ready = True
        _LOG.info("ready", extra={"fields": {"version": __version__, "role": app.state.role}})
        try:
            yield
        finally:
            app.state.is_ready = False
    if services.engine is not None:
        await services.engine.stop()
    services.database.close()
    _LOG.info("stopped", extra={"fields": {}})


@asynccontextmanager
async def _works(services: Services) -> AsyncGenerator[None]:
    """Deliver webhooks and keep house, beside the engine."""
    from batchrouter.server.delivery.courier import Courier  # noqa: PLC0415 - httpx loads here

    courier = Courier(
        services.database,
        services.vault,
        allow_loopback_http=services.is_loopback,
        metrics=services.metrics,
    )
    await courier.start()
    keeping = asyncio.create_task(_keep_house(services))
    try:
        yield
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await courier.stop()


async def _keep_house(services: Services) -> None:
    """Let go of what its retention has ended for, every hour or as configured."""
    while True:
        try:
            await run_in_threadpool(end_retention, services)
        except Exception as error:  # noqa: BLE001 - the next hour is another try
            _LOG.error("retention failed", exc_info=error)
        await asyncio.sleep(services.config.retention.sweep_every_s)


def _healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


def _readyz(app: FastAPI) -> Callable[[], JSONResponse]:
    def readyz() -> JSONResponse:
        """The database answers, and accepted batches run."""
        services: Services = app.state.services
        with services.database.reading() as conn:
            conn.execute(text("SELECT 1"))
        is_ready: bool = app.state.is_ready
        status = {True: (200, "ready"), False: (503, "starting or stopping")}[is_ready]
        return JSONResponse({"status": status[1]}, status_code=status[0])

    return readyz

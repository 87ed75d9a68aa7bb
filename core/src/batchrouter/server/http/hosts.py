"""Who a router on loopback talks to: programs of its own machine, and no page in a browser.

A web page cannot read another origin's answers, unless its own name is made to point to 127.0.0.1
(DNS rebinding). Such a request names that page's host in `Host`, so only the router's own names
are admitted. And a page that posts without reading names itself in `Origin`: only the router's
own pages may.
"""

from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from batchrouter.server.http.failures import answer_for
from batchrouter.server.refusals import refusal

__all__ = ["KnownHosts"]

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class KnownHosts:
    """ASGI middleware: refuses foreign `Host` and `Origin` headers.

    Args:
        app: What serves the rest.
        names: Host names beside loopback's: the public URL's, and what the configuration allows.

    Example:
        >>> app = KnownHosts(FastAPI(), names=["router.example"])  # doctest: +SKIP
    """

    def __init__(self, app: ASGIApp, names: Iterable[str] = ()) -> None:
        self._app = app
        self._names = _LOOPBACK | {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, if it is meant for this router."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            host = headers.get("host", "")
            if _name_of(f"//{host}") not in self._names:
                refused = refusal(
                    "host_not_allowed",
                    "this router does not go by the name in Host: if that is a name of yours,"
                    " add it to allowed_hosts in router.toml",
                )
                await answer_for(refused)(scope, receive, send)
                return
            origin = headers.get("origin")
            if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
                refused = refusal(
                    "origin_not_allowed", "pages of other origins may not use this router"
                )
                await answer_for(refused)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _name_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None

"""Where a webhook may go: never into the router's own network (contract section 7).

A URL is judged twice. When a batch is created only its text is (no name is resolved, so that
creating a batch never waits for DNS); when an event is sent the name is resolved once, every
address that comes back must be global, and the connection goes to the address that was
checked, so that a second answer of the DNS cannot lead elsewhere.
"""

import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

__all__ = ["Destination", "check_webhook_url", "destination_of"]

HTTPS_PORTS = frozenset({443, 8443})

#: Longer than any URL that browsers and proxies carry safely.
MAX_URL_CHARACTERS = 2048

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Sequence[str]]

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052
_NAT64_LOCAL = ipaddress.IPv6Network("64:ff9b:1::/48")  # RFC 8215
_IPV4_COMPATIBLE = ipaddress.IPv6Network("::/96")  # RFC 4291, deprecated
_IPV4_BITS = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Destination:
    """One checked place to connect to.

    Attributes:
        scheme: ``https``, or ``http`` for loopback.
        host: The name for ``Host`` and for TLS (SNI and certificate), without brackets.
        port: The TCP port.
        target: Path and query, as sent in the request line.
        address: The checked IP address that the connection goes to.
    """

    scheme: str
    host: str
    port: int
    target: str
    address: str

    @property
    def connect_url(self) -> str:
        """The URL with the checked address in place of the name."""
        return f"{self.scheme}://{_bracketed(self.address)}:{self.port}{self.target}"

    @property
    def host_header(self) -> str:
        """What ``Host`` says: the name, and the port unless it is the scheme's own."""
        usual = 443 if self.scheme == "https" else 80
        host = _bracketed(self.host)
        return host if self.port == usual else f"{host}:{self.port}"


def check_webhook_url(url: str, *, allow_loopback_http: bool) -> None:
    """Refuse a URL that no event will ever be sent to; resolves no name.

    Args:
        url: The receiver's URL.
        allow_loopback_http: True while the router itself listens on loopback: then ``http://``
            to localhost is a receiver on the same machine.

    Raises:
        ValueError: The message says what is wrong and what is admitted.

    Example:
        >>> check_webhook_url("https://example.com/hook", allow_loopback_http=False)
        >>> check_webhook_url("https://10.0.0.7/hook", allow_loopback_http=False)
        Traceback (most recent call last):
            ...
        ValueError: 10.0.0.7 is not a public address
    """
    parts = _parsed(url, allow_loopback_http=allow_loopback_http)
    literal = _literal(parts.hostname or "")
    if literal is not None and parts.scheme == "https":
        _require_global(literal)


def destination_of(
    url: str, *, allow_loopback_http: bool, resolve: Resolver | None = None
) -> Destination:
    """Resolve the URL's name once and pin the first address, if every address is admitted.

    Blocks for as long as the resolver does: call it off the event loop.

    Args:
        url: The receiver's URL.
        allow_loopback_http: See `check_webhook_url`.
        resolve: Name and port to addresses; the system's resolver by default.

    Raises:
        ValueError: The URL or one of its addresses is not admitted.
        OSError: The name does not resolve.
    """
    parts = _parsed(url, allow_loopback_http=allow_loopback_http)
    host = parts.hostname or ""
    port = _port(parts)
    literal = _literal(host)
    found = [str(literal)] if literal is not None else list((resolve or _system)(host, port))
    if not found:
        raise OSError(f"{host} has no address")
    for address in (ipaddress.ip_address(one.partition("%")[0]) for one in found):
        if parts.scheme == "https":
            _require_global(address)
        elif not _plain(address).is_loopback:
            raise ValueError(f"{host} is not on loopback: use https")
    target = parts.path or "/"
    if parts.query:
        target = f"{target}?{parts.query}"
    return Destination(parts.scheme, host, port, target, found[0])


def _system(host: str, port: int) -> list[str]:
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


def _parsed(url: str, *, allow_loopback_http: bool) -> SplitResult:
    if len(url) > MAX_URL_CHARACTERS:
        raise ValueError(f"longer than {MAX_URL_CHARACTERS} characters")
    # urlsplit drops tabs and newlines silently, and browsers read a backslash as a slash: a
    # URL that two parsers read in two ways is not sent anywhere.
    if any(c <= " " or c > "~" or c == "\\" for c in url):
        raise ValueError("holds characters that do not belong in a URL: write them %-encoded")
    try:
        parts = urlsplit(url)
        port = _port(parts)
    except ValueError as wrong:
        raise ValueError(f"not a URL: {wrong}") from None
    host = parts.hostname
    if parts.scheme not in {"https", "http"} or not host:
        raise ValueError("not an https:// URL with a host")
    if "@" in parts.netloc:
        raise ValueError("carries user info: put what identifies you into the path")
    if parts.scheme == "http":
        if not _names_loopback(host):
            raise ValueError("https is required")
        if not allow_loopback_http:
            raise ValueError("http to loopback is admitted only while the router is on loopback")
    elif port not in HTTPS_PORTS:
        raise ValueError(f"port {port} is not admitted: use 443 or 8443")
    return parts


def _port(parts: SplitResult) -> int:
    if parts.port is not None:
        return parts.port
    return 443 if parts.scheme == "https" else 80


def _names_loopback(host: str) -> bool:
    literal = _literal(host)
    return host == "localhost" if literal is None else _plain(literal).is_loopback


def _literal(host: str) -> IpAddress | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _require_global(address: IpAddress) -> None:
    plain = _plain(address)
    # A group address counts as global for Python, but nobody listens there for us.
    if not plain.is_global or plain.is_multicast or plain.is_reserved:
        raise ValueError(f"{address} is not a public address")


def _plain(address: IpAddress) -> IpAddress:
    """Unwrap the IPv4 address that an IPv6 one stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64_LOCAL:
        return ipaddress.IPv4Address(0)  # such an address is never global
    if address in _NAT64 or (address in _IPV4_COMPATIBLE and int(address) > 1):
        return ipaddress.IPv4Address(int(address) & _IPV4_BITS)
    return address.ipv4_mapped or address.sixtofour or address


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host

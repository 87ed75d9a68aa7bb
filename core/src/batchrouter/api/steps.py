"""An operation asks, a driver does: the one place where sync and async part ways.

A flow is a generator that yields steps (`Send`, `Fetch`, `Sleep`, `Work`) and is sent what
came of them. `run` does the steps with blocking calls, `run_async` with awaited ones; every
rule about repeating, waiting and reading stands once, in the flows, and is tested there
without HTTP, clock or event loop.
"""

import json
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, Self, TypeVar
from uuid import uuid4

from batchrouter.api.offload import in_thread
from batchrouter.api.uploads import Upload
from batchrouter.errors import BatchrouterError, ProtocolError

T = TypeVar("T")

_MAX_EXPONENT = 400


@dataclass(frozen=True, slots=True)
class Send:
    """One request to the API.

    Attributes:
        fields: The JSON body, if there is one.
        is_repeatable: Sending it twice has the effect of sending it once, or costs nothing.
        with_key: Whether the API key goes along.
        template: The path with names in place of ids, where it holds any: one of few.
        request_id: The same at every attempt, so that the operator sees them as one call.
        resend_count: How often it was sent before.
    """

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    fields: Mapping[str, Any] | None = None
    upload: Upload | None = None
    idempotency_key: str | None = None
    is_repeatable: bool = False
    with_key: bool = True
    template: str = field(default="", compare=False)
    request_id: str = field(default_factory=lambda: uuid4().hex, compare=False)
    resend_count: int = field(default=0, compare=False)

    @property
    def field_names(self) -> frozenset[str]:
        """The names that a server could object to, of the body and of the query."""
        return frozenset(self.fields or ()) | {name for name, _ in self.query}

    def without(self, names: Iterable[str]) -> Self:
        """Return the request with these fields left out of body and query."""
        dropped = frozenset(names)
        fields = self.fields
        if fields is not None:
            fields = {name: value for name, value in fields.items() if name not in dropped}
        query = tuple((name, value) for name, value in self.query if name not in dropped)
        return replace(self, fields=fields, query=query)

    def encode(self) -> bytes | None:
        """Return the JSON body's bytes, None for a request without one."""
        if self.fields is None:
            return None
        return json.dumps(
            self.fields, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        ).encode()


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back, whole; header names are in lower case."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""

    @property
    def request_id(self) -> str | None:
        """What the server calls this exchange."""
        return self.headers.get("x-request-id")

    @property
    def server_now(self) -> datetime | None:
        """The server's clock when it answered, aware UTC."""
        return read_http_date(self.headers.get("date"))

    @property
    def retry_after_s(self) -> float | None:
        """The wait that the server asked for, from seconds or from an HTTP date."""
        return read_retry_after(self.headers)

    def json(self) -> Any:
        """Parse the body; numbers with a fraction become Decimal, so that no cent is lost.

        Raises:
            ProtocolError: It is not JSON.
        """
        try:
            return json.loads(self.body, parse_float=_exact, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            kind = self.headers.get("content-type", "no content type")
            told = f" (request {self.request_id})" if self.request_id else ""
            raise ProtocolError(
                f"the {self.status} reply ({kind}, {len(self.body)} bytes) is not JSON: "
                f"is base_url really a Batches API?{told}"
            ) from None


class ByteSink(Protocol):
    """Where the bytes of a `Fetch` go."""

    def begin(self, status: int, headers: Mapping[str, str]) -> bool:
        """Look at the answer's head and tell whether its body is wanted."""
        ...

    def write(self, chunk: bytes) -> None:
        """Keep the next bytes; may block."""
        ...

    def report(self) -> None:
        """Tell the caller how far it is; called where the caller's own code runs."""
        ...


@dataclass(frozen=True, slots=True)
class Fetch:
    """One GET of a signed URL, from `offset` on, into a sink. It never carries the API key."""

    url: str = field(repr=False)
    offset: int
    sink: ByteSink = field(compare=False)
    request_id: str = field(default_factory=lambda: uuid4().hex, compare=False)


@dataclass(frozen=True, slots=True)
class FetchReply:
    """How a `Fetch` went; the bytes are in the sink. `broken` tells why they ended early."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    broken: str | None = None


@dataclass(frozen=True, slots=True)
class Sleep:
    """A wait (s) before the next step."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Work:
    """A call that may block on a disk: made in place, or in a thread beside an event loop."""

    do: Callable[[], Any]


Step = Send | Fetch | Sleep | Work
Flow = Generator[Step, Any, T]


class Transport(Protocol):
    """What `run` needs."""

    def send(self, step: Send) -> Reply: ...  # noqa: D102 - the names say it
    def fetch(self, step: Fetch) -> FetchReply: ...  # noqa: D102 - the names say it
    def sleep(self, seconds: float) -> None: ...  # noqa: D102 - the names say it


class AsyncTransport(Protocol):
    """What `run_async` needs."""

    async def send(self, step: Send) -> Reply: ...  # noqa: D102 - the names say it
    async def fetch(self, step: Fetch) -> FetchReply: ...  # noqa: D102 - the names say it
    async def sleep(self, seconds: float) -> None: ...  # noqa: D102 - the names say it


def run(flow: Flow[T], transport: Transport) -> T:
    """Drive a flow with blocking calls."""
    outcome: Any = None
    failure: BatchrouterError | None = None
    try:
        while True:
            try:
                step = flow.throw(failure) if failure else flow.send(outcome)
            except StopIteration as done:
                return done.value
            outcome = failure = None
            try:
                match step:
                    case Send():
                        outcome = transport.send(step)
                    case Fetch():
                        outcome = transport.fetch(step)
                    case Sleep():
                        transport.sleep(step.seconds)
                    case Work():
                        outcome = step.do()
            except BatchrouterError as error:
                failure = error
    finally:
        flow.close()


async def run_async(flow: Flow[T], transport: AsyncTransport) -> T:
    """Drive a flow inside an event loop, which it never blocks."""
    outcome: Any = None
    failure: BatchrouterError | None = None
    try:
        while True:
            try:
                step = flow.throw(failure) if failure else flow.send(outcome)
            except StopIteration as done:
                return done.value
            outcome = failure = None
            try:
                match step:
                    case Send():
                        outcome = await transport.send(step)
                    case Fetch():
                        outcome = await transport.fetch(step)
                    case Sleep():
                        await transport.sleep(step.seconds)
                    case Work():
                        outcome = await in_thread(step.do)
            except BatchrouterError as error:
                failure = error
    finally:
        flow.close()


def read_http_date(text: str | None) -> datetime | None:
    """Read an HTTP date as aware UTC; None when there is none or it makes no sense.

    Example:
        >>> read_http_date("Sun, 06 Nov 1994 08:49:37 GMT").isoformat()
        '1994-11-06T08:49:37+00:00'
    """
    if not text:
        return None
    try:
        read = parsedate_to_datetime(text)
    except ValueError:
        return None
    return read.astimezone(UTC) if read.tzinfo else read.replace(tzinfo=UTC)


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Read ``Retry-After`` (s): a number, or a date measured against the reply's own ``Date``.

    Example:
        >>> read_retry_after({"retry-after": "12"})
        12.0
        >>> read_retry_after({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT",
        ...                   "date": "Sun, 06 Nov 1994 08:49:30 GMT"})
        7.0
    """
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    until = read_http_date(text)
    if until is None:
        return None
    now = read_http_date(headers.get("date")) or datetime.now(UTC)
    return max(0.0, (until - now).total_seconds())


def _exact(digits: str) -> Decimal:
    try:
        number = Decimal(digits)
    except InvalidOperation:
        raise ValueError("an exponent beyond all bounds") from None
    # Where an int is expected a few bytes more would become gigabytes of digits.
    if abs(number.adjusted()) > _MAX_EXPONENT:
        raise ValueError("an exponent beyond that of a double")
    return number


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")

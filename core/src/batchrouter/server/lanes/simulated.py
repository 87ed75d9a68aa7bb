"""A provider that does not exist: deterministic, schema-true, and always marked as simulated.

What an item is answered depends on the seed, the item's content and its attempt, and on
nothing else: a batch that is sent by another process, in other chunks, gets the same answers.
"""

import base64
import hashlib
import math
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec

from batchrouter.server.lanes import shapes
from batchrouter.server.lanes.generating import Drawing, SchemaGenerator, UnsupportedSchemaError
from batchrouter.server.lanes.lane import LaneAnswer, LaneItem, LaneProgress
from batchrouter.server.lanes.submissions import SubmissionLog

__all__ = ["SimulatedLane", "SimulatedOptions"]

#: Bytes of JSON that make one token. English text has about 4.5 bytes a token in the public
#: tokenizers; fewer tokens than the usual estimate of 4 keeps quotes on the safe side.
BYTES_PER_TOKEN = 4.5

#: The most output tokens that an item is billed for: replies are short. It is what quotes assume
#: when they are told nothing, so that a batch of one item fits under its quote.
MAX_OUTPUT_TOKENS = 64

_DEFAULT_DIMENSIONS = {"text-embedding-3-large": 3072}
_USUAL_DIMENSIONS = 1536
_MAX_DIMENSIONS = 4096
#: Some 700 KB of JSON: a chunk's 512 answers are held in memory.
_MAX_NUMBERS = 65_536
_MAX_COMPILED_SCHEMAS = 256
_REPLIES = ("In short: {}", "Thanks for asking. {}", "What matters here: {}", "My answer: {}")
_decode_any = msgspec.json.Decoder().decode
_decode_request = msgspec.json.Decoder(shapes.ChatRequest).decode
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedOptions:
    """How the simulated provider behaves; the names are those of ``options`` in router.toml.

    Attributes:
        seed: Another seed gives other answers.
        latency_s: Seconds from a submission to its answers.
        failure_rate: Share of items, 0 to 1, that are refused for good (``content_policy``).
        error_rate: Share of attempts, 0 to 1, that fail with a 5xx and are worth a retry.
        rate_limit_rate: Share of attempts, 0 to 1, that get a 429 and are worth a retry.
        is_down: True when nothing at all is accepted, so that the fallback lane takes over.
        retry_first_s: Mean wait before the first retry of an item, in seconds.
    """

    seed: int = 0
    latency_s: float = 0.0
    failure_rate: float = 0.0
    error_rate: float = 0.0
    rate_limit_rate: float = 0.0
    is_down: bool = False
    retry_first_s: float = 0.5

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> "SimulatedOptions":
        """Read the options of a lane's configuration.

        Raises:
            ValueError: An option is unknown, or a rate is not between 0 and 1; names it.
        """
        read: dict[str, Any] = {}
        for name, value in options.items():
            if name not in cls.__dataclass_fields__:
                there_is = ", ".join(cls.__dataclass_fields__)
                raise ValueError(f"options.{name}: unknown; there is {there_is}")
            read[name] = _option(name, value)
        return cls(**read)


def _option(name: str, value: Any) -> Any:
    if name == "is_down":
        if not isinstance(value, bool):
            raise ValueError(f"options.{name}: {value!r} is neither true nor false")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ValueError(f"options.{name}: {value!r} is not a number")  # noqa: TRY004 - callers turn ValueError into a config error
    if value < 0 or (name.endswith("_rate") and value > 1):
        raise ValueError(f"options.{name}: {value!r} is out of range")
    return int(value) if name == "seed" else float(value)


class SimulatedLane:
    """One model of the simulated provider; `batchrouter.server.lanes.lane.Lane` has the methods.

    Args:
        provider: The provider's name; ``simulated-`` is put before it where it is missing.
        model: The provider's name of the model.
        options: See `SimulatedOptions`.
        submissions: The provider's memory; it may serve several models.
    """

    def __init__(
        self, provider: str, model: str, options: SimulatedOptions, submissions: SubmissionLog
    ) -> None:
        self.provider = provider if provider.startswith("simulated-") else f"simulated-{provider}"
        self.model = model
        self.is_local = True
        self.remembers = True
        self.retry_first_s = options.retry_first_s
        self._options = options
        self._submissions = submissions
        self._generators: dict[bytes, SchemaGenerator | UnsupportedSchemaError] = {}
        self._hashers: dict[str, hashlib.blake2b] = {}
        self._seed = f"{options.seed}/{self.provider}/{model}/".encode()

    def worst_case(self, item: LaneItem) -> tuple[int, int]:
        """Its own count of the input, and at most `MAX_OUTPUT_TOKENS` of output."""
        return _tokens(len(item.body)), min(item.max_output_tokens, MAX_OUTPUT_TOKENS)

    def find(self, key: str) -> str | None:
        """Return the key itself, which is the handle, if the provider knows it."""
        return None if self._submissions.accepted_at(key) is None else key

    def submit(self, key: str, items: Iterable[LaneItem]) -> str:
        """Note the submission in the provider's memory.

        Raises:
            ConnectionError: The lane is configured to be down.
        """
        if self._options.is_down:
            raise ConnectionError(f"{self.provider} is down")
        self._submissions.add(key, (item.sequence_no for item in items))
        return key

    def poll(self, handle: str) -> LaneProgress:
        """Finished once the configured latency has passed."""
        accepted_at = self._submissions.accepted_at(handle) or 0.0
        left_s = accepted_at + self._options.latency_s - time.time()
        return LaneProgress(is_finished=left_s <= 0, next_poll_s=max(0.0, left_s))

    def collect(self, handle: str, items: Iterable[LaneItem]) -> Iterator[LaneAnswer]:
        """Work the answers out; nothing is kept, since they are the same each time."""
        if self._submissions.accepted_at(handle) is None:
            raise LookupError(f"{self.provider} knows no submission {handle}")
        for item in items:
            yield self._answer(item)

    def cancel(self, handle: str) -> None:
        """Let it go: what was accepted is finished and billed."""

    def forget(self, batch_id: str) -> None:
        """Keep it: the provider's memory is the provider's."""
        del batch_id

    def close(self) -> None:
        """There is nothing to let go of."""

    def _answer(self, item: LaneItem) -> LaneAnswer:
        hasher = self._hasher(item.endpoint)
        hasher.update(item.body)
        seed = int.from_bytes(hasher.digest(), "little")
        trouble = self._trouble(seed, item.attempt)
        if trouble is not None:
            return trouble
        try:
            request = _decode_request(item.body)
            if item.endpoint == "/v1/embeddings":
                return self._embed(request, item)
            return self._reply(request, item, seed)
        except UnsupportedSchemaError as unsupported:
            message = f"simulated lanes cannot write this schema: {unsupported}"
        except Exception as wrong:  # noqa: BLE001 - whatever one request does to its reader, the others of its chunk are answered
            # The class alone: a decoder's message may quote the request.
            message = f"the request is not what {item.endpoint} takes ({type(wrong).__name__})"
        return LaneAnswer(None, error_code="invalid_input", error_message=message)

    def _hasher(self, endpoint: str) -> "hashlib.blake2b":
        """Return a hash that has taken in all of the seed; copies of it take in the items."""
        hasher = self._hashers.get(endpoint)
        if hasher is None:
            content = self._seed + endpoint.encode()
            hasher = self._hashers[endpoint] = hashlib.blake2b(content, digest_size=8)
        return hasher.copy()

    def _trouble(self, seed: int, attempt: int) -> LaneAnswer | None:
        options = self._options
        if not (options.failure_rate or options.error_rate or options.rate_limit_rate):
            return None
        if Drawing(seed, "").below(10**6) < options.failure_rate * 10**6:
            message = "the simulated content policy refuses this item"
            return LaneAnswer(None, error_code="content_policy", error_message=message)
        # The attempt counts: what failed once may go through the next time.
        chance = Drawing(seed ^ (attempt * 0x5851F42D4C957F2D), "").below(10**6) / 10**6
        if chance < options.rate_limit_rate:
            return LaneAnswer(
                None, error_code="rate_limited", error_message="429", is_retryable=True
            )
        if chance < options.rate_limit_rate + options.error_rate:
            return LaneAnswer(
                None, error_code="provider_error", error_message="503", is_retryable=True
            )
        return None

    def _reply(self, request: shapes.ChatRequest, item: LaneItem, seed: int) -> LaneAnswer:
        drawing = Drawing(seed, shapes.user_text(request))
        input_tokens, most_tokens = self.worst_case(item)
        generator = self._generator(request)
        is_cut = False
        if generator is not None:
            text = _encode(generator.generate(drawing)).decode()
        else:
            text, is_cut = _free_text(drawing, most_tokens)
        output_tokens = min(_tokens(len(text.encode())), most_tokens)
        write = shapes.responses_body if item.endpoint == "/v1/responses" else shapes.chat_body
        body = write(
            text,
            model=self.model,
            item=f"{seed:016x}",
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            is_cut=is_cut,
        )
        return LaneAnswer(body, input_tokens, output_tokens)

    def _generator(self, request: shapes.ChatRequest) -> SchemaGenerator | None:
        """Find the compiled schema by the raw bytes of what asks for it."""
        raw = bytes(request.response_format) or bytes(request.text)
        if not raw:
            return None
        found = self._generators.get(raw)
        if found is None:
            try:
                schema = _schema_of(_decode_any(raw))
                if schema is None:
                    return None
                found = SchemaGenerator(schema)
            except UnsupportedSchemaError as unsupported:
                found = unsupported
            if len(self._generators) >= _MAX_COMPILED_SCHEMAS:
                self._generators.clear()
            self._generators[raw] = found
        if isinstance(found, UnsupportedSchemaError):
            raise UnsupportedSchemaError(str(found))
        return found

    def _embed(self, request: shapes.ChatRequest, item: LaneItem) -> LaneAnswer:
        size = request.dimensions or _DEFAULT_DIMENSIONS.get(self.model, _USUAL_DIMENSIONS)
        if not 1 <= size <= _MAX_DIMENSIONS or not bytes(request.input):
            raise ValueError("dimensions")
        given = _decode_any(request.input)
        is_many = isinstance(given, list) and bool(given) and not isinstance(given[0], int)
        texts: list[Any] = given if is_many else [given]
        if size * len(texts) > _MAX_NUMBERS:
            most = f"simulated lanes answer an item with {_MAX_NUMBERS:,} numbers at most"
            return LaneAnswer(None, error_code="invalid_input", error_message=most)
        vectors = [_unit_vector(self._seed + _encode(text), size) for text in texts]
        told: list[Any] = vectors
        if request.encoding_format == "base64":
            told = [base64.b64encode(array("f", vector).tobytes()).decode() for vector in vectors]
        tokens = _tokens(len(item.body))
        return LaneAnswer(
            shapes.embeddings_body(told, model=self.model, input_tokens=tokens), tokens
        )


def _tokens(size_bytes: int) -> int:
    return max(1, int(size_bytes / BYTES_PER_TOKEN))


def _free_text(drawing: Drawing, max_tokens: int) -> tuple[str, bool]:
    """Write a short reply about the text; True when the cap cut it."""
    about = drawing.excerpt(160) or "there was no question."
    text = _REPLIES[drawing.below(len(_REPLIES))].format(about)
    room = int(max_tokens * BYTES_PER_TOKEN)
    raw = text.encode()
    if len(raw) <= room:
        return text, False
    return raw[:room].decode(errors="ignore"), True


def _schema_of(asked: Any) -> dict[str, Any] | None:
    """Find the schema in a chat's ``response_format`` or a response's ``text.format``."""
    if not isinstance(asked, dict):
        return None
    form = asked.get("format", asked)
    if not isinstance(form, dict) or form.get("type") not in {"json_schema", "json_object"}:
        return None
    if form["type"] == "json_object":
        return {"type": "object", "properties": {"answer": {"type": "string"}}}
    schema = form.get("json_schema", form).get("schema")
    if not isinstance(schema, dict):
        raise UnsupportedSchemaError("json_schema without a schema")
    return schema


def _unit_vector(content: bytes, size: int) -> list[float]:
    """Return a vector of length 1 that depends on the content alone.

    Its numbers take 256 levels and 9 decimals: few enough to be made once for a vector.
    """
    raw = hashlib.shake_128(content).digest(size)
    norm = math.sqrt(sum(map(_SQUARES.__getitem__, raw)))
    levels = [round((level - _MIDDLE) / norm, 9) for level in range(256)]
    return [levels[byte] for byte in raw]


_MIDDLE = 127.5
_SQUARES = [(level - _MIDDLE) ** 2 for level in range(256)]

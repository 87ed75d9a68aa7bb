"""A stand-in for three providers' batch APIs and for a plain server, on a real socket.

It does what no third-party stand-in can be told to do: mixed outcomes, shuffled output, failures
that are reported late, expiry with partial results, malformed lines, a batch that is forgotten.
Behaviour after the providers' own references, read 2026-11 (OpenAI: Files, Batch, Chat Completions,
Responses; Anthropic: Message Batches; Mistral: Batch Jobs). `bought` is its own log: which items
each accepted batch holds.

What an item is answered stands in its own text: ``[429]``, ``[policy]``, ``[long]``, ``[500]``,
``[broken]`` (a malformed result line), ``[lost]`` (no result line). Anything else is echoed.
"""

import json
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

KEY = "sk-stand-in-0123456789"


@dataclass
class Batch:
    """A batch that was accepted."""

    id: str
    lines: list[dict[str, Any]]
    endpoint: str
    input_file: str | None
    metadata: dict[str, str]
    created_s: float
    polls: int = 0
    is_cancelled: bool = False
    ended_as: str = ""


@dataclass
class Behaviour:
    """How the stand-in treats what comes.

    Attributes:
        polls: How often a batch is asked for before it ends.
        expire_after: So many items are done, and the batch expires.
        queue_full: So many batches are accepted and then reported as failed: too many tokens.
        shuffled: Results come in another order.
        is_forgetful: Batches that were accepted are unknown afterwards.
        reject: HTTP status that every create is answered with.
        latency_s: Of a plain request.
    """

    polls: int = 1
    expire_after: int | None = None
    queue_full: int = 0
    shuffled: bool = True
    is_forgetful: bool = False
    reject: int | None = None
    latency_s: float = 0.0


@dataclass
class StandIn:
    """The server. `base_url` is what lanes are given: it ends where the provider's own does.

    `posted` has the path and the body of each POST as they came, `forms` the fields of uploads.
    """

    behaviour: Behaviour = field(default_factory=Behaviour)
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, Batch] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    posted: list[tuple[str, bytes]] = field(default_factory=list)
    forms: list[dict[str, bytes]] = field(default_factory=list)
    most_at_once: int = 0
    _now_at_once: int = 0
    _file_count: int = 0
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __enter__(self) -> Self:
        stand_in = self

        class Handler(_Handler):
            provider = stand_in

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.origin = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.base_url = f"{self.origin}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def bought(self) -> Counter[str]:
        """How often each request text was accepted in a batch that the provider runs."""
        return Counter(
            _text(line)
            for batch in self.batches.values()
            if batch.ended_as != "failed"
            for line in batch.lines
        )

    def create(self, lines: list[dict[str, Any]], **known: Any) -> Batch:
        with self._lock:
            number = len(self.batches)
            batch = Batch(f"batch_{number:04d}", lines, created_s=time.time(), **known)
            if self.behaviour.queue_full > 0:
                self.behaviour.queue_full -= 1
                batch.ended_as = "failed"
            self.batches[batch.id] = batch
            return batch

    def next_file_id(self) -> str:
        """Name a file as none was named before: a create that comes late must not find another."""
        with self._lock:
            self._file_count += 1
            return f"file-{self._file_count:04d}"

    def look(self, batch_id: str) -> Batch | None:
        with self._lock:
            batch = self.batches.get(batch_id)
            if batch is None or self.behaviour.is_forgetful:
                return None
            batch.polls += 1
            if not batch.ended_as and batch.input_file and batch.input_file not in self.files:
                batch.ended_as = "failed"  # its input was deleted before it was validated
            if not batch.ended_as and (batch.polls > self.behaviour.polls or batch.is_cancelled):
                if batch.is_cancelled:
                    batch.ended_as = "cancelled"
                else:
                    cut = self.behaviour.expire_after is not None
                    batch.ended_as = "expired" if cut else "completed"
            return batch

    def done(self, batch: Batch) -> list[dict[str, Any]]:
        """The lines that were worked on, in the order in which they are answered."""
        done = batch.lines
        if batch.ended_as == "expired":
            done = done[: self.behaviour.expire_after]
        elif batch.ended_as == "cancelled":
            done = done[:1]
        return done[::-1] if self.behaviour.shuffled else done

    def enter(self) -> None:
        with self._lock:
            self._now_at_once += 1
            self.most_at_once = max(self.most_at_once, self._now_at_once)

    def leave(self) -> None:
        with self._lock:
            self._now_at_once -= 1


def _text(line: dict[str, Any]) -> str:
    body = line.get("body") or line.get("params") or line
    if "messages" in body:
        content = body["messages"][-1]["content"]
        return content if isinstance(content, str) else content[-1]["text"]
    return str(body.get("input"))


def _trouble(text: str) -> tuple[int, dict[str, str]] | None:
    told = {
        "[429]": (429, "rate_limit_exceeded", "slow down"),
        "[policy]": (400, "content_policy_violation", "our content policy refuses this"),
        "[long]": (400, "context_length_exceeded", "maximum context length is 8 tokens"),
        "[500]": (500, "server_error", "the server had an error"),
    }
    for mark, (status, code, message) in told.items():
        if mark in text:
            return status, {"code": code, "message": message, "type": code}
    return None


def _usage(body: dict[str, Any], reply: str) -> tuple[int, int]:
    return max(1, len(json.dumps(body)) // 4), max(1, len(reply) // 4)


def openai_reply(endpoint: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Answer one request as OpenAI does."""
    text = _text(body)
    trouble = _trouble(text)
    if trouble is not None:
        return trouble[0], {"error": trouble[1]}
    if endpoint.endswith("/embeddings"):
        given = len(json.dumps(body)) // 4
        data = [{"object": "embedding", "index": 0, "embedding": [0.6, 0.8]}]
        usage = {"prompt_tokens": given, "total_tokens": given}
        return 200, {"object": "list", "model": body["model"], "data": data, "usage": usage}
    form = body.get("response_format") or (body.get("text") or {}).get("format")
    reply = json.dumps({"echo": text}) if form else f"echo: {text}"
    given, made = _usage(body, reply)
    if endpoint.endswith("/responses"):
        output = [
            {
                "type": "message",
                "id": "msg_1",
                "status": "completed",
                "role": "assistant",
                "content": [{"type": "output_text", "text": reply, "annotations": []}],
            }
        ]
        usage = {
            "input_tokens": given,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": given + made,
        }
        told = {"id": "resp_1", "object": "response", "status": "completed", "created_at": 1}
        told |= {"parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
        return 200, told | {"model": body["model"], "output": output, "usage": usage}
    message = {"role": "assistant", "content": reply}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
    told = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": body["model"]}
    return 200, told | {"choices": [choice], "usage": usage}


def _anthropic_result(line: dict[str, Any]) -> dict[str, Any]:
    params = line["params"]
    text = _text(line)
    trouble = _trouble(text)
    if trouble is not None:
        kind = {429: "rate_limit_error", 400: "invalid_request_error", 500: "api_error"}[trouble[0]]
        error = {"type": kind, "message": trouble[1]["message"]}
        return {"type": "errored", "error": {"type": "error", "error": error}}
    if "tools" in params:
        block = {"type": "tool_use", "id": "t", "name": "answer", "input": {"echo": text}}
    else:
        block = {"type": "text", "text": f"echo: {text}"}
    given, made = _usage(params, text)
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": params["model"],
        "content": [block],
        "stop_reason": "tool_use" if "tools" in params else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": given, "output_tokens": made},
    }
    return {"type": "succeeded", "message": message}


class _Handler(BaseHTTPRequestHandler):
    provider: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, told: Any, *, retry_after_s: int | None = None) -> None:
        content = told if isinstance(told, bytes) else json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if retry_after_s is not None:
            self.send_header("Retry-After", str(retry_after_s))
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, status: int, message: str) -> None:
        self._answer(status, {"error": {"message": message, "type": "invalid_request_error"}})

    def _serve(self, method: str) -> None:
        url = urlsplit(self.path)
        body = self._body()
        key = self.headers.get("x-api-key") or self.headers.get("Authorization", "")
        if KEY not in key:
            self._refuse(401, f"Incorrect API key provided: {key}")
            return
        if method == "POST":
            self.provider.posted.append((url.path, body))
        for pattern, serve in _ROUTES:
            found = re.fullmatch(pattern, f"{method} {url.path}")
            if found:
                serve(self, found, body, parse_qs(url.query))
                return
        self._refuse(404, f"no such path: {method} {url.path}")

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def models(self, _found: Any, _body: bytes, _query: Any) -> None:
        self._answer(200, {"object": "list", "data": [{"id": "gpt-4o-mini", "object": "model"}]})

    def upload(self, _found: Any, body: bytes, _query: Any) -> None:
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        form = BytesParser(policy=HTTP).parsebytes(head + body)
        parts = {
            part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
            for part in form.iter_parts()
        }
        self.provider.forms.append(parts)
        assert parts["purpose"] == b"batch"
        file_id = self.provider.next_file_id()
        self.provider.files[file_id] = parts["file"]
        told = {"id": file_id, "object": "file", "purpose": "batch", "filename": "x.jsonl"}
        told |= {"bytes": len(body), "created_at": int(time.time()), "status": "processed"}
        self._answer(200, told)

    def delete_file(self, found: Any, _body: bytes, _query: Any) -> None:
        if self.provider.files.pop(found[1], None) is None:
            self._refuse(404, "no such file")
        else:
            self._answer(200, {"id": found[1], "object": "file", "deleted": True})

    def create(self, _found: Any, body: bytes, _query: Any) -> None:
        if self.provider.behaviour.reject:
            self._refuse(self.provider.behaviour.reject, "not now")
            return
        asked = json.loads(body)
        content = self.provider.files.get(asked["input_file_id"])
        if content is None:
            self._refuse(400, "no such input file")
            return
        batch = self.provider.create(
            [json.loads(line) for line in content.split(b"\n") if line],
            endpoint=asked["endpoint"],
            input_file=asked["input_file_id"],
            metadata=asked.get("metadata") or {},
        )
        assert {line["url"] for line in batch.lines} == {asked["endpoint"]}
        assert len({line["body"]["model"] for line in batch.lines}) == 1
        self._answer(200, self._openai(batch))

    def _openai(self, batch: Batch) -> dict[str, Any]:
        status = batch.ended_as or "in_progress"
        told: dict[str, Any] = {
            "id": batch.id,
            "object": "batch",
            "endpoint": batch.endpoint,
            "input_file_id": batch.input_file,
            "completion_window": "24h",
            "status": status,
            "created_at": int(batch.created_s),
            "metadata": batch.metadata,
            "output_file_id": None,
            "error_file_id": None,
            "errors": None,
        }
        if status == "failed":
            error = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}
            told["errors"] = {"object": "list", "data": [error]}
        elif batch.ended_as:
            told["output_file_id"] = f"out-{batch.id}"
            told["error_file_id"] = f"err-{batch.id}"
        return told

    def retrieve(self, found: Any, _body: bytes, _query: Any) -> None:
        batch = self.provider.look(found[1])
        if batch is None:
            self._refuse(404, "no such batch")
        else:
            self._answer(200, self._openai(batch))

    def list_batches(self, _found: Any, _body: bytes, query: Any) -> None:
        newest = sorted(self.provider.batches.values(), key=lambda one: one.id, reverse=True)
        after = query.get("after", [None])[0]
        if after:
            newest = [one for one in newest if one.id < after]
        page = newest[: int(query.get("limit", ["20"])[0])]
        told = {"object": "list", "data": [self._openai(one) for one in page]}
        self._answer(200, told | {"has_more": len(newest) > len(page)})

    def content(self, found: Any, _body: bytes, _query: Any) -> None:
        kind, batch = found[1], self.provider.batches[found[2]]
        done = self.provider.done(batch)
        lines: list[str] = []
        for line in batch.lines if kind == "err" else done:
            told = {"id": "r", "custom_id": line["custom_id"], "response": None, "error": None}
            if line not in done:
                code = f"batch_{batch.ended_as}"
                lines.append(json.dumps(told | {"error": {"code": code, "message": code}}))
                continue
            text = _text(line)
            if "[lost]" in text:
                continue
            status, body = openai_reply(batch.endpoint, line["body"])
            if (status == 200) != (kind == "out"):
                continue
            response = {"status_code": status, "request_id": "req", "body": body}
            written = json.dumps(told | {"response": response})
            lines.append(written[:30] if "[broken]" in text else written)
        self._answer(200, "\n".join(lines).encode())

    def cancel(self, found: Any, _body: bytes, _query: Any) -> None:
        batch = self.provider.batches[found[1]]
        if batch.ended_as:
            self._refuse(400, "cannot be cancelled any more")
            return
        batch.is_cancelled = True
        self._answer(200, self._openai(batch))

    def plain(self, found: Any, body: bytes, _query: Any) -> None:
        self.provider.enter()
        try:
            asked = json.loads(body)
            with self.provider._lock:
                self.provider.asked.append(_text(asked))
            time.sleep(self.provider.behaviour.latency_s)
            status, told = openai_reply(found[1], asked)
            if status == 429 and self.provider.asked.count(_text(asked)) > 1:
                status, told = openai_reply(found[1], json.loads(body.replace(b"[429]", b"")))
            self._answer(status, told, retry_after_s=1 if status == 429 else None)
        finally:
            self.provider.leave()

    def create_messages(self, _found: Any, body: bytes, _query: Any) -> None:
        lines = json.loads(body)["requests"]
        for line in lines:
            assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", line["custom_id"])
            assert line["params"]["max_tokens"] >= 1
        batch = self.provider.create(lines, endpoint="messages", input_file=None, metadata={})
        self._answer(200, self._anthropic(batch))

    def _anthropic(self, batch: Batch) -> dict[str, Any]:
        counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
        if batch.ended_as:
            for line in self._anthropic_results(batch):
                counts[line["result"]["type"]] += 1
        else:
            counts["processing"] = len(batch.lines)
        going = "canceling" if batch.is_cancelled else "in_progress"
        created_at = datetime.fromtimestamp(batch.created_s, UTC)
        return {
            "id": batch.id,
            "type": "message_batch",
            "processing_status": "ended" if batch.ended_as else going,
            "request_counts": counts,
            "created_at": created_at.isoformat(),
            "expires_at": created_at.isoformat(),
            "ended_at": None,
            "archived_at": None,
            "cancel_initiated_at": None,
            "results_url": f"http://169.254.169.254/{batch.id}" if batch.ended_as else None,
        }

    def retrieve_messages(self, found: Any, _body: bytes, _query: Any) -> None:
        batch = self.provider.look(found[1])
        if batch is None:
            self._refuse(404, "no such batch")
        else:
            self._answer(200, self._anthropic(batch))

    def list_messages(self, _found: Any, _body: bytes, query: Any) -> None:
        newest = sorted(self.provider.batches.values(), key=lambda one: one.id, reverse=True)
        after = query.get("after_id", [None])[0]
        if after:
            newest = [one for one in newest if one.id < after]
        page = newest[: int(query.get("limit", ["20"])[0])]
        told = {"data": [self._anthropic(one) for one in page], "has_more": len(newest) > len(page)}
        self._answer(200, told | {"last_id": page[-1].id if page else None})

    def results_messages(self, found: Any, _body: bytes, _query: Any) -> None:
        batch = self.provider.batches[found[1]]
        lines = map(json.dumps, self._anthropic_results(batch))
        self._answer(200, "\n".join(lines).encode())

    def _anthropic_results(self, batch: Batch) -> list[dict[str, Any]]:
        done = self.provider.done(batch)
        left = {"type": "expired" if batch.ended_as == "expired" else "canceled"}
        results = [(line, _anthropic_result(line)) for line in done]
        results += [(line, left) for line in batch.lines if line not in done]
        return [{"custom_id": line["custom_id"], "result": result} for line, result in results]

    def cancel_messages(self, found: Any, _body: bytes, _query: Any) -> None:
        batch = self.provider.batches[found[1]]
        batch.is_cancelled = not batch.ended_as
        self._answer(200, self._anthropic(batch))

    def create_job(self, _found: Any, body: bytes, _query: Any) -> None:
        asked = json.loads(body)
        content = self.provider.files.get(asked["input_files"][0])
        if content is None:
            self._refuse(400, "no such input file")
            return
        lines = [json.loads(line) for line in content.split(b"\n") if line]
        batch = self.provider.create(
            lines,
            endpoint=asked["endpoint"],
            input_file=asked["input_files"][0],
            metadata=asked["metadata"],
        )
        self._answer(200, self._mistral(batch))

    def _mistral(self, batch: Batch) -> dict[str, Any]:
        status = {
            "": "RUNNING",
            "completed": "SUCCESS",
            "expired": "TIMEOUT_EXCEEDED",
            "cancelled": "CANCELLED",
            "failed": "FAILED",
        }[batch.ended_as]
        return {
            "id": batch.id,
            "input_files": [batch.input_file],
            "metadata": batch.metadata,
            "endpoint": batch.endpoint,
            "status": status,
            "created_at": int(batch.created_s),
            "output_file": f"out-{batch.id}" if batch.ended_as else None,
            "error_file": f"err-{batch.id}" if batch.ended_as else None,
        }

    def retrieve_job(self, found: Any, _body: bytes, _query: Any) -> None:
        batch = self.provider.look(found[1])
        if batch is None:
            self._refuse(404, "no such job")
        else:
            self._answer(200, self._mistral(batch))

    def list_jobs(self, _found: Any, _body: bytes, query: Any) -> None:
        jobs = [self._mistral(one) for one in self.provider.batches.values()]
        size, number = int(query["page_size"][0]), int(query.get("page", ["0"])[0])
        self._answer(200, {"data": jobs[number * size : (number + 1) * size], "total": len(jobs)})


_ROUTES: list[tuple[str, Any]] = [
    (r"GET /v1/models", _Handler.models),
    (r"POST /v1/files", _Handler.upload),
    (r"DELETE /v1/files/([\w-]+)", _Handler.delete_file),
    (r"GET /v1/files/(out|err)-(batch_\d+)/content", _Handler.content),
    (r"POST /v1/batches", _Handler.create),
    (r"GET /v1/batches", _Handler.list_batches),
    (r"GET /v1/batches/([\w-]+)", _Handler.retrieve),
    (r"POST /v1/batches/([\w-]+)/cancel", _Handler.cancel),
    (r"POST (/v1/chat/completions|/v1/responses|/v1/embeddings)", _Handler.plain),
    (r"POST /v1/messages/batches", _Handler.create_messages),
    (r"GET /v1/messages/batches", _Handler.list_messages),
    (r"GET /v1/messages/batches/(batch_\d+)", _Handler.retrieve_messages),
    (r"GET /v1/messages/batches/(batch_\d+)/results", _Handler.results_messages),
    (r"POST /v1/messages/batches/(batch_\d+)/cancel", _Handler.cancel_messages),
    (r"POST /v1/batch/jobs", _Handler.create_job),
    (r"GET /v1/batch/jobs", _Handler.list_jobs),
    (r"GET /v1/batch/jobs/([\w-]+)", _Handler.retrieve_job),
    (r"POST /v1/batch/jobs/([\w-]+)/cancel", _Handler.cancel),
]

"""Uploads over HTTP: what is answered, and that nothing bad leaves a trace."""

import json
import os
import socket
import subprocess
import time

import pytest

from batchrouter.server.storage.tables import files


def rows(surface):
    with surface.services.database.reading() as conn:
        return conn.execute(files.select()).all()


def refused(surface, reply, status, code):
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code), reply.text
    assert surface.stored() == []
    assert rows(surface) == []
    return reply.json()["error"]


def test_a_manifest_is_answered_with_what_it_holds(surface, make_manifest):
    content = make_manifest(3, model="gpt-4o-mini")

    reply = surface.post_manifest(content, filename="C:\\data\\tickets.jsonl")

    file = reply.json()
    assert reply.status_code == 201
    assert file["file_id"].startswith("file_")
    assert file.keys() == {
        "file_id",
        "filename",
        "bytes",
        "item_count",
        "dialect",
        "operation",
        "models",
        "input_tokens_estimate",
        "sha256",
        "created_at",
    }
    assert (file["filename"], file["bytes"], file["item_count"]) == (
        "tickets.jsonl",
        len(content),
        3,
    )
    assert (file["dialect"], file["operation"], file["models"]) == (
        "native",
        "responses",
        ["gpt-4o-mini"],
    )
    assert surface.stored() == [f"manifests/{file['file_id']}.jsonl"]


def test_an_openai_batch_file_is_taken_unchanged(surface):
    line = {
        "custom_id": "request-1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "gpt-4o-mini",
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "Hi"},
            ],
            "max_tokens": 1000,
        },
    }

    file = surface.upload(json.dumps(line).encode() + b"\n")

    assert (file["dialect"], file["operation"], file["models"]) == (
        "openai",
        "responses",
        ["gpt-4o-mini"],
    )


def test_a_bad_line_is_told_by_number_and_nothing_is_kept(surface, make_manifest):
    reply = surface.post_manifest(make_manifest(2) + b'{"customer_item_id": 5}\n')

    error = refused(surface, reply, 400, "invalid_manifest")
    assert error["details"]["issue_count"] == 1
    assert error["details"]["issues"][0]["line"] == 3


@pytest.mark.parametrize(
    ("parts", "start"),
    [
        ([("other", ("m.jsonl", b"x"))], "other: "),
        ([("file", ("m.jsonl", b"")), ("file", ("m.jsonl", b""))], "body: "),
        ([("purpose", (None, b"batch")), ("file", ("m.jsonl", b""))], "purpose: "),
    ],
)
def test_there_is_exactly_one_part_and_it_is_called_file(surface, parts, start):
    reply = surface.client.post("/v1/batches/input-manifests", files=parts)

    assert refused(surface, reply, 400, "invalid_request")["message"].startswith(start)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"--x"),
        ("multipart/form-data; boundary=x", b"nothing of the sort"),
        ("multipart/form-data; boundary=x", b"--x--\r\n"),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=" + "x" * 300, b""),
    ],
)
def test_a_body_that_is_no_upload_is_refused(surface, kind, body):
    reply = surface.client.post(
        "/v1/batches/input-manifests", content=body, headers={"Content-Type": kind}
    )

    refused(surface, reply, 400, "invalid_request")


def test_an_upload_that_is_cut_short_is_refused(surface, make_manifest):
    body = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + make_manifest(3)

    reply = surface.client.post(
        "/v1/batches/input-manifests",
        content=body,
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )

    assert "last boundary" in refused(surface, reply, 400, "invalid_request")["message"]


def test_a_compressed_upload_is_refused(surface):
    reply = surface.client.post(
        "/v1/batches/input-manifests", content=b"", headers={"Content-Encoding": "gzip"}
    )

    refused(surface, reply, 415, "unsupported_content_encoding")


@pytest.mark.parametrize("is_chunked", [True, False])
def test_a_manifest_over_the_limit_is_refused_with_the_limit(
    open_surface, make_manifest, is_chunked
):
    surface = open_surface(limits={"manifest_bytes": 1000})
    frame = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
    body = frame + make_manifest(900) + b"\r\n--x--\r\n"

    reply = surface.client.post(
        "/v1/batches/input-manifests",
        content=iter([body]) if is_chunked else body,
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )

    assert refused(surface, reply, 413, "request_too_large")["details"] == {"max_bytes": 1000}


def test_a_caller_that_hangs_up_leaves_nothing(surface, make_manifest):
    host, port = surface.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as caller:
        caller.sendall(
            b"POST /v1/batches/input-manifests HTTP/1.1\r\nHost: x\r\n"
            b"Authorization: Bearer " + surface.api_key.encode() + b"\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 99999999\r\n\r\n"
            b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + make_manifest(20_000)
        )
    time.sleep(0.3)

    assert surface.client.get("/healthz").status_code == 200
    assert surface.stored() == []
    assert rows(surface) == []


def test_a_key_without_the_scope_is_refused_before_the_body_is_looked_at(surface):
    with surface.client_for(surface.mint("quote,read")) as reader:
        reply = reader.post("/v1/batches/input-manifests", content=b"nonsense")

    refused(surface, reply, 403, "insufficient_scope")


def test_a_full_disk_is_told_and_leaves_nothing(open_surface, make_manifest, tmp_path):
    data = tmp_path / "small"
    objects = data / "objects"
    objects.mkdir(parents=True)
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(objects)],
        capture_output=True,
        check=False,
    )
    if not mounted or mounted.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        surface = open_surface(data_dir=data)
        reply = surface.post_manifest(make_manifest(100_000))

        refused(surface, reply, 507, "storage_full")
        assert surface.upload(items=3)["item_count"] == 3
    finally:
        subprocess.run(["umount", "-l", str(objects)], check=True)


def test_what_a_killed_upload_left_goes_at_the_next_start(open_surface, tmp_path):
    data = tmp_path / "data"
    orphan = data / "objects" / "manifests" / "file_orphan.jsonl"
    staged = data / "objects" / "manifests" / "file_staged.jsonl#1"
    orphan.parent.mkdir(parents=True)
    for path in (orphan, staged):
        path.write_bytes(b"x")
        os.utime(path, (1, 1))

    surface = open_surface(data_dir=data)

    assert surface.stored() == []

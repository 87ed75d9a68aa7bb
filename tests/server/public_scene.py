"""A machine of its own with public addresses: a router, and an HTTPS receiver on port 8443.

unshare --net --mount python public_scene.py FOLDER < asked.json

Nothing leaves it: its only interface is loopback, which has the public addresses. Names stand in a
file of its own in place of /etc/hosts. What came to the receiver is printed as one JSON line.
"""

import io
import json
import ssl
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from batchrouter import Client
from batchrouter.errors import BatchrouterError
from batchrouter.testing import running_router
from batchrouter.webhooks.signing import mint_secret, verify
from server.certificates import Authority

RECEIVER = "93.184.216.34"
SECRET = mint_secret()
ITEM = {"customer_item_id": "a", "operation": "responses", "input": {"input": "Hello"}}


def main(folder: Path, asked: dict[str, Any]) -> None:
    hosts = folder / "hosts"
    hosts.write_text("".join(f"{address} {name}\n" for name, address in asked["hosts"]))
    for command in (
        ["ip", "link", "set", "lo", "up"],
        ["ip", "address", "add", f"{RECEIVER}/32", "dev", "lo"],
        ["ip", "address", "add", "10.0.0.7/32", "dev", "lo"],
        ["mount", "--bind", str(hosts), "/etc/hosts"],
    ):
        subprocess.run(command, check=True)
    authority = Authority(folder)
    came: list[dict[str, Any]] = []
    for address in (RECEIVER, "10.0.0.7", "127.0.0.1"):
        listen(address, authority.certify("hooks.example.com"), came)
    env = {"SSL_CERT_FILE": str(authority.path), "HTTPS_PROXY": "http://127.0.0.1:1"}
    with running_router(folder / "router", env=env) as router:
        with Client(router.settings()) as client:
            code = submit(client, asked["url"])
        give_up_at = time.monotonic() + asked["wait_s"]
        while time.monotonic() < give_up_at and "batch.completed" not in {c["type"] for c in came}:
            time.sleep(0.05)
        log = router.log_path.read_text()
    print(json.dumps({"code": code, "came": came, "log": log}))


def listen(address: str, certificate: Path, came: list[dict[str, Any]]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    asked_for: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: asked_for.append(name)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            event = verify(dict(self.headers.items()), body, SECRET)
            came.append({
                "type": event.type,
                "to": address,
                "host": self.headers["Host"],
                "path": self.path,
                "sni": asked_for[-1],
            })
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((address, 8443), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def submit(client: Client, url: str) -> str:
    manifest = json.dumps(ITEM).encode()
    file = client.upload_manifest(lambda: io.BytesIO(manifest), filename="one.jsonl")
    quote = client.quote_model(["gpt-4o-mini"], estimated_items=1)
    body = {"quote_id": quote.quote_id, "input_file_id": file.file_id}
    try:
        client.submit_batch(body, webhook={"url": url, "secret": SECRET})
    except BatchrouterError as error:
        return error.code
    return "accepted"


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.stdin.read()))

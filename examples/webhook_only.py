"""Wait for a batch without ever asking for it: the router delivers, an inbox wakes the run.

    python examples/webhook_only.py

In production the receiver is a process of its own (`batchrouter webhooks serve`, or the app of
`receiver()` behind your proxy), and any number of runs read its inbox.
"""

import socket
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import uvicorn

from batchrouter import Client, Job, Run
from batchrouter.job import Chat, Route
from batchrouter.testing import running_router
from batchrouter.webhooks.inbox import Inbox, open_inbox
from batchrouter.webhooks.receiver import receiver
from batchrouter.webhooks.signing import mint_secret

NOTES = pa.table({"id": [1, 2, 3], "note": ["Call Ann.", "Pay the rent.", "Buy some bread."]})


@contextmanager
def receiving(inbox: Inbox, secret: str) -> Generator[str]:
    """Run the receiver in a thread while the block lasts; gives its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(receiver(inbox, secret), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/hook"
    finally:
        server.should_exit = True
        thread.join()


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, running_router() as router:
        folder = Path(scratch)
        job = Job(
            name="rewrite-notes",
            source=NOTES,
            key="id",
            request=Chat(user="Say it politely: {note}", parameters={"max_output_tokens": 40}),
            route=Route(models="gpt-4o-mini"),
            budget="0.01",
            sink=folder / "notes",
        )
        inbox_url = f"sqlite:///{folder / 'inbox.db'}"
        secret = mint_secret()
        inbox = open_inbox(inbox_url)
        with receiving(inbox, secret) as url:
            settings = router.settings(
                runs_url=str(folder / "runs"),
                inbox_url=inbox_url,
                webhook_url=url,
                webhook_secret=secret,
            )
            with Client(settings) as client:
                receipt = Run.open(job, run_key="first", client=client).execute(wait="webhook")

        print(f"rows: {receipt.rows['succeeded']}")
        for event in inbox.events_since(None)[0]:
            print(f"delivered: {event.type} ({event.state})")
        inbox.close()


if __name__ == "__main__":
    main()

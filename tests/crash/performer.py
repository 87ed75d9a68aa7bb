"""Performs steps of runs in processes that may die, forked from one that has begun nothing.

    python performer.py      reads a JSON list of steps a line, answers a JSON list a line

The steps of one line are performed at once, each in a process of its own, and a step may be told
to die by SIGKILL at a kill point. A fork costs milliseconds where a fresh interpreter costs a
second, and dies just the same.
"""

import json
import os
import signal
import sys
import time
import traceback
from decimal import Decimal
from importlib import import_module
from typing import Any

from batchrouter import Job, Receipt, Run, Settings, killpoints
from batchrouter.errors import BatchrouterError
from batchrouter.run import Done

LOADED = (
    "batchrouter.api.client",
    "batchrouter.landing.land",
    "batchrouter.landing.sinks.parquet",
    "batchrouter.manifest.build",
    "pyarrow.compute",
    "pyarrow.dataset",
    "pyarrow.parquet",
)
ENDS_WITHIN_S = 120.0


def perform(step: dict[str, Any]) -> dict[str, Any]:
    """Perform one step of a run; returns what came of it."""
    settings = Settings(**step["settings"])
    if "max_run_usd" in step:
        settings = settings.replace(max_run_usd=Decimal(step["max_run_usd"]))
    how = "rebuy" if step["do"] == "rebuy" else "resume"
    job = Job.model_validate(step["job"])
    with Run.open(job, run_key=step["run_key"], settings=settings, on_rerun=how) as run:
        match step["do"]:
            case "build":
                run.build()
            case "quote":
                run.quote()
            case "submit":
                run.submit()
            case "cancel":
                run.cancel("not wanted", grace_s=0)
            case "execute":
                return _told(run.execute(timeout_s=ENDS_WITHIN_S / 2))
            case "land again":
                return _told(run.land(again=True))
            case _:
                answer = run.advance()
                if isinstance(answer, Done):
                    return _told(answer.receipt)
        return {"stage": run.status().stage}


def _told(receipt: Receipt) -> dict[str, Any]:
    return {"receipt": receipt.to_dict()}


def begin(step: dict[str, Any]) -> tuple[int, int]:
    """Fork a process for a step; returns its pid and where it answers."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    os.close(reading)
    if point := step.get("die_at"):
        killpoints._asked[point, step.get("nth", 1)] = signal.SIGKILL
        killpoints._ACTIVE = True
    try:
        said = perform(step)
    except BatchrouterError as error:
        said = {"error": error.code, "message": str(error), "retryable": error.retryable}
    except BaseException:  # noqa: BLE001 - whatever else it is, the machine must hear of it
        said = {"crash": traceback.format_exc()}
    with os.fdopen(writing, "w") as out:
        out.write(json.dumps(said, default=str))
    os._exit(0)


def end(pid: int, reading: int) -> dict[str, Any]:
    """Wait for a step's process; `{"died": True}` when it was killed."""
    give_up_at = time.monotonic() + ENDS_WITHIN_S
    with os.fdopen(reading) as answers:
        said = answers.read()
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > give_up_at:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)
    return {"died": True} if os.WIFSIGNALED(status) else json.loads(said)


def main() -> None:
    """Perform until the standard input ends."""
    for module in LOADED:
        import_module(module)
    for line in sys.stdin:
        begun = [begin(step) for step in json.loads(line)]
        print(json.dumps([end(*each) for each in begun]), flush=True)


if __name__ == "__main__":
    main()

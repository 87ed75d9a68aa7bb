"""Runs a job with every logger at DEBUG, and shows all that a careless caller would show of it.

python confidant.py < asked.json
"""

import json
import logging
import pickle
import sys
import traceback
from typing import Any

from batchrouter import Job, Run, Settings
from batchrouter.errors import BatchrouterError


def main() -> None:
    asked: dict[str, Any] = json.loads(sys.stdin.read())
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    try:
        settings = Settings(**asked["settings"])
        print(repr(settings), settings, settings.model_dump(mode="json"))
        job = Job.model_validate(asked["job"])
        print(repr(job), job.model_dump_json())
        with Run.open(job, run_key="1", settings=settings) as run:
            print(repr(run), repr(run.status()))
            receipt = run.execute(timeout_s=60)
            print(repr(receipt), json.dumps(receipt.to_dict()))
    except BatchrouterError as error:
        traceback.print_exception(error)
        print(repr(error), error.__dict__, pickle.dumps(error))
        print("ended:", error.code)
    else:
        print("ended: landed")


if __name__ == "__main__":
    main()

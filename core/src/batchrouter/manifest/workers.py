"""Work shared among processes of our own, its results in the order of the work.

Workers are programs started by `subprocess`, not `multiprocessing`: that forbids children to the
daemonic processes in which orchestrators run tasks, and starts a copy of the user's `__main__`.
What goes in and out is one line of JSON a unit; rows go through files. A worker ends when its
input does, so that none outlives this process, however it ends.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from types import TracebackType
from typing import Any, Self, cast

from batchrouter import errors
from batchrouter.errors import BatchrouterError, ConfigError, WorkerDiedError
from batchrouter.manifest.process import own_process, prepare_process

PROCESSES_VARIABLE = "BATCHROUTER_PROCESSES"
_UNITS_AHEAD = 2
_PROGRAM = "from batchrouter.manifest.workers import serve; serve()"
_ENDING_S = 10

Json = dict[str, Any]
Work = Callable[[Json], Json]


def process_count() -> int:
    """Give the number of processes that a build or a landing may use.

    It is ``BATCHROUTER_PROCESSES``, or one for each core that this process may run on.

    Raises:
        ConfigError: The variable holds no whole number from 1 on.
    """
    told = os.environ.get(PROCESSES_VARIABLE, "")
    if not told:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if not told.isascii() or not told.isdigit() or not int(told):
        raise ConfigError(f"{PROCESSES_VARIABLE}: {told!r} is no whole number from 1 on")
    return int(told)


class Workers:
    """Processes that do units of work; a context manager that ends them.

    Args:
        target: `module:function`; called once in each process with `setup`, it gives the function
            that does a unit.
        setup: JSON.
        count: How many processes.
    """

    def __init__(self, target: str, setup: Mapping[str, Any], count: int) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            for _ in range(count):
                process = subprocess.Popen(  # noqa: S603 - this interpreter, and our own program
                    [sys.executable, "-c", _PROGRAM],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=environment,
                )
                self._processes.append(process)
                self._tell(process, {"target": target, "setup": setup})
        except BaseException:
            self._end()
            raise

    def results(self, units: Sequence[Mapping[str, Any]]) -> Iterator[Json]:
        """Yield the result of each unit in order; no process is more than two units ahead.

        Raises:
            BatchrouterError: What a unit raised, when its turn comes.
            WorkerDiedError: A process died.
        """
        count = len(self._processes)
        for at, unit in enumerate(units[: count * _UNITS_AHEAD]):
            self._tell(self._processes[at % count], unit)
        for at in range(len(units)):
            process = self._processes[at % count]
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.endswith(b"\n"):
                raise _death_of(process)
            later = at + count * _UNITS_AHEAD
            if later < len(units):
                self._tell(process, units[later])
            yield _result(json.loads(line))

    def _tell(self, process: "subprocess.Popen[bytes]", message: Mapping[str, Any]) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise _death_of(process) from None

    def _end(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except BrokenPipeError:
                        continue
            process.wait(_ENDING_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()


def _death_of(process: "subprocess.Popen[bytes]") -> WorkerDiedError:
    code = process.wait(_ENDING_S)
    how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
    return WorkerDiedError(
        f"a worker process {how}; nothing of this attempt was kept: run it again, with"
        f" {PROCESSES_VARIABLE}=1 if memory is short"
    )


def _result(said: Json) -> Json:
    if "error" not in said:
        return said
    kind = getattr(errors, said["error"], BatchrouterError)
    raise kind(said["message"])


def serve() -> None:
    """Do the units that come on the standard input; the body of a worker process."""
    own_process()
    prepare_process()
    # What anything prints must not get between the results.
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        told = json.loads(sys.stdin.buffer.readline())
        module, _, name = told["target"].partition(":")
        work: Work | None = None
        for line in sys.stdin.buffer:
            try:
                if work is None:
                    work = cast("Work", getattr(import_module(module), name)(told["setup"]))
                said = work(json.loads(line))
            except BatchrouterError as error:
                said = {"error": type(error).__name__, "message": str(error)}
            out.write(json.dumps(said).encode() + b"\n")
            out.flush()

"""From an error to a sentence and an exit code: one table, which the help shows too."""

import json
import os
import sys
from typing import Final

import click

from batchrouter import errors
from batchrouter.errors import BatchrouterError

OK = 0
CUT_SHORT = 7
INTERRUPTED = 130

_TABLE: Final[tuple[tuple[int, str, tuple[type[BatchrouterError], ...]], ...]] = (
    (2, "the command, the job or a setting is wrong", (errors.ConfigError,)),
    (3, "the source or a row of it is wrong", (errors.SourceError, errors.ManifestError)),
    (
        4,
        "over the budget, or out of credits",
        (errors.BudgetExceededError, errors.InsufficientCreditsError),
    ),
    (5, "the API refuses", (errors.APIError, errors.WebhookError)),
    (
        6,
        "no sensible answer came; try again",
        (
            errors.TransportError,
            errors.ServerError,
            errors.RateLimitedError,
            errors.ProtocolError,
            errors.ArtifactError,
        ),
    ),
    (
        CUT_SHORT,
        "the batch failed or was cut short",
        (errors.BatchFailedError, errors.RunCancelledError),
    ),
    (
        8,
        "the run key stands for another purchase, or one cannot be settled",
        (errors.RunIdentityConflictError, errors.UnsettledIntentError),
    ),
    (9, "the table could not be written", (errors.LandingError,)),
    (10, "the run folder cannot be used", (errors.JournalError,)),
    (11, "still running; the same command goes on", (errors.WaitTimeoutError,)),
    (12, "a process that shared the work died; try again", (errors.WorkerDiedError,)),
)

EXIT_CODES: Final[dict[int, str]] = {
    OK: "done",
    1: "a bug of ours; please report it",
    **{code: meaning for code, meaning, _ in _TABLE},
    INTERRUPTED: "interrupted; the same command goes on",
}

EXIT_CODES_HELP: Final[str] = "\b\nExit codes:\n" + "\n".join(
    f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items()
)

_BY_CLASS = {cls: code for code, _, classes in _TABLE for cls in classes}

_WHAT_TO_DO: dict[type[BatchrouterError], str] = {
    errors.AuthError: "Check BATCHROUTER_API_KEY and its scopes: `batchrouter doctor` tries it.",
    errors.TransportError: "Is the router running, and BATCHROUTER_BASE_URL right? `batchrouter "
    "doctor` tries it. The same command goes on where this one stopped.",
    errors.ProtocolError: "Is BATCHROUTER_BASE_URL right? `batchrouter doctor` says what answers.",
    errors.RateLimitedError: "Wait a little; the same command goes on where this one stopped.",
    errors.ServerError: "The same command goes on where this one stopped.",
    errors.InsufficientCreditsError: "Nothing was bought. Add credits, then give the same command.",
    errors.BudgetExceededError: "Raise `budget` in the job, or lower what it asks for: the same "
    "command goes on.",
}


def code_of(error: BatchrouterError) -> int:
    """Choose the exit code by the error's nearest class in the table.

    Example:
        >>> code_of(errors.NullKeyError("row 7 has no key"))
        3
    """
    return next((_BY_CLASS[cls] for cls in type(error).__mro__ if cls in _BY_CLASS), 1)


def advice_for(error: BatchrouterError) -> str | None:
    """Say what to do next, where the message itself does not."""
    return next((_WHAT_TO_DO[cls] for cls in type(error).__mro__ if cls in _WHAT_TO_DO), None)


def exit_code_for(error: BaseException, *, as_json: bool, traceback: bool) -> int:
    """Tell the user what was wrong, on stderr, and return the exit code.

    With `as_json` the one document on stdout is ``{"error": {…}}``.

    Raises:
        BaseException: What is none of ours is raised again: a bug wants its traceback.
    """
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, click.Abort | KeyboardInterrupt):
        click.echo(
            "Interrupted. What was bought goes on at the router: the same command goes on.",
            err=True,
        )
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        # `batchrouter runs list | head`: the reader has seen enough. Nothing more may be
        # written, not even by the interpreter when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    if not isinstance(error, BatchrouterError) or traceback:
        raise error
    _tell(error, as_json=as_json)
    return code_of(error)


def _tell(error: BatchrouterError, *, as_json: bool) -> None:
    advice = advice_for(error)
    click.echo(f"Error: {error}", err=True)
    if advice:
        click.echo(advice, err=True)
    if as_json:
        told = {
            "code": error.code,
            "message": str(error),
            "advice": advice,
            "retryable": error.retryable,
            "exit_code": code_of(error),
        }
        click.echo(json.dumps({"error": told}, indent=2))

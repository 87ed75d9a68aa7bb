"""Every error that batchrouter raises, in one tree.

    BatchrouterError
    ├── ConfigError (ValueError)            a wrong or missing setting; nothing was sent
    │   ├── MissingExtraError               says which extra to install
    │   └── JobError                        a job definition is wrong; names the field
    ├── SourceError                         the table cannot be read, or lacks a column
    ├── ManifestError (ValueError)          a row cannot become a request; names rows and columns
    │   ├── NullKeyError                    a key column holds NULL
    │   └── DuplicateKeyError               two rows share a key
    ├── TransportError                      no reply came back                          [retryable]
    ├── APIError                            a reply came back, and it says no
    │   ├── BadRequestError                 400, 413, 415
    │   ├── AuthError                       401, 403
    │   ├── InsufficientCreditsError        402
    │   ├── NotFoundError                   404
    │   ├── ConflictError                   409: a state or a lock forbids it
    │   ├── GoneError                       410
    │   ├── RateLimitedError                429                                         [retryable]
    │   └── ServerError                     5xx                                         [retryable]
    ├── ProtocolError                       a reply came back that makes no sense
    ├── BudgetExceededError                 the quote is above the budget; nothing was bought
    ├── ArtifactError                       the artifact is cut short or another one    [retryable]
    ├── BatchFailedError                    the batch ended without usable results
    ├── RunCancelledError                   the run was cancelled before anything was bought
    ├── RunIdentityConflictError            the run key already bought something else
    ├── UnsettledIntentError                a purchase may or may not exist; a person must look
    ├── WaitTimeoutError                    still running; open the run again to go on  [retryable]
    ├── LandingError                        rows and table do not agree; nothing was committed
    │   ├── DamagedManifestError            no line of it can be sent again; nothing was bought
    │   └── SinkError                       the table refuses the write; nothing was committed
    ├── JournalError                        the run folder is damaged, or of a newer version
    │   └── StorageError                    the run folder cannot be read or written    [retryable]
    ├── WebhookError                        a delivery that must not be trusted
    └── WorkerDiedError                     a process that shared the work died          [retryable]

Orchestrators read only `retryable`: running the same thing again can succeed without a
change of input. `code` is stable; `APIError` carries the server's own.
"""

from typing import Any, Self

__all__ = [
    "APIError",
    "ArtifactError",
    "AuthError",
    "BadRequestError",
    "BatchFailedError",
    "BatchrouterError",
    "BudgetExceededError",
    "ConfigError",
    "ConflictError",
    "DamagedManifestError",
    "DuplicateKeyError",
    "GoneError",
    "InsufficientCreditsError",
    "JobError",
    "JournalError",
    "LandingError",
    "ManifestError",
    "MissingExtraError",
    "NotFoundError",
    "NullKeyError",
    "ProtocolError",
    "RateLimitedError",
    "RunCancelledError",
    "RunIdentityConflictError",
    "ServerError",
    "SinkError",
    "SourceError",
    "StorageError",
    "TransportError",
    "UnsettledIntentError",
    "WaitTimeoutError",
    "WebhookError",
    "WorkerDiedError",
    "api_error",
]


class BatchrouterError(Exception):
    """Base of all our errors: ``except BatchrouterError`` catches everything we raise."""

    code: str = "batchrouter_error"
    retryable: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        # Airflow and Prefect move exceptions between processes; the default pickle calls
        # __init__(*args) and breaks on keyword-only fields.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(
    cls: type[BatchrouterError], args: tuple[Any, ...], state: dict[str, Any]
) -> BatchrouterError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigError(BatchrouterError, ValueError):
    """A setting is wrong or missing; nothing was sent."""

    code = "config_error"


class MissingExtraError(ConfigError):
    """An optional library is not installed; the message has the command that installs it."""

    code = "missing_extra"

    @classmethod
    def for_extra(cls, extra: str, *, needed_for: str) -> Self:
        """Say what needs the extra and how to install it.

        Example:
            >>> str(MissingExtraError.for_extra("tables", needed_for="building a manifest"))
            "building a manifest needs an extra: pip install 'batchrouter-core[tables]'"
        """
        return cls(f"{needed_for} needs an extra: pip install 'batchrouter-core[{extra}]'")


class JobError(ConfigError):
    """A job definition is wrong; each problem starts with the field's path."""

    code = "job_invalid"

    def __init__(self, message: str, *, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems


class SourceError(BatchrouterError):
    """The source cannot be read, or lacks a column that the job names; nothing was written."""

    code = "source_error"


class ManifestError(BatchrouterError, ValueError):
    """A row cannot become a request; the build leaves nothing behind that a run would use."""

    code = "manifest_error"


class NullKeyError(ManifestError):
    """A key column holds NULL; the message names the first rows."""

    code = "null_key"


class DuplicateKeyError(ManifestError):
    """Two rows share a key; the message names the key and both rows."""

    code = "duplicate_key"


class TransportError(BatchrouterError):
    """No reply came back: refused, reset, timed out, or not resolvable. It may have arrived."""

    code = "transport_error"
    retryable = True


class APIError(BatchrouterError):
    """A reply came back, and it says no.

    Attributes:
        status: The HTTP status.
        code: The server's own stable code (contract section 2), else the class's.
        details: The server's ``details`` object, empty when it sent none.
        request_id: The reply's ``X-Request-Id``, to quote to the operator.
        retry_after_s: The wait that the server asked for, in seconds.
    """

    code = "api_error"

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | None = None,
        details: dict[str, Any] | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        if code:
            self.code = code
        self.details: dict[str, Any] = details or {}
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        told = f" (request {self.request_id})" if self.request_id else ""
        return f"{self.args[0]} [{self.status} {self.code}]{told}"


class BadRequestError(APIError):
    """400, 413 or 415: the request is wrong; sending it again cannot help."""

    code = "invalid_request"


class AuthError(APIError):
    """401 or 403: the key is unknown, revoked, or lacks the scope."""

    code = "unauthorized"


class InsufficientCreditsError(APIError):
    """402: the workspace cannot pay for the quote; nothing was bought."""

    code = "insufficient_credits"


class NotFoundError(APIError):
    """404: unknown here, or another workspace's."""

    code = "not_found"


class ConflictError(APIError):
    """409: a state, a lock or a key forbids it; ``details`` says which."""

    code = "conflict"


class GoneError(APIError):
    """410: it was here, and its retention has ended."""

    code = "artifact_expired"


class RateLimitedError(APIError):
    """429: too many calls; ``retry_after_s`` is the wait that the server asked for."""

    code = "rate_limited"
    retryable = True


class ServerError(APIError):
    """5xx: the server failed; ``details.error_id`` helps its operator to find out why."""

    code = "internal_error"
    retryable = True


class ProtocolError(BatchrouterError):
    """A reply came back that is not what the contract says, so nothing was concluded from it."""

    code = "protocol_error"


class BudgetExceededError(BatchrouterError):
    """The quote is above what the job may cost; nothing of it was bought."""

    code = "budget_exceeded"


class ArtifactError(BatchrouterError):
    """The artifact is cut short, or its size or sha256 is another; nothing was kept."""

    code = "artifact_corrupt"
    retryable = True


class BatchFailedError(BatchrouterError):
    """The batch ended without usable results; the table was left as it was."""

    code = "batch_failed"


class RunCancelledError(BatchrouterError):
    """The run was cancelled and has nothing to land."""

    code = "run_cancelled"


class RunIdentityConflictError(BatchrouterError):
    """This run key already stands for another purchase; nothing more was bought."""

    code = "run_identity_conflict"


class UnsettledIntentError(BatchrouterError):
    """It cannot be decided whether a purchase exists; nothing more was bought.

    The message names the intent and how to settle it by hand.
    """

    code = "intent_unsettled"


class WaitTimeoutError(BatchrouterError):
    """The wait's own bound has passed while the batch goes on; open the run again to go on."""

    code = "wait_timeout"
    retryable = True


class LandingError(BatchrouterError):
    """Rows and table do not agree; nothing was committed."""

    code = "landing_error"


class DamagedManifestError(LandingError):
    """A manifest in the run folder is gone or is not what was built: no line can be copied."""

    code = "manifest_damaged"


class SinkError(LandingError):
    """The table refuses the write; nothing was committed."""

    code = "sink_error"


class JournalError(BatchrouterError):
    """The run folder is damaged, or was written by a newer version; nothing was changed."""

    code = "journal_error"


class StorageError(JournalError):
    """The run folder cannot be read or written now: no room, no permission, no connection."""

    code = "storage_error"
    retryable = True


class WorkerDiedError(BatchrouterError):
    """A process that a build or a landing was shared with died; nothing of the attempt is kept."""

    code = "worker_died"
    retryable = True


class WebhookError(BatchrouterError):
    """A delivery that must not be trusted: no signature, a wrong one, or one that is too old."""

    code = "webhook_invalid"


_BY_STATUS: dict[int, type[APIError]] = {
    400: BadRequestError,
    401: AuthError,
    402: InsufficientCreditsError,
    403: AuthError,
    404: NotFoundError,
    409: ConflictError,
    410: GoneError,
    413: BadRequestError,
    415: BadRequestError,
    422: BadRequestError,
    429: RateLimitedError,
}
_FIRST_SERVER_ERROR = 500


def api_error(
    message: str,
    *,
    status: int,
    code: str | None = None,
    details: dict[str, Any] | None = None,
    request_id: str | None = None,
    retry_after_s: float | None = None,
) -> APIError:
    """Choose the class for an HTTP status; nothing is raised here.

    Example:
        >>> api_error("slow down", status=429, retry_after_s=2.0).retryable
        True
    """
    default = ServerError if status >= _FIRST_SERVER_ERROR else APIError
    return _BY_STATUS.get(status, default)(
        message,
        status=status,
        code=code,
        details=details,
        request_id=request_id,
        retry_after_s=retry_after_s,
    )

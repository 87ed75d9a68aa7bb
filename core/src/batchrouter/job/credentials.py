"""A job file is committed and logged, so a literal credential in it is refused."""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

_ADVICE = "keep it in the environment or in the orchestrator's connection"

_KEYS = (
    (re.compile(r"\bbk_(?:live|test)_[A-Za-z0-9_-]{16,}"), "a batchrouter key"),
    (re.compile(r"\bsk-(?:[a-z]+-)*[A-Za-z0-9_]{20,}"), "an API key"),
    (re.compile(r"\bwhsec_[A-Za-z0-9+/=]{16,}"), "a webhook secret"),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), "an AWS access key"),
    (re.compile(r"\bgh[pousr]_[A-Za-z0-9]{36,}"), "a GitHub token"),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"), "a private key"),
)
_SECRET_NAMES = frozenset({
    "password", "passwd", "pwd", "secret", "token", "access_token", "api_key", "apikey", "key",
    "sig", "signature", "x-amz-signature", "x-amz-credential", "x-amz-security-token",
    "x-goog-signature", "aws_secret_access_key", "secret_access_key", "access_key",
    "account_key", "sas_token",
})  # fmt: skip


def credential_problems(value: Any, path: str, *, is_location: bool) -> Iterator[str]:
    """Yield a sentence for each credential in a value; the credential itself is not repeated.

    Args:
        value: Text, or mappings and lists that hold some.
        path: The field's path in the job.
        is_location: The text is a path or URL, so user info and signed parameters count, too.

    Example:
        >>> list(credential_problems("s3://key:secret@lake/t", "sink", is_location=True))[0][:29]
        'sink: holds a password in its'
    """
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from credential_problems(item, f"{path}.{name}", is_location=is_location)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from credential_problems(item, f"{path}[{index}]", is_location=is_location)
    elif isinstance(value, str):
        for pattern, name in _KEYS:
            if pattern.search(value):
                yield f"{path}: holds {name}; {_ADVICE}"
        if is_location:
            yield from (f"{path}: {told}; {_ADVICE}" for told in _in_location(value))


def _in_location(text: str) -> Iterator[str]:
    try:
        url = urlsplit(text)
    except ValueError:
        return
    if "://" in text and url.password:
        yield "holds a password in its URL"
    for name, given in parse_qsl(url.query):
        if name.lower() in _SECRET_NAMES and given and not given.startswith("${params."):
            yield f"holds a secret in the parameter {name!r} of its URL"

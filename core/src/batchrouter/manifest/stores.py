"""fsspec's `storage_options`, in the words of the libraries that open a store by themselves.

One setting opens every store: `BATCHROUTER_STORAGE_OPTIONS`, as fsspec has it. Delta's library
and Iceberg's have names of their own for the same keys; an option that is in their words already
goes through as it is.
"""

from collections.abc import Mapping
from typing import Any

_DELTA = {
    "s3": {
        "key": "aws_access_key_id",
        "secret": "aws_secret_access_key",
        "token": "aws_session_token",
        "endpoint_url": "aws_endpoint_url",
        "region_name": "aws_region",
        "anon": "aws_skip_signature",
    },
    "gs": {"token": "google_service_account"},
    "az": {
        name: f"azure_storage_{name}"
        for name in (
            "account_name",
            "account_key",
            "sas_token",
            "client_id",
            "client_secret",
            "tenant_id",
        )
    },
}
_ICEBERG = {
    "s3": {
        "key": "s3.access-key-id",
        "secret": "s3.secret-access-key",
        "token": "s3.session-token",
        "endpoint_url": "s3.endpoint",
        "region_name": "s3.region",
        "anon": "s3.anonymous",
    },
    "gs": {"token": "gcs.oauth2.token", "project": "gcs.project-id"},
    "az": {
        "account_name": "adls.account-name",
        "account_key": "adls.account-key",
        "sas_token": "adls.sas-token",
        "connection_string": "adls.connection-string",
    },
}
_STORES = {
    "s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az",
    "adl": "az",
}  # fmt: skip


def delta_options(url: str, options: Mapping[str, Any] | None) -> dict[str, str]:
    """Write fsspec's options as those of `deltalake`.

    Example:
        >>> delta_options("s3://lake/t", {"key": "k", "client_kwargs": {"region_name": "eu-1"}})
        {'aws_access_key_id': 'k', 'aws_region': 'eu-1'}
        >>> delta_options("lake/t", {"key": "k"})
        {}
    """
    found = _translated(_DELTA, url, options)
    if found.get("aws_endpoint_url", "").startswith("http://"):
        found.setdefault("aws_allow_http", "true")
    return found


def iceberg_properties(url: str, options: Mapping[str, Any] | None) -> dict[str, str]:
    """Write fsspec's options as a pyiceberg catalog's properties.

    Example:
        >>> iceberg_properties("s3://lake/t", {"secret": "s", "endpoint_url": "http://localhost"})
        {'s3.secret-access-key': 's', 's3.endpoint': 'http://localhost'}
    """
    return _translated(_ICEBERG, url, options)


def _translated(
    words: Mapping[str, Mapping[str, str]], url: str, options: Mapping[str, Any] | None
) -> dict[str, str]:
    store = _STORES.get(url.partition("://")[0]) if "://" in url else None
    if store is None:
        return {}
    given = dict(options or {})
    given |= given.pop("client_kwargs", None) or {}
    names = words[store]
    return {
        names.get(name, name): str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in given.items()
        if value is not None and not isinstance(value, dict | list)
    }

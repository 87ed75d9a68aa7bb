"""Batchrouter for Airflow: an LLM batch over a table that costs no worker and is bought once.

Everything here is thin: connection, waiting, cancelling, errors and lineage of Airflow around
one `batchrouter.Run`, which any process carries on from its folder.
"""

from typing import Any

__version__ = "0.1.0"


def get_provider_info() -> dict[str, Any]:
    """Tell Airflow what is in here; the entry point ``apache_airflow_provider``."""
    from airflow_provider_batchrouter.info import provider_info  # noqa: PLC0415 - parsed rarely

    return provider_info()

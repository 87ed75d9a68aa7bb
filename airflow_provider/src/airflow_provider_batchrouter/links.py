"""The button of a task that opens its batch."""

from typing import Any

from airflow.providers.common.compat.sdk import BaseOperatorLink, XCom

LINK_KEY = "batchrouter_batch"


class BatchrouterBatchLink(BaseOperatorLink):
    """Opens the run's first batch: the page that the connection names, else the API's address."""

    @property
    def name(self) -> str:
        """What the button says."""
        return "Batch"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Read the address that the task left in XCom; empty when nothing was bought yet."""
        del operator
        return str(XCom.get_value(ti_key=ti_key, key=LINK_KEY) or "")


def batch_page(base_url: str, extra: dict[str, Any], batch_id: str) -> str:
    """The address of a batch for a person.

    Example:
        >>> batch_page("https://a", {"batch_page": "https://console/b/{batch_id}"}, "batch_1")
        'https://console/b/batch_1'
    """
    page = str(extra.get("batch_page") or "") or f"{base_url}/v1/batches/{{batch_id}}"
    return page.replace("{batch_id}", batch_id)

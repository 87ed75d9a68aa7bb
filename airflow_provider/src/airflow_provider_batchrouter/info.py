"""What Airflow reads about the provider before it imports any of it."""

from typing import Any

_PACKAGE = "airflow_provider_batchrouter"
_NAME = "batchrouter"


def _field(label: str, description: str, *, secret: bool = False) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": ["string", "null"]}
    if secret:
        schema["format"] = "password"
    return {"label": label, "description": description, "schema": schema}


CONNECTION_FIELDS: dict[str, dict[str, Any]] = {
    "runs_url": _field(
        "Runs URL",
        "Where runs are kept: a folder or any fsspec URL that every worker and the triggerer reach,"
        " such as s3://lake/_runs. Empty: a folder in AIRFLOW_HOME, for LocalExecutor only.",
    ),
    "inbox_url": _field(
        "Inbox URL",
        "Where webhook events are kept: postgresql+psycopg://…, sqlite:///… on one host, or a"
        " folder or bucket. Empty: batches are polled.",
    ),
    "webhook_url": _field(
        "Webhook URL",
        "Where the router delivers: this Airflow's own address and"
        " /batchrouter/webhooks/<connection id>. Empty: no webhooks.",
    ),
    "webhook_secret": _field(
        "Webhook secret", "What deliveries are signed with: whsec_…", secret=True
    ),
    "namespace": _field(
        "Namespace", "Tells apart installations that share an account. Empty: the runs URL."
    ),
    "max_run_usd": _field("Most that a run may cost (USD)", "No job may exceed it, such as 50.00."),
    "poll_interval_s": _field("Poll interval (s)", "How often open batches are looked at."),
    "batch_page": _field(
        "Page of a batch",
        "What the link of a task opens, with {batch_id} in it. Empty: the API's address of it.",
    ),
}
"""The fields that Airflow keeps in the connection's extra, by their names there."""


def provider_info() -> dict[str, Any]:
    """Return the provider's description, valid against Airflow's ``provider_info.schema.json``."""
    return {
        "package-name": "airflow-provider-batchrouter",
        "name": "Batchrouter",
        "description": "LLM batch jobs over tables: bought once, never above the quote.",
        "integrations": [{"integration-name": "Batchrouter", "tags": ["service"]}],
        "hooks": _modules("hooks"),
        "operators": _modules("operators"),
        "sensors": _modules("sensors"),
        "triggers": _modules("triggers"),
        "connection-types": [
            {
                "connection-type": _NAME,
                "hook-name": "Batchrouter",
                "hook-class-name": f"{_PACKAGE}.hooks.BatchrouterHook",
                "conn-fields": CONNECTION_FIELDS,
                "ui-field-behaviour": {
                    "hidden-fields": ["schema", "login", "port"],
                    "relabeling": {"host": "Base URL", "password": "API key"},
                    "placeholders": {
                        "host": "https://api.batchrouter.dev",
                        "password": "bk_live_…",
                        "extra": '{"storage_options": {}, "runs_are_shared": false}',
                    },
                },
            }
        ],
        "extra-links": [f"{_PACKAGE}.links.BatchrouterBatchLink"],
        "task-decorators": [
            {"name": _NAME, "class-name": f"{_PACKAGE}.decorators.batchrouter_task"}
        ],
        "plugins": [{"name": _NAME, "plugin-class": f"{_PACKAGE}.plugin.BatchrouterPlugin"}],
        "config": {
            _NAME: {
                "description": "The webhook end on the api-server.",
                "options": {
                    "webhook_connections": {
                        "description": "Connections whose webhooks are received, separated by"
                        " commas. One without a webhook secret and an inbox URL receives none.",
                        "type": "string",
                        "version_added": "0.1.0",
                        "example": "batchrouter_default,batchrouter_eu",
                        "default": "batchrouter_default",
                    }
                },
            }
        },
    }


def _modules(name: str) -> list[dict[str, Any]]:
    return [{"integration-name": "Batchrouter", "python-modules": [f"{_PACKAGE}.{name}"]}]

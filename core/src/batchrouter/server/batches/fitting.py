"""Whether a manifest is what its quote was made for: operation, models, fields, items, tokens."""

import json
from typing import Any

from sqlalchemy import Row

from batchrouter.server.config import RouterConfig, WorkflowConfig
from batchrouter.server.quoting.plan import Plan
from batchrouter.server.refusals import refusal

__all__ = ["check_fit"]


def check_fit(config: RouterConfig, quote: Row[Any], plan: Plan, file: Row[Any]) -> None:
    """Compare a stored manifest's facts with a quote, in the contract's order.

    Raises:
        APIError: `quote_lock_mismatch`, `quote_lock_items_exceeded`,
            `quote_lock_usage_exceeded`.
    """
    mismatches = _mismatches(config, plan, file)
    if mismatches:
        raise refusal(
            "quote_lock_mismatch",
            f"the manifest is not what was quoted: {'; '.join(mismatches.values())}",
            fields=list(mismatches),
        )
    if file.item_count > quote.item_count:
        raise refusal(
            "quote_lock_items_exceeded",
            f"the manifest has {file.item_count:,} items, and {quote.item_count:,} were quoted:"
            " quote again",
            quoted=quote.item_count,
            actual=file.item_count,
        )
    _check_usage(quote, file)


def _check_usage(quote: Row[Any], file: Row[Any]) -> None:
    quoted_tokens = quote.input_tokens_per_item * quote.item_count
    # A tenth is what estimates of the same text may differ by (contract section 5).
    if file.input_tokens_estimate * 10 > quoted_tokens * 11:
        raise refusal(
            "quote_lock_usage_exceeded",
            f"the manifest holds about {file.input_tokens_estimate:,} input tokens, and"
            f" {quoted_tokens:,} were quoted: quote again with estimated_input_tokens",
            quoted_input_tokens=quoted_tokens,
            estimated_input_tokens=file.input_tokens_estimate,
        )
    cap = file.max_output_tokens
    if cap is not None and cap > quote.max_output_tokens > 0:
        raise refusal(
            "quote_lock_usage_exceeded",
            f"an item may have {cap:,} output tokens, and {quote.max_output_tokens:,} were"
            " quoted: quote again with max_output_tokens",
            quoted_max_output_tokens=quote.max_output_tokens,
            max_output_tokens=cap,
        )


def _mismatches(config: RouterConfig, plan: Plan, file: Row[Any]) -> dict[str, str]:
    """Say, by field, what differs."""
    if plan.workflow is not None:
        return _workflow_mismatches(config, plan.workflow, file)
    if file.operation is None:
        return {"operation": "its lines are for a workflow, and a model was quoted"}
    # OpenAI's lines cannot say `vision`.
    spoken = {plan.task, "responses"} if file.dialect == "openai" else {plan.task}
    if file.operation not in spoken:
        return {"operation": f"its lines are for {file.operation}, the quote is for {plan.task}"}
    strangers = sorted(set(json.loads(file.models)) - set(plan.models))
    if strangers:
        return {
            "model": f"its lines ask for {', '.join(strangers)}, the quote for"
            f" {', '.join(plan.models)}"
        }
    return {}


def _workflow_mismatches(config: RouterConfig, reference: str, file: Row[Any]) -> dict[str, str]:
    if file.operation is not None:
        return {"operation": f"its lines are for {file.operation}, the quote is for a workflow"}
    slug, _, version = reference.partition("@v")
    workflow = config.workflow(slug, int(version))
    if workflow is None:
        return {"workflow": f"{reference} is no longer configured: quote another"}
    return _field_mismatches(workflow, json.loads(file.fields), file.item_count)


def _field_mismatches(
    workflow: WorkflowConfig, found: dict[str, Any], item_count: int
) -> dict[str, str]:
    mismatches: dict[str, str] = {}
    known = {field.name: field for field in workflow.fields}
    for name, seen in found.items():
        field = known.get(name)
        if field is None:
            there_is = ", ".join(known)
            mismatches[f"input.{name}"] = (
                f"input.{name} is no field of {workflow.reference}, which has {there_is}"
            )
        elif seen["types"] != [field.type]:
            mismatches[f"input.{name}"] = f"input.{name} must be {field.type} in every line"
    for field in workflow.fields:
        count = found.get(field.name, {"count": 0})["count"]
        if field.required and count < item_count:
            mismatches[f"input.{field.name}"] = (
                f"input.{field.name} is missing in {item_count - count:,} of {item_count:,} lines"
            )
    return mismatches

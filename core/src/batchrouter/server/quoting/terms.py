"""From a caller's question to what lanes are measured against: models, tokens, fee.

A workflow's own prompt is sent with every item, so its tokens are added to the caller's figure;
the figure itself stays as it was given, for it is what the manifest is held to.
"""

import json
from dataclasses import dataclass
from typing import Any

from batchrouter.money import units_from_usd
from batchrouter.server.config import RouterConfig, WorkflowConfig
from batchrouter.server.quoting.pricing import MODEL_FEE_BPS, WORKFLOW_FEE_BPS
from batchrouter.server.quoting.questions import ModelQuestion, Question, WorkflowQuestion
from batchrouter.server.quoting.routing import Demand
from batchrouter.server.refusals import refusal

__all__ = ["BYTES_PER_TOKEN", "Terms", "model_terms", "workflow_terms"]

BYTES_PER_TOKEN = 4
"""How many bytes of JSON count as one input token in estimates; English text has 4 to 5 bytes a
token with the current tokenizers, so this is on the high side for it."""


@dataclass(frozen=True, slots=True)
class Terms:
    """A question with every default filled in.

    Attributes:
        demand: What lanes are measured against.
        input_tokens_per_item: The caller's figure, without a workflow's own prompt.
        max_output_tokens: Cap of an item that sets none itself.
        source: Where the token figures are from: `defaults`, `request` or `mixed`.
        prompt_tokens_per_item: What a workflow adds to every item.
    """

    kind: str
    demand: Demand
    workflow: WorkflowConfig | None
    input_tokens_per_item: int
    max_output_tokens: int
    source: str
    prompt_tokens_per_item: int = 0

    @property
    def assumptions(self) -> dict[str, Any]:
        """The `assumptions` of the answer."""
        figures: dict[str, Any] = {
            "input_tokens_per_item": self.input_tokens_per_item,
            "output_tokens_per_item": self.demand.output_tokens,
            "max_output_tokens": self.max_output_tokens,
            "source": self.source,
        }
        if self.workflow is not None:
            figures["workflow_prompt_tokens_per_item"] = self.prompt_tokens_per_item
        return figures


def model_terms(config: RouterConfig, question: ModelQuestion) -> Terms:
    """Fill in a model question.

    Raises:
        APIError: `model_not_found`, when no lane serves one of the models.
    """
    served = {model.name for lane in config.lanes for model in lane.models}
    unknown = [model for model in question.models if model not in served]
    if unknown:
        raise refusal(
            "model_not_found",
            f"no lane serves {', '.join(unknown)}; there is {', '.join(sorted(served))}",
            models=unknown,
        )
    assumed = getattr(config.assumptions, question.task)
    return _terms(
        question,
        kind="model",
        task=question.task,
        models=tuple(dict.fromkeys(question.models)),
        workflow=None,
        assumed=assumed,
    )


def workflow_terms(config: RouterConfig, question: WorkflowQuestion) -> Terms:
    """Fill in a workflow question.

    Raises:
        APIError: `workflow_not_found`.
    """
    slug, _, version = question.workflow.partition("@v")
    workflow = config.workflow(slug, int(version) if version else None)
    if workflow is None:
        there_is = ", ".join(item.reference for item in config.workflows) or "none"
        raise refusal("workflow_not_found", f"no workflow {question.workflow}; there is {there_is}")
    return _terms(
        question,
        kind="workflow",
        task="responses",
        models=workflow.models,
        workflow=workflow,
        assumed=workflow,
    )


def _terms(
    question: Question,
    *,
    kind: str,
    task: str,
    models: tuple[str, ...],
    workflow: WorkflowConfig | None,
    assumed: Any,
) -> Terms:
    mean_in = question.estimated_input_tokens
    mean_out = question.estimated_output_tokens
    cap = question.max_output_tokens
    input_tokens = assumed.input_tokens_per_item if mean_in is None else mean_in
    if mean_out is None:
        # The assumed mean says nothing about an item that may not be that long.
        output_tokens = min(assumed.output_tokens_per_item, cap or assumed.max_output_tokens)
    else:
        output_tokens = mean_out
    prompt_tokens = _prompt_tokens(workflow) if workflow else 0
    given = [figure is not None for figure in (mean_in, mean_out)]
    return Terms(
        kind=kind,
        demand=Demand(
            task=task,
            models=models,
            item_count=question.estimated_items,
            input_tokens=input_tokens + prompt_tokens,
            output_tokens=output_tokens,
            privacy_tier=question.privacy_tier,
            allowed_regions=tuple(question.allowed_regions),
            sla_tier=question.sla_tier,
            max_price_units=units_from_usd(question.max_price.amount)
            if question.max_price
            else None,
            allow_split=question.allow_split,
            fee_bps=WORKFLOW_FEE_BPS if workflow else MODEL_FEE_BPS,
        ),
        workflow=workflow,
        input_tokens_per_item=input_tokens,
        max_output_tokens=max(assumed.max_output_tokens, output_tokens) if cap is None else cap,
        source="request" if all(given) else "mixed" if any(given) else "defaults",
        prompt_tokens_per_item=prompt_tokens,
    )


def _prompt_tokens(workflow: WorkflowConfig) -> int:
    schema = json.dumps(workflow.output_schema, separators=(",", ":"))
    prompt_bytes = len(f"{workflow.system}{workflow.user}{schema}".encode())
    return -(-prompt_bytes // BYTES_PER_TOKEN)

"""Operators: a whole job in one task, or its steps apart."""

from airflow_provider_batchrouter.operators.run_job import BatchrouterRunJobOperator
from airflow_provider_batchrouter.operators.steps import (
    BatchrouterCancelOperator,
    BatchrouterLandOperator,
    BatchrouterQuoteOperator,
    BatchrouterSubmitOperator,
)

__all__ = [
    "BatchrouterCancelOperator",
    "BatchrouterLandOperator",
    "BatchrouterQuoteOperator",
    "BatchrouterRunJobOperator",
    "BatchrouterSubmitOperator",
]

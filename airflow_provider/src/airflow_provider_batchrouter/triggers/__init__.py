"""Triggers: waiting for batches in the triggerer, and for batches that start other DAGs."""

from airflow_provider_batchrouter.triggers.batch import BatchrouterBatchTrigger
from airflow_provider_batchrouter.triggers.event import BatchrouterEventTrigger

__all__ = ["BatchrouterBatchTrigger", "BatchrouterEventTrigger"]

"""What to run: a `Job` in Python, YAML or TOML, its requests, templates and output schema."""

from batchrouter.job.job import Job, Parts
from batchrouter.job.requests import Chat, Embedding, Raw, Workflow
from batchrouter.job.retain import Retain
from batchrouter.job.route import Route
from batchrouter.job.source import Query

__all__ = ["Chat", "Embedding", "Job", "Parts", "Query", "Raw", "Retain", "Route", "Workflow"]

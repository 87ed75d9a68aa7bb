"""What a person serves from a process of their own: the job, and its caretakers."""

from datetime import timedelta

from prefect import serve
from prefect_batchrouter import caretaker_deployments, run_batch_job

if __name__ == "__main__":
    serve(
        run_batch_job.to_deployment("served"),
        *caretaker_deployments("silent", sweep_every=timedelta(seconds=20)),
    )

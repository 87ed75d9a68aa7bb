"""Who plays on the stage beside Prefect: a receiver, accounts, and the deployed flow."""

from typing import Any

from prefect.types.entrypoint import EntrypointType
from prefect_batchrouter import BatchrouterCredentials, run_batch_job
from prefect_batchrouter.blocking import blocking

from batchrouter.webhooks.signing import mint_secret
from on_prefect.stage import POOL, Actor, Stage, until

SECRET = mint_secret()
DEPLOYMENT = "run-batch-job/tests"


def start_receiver(stage: Stage, name: str = "receiver", *options: str) -> tuple[Actor, str]:
    """Start `prefect-batchrouter receive`; return it and the URL of its hook."""
    command = [*stage.command("prefect-batchrouter"), "receive", "--port", "0"]
    command += ["--inbox", str(stage.folder / f"{name}-inbox"), *options]
    actor = stage.actor(name, command, BATCHROUTER_WEBHOOK_SECRET=SECRET)
    actor.start()

    def told() -> str:
        lines = actor.tail().splitlines()
        return next((each for each in lines if "Receiving on" in each), "")

    return actor, until(told, "the receiver").rpartition(" ")[2] + "/hook"


def save_account(name: str, stage: Stage, base_url: str, api_key: str, **more: Any) -> None:
    """Save a credentials block whose runs live on the stage."""
    BatchrouterCredentials(
        base_url=base_url,
        api_key=api_key,
        runs_url=str(stage.folder / "runs"),
        poll_interval_s=1.0,
        **more,
    ).save(name, overwrite=True)


def deploy() -> None:
    """Deploy `run_batch_job` on the stage's worker."""
    deployment = blocking(run_batch_job.to_deployment)(
        "tests", work_pool_name=POOL, entrypoint_type=EntrypointType.MODULE_PATH
    )
    blocking(deployment.apply)()

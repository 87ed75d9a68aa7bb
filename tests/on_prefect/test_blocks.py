"""The blocks, by Prefect's own standards and in use."""

import io
from pathlib import Path
from typing import Any

import prefect_batchrouter
import pytest
from prefect.blocks.core import Block
from prefect.testing.standard_test_suites import BlockStandardTestSuite
from prefect_batchrouter import BatchrouterCredentials, BatchrouterJob

from batchrouter.errors import ConfigError, WaitTimeoutError
from batchrouter.testing import RunningRouter
from on_prefect.scene import check_landed


@pytest.mark.parametrize("block", [BatchrouterCredentials, BatchrouterJob])
class TestByPrefectsStandards(BlockStandardTestSuite):
    @pytest.fixture
    def block(self, block: type[Block]) -> type[Block]:
        return block

    @pytest.fixture(autouse=True)
    def _logo_from_disk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # The suite fetches the logo over the network; the file that it would get is in the package.
        logo = Path(prefect_batchrouter.__file__).with_name("logo.png").read_bytes()
        monkeypatch.setattr(
            "prefect.testing.standard_test_suites.blocks.urlopen", lambda _url: io.BytesIO(logo)
        )


@pytest.fixture
def saved(harness: None, credentials: Any, job: dict[str, Any]) -> str:
    credentials.save("standard", overwrite=True)
    loaded = BatchrouterCredentials.load("standard")
    BatchrouterJob(credentials=loaded, job=job).save("label-queries", overwrite=True)
    return "label-queries"


def test_saved_loaded_and_run(saved: str, job: dict[str, Any]) -> None:
    block = BatchrouterJob.load(saved)

    run = block.trigger(run_key="by-block")
    run.wait_for_completion()

    check_landed(job)
    assert run.fetch_result()["rows"]["succeeded"] == 60
    assert block.trigger(run_key="by-block").fetch_result() == run.fetch_result()


async def _run(block: BatchrouterJob) -> dict[str, Any]:
    run = await block.atrigger(run_key="by-block")
    await run.await_for_completion()
    return await run.afetch_result()


def test_the_async_twins(saved: str, job: dict[str, Any]) -> None:
    import asyncio

    receipt = asyncio.run(_run(BatchrouterJob.load(saved)))

    check_landed(job)
    assert receipt["run_key"] == "by-block"


def test_a_wait_has_a_bound(saved: str) -> None:
    run = BatchrouterJob.load(saved).trigger(run_key="by-block")

    with pytest.raises(WaitTimeoutError, match="trigger the same run key"):
        run.wait_for_completion(timeout_s=0)


def test_loaded_by_slug_without_importing_the_package(saved: str) -> None:
    assert isinstance(Block.load(f"batchrouter-job/{saved}"), BatchrouterJob)


def test_a_job_block_as_the_job_of_a_flow(saved: str, job: dict[str, Any]) -> None:
    receipt = prefect_batchrouter.run_batch_job(BatchrouterJob.load(saved))

    check_landed(job)
    assert receipt["rows"]["succeeded"] == 60


def test_secrets_are_in_no_repr(router: RunningRouter) -> None:
    block = BatchrouterCredentials(
        base_url=router.base_url,
        api_key=router.api_key,
        webhook_secret="whsec_not_seen",
        storage_options={"key": "not-seen-either"},
    )

    told = f"{block!r} {block} {block.model_dump_json()} {block.settings()!r}"

    assert router.api_key not in told
    assert "not_seen" not in told
    assert "not-seen-either" not in told


def test_settings_follow_the_block() -> None:
    block = BatchrouterCredentials(
        base_url="https://router.example",
        api_key="bk_live_1",
        runs_url="s3://lake/_runs",
        storage_options={"anon": True},
        max_run_usd="5",
    )

    settings = block.settings(max_run_usd="7")

    assert settings.base_url == "https://router.example"
    assert settings.runs_url == "s3://lake/_runs"
    assert settings.storage_options == {"anon": True}
    assert str(settings.max_run_usd) == "5"
    assert str(block.settings(max_run_usd="3").max_run_usd) == "3"
    assert block.settings(runs_url="elsewhere").runs_url == "elsewhere"


def test_a_wrong_value_names_its_field() -> None:
    block = BatchrouterCredentials(base_url="http://router.example", api_key="bk_live_1")

    with pytest.raises(ConfigError, match=r"base_url: http:// would send the key in clear"):
        block.get_client()


def test_no_base_class_is_registered_as_a_block_type() -> None:
    # What `prefect block register -m` looks at: a parametrised `JobBlock[...]` would be one too.
    blocks = [
        each
        for each in vars(prefect_batchrouter).values()
        if isinstance(each, type) and issubclass(each, Block)
    ]

    assert {each.get_block_type_slug() for each in blocks} == {
        "batchrouter-credentials",
        "batchrouter-job",
    }

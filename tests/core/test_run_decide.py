"""The state machine alone: events in, the next step out; no storage, no network."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from batchrouter.errors import ConfigError
from batchrouter.run import events
from batchrouter.run.decide import RetryRounds, Step, decide, has_rest
from batchrouter.run.events import Entry, Fact
from batchrouter.run.identity import RunIdentity
from batchrouter.run.receipt import receipt_of
from batchrouter.run.state import RunState

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def after(*facts: Fact) -> RunState:
    state = RunState()
    for number, fact in enumerate(facts, start=1):
        state.apply(Entry(number=number, at=NOW + timedelta(seconds=number), fact=fact))
    return state


def opened() -> events.Opened:
    return events.Opened(
        job_name="label", run_key="k", fingerprint={"request": "a"}, package_version="0"
    )


def built(*item_counts: int, generation: int = 0) -> events.Built:
    parts = [{"index": i, "item_count": count} for i, count in enumerate(item_counts)]
    return events.Built(generation=generation, manifest={"parts": parts, "row_count": 9})


def intended(part: int = 0, usd: str = "2.00") -> events.Intended:
    return events.Intended(
        generation=0,
        part=part,
        key=f"key-{part}",
        body={"quote_id": "q", "metadata": {}},
        quote_id=f"q{part}",
        quoted_usd=Decimal(usd),
        clock_offset_s=0.0,
        account="me",
    )


def bought(part: int = 0, usd: str = "2.00") -> events.Bought:
    return events.Bought(
        generation=0,
        part=part,
        batch_id=f"batch_{part}",
        quoted_usd=Decimal(usd),
        how="accepted",
    )


def ended(part: int = 0, **changes: Any) -> events.Ended:
    told: dict[str, Any] = {
        "batch_id": f"batch_{part}",
        "state": "succeeded",
        "completed": 3,
        "failed": 0,
        "settled_usd": Decimal("1.50"),
    }
    return events.Ended(**(told | changes))


def collected(part: int = 0) -> events.Collected:
    return events.Collected(batch_id=f"batch_{part}", artifact_name="a.jsonl", bytes=1, sha256="x")


def landed() -> events.Landed:
    return events.Landed(
        generation=0, report={"rows": 9, "succeeded": 9, "location": "table/x.parquet"}
    )


def test_a_run_goes_from_build_to_finished() -> None:
    facts: list[Fact] = [opened()]
    steps = [decide(after(*facts))]
    for fact in (built(3), intended(), bought(), ended(), collected(), landed()):
        facts.append(fact)
        steps.append(decide(after(*facts)))

    assert steps == [
        Step.BUILD,
        Step.BUY,
        Step.SETTLE,
        Step.WATCH,
        Step.COLLECT,
        Step.LAND,
        Step.FINISHED,
    ]


def test_an_open_intent_comes_before_every_other_purchase() -> None:
    assert decide(after(opened(), built(3, 3), intended(part=1))) is Step.SETTLE


def test_a_refused_intent_is_bought_with_a_fresh_quote() -> None:
    refused = events.Refused(generation=0, part=0, quote_id="q0", code="quote_lock_expired")

    state = after(opened(), built(3), intended(), refused)

    assert decide(state) is Step.BUY
    assert state.committed_usd == 0


def test_an_empty_table_is_landed_without_a_purchase() -> None:
    assert decide(after(opened(), built(0))) is Step.LAND


def test_after_a_cancel_nothing_is_bought_and_what_came_is_landed() -> None:
    cancel = events.CancelAsked(reason="asked")
    facts: list[Fact] = [opened(), built(3, 3), intended(), bought(), cancel]

    assert decide(after(*facts)) is Step.WATCH

    facts.append(ended(state="cancelled", completed=1))
    assert decide(after(*facts)) is Step.COLLECT
    assert decide(after(*facts, collected())) is Step.LAND


def test_a_cancel_before_any_purchase_gives_up() -> None:
    cancel = events.CancelAsked(reason="asked")

    assert decide(after(opened(), cancel)) is Step.GIVE_UP
    assert decide(after(opened(), built(3), cancel)) is Step.GIVE_UP


def test_a_batch_without_results_gives_up_and_leaves_the_table_alone() -> None:
    failed = ended(state="failed", completed=0, failed=3)

    assert decide(after(opened(), built(3), intended(), bought(), failed)) is Step.GIVE_UP


def test_committed_is_settled_of_what_ended_and_quoted_of_what_is_open() -> None:
    state = after(
        opened(), built(3, 3, 3), intended(0), bought(0), ended(0), intended(1), bought(1),
        intended(2, usd="7.00"),
    )  # fmt: skip

    assert state.committed_usd == Decimal("1.50") + Decimal("2.00") + Decimal("7.00")


def test_an_abandoned_intent_still_counts_after_a_rebuy() -> None:
    again = events.GenerationOpened(generation=1, fingerprint={}, reason="asked")

    state = after(opened(), built(3), intended(usd="7.00"), again)

    assert decide(state) is Step.BUILD
    assert state.committed_usd == Decimal("7.00")


def test_events_of_an_older_generation_change_nothing() -> None:
    again = events.GenerationOpened(generation=1, fingerprint={}, reason="asked")

    assert decide(after(opened(), built(3), again, built(3), landed())) is Step.BUILD


def test_the_receipt_is_small_and_adds_up() -> None:
    facts = (opened(), built(3), intended(), bought(), ended(), collected(), landed())

    receipt = receipt_of(after(*facts), job_name="label", budget_usd=Decimal(5))

    assert receipt.quoted_usd == Decimal("2.00")
    assert receipt.settled_usd == Decimal("1.50")
    assert receipt.outcome == "landed"
    assert sum(receipt.rows.values()) == receipt.row_count
    assert receipt.to_dict()["settled_usd"] == "1.50"


def test_the_receipt_of_a_cancel_between_two_purchases_is_partial() -> None:
    cancel = events.CancelAsked(reason="asked")
    facts = (opened(), built(3, 3), intended(), bought(), cancel, ended(), collected(), landed())

    assert receipt_of(after(*facts), job_name="label", budget_usd=None).outcome == "partial"


def test_a_lane_that_cost_nothing_is_written_as_money() -> None:
    lane = events.LaneOutcome(
        provider="p", model="m", items=3, completed=0, failed=3, settled_usd=Decimal(0)
    )
    end = ended(settled_usd=Decimal(0), lanes=(lane,))
    facts = (opened(), built(3), intended(), bought(), end, collected(), landed())

    receipt = receipt_of(after(*facts), job_name="label", budget_usd=None).to_dict()

    assert json.loads(json.dumps(receipt)) == receipt
    assert (receipt["settled_usd"], receipt["lanes"][0]["settled_usd"]) == ("0.00", "0.00")


def test_a_receipt_stays_under_2_kb_whatever_the_names() -> None:
    lanes = tuple(
        events.LaneOutcome(
            provider=f"simulated-provider-{nth}", model="a-model-with-a-long-name-2026-11-22",
            items=10**7, completed=10**7, failed=0, settled_usd=Decimal("123.123456789012"),
        )
        for nth in range(8)
    )  # fmt: skip
    report = {
        "rows": 9,
        "succeeded": 9,
        "location": "s3://lake/" + "folder/" * 100,
        "error_codes": {f"a_rather_long_error_code_{nth}": 10**6 for nth in range(8)},
    }
    facts = (
        opened().model_copy(update={"run_key": "Schlüssel" * 200}),
        built(*[3] * 9),
        *(fact for part in range(9) for fact in (intended(part), bought(part))),
        *(ended(part, lanes=lanes) for part in range(9)),
        events.Landed(generation=0, report=report),
    )

    receipt = receipt_of(after(*facts), job_name="label", budget_usd=None).to_dict()

    assert len(json.dumps(receipt)) <= 2000
    assert receipt["batch_count"] == 9
    assert receipt["batch_ids"]


def test_an_intent_that_a_person_gave_up_leaves_the_settled_sum_open() -> None:
    again = events.GenerationOpened(generation=1, fingerprint={}, reason="asked")
    second = events.Landed(generation=1, report={"rows": 0, "location": "t"})
    facts = (opened(), built(3), intended(usd="7.00"), again, built(0, generation=1), second)

    receipt = receipt_of(after(*facts), job_name="label", budget_usd=None)

    assert (receipt.quoted_usd, receipt.settled_usd) == (Decimal("7.00"), None)


def test_a_batch_whose_output_the_api_does_not_give_does_not_hold_up_the_others() -> None:
    nothing = events.Collected(batch_id="batch_1", artifact_name=None, bytes=0, sha256="")
    facts: list[Fact] = [
        opened(), built(3, 3), intended(0), bought(0), intended(1), bought(1),
        ended(0), ended(1, state="cancelled", completed=2), collected(0), nothing,
    ]  # fmt: skip

    assert decide(after(*facts)) is Step.LAND


def test_metadata_stays_inside_the_apis_limits_and_tells_long_run_keys_apart() -> None:
    def metadata(run_key: str) -> dict[str, str]:
        me = RunIdentity("ns", "job", run_key)
        return me.metadata(generation=0, part=0, manifest_sha256="a" * 64, route="1:" + "b" * 64)

    one, other = metadata("x" * 5000 + "1"), metadata("x" * 5000 + "2")

    assert len(one) <= 16
    assert max(map(len, one)) <= 64
    assert max(map(len, one.values())) <= 512
    assert one["batchrouter_run_key"] != other["batchrouter_run_key"]
    assert metadata("Lauf/ÄÖ 日本")["batchrouter_run_key"] == "Lauf/ÄÖ 日本"


@pytest.mark.parametrize("run_key", ["", "  ", "half \ud83d"])
def test_a_run_key_that_names_nothing_is_refused(run_key: str) -> None:
    with pytest.raises(ConfigError, match="run_key"):
        RunIdentity("ns", "job", run_key)


def test_the_same_identity_buys_under_the_same_key_and_any_other_under_another() -> None:
    me = RunIdentity("ns", "job", "key")

    keys = {
        identity.idempotency_key(generation=generation, part=part)
        for identity in (me, RunIdentity("ns", "jobk", "ey"), RunIdentity("nsj", "ob", "key"))
        for generation in (0, 1)
        for part in (0, 1)
    }

    assert len(keys) == 12
    assert RunIdentity("ns", "job", "key").idempotency_key(generation=0, part=0) in keys
    assert all(8 <= len(key) <= 128 for key in keys)


def round_built(*item_counts: int, number: int = 1, generation: int = 0) -> events.RoundBuilt:
    parts = [{"index": i, "item_count": count} for i, count in enumerate(item_counts)]
    return events.RoundBuilt(generation=generation, round=number, manifest={"parts": parts})


def of_round(number: int, fact: Any, generation: int = 0) -> Any:
    changes = {"round": number, "generation": generation}
    if isinstance(fact, events.Bought):
        changes["batch_id"] = f"again_{number}"
    return fact.model_copy(update=changes)


WHOLE: list[Fact] = [opened(), built(3), intended(), bought(), ended(), collected()]


def test_a_round_is_due_when_all_has_ended_and_the_job_allows_one() -> None:
    assert decide(after(*WHOLE[:4]), RetryRounds(1)) is Step.WATCH
    assert decide(after(*WHOLE), RetryRounds(1)) is Step.RESEND
    assert decide(after(*WHOLE), RetryRounds(invalid=1)) is Step.RESEND
    assert decide(after(*WHOLE)) is Step.LAND


def test_a_round_goes_the_way_of_the_first_purchase() -> None:
    facts = [*WHOLE, round_built(2)]
    steps = [decide(after(*facts), RetryRounds(1))]
    for fact in (
        of_round(1, intended(usd="0.50")),
        of_round(1, bought(usd="0.50")),
        ended().model_copy(update={"batch_id": "again_1", "settled_usd": Decimal("0.25")}),
        collected().model_copy(update={"batch_id": "again_1"}),
    ):
        facts.append(fact)
        steps.append(decide(after(*facts), RetryRounds(1)))

    assert steps == [Step.BUY, Step.SETTLE, Step.WATCH, Step.COLLECT, Step.LAND]
    assert after(*facts).committed_usd == Decimal("1.75")
    assert decide(after(*facts), RetryRounds(2)) is Step.RESEND


def test_what_was_said_of_an_earlier_round_touches_no_later_one() -> None:
    late = of_round(0, intended())

    assert after(*WHOLE, round_built(2), late).open_intents == []


@pytest.mark.parametrize("state", ["cancelled", "expired"])
def test_a_batch_that_was_cut_short_has_a_rest_and_no_round(state: str) -> None:
    cut = ended(state=state, completed=1)
    told = after(*WHOLE[:4], cut, collected())

    assert decide(told, RetryRounds(3)) is Step.LAND
    assert has_rest(told)
    assert not has_rest(after(*WHOLE))
    assert not has_rest(after(*WHOLE[:4], ended(state=state, completed=0)))


def test_a_batch_in_which_all_failed_is_sent_again() -> None:
    told = after(*WHOLE[:4], ended(state="failed", completed=0, failed=3))

    assert decide(told, RetryRounds(1)) is Step.RESEND
    assert decide(told) is Step.GIVE_UP


@pytest.mark.parametrize(
    "fact",
    [
        events.CancelAsked(reason="asked"),
        events.Stopped(generation=0, reason="too much"),
        events.RoundsEnded(generation=0, round=0, code="over_budget", reason="too much"),
        events.Removed(generation=0, parts=("manifest",), reason="retain"),
    ],
)
def test_nothing_is_sent_again_after(fact: Fact) -> None:
    assert decide(after(*WHOLE, fact), RetryRounds(3)) is Step.LAND


def test_a_round_that_is_given_up_is_not_bought() -> None:
    over = events.RoundsEnded(generation=0, round=1, code="over_budget", reason="too much")

    assert decide(after(*WHOLE, round_built(2), over), RetryRounds(3)) is Step.LAND


def test_a_demand_for_the_rest_keeps_what_came_and_begins_a_round() -> None:
    again = events.GenerationOpened(
        generation=1, fingerprint={"request": "a"}, reason="asked", continues=True
    )
    cut = ended(state="cancelled", completed=1)
    told = after(*WHOLE[:4], cut, collected(), landed(), again)

    assert decide(told) is Step.RESEND
    assert (told.landed, len(told.current), told.committed_usd) == (None, 1, Decimal("1.50"))
    assert told.manifest is not None
    told = after(
        *WHOLE[:4], cut, collected(), landed(), again, round_built(2, generation=1),
    )  # fmt: skip
    assert decide(told) is Step.BUY

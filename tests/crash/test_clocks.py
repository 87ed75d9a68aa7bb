"""Clocks that disagree, quotes that expire on the way, days that pass: bought once all the same.

Each cell: one batch at the router, the account to the micro-dollar, the table of an undisturbed
run.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchrouter.testing import RUN_KILL_POINTS, FaultProxy, RunningRouter, running_router
from crash.clocks import Clock, shifted
from crash.desk import CONFIG, refusal, wait_until
from crash.mistake import mistake
from crash.scenario import ROWS
from crash.scene import CONFIG_FILE, Scene, Store
from crash.test_bad_deliveries import Receiver
from crash.test_kill_matrix import STORY_OF, Stage, prepared
from crash.test_kill_matrix import check as check_story

DAY_S = 86_400.0
QUOTE_S = 120.0
"""More than a quote lives here."""

ON_THE_WAY = tuple(point for point in RUN_KILL_POINTS if point not in STORY_OF)
"""What a plain run passes."""

QUOTED = (
    "journal.after_quoted",
    "upload.before_send",
    "api.mid_upload",
    "upload.after_send",
    "journal.before_uploaded",
    "journal.after_uploaded",
    "journal.before_intended",
    "journal.after_intended",
    "submit.before_send",
    "submit.after_send",
    "journal.before_bought",
)
"""From the first quote to the purchase."""

IN_PARTS = ("upload.before_send", "journal.before_intended", "submit.before_send")
"""The same for the second of two parts, when the first has passed it."""

INTENDED = ("journal.after_intended", "submit.before_send", "submit.after_send")
"""The purchase is written down: not sent, or sent."""

WAYS = ("paused", "killed")
WEEK_SHORT = {("submit.before_send", "killed"), ("submit.after_send", "paused")}
APART = (("+1h", "-1h"), ("-1h", "+1h"))
"""The clocks of a worker and of its successor, as seen from the router's."""

CONFIG_OF_CLOCKS = {**CONFIG, "retention": {"sweep_every_s": 1}}


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Clock:
    """What the router and its clients go by in this module; it only ever goes forward."""
    return Clock(tmp_path_factory.mktemp("clock") / "now")


@pytest.fixture(scope="module")
def router(clock: Clock, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    folder = tmp_path_factory.mktemp("clocks")
    (folder / CONFIG_FILE).write_text(json.dumps(CONFIG_OF_CLOCKS))
    with running_router(folder / "router", config=CONFIG_OF_CLOCKS, env=clock.env) as running:
        yield running


def scene_of(router: RunningRouter, root: Path, **options: Any) -> Scene:
    # A wait's end is a wall-clock time: it has come when the worker wakes after a week.
    return Scene(root, router, Store("local", str(root)), timeout_s=30 * DAY_S, **options)


def check(scene: Scene, end: Any, *, batches: int = 1) -> None:
    """Bought once, paid as it should be, and landed whole."""
    wait_until(scene.has_settled)
    ledger = scene.ledger()
    assert len(ledger.batches) == batches
    ledger.check()
    assert end["rows"]["succeeded"] == end["row_count"] == ROWS
    table = scene.table()
    assert table is not None
    assert len({row["query_id"] for row in table}) == len(table) == ROWS


def pause(scene: Scene, clock: Clock, point: str, way: str, seconds_s: float) -> Any:
    """Stop or kill it at a point, let time pass for everybody, and go on; returns the end."""
    scene.env = clock.env
    if way == "killed":
        assert scene.begin(BATCHROUTER_KILL_AT=point).died(), point
    else:
        attempt = scene.begin(BATCHROUTER_STOP_AT=point)
        assert attempt.wait_until_stopped(), point
    # What was bought is worked on meanwhile.
    wait_until(scene.has_settled)
    clock.move(seconds_s)
    if way == "killed":
        return scene.end()
    attempt.go_on()
    return attempt.end()


@pytest.mark.parametrize(
    ("point", "way"), [("upload.after_send", "paused"), ("submit.before_send", "killed")]
)
def test_a_quote_expires_on_the_way(
    point: str, way: str, clock: Clock, router: RunningRouter, tmp_path: Path
) -> None:
    scene = scene_of(router, tmp_path)

    check(scene, pause(scene, clock, point, way, QUOTE_S))


@pytest.mark.drill
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("point", QUOTED)
def test_a_quote_expires_at_each_step(
    point: str, way: str, clock: Clock, router: RunningRouter, tmp_path: Path
) -> None:
    scene = scene_of(router, tmp_path)

    check(scene, pause(scene, clock, point, way, QUOTE_S))


@pytest.mark.drill
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("point", IN_PARTS)
def test_the_quote_of_the_second_part_expires(
    point: str, way: str, clock: Clock, router: RunningRouter, tmp_path: Path
) -> None:
    scene = scene_of(router, tmp_path, changes={"parts": {"max_items": ROWS // 2}})

    check(scene, pause(scene, clock, f"{point}:2", way, QUOTE_S), batches=2)


def test_a_day_passes_in_mid_run(clock: Clock, router: RunningRouter, tmp_path: Path) -> None:
    scene = scene_of(router, tmp_path)

    check(scene, pause(scene, clock, "download.before", "paused", DAY_S))


@pytest.mark.drill
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("point", ON_THE_WAY)
def test_a_day_passes_at_each_point(
    point: str, way: str, clock: Clock, router: RunningRouter, tmp_path: Path
) -> None:
    scene = scene_of(router, tmp_path)

    check(scene, pause(scene, clock, point, way, DAY_S))


@pytest.mark.parametrize(
    ("point", "way"),
    [
        pytest.param(point, way, marks=() if (point, way) in WEEK_SHORT else pytest.mark.drill)
        for point in INTENDED
        for way in WAYS
    ],
)
def test_an_intent_is_a_week_old(
    point: str, way: str, clock: Clock, router: RunningRouter, tmp_path: Path
) -> None:
    """The router has forgotten an upload that was not used, and remembers every purchase."""
    scene = scene_of(router, tmp_path)

    check(scene, pause(scene, clock, point, way, 8 * DAY_S))

    told = Counter(fact["type"] for fact in scene.facts())
    is_sent = point == "submit.after_send"
    assert (told["uploaded"], told["refused"]) == ((1, 0) if is_sent else (2, 1))


def test_a_quote_is_forgotten_and_nothing_is_bought(
    clock: Clock, router: RunningRouter, tmp_path: Path
) -> None:
    """After so long no answer proves anything: a person must look."""
    scene = scene_of(router, tmp_path)
    scene.env = clock.env
    assert scene.begin(BATCHROUTER_KILL_AT="submit.before_send").died()
    clock.move(100 * DAY_S)

    attempt = scene.begin()

    assert not attempt.died()
    assert "UnsettledIntentError" in attempt.said
    assert "--rebuy" in attempt.said
    assert scene.ledger().batches == []


def test_a_purchase_is_found_long_after_its_quote_was_forgotten(
    clock: Clock, router: RunningRouter, tmp_path: Path
) -> None:
    """By then its artifact is gone, too: that is said, and nothing is bought again."""
    scene = scene_of(router, tmp_path)
    scene.env = clock.env
    assert scene.begin(BATCHROUTER_KILL_AT="submit.after_send").died()
    wait_until(scene.has_settled)
    clock.move(100 * DAY_S)

    attempt = scene.begin()

    assert not attempt.died()
    assert "LandingError" in attempt.said
    assert "are gone" in attempt.said
    assert "--rebuy" in attempt.said
    assert len(scene.ledger().batches) == 1
    assert [fact["how"] for fact in scene.facts() if fact["type"] == "bought"] == ["listed"]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The kill matrix, on a router whose clock is right."""
    folder = tmp_path_factory.mktemp("skew")
    (folder / CONFIG_FILE).write_text(json.dumps(CONFIG))
    with running_router(folder / "router", config=CONFIG) as running:
        yield Stage(running, tmp_path_factory.mktemp("scenes"))


def play_apart(point: str, first: str, then: str, stage: Stage) -> None:
    story = STORY_OF.get(point, "whole")
    scene = stage.scene(story, Store("local", str(stage.root)))
    with prepared(scene, story):
        scene.env = shifted(first)
        assert scene.begin(BATCHROUTER_KILL_AT=point).died(), point
        scene.env = shifted(then)
        end = scene.end()
        wait_until(scene.has_settled)
    check_story(scene, story, end, stage)


@pytest.mark.parametrize(("first", "then"), APART)
def test_clocks_are_an_hour_apart(first: str, then: str, stage: Stage) -> None:
    play_apart("submit.after_send", first, then, stage)


@pytest.mark.drill
@pytest.mark.parametrize(("first", "then"), APART)
@pytest.mark.parametrize("point", RUN_KILL_POINTS)
def test_clocks_are_an_hour_apart_at_each_point(
    point: str, first: str, then: str, stage: Stage
) -> None:
    play_apart(point, first, then, stage)


@pytest.mark.parametrize(("first", "then"), APART)
@pytest.mark.parametrize(
    "point", ["submit.after_send", pytest.param("journal.after_bought", marks=pytest.mark.drill)]
)
def test_a_young_batch_is_waited_for_whatever_the_clocks_say(
    point: str, first: str, then: str, stage: Stage, tmp_path: Path
) -> None:
    """A replica that lags is told from a batch that is gone by the server's clock."""
    with FaultProxy(stage.router.base_url) as proxy:
        unknown = refusal("batch_not_found")
        proxy.answer("GET", "/v1/batches/batch_*", status=404, body=unknown, times=2)
        scene = scene_of(stage.router, tmp_path, base_url=proxy.base_url)
        scene.env = shifted(first)
        assert scene.begin(BATCHROUTER_KILL_AT=point).died()
        scene.env = shifted(then)

        check(scene, scene.end())


@pytest.mark.parametrize("by_s", [pytest.param(3600, marks=pytest.mark.drill), -3600])
def test_the_routers_clock_is_set_in_mid_batch(by_s: float, tmp_path: Path) -> None:
    clock = Clock(tmp_path / "now")
    (tmp_path / CONFIG_FILE).write_text(json.dumps(CONFIG))
    with running_router(tmp_path / "router", config=CONFIG, env=clock.env) as router:
        scene = scene_of(router, tmp_path, model="slow")
        attempt = scene.begin()
        wait_until(lambda: bool(scene.ledger().batches))
        clock.move(by_s)

        check(scene, attempt.end())


@pytest.mark.parametrize("by", ["+1h", pytest.param("-1h", marks=pytest.mark.drill)])
def test_a_receiver_whose_clock_is_off_is_not_waited_for(
    by: str, stage: Stage, tmp_path: Path
) -> None:
    """It takes every event for a replay, and the run ends by polling."""
    receiver = Receiver(tmp_path, env=shifted(by))
    try:
        bad = mistake(tmp_path / f"job{by}", stage.router)
        bad.job["route"] = {"models": ["quick"]}
        receipt = bad.succeeds(
            BATCHROUTER_INBOX_URL=receiver.inbox_url,
            BATCHROUTER_WEBHOOK_URL=receiver.url,
            BATCHROUTER_WEBHOOK_SECRET=receiver.secret,
        )
    finally:
        told = receiver.stop()

    assert receipt["rows"]["succeeded"] == receipt["row_count"]
    assert receiver.events == []
    assert "clock that is wrong" in told

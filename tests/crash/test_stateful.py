"""Random lives of runs beside one router: whatever happens in whatever order, the promise holds.

Jobs of random sizes, prices and failing lanes are carried on step by step in processes that die
at kill points; replies are lost, cut and refused; runs are cancelled, bought anew, landed again,
driven by two processes at once; the router dies and comes back. After every step, from the
router's own books: no part of a generation was bought twice, no generation that nobody asked
for, no round beyond those of the job, nothing above its quote, no run above its budget, and all
credits add up to the micro-dollar. In the end every run is carried home, and its table has each
row of its source once.
"""

import json
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine, create_engine, text

from batchrouter.server.serve import mint_key
from batchrouter.testing import RUN_KILL_POINTS, FaultProxy, RunningRouter, running_router
from crash.desk import CONFIG, lane, refusal, wait_until

MICRO = 10**6
INITIAL_USD = 100
CONFIG_OF_MACHINE = {
    **CONFIG,
    # What was sent under a quote, and not answered, is settled when the quote is over.
    "limits": {**CONFIG["limits"], "quote_s": 20},
    "credits": {"initial_usd": str(INITIAL_USD)},
    "lanes": [
        lane("quick"),
        lane("half", failure_rate=0.5),
        lane("slow", latency_s=0.4),
        lane("refusing", failure_rate=1.0),
    ],
}
MODELS = ("quick", "half", "slow", "refusing")
BUDGETS = {"ample": "5.00", "none to speak of": "0.000001"}

ENDED = frozenset({"run_cancelled", "budget_exceeded", "batch_failed"})
"""How a run may end without a table."""

ENDPOINTS = (
    ("POST", "/v1/quotes/model"),
    ("POST", "/v1/batches/input-manifests"),
    ("POST", "/v1/batches"),
    ("GET", "/v1/batches"),
)
FAULTS = ("drop_reply", "reset", "truncate", "duplicate", "500", "429")
STEPS_AT_LEAST = 10_000


@dataclass
class Life:
    """One run, and what has been asked of it."""

    job: dict[str, Any]
    run_key: str
    rows: int
    rebuys: int = 0
    most_usd: Decimal = Decimal(0)
    is_cancelled: bool = False
    receipt: dict[str, Any] | None = None
    trace: list[str] = field(default_factory=list[str])


class Stage:
    """What all machines share: a router, a proxy before it, and a performer of steps."""

    def __init__(self, root: Path, router: RunningRouter, proxy: FaultProxy) -> None:
        self.root, self.router, self.proxy = root, router, proxy
        self.books: Engine = create_engine(f"sqlite:///{router.data_dir / 'router.db'}")
        self.steps = 0
        self._performer = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("performer.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def perform(self, *steps: dict[str, Any]) -> list[dict[str, Any]]:
        assert self._performer.stdin is not None
        assert self._performer.stdout is not None
        self._performer.stdin.write(json.dumps(steps) + "\n")
        self._performer.stdin.flush()
        self.steps += len(steps)
        answer = self._performer.stdout.readline()
        assert answer, "the performer is gone"
        return json.loads(answer)

    def close(self) -> None:
        self.books.dispose()
        self._performer.kill()
        self._performer.wait(10)
        for pipe in (self._performer.stdin, self._performer.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    root = tmp_path_factory.mktemp("stateful")
    (root / "router.json").write_text(json.dumps(CONFIG_OF_MACHINE))
    with (
        running_router(root / "router", config=CONFIG_OF_MACHINE) as router,
        FaultProxy(router.base_url) as proxy,
    ):
        stage = Stage(root, router, proxy)
        yield stage
        stage.close()


class Lives(RuleBasedStateMachine):
    """Runs of one workspace; each example has a workspace of its own."""

    stage: ClassVar[Stage]

    def __init__(self) -> None:
        super().__init__()
        self.workspace = uuid.uuid4().hex
        self.root = self.stage.root / self.workspace
        self.root.mkdir()
        self.api_key = mint_key(
            self.stage.router.data_dir,
            ("quote", "submit", "read", "cancel"),
            workspace=self.workspace,
            config_path=self.stage.root / "router.json",
        )
        self.lives: list[Life] = []

    @precondition(lambda self: len(self.lives) < 3)
    @rule(
        rows=st.integers(1, 9),
        model=st.sampled_from(MODELS),
        budget=st.sampled_from(["ample", "ample", "none to speak of"]),
        per_part=st.sampled_from([None, None, 2, 4]),
        rounds=st.sampled_from([0, 0, 1, 2]),
    )
    def begin(self, rows: int, model: str, budget: str, per_part: int | None, rounds: int) -> None:
        run_key = f"run-{len(self.lives)}"
        source = self.root / f"{run_key}.parquet"
        columns = {"id": list(range(rows)), "text": [f"card number {row}" for row in range(rows)]}
        pq.write_table(pa.table(columns), source)
        job: dict[str, Any] = {
            "name": "label",
            "source": str(source),
            "key": "id",
            "request": {"kind": "chat", "user": "{text}", "parameters": {"max_output_tokens": 8}},
            "route": {"models": [model]},
            "budget": BUDGETS[budget],
            "sink": str(self.root / f"{run_key}-table"),
            "retry_failed": rounds,
        }
        if per_part:
            job["parts"] = {"max_items": per_part}
        self.lives.append(Life(job, run_key, rows, most_usd=Decimal(BUDGETS[budget])))

    @precondition(lambda self: self.lives)
    @rule(
        which=st.integers(0, 2),
        do=st.sampled_from(["advance", "advance", "advance", "build", "quote", "submit"]),
        die_at=st.none() | st.sampled_from(RUN_KILL_POINTS),
        nth=st.integers(1, 2),
    )
    def go_on(self, which: int, do: str, die_at: str | None, nth: int) -> None:
        life = self._life(which)
        self._perform(life, self._step(life, do, die_at, nth))

    @precondition(lambda self: self.lives)
    @rule(
        which=st.integers(0, 2),
        endpoint=st.sampled_from(ENDPOINTS),
        fault=st.sampled_from(FAULTS),
        nth=st.integers(1, 2),
        times=st.integers(1, 3),
    )
    def go_on_over_a_bad_network(
        self, which: int, endpoint: tuple[str, str], fault: str, nth: int, times: int
    ) -> None:
        proxy = self.stage.proxy
        match fault:
            case "500" | "429":
                status = int(fault)
                proxy.answer(*endpoint, status=status, body=refusal("upset"), nth=nth, times=times)
            case "truncate":
                proxy.truncate(*endpoint, after_bytes=40, nth=nth, times=times)
            case _:
                getattr(proxy, fault)(*endpoint, nth=nth, times=times)
        life = self._life(which)
        self._perform(life, self._step(life, "advance"))
        proxy.forget_rules()

    @precondition(lambda self: self.lives)
    @rule(
        which=st.integers(0, 2),
        one=st.none() | st.sampled_from(RUN_KILL_POINTS),
        other=st.sampled_from(["advance", "advance", "cancel", "rebuy", "land again"]),
    )
    def go_on_twice_at_once(self, which: int, one: str | None, other: str) -> None:
        life = self._life(which)
        self._perform(life, self._step(life, "advance", one), self._step(life, other))

    @precondition(lambda self: self.lives)
    @rule(which=st.integers(0, 2), die_at=st.none() | st.sampled_from(RUN_KILL_POINTS))
    def cancel(self, which: int, die_at: str | None) -> None:
        life = self._life(which)
        self._perform(life, self._step(life, "cancel", die_at))

    @precondition(lambda self: self.lives)
    @rule(which=st.integers(0, 2), die_at=st.none() | st.sampled_from(RUN_KILL_POINTS))
    def buy_anew(self, which: int, die_at: str | None) -> None:
        life = self._life(which)
        self._perform(life, self._step(life, "rebuy", die_at))

    @precondition(lambda self: self.lives)
    @rule(which=st.integers(0, 2), die_at=st.none() | st.sampled_from(RUN_KILL_POINTS))
    def land_again(self, which: int, die_at: str | None) -> None:
        life = self._life(which)
        self._perform(life, self._step(life, "land again", die_at))

    @precondition(lambda self: self.lives)
    @rule(which=st.integers(0, 2), budget=st.sampled_from(sorted(BUDGETS)))
    def change_the_budget(self, which: int, budget: str) -> None:
        life = self._life(which)
        life.job["budget"] = BUDGETS[budget]
        life.most_usd = max(life.most_usd, Decimal(BUDGETS[budget]))

    @precondition(lambda self: self.lives)
    @rule()
    def wait(self) -> None:
        wait_until(lambda: all(batch["completed_at"] for batch in self._batches()), within_s=60)

    @precondition(lambda self: self.lives)
    @rule(chance=st.integers(0, 9))
    def the_router_dies(self, chance: int) -> None:
        if chance == 0:
            self.stage.router.kill()
            self.stage.router.start()

    @invariant()
    def nothing_was_bought_twice(self) -> None:
        bought = Counter(
            (
                named["batchrouter_run_key"],
                named["batchrouter_generation"],
                named.get("batchrouter_round", "0"),
                named["batchrouter_part"],
            )
            for named in (json.loads(batch["metadata"]) for batch in self._batches())
        )
        assert all(count == 1 for count in bought.values()), self._told(bought)
        for life in self.lives:
            mine = [each for each in bought if each[0] == life.run_key]
            assert max((int(gen) for _, gen, _, _ in mine), default=0) <= life.rebuys, self._told(
                bought
            )
            rounds = max((int(nth) for _, _, nth, _ in mine), default=0)
            assert rounds <= life.job["retry_failed"], self._told(bought)

    @invariant()
    def the_books_add_up(self) -> None:
        with self.stage.books.connect() as conn:
            conn.exec_driver_sql("BEGIN")  # one snapshot: batches settle meanwhile
            account = conn.execute(
                text("select * from workspaces where name = :name"), {"name": self.workspace}
            ).one()
            batches = self._batches(conn)
        charged = [
            batch["charged_micro"] for batch in batches if batch["charged_micro"] is not None
        ]
        still = [batch["quoted_total_micro"] for batch in batches if batch["charged_micro"] is None]
        assert account.spent_micro == sum(charged)
        assert account.reserved_micro == sum(still)
        assert (
            account.balance_micro + account.reserved_micro + account.spent_micro
            == INITIAL_USD * MICRO
        )
        for batch in batches:
            assert (batch["charged_micro"] or 0) <= batch["quoted_total_micro"]
        for life in self.lives:
            committed = sum(
                batch["quoted_total_micro"]
                if batch["charged_micro"] is None
                else batch["charged_micro"]
                for batch in batches
                if json.loads(batch["metadata"])["batchrouter_run_key"] == life.run_key
            )
            assert committed <= life.most_usd * MICRO, self._told(committed)

    def teardown(self) -> None:
        self.stage.proxy.forget_rules()
        for life in self.lives:
            self._carry_home(life)
        wait_until(lambda: all(batch["completed_at"] for batch in self._batches()), within_s=60)
        self.nothing_was_bought_twice()
        self.the_books_add_up()

    def _carry_home(self, life: Life) -> None:
        [said] = self._perform(life, self._step(life, "execute"))
        table = Path(life.job["sink"])
        if receipt := said.get("receipt"):
            landed = ds.dataset(table, format="parquet").to_table().to_pylist()
            assert sorted(row["id"] for row in landed) == list(range(life.rows)), self._told(
                receipt
            )
            counts = Counter(row["_status"] for row in landed)
            assert counts == +Counter(receipt["rows"]), self._told(receipt)
            assert receipt["row_count"] == life.rows
            if life.job["route"]["models"] == ["quick"] and not life.is_cancelled:
                assert counts == {"succeeded": life.rows}, self._told(receipt)
            return
        assert said["error"] in ENDED, self._told(said)
        is_asked_for = life.is_cancelled or Decimal(life.job["budget"]) < 1
        assert is_asked_for or life.job["route"]["models"] == ["refusing"], self._told(said)

    def _life(self, which: int) -> Life:
        return self.lives[which % len(self.lives)]

    def _step(self, life: Life, do: str, die_at: str | None = None, nth: int = 1) -> dict[str, Any]:
        life.rebuys += do == "rebuy"
        life.is_cancelled = life.is_cancelled or do == "cancel"
        config = {
            "base_url": self.stage.proxy.base_url,
            "api_key": self.api_key,
            "runs_url": str(self.root / "runs"),
            "namespace": self.workspace,
            "max_attempts": 2,
            "retry_wait_s": 0.01,
            "poll_interval_s": 0.1,
        }
        step = {"do": do, "job": life.job, "run_key": life.run_key, "settings": config}
        return {**step, "die_at": die_at, "nth": nth} if die_at else step

    def _perform(self, life: Life, *steps: dict[str, Any]) -> list[dict[str, Any]]:
        said = self.stage.perform(*steps)
        for step, answer in zip(steps, said, strict=True):
            told = {k: v for k, v in answer.items() if k != "receipt"}
            life.trace.append(f"{step['do']} {step.get('die_at', '')} -> {told}")
            assert "crash" not in answer, self._told(answer["crash"])
        return said

    def _batches(self, conn: Any = None) -> list[Any]:
        query = text(
            "select * from batches where workspace_id ="
            " (select id from workspaces where name = :name)"
        )
        if conn is not None:
            return [row._mapping for row in conn.execute(query, {"name": self.workspace})]
        with self.stage.books.connect() as own:
            return [row._mapping for row in own.execute(query, {"name": self.workspace})]

    def _told(self, what: Any) -> str:
        lives = [
            [life.run_key, life.job["route"], life.job["budget"], *life.trace]
            for life in self.lives
        ]
        return f"{what}\n{json.dumps(lives, indent=1)}\n{self.root}"


def live(stage: Stage, *, examples: int, steps: int) -> None:
    Lives.stage = stage
    run_state_machine_as_test(
        Lives,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.timeout(300)
def test_the_promise_holds_in_a_few_lives(stage: Stage) -> None:
    live(stage, examples=6, steps=20)


@pytest.mark.drill
@pytest.mark.timeout(7200)
def test_the_promise_holds_in_ten_thousand_steps(stage: Stage) -> None:
    before = stage.steps
    live(stage, examples=300, steps=50)
    assert stage.steps - before >= STEPS_AT_LEAST

"""What a watcher asks, and what it concludes: the book alone, with no client and no clock."""

from datetime import UTC, datetime, timedelta
from typing import Any

from batchrouter.api.models import Batch, BatchPage
from batchrouter.run.watch_book import ListChanged, Question, ReadInbox, Retrieve, WatchBook
from batchrouter.webhooks.signing import Event

NOW = datetime.now(UTC)


def batch(number: int, state: str = "running", *, age_s: float = 0) -> Batch:
    return Batch.model_validate({
        "id": f"batch_{number}",
        "state": state,
        "counts": {"total": 10, "pending": 0, "running": 10, "completed": 0, "failed": 0},
        "updated_at": (NOW - timedelta(seconds=age_s)).isoformat(),
    })


def page(*batches: Batch, next_cursor: str | None = None) -> BatchPage:
    return BatchPage(
        data=batches,
        has_more=next_cursor is not None,
        next_cursor=next_cursor,
        server_now=NOW,
    )


def event(number: int, kind: str = "batch.completed") -> Event:
    return Event(
        id=f"evt_{number}",
        type=kind,
        created_at=NOW,
        batch_id=f"batch_{number}",
        state="succeeded",
        data={},
    )


def play(book: WatchBook, now_s: float, *answers: Any) -> list[Question]:
    """Drive one cycle; answers beyond those given are an error of the test."""
    cycle, asked, left = book.cycle(now_s), [], list(answers)
    try:
        question = next(cycle)
        while True:
            asked.append(question)
            question = cycle.send(left.pop(0))
    except StopIteration:
        assert not left, "fewer questions than the test has answers for"
        return asked


def polling() -> WatchBook:
    return WatchBook(poll_interval_s=10, has_inbox=False)


def test_a_thousand_waits_cost_one_list_request() -> None:
    book = polling()
    waits = [book.begin([f"batch_{number}"], "poll", 0) for number in range(1000)]

    asked = play(book, 1, page(batch(3, "succeeded"), batch(9, "cancelled")))

    assert [type(question) for question in asked] == [ListChanged]
    assert [number for number, wait in enumerate(waits) if book.is_over(wait)] == [3, 9]


def test_every_page_of_changes_is_read() -> None:
    book = polling()
    wait = book.begin(["batch_7"], "poll", 0)

    asked = play(book, 1, page(batch(1), next_cursor="c1"), page(batch(7, "succeeded")))

    assert [question.after for question in asked if isinstance(question, ListChanged)] == [
        None,
        "c1",
    ]
    assert book.is_over(wait)


def test_the_next_list_starts_at_the_servers_own_time_of_the_last() -> None:
    book = polling()
    book.begin(["batch_1"], "poll", 0)
    play(book, 1, page(batch(1)))

    [question] = play(book, 100, page())

    assert isinstance(question, ListChanged)
    assert NOW - timedelta(seconds=10) < question.updated_after <= NOW


def test_a_server_that_ignores_the_filter_is_not_paged_to_its_beginning() -> None:
    book = polling()
    book.begin(["batch_1"], "poll", 0)
    old = batch(5, "succeeded", age_s=30 * 24 * 3600)

    assert len(play(book, 1, page(old, next_cursor="more"))) == 1


def test_a_batch_that_no_list_shows_is_read_by_its_id_in_the_end() -> None:
    book = polling()
    wait = book.begin(["batch_1"], "poll", 0)
    play(book, 1, page())

    asked = play(book, 700, page(), batch(1, "succeeded"))

    assert asked[1] == Retrieve("batch_1")
    assert book.is_over(wait)


def test_an_event_is_a_hint_and_the_apis_state_decides() -> None:
    book = WatchBook(poll_interval_s=10, has_inbox=True)
    wait = book.begin(["batch_1"], "webhook", 0)

    asked = play(book, 1, ([event(1)], "cursor"), batch(1, "finalizing"))

    assert asked == [ReadInbox(None), Retrieve("batch_1")]
    assert not book.is_over(wait)


def test_webhook_waits_never_poll() -> None:
    book = WatchBook(poll_interval_s=10, has_inbox=True)
    book.begin(["batch_1"], "webhook", 0)

    assert [type(each) for each in play(book, 5000, ([], "c"))] == [ReadInbox]


def test_events_of_other_batches_and_progress_cost_nothing() -> None:
    book = WatchBook(poll_interval_s=10, has_inbox=True)
    book.begin(["batch_1"], "webhook", 0)

    asked = play(book, 1, ([event(2), event(1, "batch.progress")], "c"))

    assert asked == [ReadInbox(None)]


def test_with_an_inbox_polling_is_the_slow_safety_net() -> None:
    fast, slow = polling(), WatchBook(poll_interval_s=10, has_inbox=True)
    polls: dict[str, int] = {}
    for name, book in (("fast", fast), ("slow", slow)):
        book.begin(["batch_1"], "both", 0)
        asked: list[Question] = []
        for second in range(1, 600):
            answers = [([], "c")] if book.has_inbox else []
            cycle = book.cycle(second)
            try:
                question = next(cycle)
                while True:
                    asked.append(question)
                    answer: Any = answers[0] if isinstance(question, ReadInbox) else page(batch(1))
                    question = cycle.send(answer)
            except StopIteration:
                pass
        polls[name] = sum(isinstance(question, ListChanged) for question in asked)

    assert polls["slow"] * 2 < polls["fast"]


def test_what_nobody_waits_for_any_more_is_forgotten() -> None:
    book = polling()
    wait = book.begin(["batch_1"], "poll", 0)
    play(book, 1, page(batch(1, "succeeded")))

    book.end(wait)

    assert not book.known
    assert not book.waits


def test_an_event_that_is_faster_than_its_wait_is_kept_for_it() -> None:
    book = WatchBook(poll_interval_s=10, has_inbox=True)
    book.begin(["batch_1"], "webhook", 0)
    play(book, 1, ([event(2)], "c"))
    late = book.begin(["batch_2"], "webhook", 5)

    asked = play(book, 6, ([], "c"), batch(2, "succeeded"))

    assert asked == [ReadInbox("c"), Retrieve("batch_2")]
    assert book.is_over(late)


def test_a_hint_is_followed_until_the_api_agrees() -> None:
    book = WatchBook(poll_interval_s=10, has_inbox=True)
    wait = book.begin(["batch_1"], "webhook", 0)
    play(book, 1, ([event(1)], "c"), batch(1, "finalizing"))

    assert [type(each) for each in play(book, 1.5, ([], "c"))] == [ReadInbox], "not at once"
    play(book, 3, ([], "c"), batch(1, "succeeded"))

    assert book.is_over(wait)


def test_a_hint_survives_a_look_that_fails() -> None:
    book = WatchBook(poll_interval_s=10, has_inbox=True)
    wait = book.begin(["batch_1"], "webhook", 0)
    cycle = book.cycle(1)
    next(cycle)
    assert cycle.send(([event(1)], "c")) == Retrieve("batch_1")
    cycle.close()  # as when the API does not answer
    book.after_failure(1)

    play(book, 7, ([], "c"), batch(1, "succeeded"))

    assert book.is_over(wait)


def test_a_batch_that_ended_before_its_wait_began_is_in_the_next_list() -> None:
    book = polling()
    book.begin(["batch_1"], "poll", 0)
    play(book, 1, page(batch(1)))
    book.begin(["batch_2"], "poll", 90)

    [question] = play(book, 100, page())

    assert isinstance(question, ListChanged)
    assert question.updated_after < NOW - timedelta(hours=1)


def test_a_folder_of_events_is_listed_once_an_interval() -> None:
    book = WatchBook(poll_interval_s=10, has_inbox=True, inbox_interval_s=10)
    book.begin(["batch_1"], "webhook", 0)

    looks = [play(book, now_s, *[([], "c")] * (now_s in {1, 11})) for now_s in range(1, 21)]

    assert sum(len(asked) for asked in looks) == 2


def test_an_inbox_that_fails_is_left_alone_for_a_moment() -> None:
    book = WatchBook(poll_interval_s=10, has_inbox=True)
    book.begin(["batch_1"], "webhook", 0)
    book.after_failure(1)

    assert play(book, 2) == []

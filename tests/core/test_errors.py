"""The error tree as a whole: every class is documented, listed, coded and crosses processes."""

import pickle
import re

import pytest

from batchrouter import errors
from batchrouter.errors import APIError, BatchrouterError


def _tree(root: type[BatchrouterError] = BatchrouterError) -> list[type[BatchrouterError]]:
    below = [found for child in root.__subclasses__() for found in _tree(child)]
    ours = [found for found in [root, *below] if found.__module__.startswith("batchrouter.")]
    return list(dict.fromkeys(ours))


TREE = _tree()
each_class = pytest.mark.parametrize("cls", TREE, ids=lambda cls: cls.__name__)


def _example(cls: type[BatchrouterError]) -> BatchrouterError:
    if issubclass(cls, APIError):
        return cls(
            "no",
            status=409,
            code="quote_lock_expired",
            details={"batch_id": "batch_1"},
            request_id="req_1",
            retry_after_s=1.5,
        )
    return cls("what was wrong, what to do")


def _drawn_tree() -> dict[str, tuple[str | None, bool]]:
    """Read the module docstring's drawing: name -> (parent, is it marked retryable)."""
    drawn: dict[str, tuple[str | None, bool]] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^(    [│├└─ ]*)([A-Z]\w+Error)\b", line)
        if not found:
            continue
        depth = (len(found[1]) - 4) // 4
        above[depth:] = [found[2]]
        drawn[found[2]] = (above[depth - 1] if depth else None, "[retryable]" in line)
    return drawn


@each_class
def test_has_a_docstring_of_its_own(cls: type[BatchrouterError]) -> None:
    assert cls.__dict__.get("__doc__")


@each_class
def test_survives_the_way_to_another_process(cls: type[BatchrouterError]) -> None:
    error = _example(cls)
    error.note_of_a_caller = 7  # type: ignore[attr-defined]

    back = pickle.loads(pickle.dumps(error))

    assert type(back) is cls
    assert str(back) == str(error)
    assert back.args == error.args
    assert vars(back) == vars(error)


@each_class
def test_stands_in_the_drawing_where_it_stands_in_the_code(cls: type[BatchrouterError]) -> None:
    drawn = _drawn_tree()

    assert cls.__name__ in drawn, "draw it in the docstring of errors.py"
    parent, _ = drawn[cls.__name__]
    if cls is not BatchrouterError:
        assert parent in {base.__name__ for base in cls.__bases__}


@each_class
def test_the_drawing_says_whether_it_is_retryable(cls: type[BatchrouterError]) -> None:
    assert _drawn_tree()[cls.__name__][1] == cls.retryable


@each_class
def test_is_public(cls: type[BatchrouterError]) -> None:
    assert cls.__name__ in errors.__all__
    assert getattr(errors, cls.__name__) is cls


def test_the_drawing_holds_nothing_that_is_not_there() -> None:
    assert set(_drawn_tree()) == {cls.__name__ for cls in TREE}


def test_each_class_has_its_own_code() -> None:
    owners: dict[str, str] = {}
    for cls in TREE:
        assert re.fullmatch(r"[a-z][a-z_]+", cls.code)
        assert owners.setdefault(cls.code, cls.__name__) == cls.__name__


def test_the_servers_code_wins_over_the_classes() -> None:
    error = errors.api_error("gone by", status=409, code="quote_lock_expired", request_id="req_9")

    assert error.code == "quote_lock_expired"
    assert str(error) == "gone by [409 quote_lock_expired] (request req_9)"


@pytest.mark.parametrize("status", [500, 502, 503, 504, 507, 599])
def test_every_server_error_is_a_server_error(status: int) -> None:
    assert type(errors.api_error("broken", status=status)) is errors.ServerError

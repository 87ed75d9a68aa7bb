"""Words in common: how a simulated model tells which label a text is about.

Words are lowercased, split at everything that is neither letter nor digit (so that
``card_arrival`` is two words) and cut to a crude stem. A label's score is the sum of its
matched words, each worth less the more labels share it.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from math import log, sqrt

__all__ = ["LabelChooser", "stems"]

_WORD = re.compile(r"[^\W_]+")
_ENDINGS = ("ing", "ed", "es", "s", "e", "y")
_MIN_STEM = 3

#: Words that say nothing about a topic.
_STOP = frozenset(
    re.findall(
        r"\w+",
        "a an and any are as at be been but by can could did do does for from get got had has have "
        "how i if in is it me my of on or please so that the their them there they this to was we "
        "were what when where which who why will with would you your",
    )
)


@lru_cache(maxsize=65_536)
def _stem(word: str) -> str:
    if word in _STOP:
        return ""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= _MIN_STEM:
            return word[: -len(ending)]
    return word


def stems(text: str) -> list[str]:
    """Return the stems of a text in order, without stop words.

    Example:
        >>> stems("Where is my card_arrival?")
        ['card', 'arrival']
    """
    return [stem for word in _WORD.findall(text.lower()) if (stem := _stem(word))]


class LabelChooser:
    """Chooses the label that has most in common with a text.

    Example:
        >>> LabelChooser(["card_arrival", "exchange_rate"]).best(stems("has my card arrived?"))
        0
    """

    def __init__(self, labels: Sequence[str]) -> None:
        label_stems = [list(dict.fromkeys(stems(label))) for label in labels]
        sharing: dict[str, list[int]] = {}
        for index, words in enumerate(label_stems):
            for word in words:
                sharing.setdefault(word, []).append(index)
        # A word that all labels share still breaks a tie against a label without any match.
        self._votes = {
            word: [
                (index, log(1 + len(labels) / len(owners)) / sqrt(len(label_stems[index])))
                for index in owners
            ]
            for word, owners in sharing.items()
        }

    def best(self, text_stems: Sequence[str]) -> int | None:
        """Return the index of the best label, the first of equals; None without any match."""
        ranked = self.scores(text_stems)
        if not ranked:
            return None
        return min(ranked, key=lambda index: (-ranked[index], index))

    def scores(self, text_stems: Sequence[str]) -> dict[int, float]:
        """Return the scores of the labels that share at least one word with the text."""
        votes = self._votes
        scores: dict[int, float] = {}
        for word in dict.fromkeys(text_stems):
            for index, vote in votes.get(word, ()):
                scores[index] = scores.get(index, 0.0) + vote
        return scores

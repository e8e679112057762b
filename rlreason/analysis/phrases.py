"""Phrases that one body of texts uses more than another: weighted log-odds with an informative prior.

Monroe, Colaresi and Quinn 2008, "Fightin' words: lexical feature selection and evaluation for identifying the content
of political conflict", Political Analysis 16(4). Counted are texts that hold a phrase, not its occurrences: one text
that repeats itself is one witness.

Left out: stemming and stop words. A phrase is tried word by word as it stood, with its capitals and punctuation.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Phrase:
    """1 to 3 words, the z-score of their log-odds, and the number of texts on either side that hold them."""

    text: str
    z: float
    more: int
    less: int


def overused(
    more: Sequence[str], less: Sequence[str], *, count: int, longest: int = 3, least: int = 3, prior: float = 100.0
) -> list[Phrase]:
    """The ``count`` phrases of up to ``longest`` words that texts of ``more`` hold most disproportionately, by z-score;
    only such as ``least`` of them hold, and with a positive z.

    For phrases of each length apart, with y the counts of a phrase, n their sums over phrases, alpha the prior's count
    (``prior`` times the phrase's share in both sides together) and omega = log((y + alpha) / (n + prior - y - alpha)):
    z = (omega_more - omega_less) / sqrt(1 / (y_more + alpha) + 1 / (y_less + alpha)).
    """
    found: list[Phrase] = []
    for length in range(1, longest + 1):
        ours, theirs = _holders(more, length), _holders(less, length)
        total, own, other = ours.total() + theirs.total(), ours.total(), theirs.total()
        for phrase, y in ours.items():
            if y < least:
                continue
            alpha = prior * (y + theirs[phrase]) / total
            rest = [n + prior - y_side - alpha for n, y_side in ((own, y), (other, theirs[phrase]))]
            if min(rest) <= 0:  # the only phrase of its length there is: nothing to compare it with
                continue
            omega = math.log((y + alpha) / rest[0]) - math.log((theirs[phrase] + alpha) / rest[1])
            z = omega / math.sqrt(1 / (y + alpha) + 1 / (theirs[phrase] + alpha))
            if z > 0:
                found.append(Phrase(" ".join(phrase), z, y, theirs[phrase]))
    return sorted(found, key=lambda phrase: (-phrase.z, phrase.text))[:count]


def _holders(texts: Sequence[str], length: int) -> Counter[tuple[str, ...]]:
    """For each phrase of ``length`` words, how many texts hold it."""
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = text.split()
        counts.update({tuple(words[start : start + length]) for start in range(len(words) - length + 1)})
    return counts

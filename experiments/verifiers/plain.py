"""Math-Verify as its documentation uses it, for the scorecard: ``--verifier experiments.verifiers.plain.MathVerify``.

Extraction, comparison and time limits (5 seconds each, by SIGALRM in this process) are the library's own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from math_verify import parse, verify

from envs.verify import Item, Verdict

logging.disable(logging.ERROR)  # it reports each time-out


class MathVerify:
    """``verify(parse(gold), parse(answer))``; a bare answer is put in dollar signs, as the library asks for."""

    def check(self, items: Sequence[Item]) -> list[Verdict]:
        return [self._one(item) for item in items]

    def _one(self, item: Item) -> Verdict:
        answer = parse(item.text if item.whole else f"${item.text}$")
        correct = verify(parse(f"${item.gold}$"), answer)
        return Verdict(bool(correct), "ok" if answer else "unparseable")

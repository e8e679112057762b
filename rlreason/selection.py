"""Rejection sampling: which graded samples of a policy are worth imitating. Pure functions.

A sample is accepted if the verifier says that it is right (Yuan et al. 2023, "Scaling relationship on learning
mathematical reasoning", arXiv:2308.01825; DeepSeek-R1, arXiv:2501.12948, section 2.3.3), and, where a reward model
judges, if its reward is high enough (Llama 2, Touvron et al. 2023, arXiv:2307.09288, section 3.2.3, keeps the best of
each prompt's samples: ``max_per_problem=1``). Of one problem's accepted samples, equal ones count once and only so many
are kept, or easy problems would be most of the data.

Left out: drawing until each problem has its number of right samples (the other half of DART-Math): give hard problems
more samples by running them again with a larger ``num_samples``.
"""

from __future__ import annotations

import math
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlreason.sampler import derived_seed
from rlreason.types import Finish, Message, Status

BALANCES = ("none", "difficulty")


@dataclass(frozen=True)
class Sample:
    """A graded sample as the traces hold it; ``reply`` are the messages after ``prompt``, ``reward`` is None if it was
    not finite, and ``tools`` are the problem's."""

    problem: str
    step: int
    group: int
    sample: int
    prompt: list[Message]
    reply: list[Message]
    reward: float | None
    correct: bool | None
    status: Status
    finish: Finish
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Kept:
    """A sample to imitate; ``pass_rate`` is its problem's share of samples that passed."""

    sample: Sample
    pass_rate: float


@dataclass(frozen=True)
class Selected:
    """What a selection came to. ``passes`` has for each problem that was graded the numbers (graded, passed);
    ``truncated`` counts samples that passed and were left out because the length limit cut them off, ``duplicates``
    accepted ones that repeat another of their problem."""

    kept: list[Kept]
    passes: dict[str, tuple[int, int]]
    accepted: int
    truncated: int
    duplicates: int


@dataclass(frozen=True)
class Selection:
    """The rule. Called with samples, it returns what is kept, problems in their first order.

    A sample *passes* if it is not wrong, and its reward is at least ``min_reward`` where that is given (without a
    verdict it must be given). Those that passed are accepted unless they were cut off: imitating one would teach to
    stop in mid-sentence (``allow_truncated`` takes them all the same). Samples whose grading failed (``error``) count
    nowhere.

    At most ``max_per_problem`` are kept of a problem. With ``balance=difficulty`` a problem of pass rate p keeps at
    most ceil((1 - p) * max_per_problem), and at least one: data that follow difficulty, as DART-Math's Prop2Diff (Tong
    et al. 2024, arXiv:2407.13690). The highest rewards are kept; among equal ones chance decides, by ``seed`` alone.
    """

    max_per_problem: int = 4
    balance: str = "none"
    min_reward: float | None = None
    allow_truncated: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_per_problem < 1:
            raise ValueError(f"selection.max_per_problem is {self.max_per_problem}; it must be at least 1")
        if self.balance not in BALANCES:
            raise ValueError(f"selection.balance is {self.balance!r}; choose {' or '.join(BALANCES)}")

    def __call__(self, samples: Sequence[Sample]) -> Selected:
        problems: dict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            if sample.status != "error":
                problems[sample.problem].append(sample)
        kept: list[Kept] = []
        passes: dict[str, tuple[int, int]] = {}
        accepted = truncated = duplicates = 0
        for problem, graded in problems.items():
            passed = [sample for sample in graded if self.passes(sample)]
            whole = [sample for sample in passed if self.allow_truncated or sample.finish == "stop"]
            distinct: dict[tuple[str, ...], Sample] = {}
            for sample in sorted(whole, key=self._rank):
                distinct.setdefault(_wording(sample), sample)
            passes[problem] = (len(graded), len(passed))
            accepted += len(whole)
            truncated += len(passed) - len(whole)
            duplicates += len(whole) - len(distinct)
            best = [*distinct.values()][: self._quota(len(graded), len(passed))]
            kept += [Kept(sample, len(passed) / len(graded)) for sample in best]
        return Selected(kept, passes, accepted, truncated, duplicates)

    def passes(self, sample: Sample) -> bool:
        """Raises ValueError where neither a verdict nor ``min_reward`` says what is good."""
        if sample.correct is None and self.min_reward is None:
            raise ValueError(
                f"problem {sample.problem} has a reward and no verdict: say from which reward on a sample is good "
                "enough to imitate, by selection.min_reward"
            )
        good = self.min_reward is None or (sample.reward is not None and sample.reward >= self.min_reward)
        return good and sample.correct is not False

    def _quota(self, graded: int, passed: int) -> int:
        if self.balance == "none":
            return self.max_per_problem
        # One division, at the end: in floats (1 - 0.7) * 10 is above 3.
        return max(1, math.ceil((graded - passed) * self.max_per_problem / graded))

    def _rank(self, sample: Sample) -> tuple[float, int]:
        reward = -math.inf if sample.reward is None else sample.reward
        return -reward, derived_seed(self.seed, "keep", sample.problem, sample.group, sample.sample)


def _wording(sample: Sample) -> tuple[str, ...]:
    """The reply, but for case, white space and the ways in which Unicode writes the same letter."""
    texts = (unicodedata.normalize("NFKC", message["content"]) for message in sample.reply)
    return tuple(" ".join(text.casefold().split()) for text in texts)

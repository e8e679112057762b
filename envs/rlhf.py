"""RLHF: the problems of any environment, rewarded by a reward model's score instead of its own verdict.

The inner environment still grades every sample, and its reward is kept as the part ``gold``: proxy and gold are seen
on the same samples, so that over-optimisation shows (Gao et al. 2022, "Scaling laws for reward model
overoptimization", arXiv:2210.10760). ``correct`` stays the inner environment's own.

Left out: scoring anything but whole conversations. A reward model scores what it was trained on, and whoever wants
the thought hidden from it gives a scorer that hides it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, pstdev, pvariance
from typing import Any, Protocol

from envs.formats import checked_weights
from rlreason.types import Env, Episode, Grade, Message, Problem, Scorer, Split

WEIGHED = ("proxy", "gold")
"""The parts of a grade that the reward is a weighted sum of."""


class Combine(Protocol):
    """One number out of the members of an ensemble."""

    def __call__(self, scores: Sequence[float]) -> float:
        """``scores`` are finite, one for each member, at least one."""
        ...


@dataclass(frozen=True)
class Mean:
    """The mean of the members."""

    def __call__(self, scores: Sequence[float]) -> float:
        return fmean(scores)


@dataclass(frozen=True)
class Worst:
    """The least of the members: worst-case optimisation (Coste et al. 2023, arXiv:2310.02743)."""

    def __call__(self, scores: Sequence[float]) -> float:
        return min(scores)


@dataclass(frozen=True)
class VariancePenalised:
    """mean - ``coefficient`` * variance of the members, the variance divided by their number: uncertainty-weighted
    optimisation (Coste et al. 2023, arXiv:2310.02743). The variance itself, not its root."""

    coefficient: float = 0.5

    def __post_init__(self) -> None:
        if not (math.isfinite(self.coefficient) and self.coefficient >= 0):
            raise ValueError(f"the coefficient is {self.coefficient}; it must be a finite number, 0 or more")

    def __call__(self, scores: Sequence[float]) -> float:
        return fmean(scores) - self.coefficient * pvariance(scores)


@dataclass(frozen=True)
class Rlhf:
    """``env`` with the reward of ``scorer``; a ``rlreason.types.Env`` again. The reward is the sum of ``proxy`` and
    ``gold``, each times its weight (one that is not given counts 0).

    Parts of a grade: ``proxy``, the scores as ``combine`` sees them; ``proxy_std``, the members' standard deviation
    (divided by their number, so 0 for one); ``gold``, the inner reward; and the inner parts, unless they have one
    of these names. A grade with status ``error`` passes unchanged, and a score that is not finite makes one.

    ``name`` goes into metric names, which must tell this reward from the inner one; empty: ``<inner name>-rlhf``.
    Raises ValueError for weights that make no sense.
    """

    env: Env
    scorer: Scorer
    combine: Combine = field(default_factory=Mean)
    weights: Mapping[str, float] = field(default_factory=lambda: {"proxy": 1.0, "gold": 0.0})
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", checked_weights(self.weights, WEIGHED))
        object.__setattr__(self, "name", self.name or f"{self.env.name}-rlhf")

    def split(self, name: str) -> Split:
        return self.env.split(name)

    def start(self, problem: Problem, seed: int) -> Any:
        return self.env.start(problem, seed)

    def replies(self, states: Sequence[Any], conversations: Sequence[list[Message]]) -> list[list[Message] | None]:
        return self.env.replies(states, conversations)

    def grade(self, episodes: Sequence[Episode]) -> list[Grade]:
        """The inner verdicts with the scorer's reward. All that can be scored are scored in one call."""
        grades = list(self.env.grade(episodes))
        judged = [place for place, grade in enumerate(grades) if grade.status != "error"]
        scores = self.scorer([episodes[place].messages for place in judged]) if judged else []
        for place, members in zip(judged, scores, strict=True):
            grades[place] = self._scored(grades[place], members)
        return grades

    def validate(self) -> None:
        """The inner environment's own verifier; a reward model has no gold answers."""
        self.env.validate()

    def manifest(self) -> Mapping[str, Any]:
        reward = {"scorer": f"{self.scorer}", "combine": f"{self.combine}", "weights": dict(self.weights)}
        return {**self.env.manifest(), "name": self.name, "reward": reward}

    def _scored(self, grade: Grade, scores: tuple[float, ...]) -> Grade:
        if not all(map(math.isfinite, scores)):
            return Grade(0.0, None, "error")
        own = {"proxy": self.combine(scores), "proxy_std": pstdev(scores), "gold": grade.reward}
        reward = sum(weight * own[part] for part, weight in self.weights.items())
        return replace(grade, reward=reward, parts={**grade.parts, **own})

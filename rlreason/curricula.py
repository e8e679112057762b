"""Samplers that choose: problems at the edge of what the policy can do, and families of problems by a schedule.

A group whose samples are all right or all wrong teaches nothing, and the least that a step can improve the policy by
grows with the variance of success, which is largest at 0.5: Bae et al. 2025, "Online difficulty filtering for reasoning
oriented reinforcement learning" (arXiv:2504.03380). They filter what was already sampled (here ``algo.max_attempts``);
``EdgeSampler`` remembers what it saw instead, and mixes replay with problems not seen yet as Prioritized Level Replay
does (Jiang et al. 2021, arXiv:2010.03934).

Left out: PLR's ranking of the problems at the edge among themselves (they are drawn alike), a model that predicts the
success of problems not seen, and difficulty schedules that follow the accuracy: by steps alone.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from rlreason.sampler import derived_seed, family_of, shares
from rlreason.types import Problem, Rollout, Split

CANDIDATES = 16
"""Problems looked at for each that was not seen yet."""

FAMILY_RATE = 0.1
"""Weight of the newest group in what is known of its family."""

FAMILY_FLOOR = 0.1
"""Weight of a family of which nothing is at the edge, beside 1 for one of which everything is."""

LOOKED_AT = 1000
"""Problems of an endless split that tell its families."""

TRIES = 10_000
"""Problems of an endless split looked at for one of a family."""


@dataclass(frozen=True)
class _Known:
    """A problem and the exponential mean of its groups' success."""

    problem: Problem
    success: float


@dataclass
class EdgeSampler:
    """Draws problems whose success lies between ``low`` and ``high``.

    Success is the share of right samples in a group; of a problem, an exponential mean over its groups, in which the
    newest weighs ``rate``. Each place of a draw is for a problem that was not seen yet with probability ``new``, for a
    known one outside the bounds with ``revisit`` (what was mastered may be forgotten, what failed may be learned by
    now), and else for a known one at the edge. A place that its kind has no problem for goes to the edge, to a new one
    and to one outside, in this order; no problem is drawn twice at once unless the split is too small.

    New problems are the likelier, the more of the newest ones of their ``family`` (a key of ``meta``) lay at the edge:
    a member of a mixture that gives no signal gets less, but never nothing. Where the families that promise most have
    no new problems left, ``new`` shrinks by what the others promise less.

    ``memory`` problems are remembered, those observed last; whole, since a problem does not know its index.
    ValueError for settings that make no sense.
    """

    split: Split
    seed: int
    low: float = 0.2
    high: float = 0.8
    new: float = 0.3
    revisit: float = 0.1
    rate: float = 0.5
    memory: int = 4096
    family: str = "member"
    _known: dict[str, _Known] = field(default_factory=dict, init=False)  # by id, the longest not observed first
    _promise: dict[str | None, float] = field(default_factory=dict, init=False)  # of families, 0 to 1

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"low is {self.low} and high is {self.high}; they must be 0 <= low < high <= 1")
        if not (self.new >= 0 and self.revisit >= 0 and self.new + self.revisit <= 1):
            raise ValueError(f"new is {self.new} and revisit is {self.revisit}; they are shares: 0 or more, 1 together")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate is {self.rate}; it must be above 0 and at most 1 (only the newest group counts)")
        if self.memory < 1:
            raise ValueError(f"memory is {self.memory} problems; it must be at least 1")

    def draw(self, step: int, attempt: int, count: int) -> list[Problem]:
        chance = random.Random(derived_seed(self.seed, "edge", step, attempt))
        edge = [known.problem for known in self._known.values() if self._at_edge(known.success)]
        outside = [known.problem for known in self._known.values() if not self._at_edge(known.success)]
        chance.shuffle(edge)
        chance.shuffle(outside)
        drawn: list[Problem] = []

        def from_edge() -> Problem | None:
            return edge.pop() if edge else None

        def from_new(least: float = 0.0) -> Problem | None:
            return self._unseen(chance, {problem.id for problem in drawn}, least)

        def from_promising() -> Problem | None:
            return from_new(chance.random() * max(map(self._weight, self._promise), default=1.0))

        def from_outside() -> Problem | None:
            return outside.pop() if outside else None

        for _ in range(count):
            place = chance.random()
            known = from_outside if place < self.new + self.revisit else from_edge
            wanted = from_promising if place < self.new else known
            found = (kind() for kind in (wanted, from_edge, from_new, from_outside))
            problem = next((problem for problem in found if problem is not None), None)
            drawn.append(_any(self.split, chance) if problem is None else problem)
        return drawn

    def observe(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Of each group: what was thought of its problem before, and where its success lay."""
        groups: dict[int, list[Rollout]] = defaultdict(list)
        for rollout in rollouts:
            groups[rollout.group].append(rollout)
        before: list[str] = []
        at_edge: list[bool] = []
        for _, group in sorted(groups.items()):
            right = [r.grade.correct for r in group if r.grade.status != "error" and r.grade.correct is not None]
            if not right:
                continue
            problem, success = group[0].problem, fmean(right)
            at_edge.append(self._at_edge(success))
            known = self._known.pop(problem.id, None)
            before.append("new" if known is None else "edge" if self._at_edge(known.success) else "revisited")
            if known is None:
                self._learn_family(problem, at_edge[-1])
            else:
                success = known.success + self.rate * (success - known.success)
            self._known[problem.id] = _Known(problem, success)
        if not at_edge:
            if any(r.grade.status != "error" for r in rollouts):
                raise ValueError("the edge is where some samples are right: this environment never says what is right")
            return {}
        for forgotten in list(self._known)[: -self.memory]:
            del self._known[forgotten]
        estimates = [known.success for known in self._known.values()]
        return {
            "sampler/at_edge": fmean(at_edge),
            **{f"sampler/drawn/{kind}": before.count(kind) / len(before) for kind in ("new", "edge", "revisited")},
            "sampler/known": len(estimates),
            "sampler/known/success": fmean(estimates),
            "sampler/known/failed": fmean(estimate < self.low for estimate in estimates),
            "sampler/known/edge": fmean(self._at_edge(estimate) for estimate in estimates),
            "sampler/known/mastered": fmean(estimate > self.high for estimate in estimates),
            **{f"sampler/promise/{name}": promise for name, promise in self._promise.items() if name is not None},
            **shares(rollouts, self.family),
        }

    def state_dict(self) -> dict[str, Any]:
        known = [(known.problem, known.success) for known in self._known.values()]
        return {"known": known, "promise": dict(self._promise)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._known = {problem.id: _Known(problem, success) for problem, success in state["known"]}
        self._promise = dict(state["promise"])

    def _at_edge(self, success: float) -> bool:
        return self.low <= success <= self.high

    def _learn_family(self, problem: Problem, at_edge: bool) -> None:
        family = family_of(problem, self.family)
        promise = self._promise.get(family, 1.0)
        self._promise[family] = promise + FAMILY_RATE * (at_edge - promise)

    def _weight(self, family: str | None) -> float:
        return max(FAMILY_FLOOR, self._promise.get(family, 1.0))

    def _unseen(self, chance: random.Random, drawn: Set[str], least: float) -> Problem | None:
        """A problem whose id is neither known nor in ``drawn``, or None if none of ``CANDIDATES`` is such a one, or
        none of a family that weighs ``least``."""
        candidates = [_any(self.split, chance) for _ in range(CANDIDATES)]
        unseen = [p for p in candidates if p.id not in self._known and p.id not in drawn]
        weights = [self._weight(family_of(p, self.family)) for p in unseen]
        return chance.choices(unseen, weights)[0] if max(weights, default=-1.0) >= least else None


@dataclass(frozen=True)
class ScheduledSampler:
    """Draws families of problems by weights that change with the step, and problems of a family alike.

    A ``family`` is a key of ``meta``: the member of a mixture, or a level. ``weights`` has points (step, weight) for
    each value of it; between two points the weight is interpolated, before the first and after the last it stays. How
    many problems of a family the split has does not matter.

    Raises ValueError for points that make no schedule, and for families that the split doesn't have or ``weights``
    leaves out.
    """

    split: Split
    seed: int
    weights: Mapping[str, Sequence[Sequence[float]]]
    family: str = "member"
    _places: dict[str, list[int]] = field(default_factory=dict, init=False)  # of each family in the split

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", {str(family): points for family, points in self.weights.items()})
        for family, points in self.weights.items():
            steps = [point[0] for point in points if len(point) == 2]
            if len(steps) < len(points) or not points or steps != sorted(set(steps)):
                raise ValueError(f"weights.{family} needs points [step, weight], with rising steps; it is {points}")
            if not all(math.isfinite(weight) and weight >= 0 for _, weight in points):
                raise ValueError(f"weights.{family} has a weight that is no number of 0 or more: {points}")
        for step in sorted({step for points in self.weights.values() for step, _ in points}):
            if not any(self._weights(step)):  # between two points, the sum is 0 only if it is at both
                raise ValueError(f"at step {step:g} every weight is 0; give one family more")
        for place in range(LOOKED_AT if self.split.size is None else self.split.size):
            self._places.setdefault(self._known_family(self.split[place]), []).append(place)
        for family in sorted(self.weights.keys() - self._places.keys()):
            raise ValueError(f"no problem has {self.family} {family}; there are {', '.join(sorted(self._places))}")

    def draw(self, step: int, attempt: int, count: int) -> list[Problem]:
        chance = random.Random(derived_seed(self.seed, "schedule", step, attempt))
        families = chance.choices(list(self.weights), self._weights(step), k=count)
        return [self._of(family, chance) for family in families]

    def observe(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        return shares(rollouts, self.family)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is none."""

    def _weights(self, step: float) -> list[float]:
        return [
            float(np.interp(step, [s for s, _ in points], [w for _, w in points])) for points in self.weights.values()
        ]

    def _known_family(self, problem: Problem) -> str:
        family = family_of(problem, self.family)
        if family is None:
            keys = ", ".join(problem.meta) or "nothing"
            raise ValueError(
                f"problem {problem.id} has no {self.family!r} in its meta, only {keys}: set sampler.family"
            )
        if family not in self.weights:
            raise ValueError(
                f"problem {problem.id} has {self.family} {family}, which weights leaves out; give it [[1, 0]] if it "
                "shall never be drawn"
            )
        return family

    def _of(self, family: str, chance: random.Random) -> Problem:
        if self.split.size is not None:
            return self.split[chance.choice(self._places[family])]
        for _ in range(TRIES):
            problem = _any(self.split, chance)
            if family_of(problem, self.family) == family:
                return problem
        raise ValueError(f"{TRIES} problems were drawn and none has {self.family} {family}: they are too rare")


def _any(split: Split, chance: random.Random) -> Problem:
    return split[chance.getrandbits(63) if split.size is None else chance.randrange(split.size)]

"""Several environments in one run, each with a weight.

A problem of a member keeps its words; its id begins with the member's name, and ``meta["member"]`` is that name, which
samplers may go by. Everything else goes to the member: states, replies and verdicts, in one call for each member and
batch. The parts of its grades are called ``<member>/<part>``, with ``<member>/reward`` and ``<member>/accuracy`` among
them, so that training logs ``rewards/<member>/accuracy/mean`` and evaluation ``eval/<mixture>/<member>/accuracy``.

Left out: mixtures of mixtures (name all members in one), sampling limits for each member (``sampling`` is the run's),
and weights that change in the course of a run (``sampler=schedule``, ``sampler=edge``).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from envs.base import SPLITS, GeneratedSplit, check_split
from rlreason.types import Env, Episode, Grade, Message, Problem, Split

MAX_WEIGHT = 1000

T = TypeVar("T")


@dataclass(frozen=True)
class Mixture:
    """``envs`` by name, mixed by ``weights``: whole numbers, of which the ratios count. A member without one has 1; one
    with 0 is left out.

    In every split, members take turns in rounds, in which each has as many places as its weight. ``validation`` and
    ``test`` hold each problem once: when a member has no more, the others go on without it. In ``train`` a finite
    member begins again until each has been gone through, so that weights hold throughout, for a small member too; it is
    endless if a member is.

    Rewards are the members' own, so a member that pays more counts for more where the estimator doesn't divide by the
    standard deviation of a group. With ``normalise`` they are divided by the member's ``max_reward``: a perfect
    completion earns 1 everywhere. ``<member>/reward`` is what the member gave.

    ``name`` goes into metric names; the members' own names don't. ValueError for settings that make no sense.
    """

    envs: Mapping[str, Env]
    weights: Mapping[str, int]
    normalise: bool = False
    name: str = "mixture"

    def __post_init__(self) -> None:
        for member in sorted(self.weights.keys() - self.envs.keys()):
            raise ValueError(f"{self.name}: weights.{member} belongs to no member; they are {', '.join(self.envs)}")
        for member, weight in self.weights.items():
            if not isinstance(weight, int) or isinstance(weight, bool) or not 0 <= weight <= MAX_WEIGHT:
                raise ValueError(
                    f"{self.name}: weights.{member} is {weight!r}; it must be a whole number from 0 (left out) to "
                    f"{MAX_WEIGHT}: only the ratios count, so 0.7 and 0.3 are 7 and 3"
                )
        weights = {member: self.weights.get(member, 1) for member in self.envs}
        if not any(weights.values()):
            raise ValueError(f"{self.name}: no member has a weight above 0; give env.envs one, or env.weights")
        object.__setattr__(self, "envs", {member: env for member, env in self.envs.items() if weights[member]})
        object.__setattr__(self, "weights", {member: weights[member] for member in self.envs})
        if not self.name:
            raise ValueError("mixture: name is empty; it is needed for metric names")
        for member, env in self.envs.items() if self.normalise else ():
            if not _best(env) > 0:
                raise ValueError(
                    f"{self.name}: normalise divides by the largest reward, which {member} has none of above 0; set "
                    "env.normalise=false, or leave it out"
                )

    def split(self, name: str) -> Split:
        check_split(name)
        splits = {member: env.split(name) for member, env in self.envs.items()}
        sizes = {member: math.inf if split.size is None else split.size for member, split in splits.items()}
        places = sizes
        if name == "train":
            for member in (member for member, size in sizes.items() if size == 0):
                raise ValueError(f"{self.name}: {member} has no train problems; leave it out: weights.{member}=0")
            endless = math.inf in sizes.values()
            rounds = math.inf if endless else max(math.ceil(sizes[m] / self.weights[m]) for m in sizes)
            places = {member: rounds * weight for member, weight in self.weights.items()}
        turns = _Turns(self.weights, places)

        def make(index: int) -> Problem:
            member, own = turns.at(index)
            size = splits[member].size
            return _of_member(member, splits[member][own if size is None else own % size])

        total = sum(places.values())
        return GeneratedSplit(None if total == math.inf else int(total), make)

    def start(self, problem: Problem, seed: int) -> _State:
        member = problem.meta["member"]
        return _State(member, self.envs[member].start(_asked(problem), seed))

    def replies(self, states: Sequence[_State], conversations: Sequence[list[Message]]) -> list[list[Message] | None]:
        def ask(env: Env, places: list[int]) -> list[list[Message] | None]:
            return env.replies([states[place].inner for place in places], [conversations[place] for place in places])

        return self._each([state.member for state in states], ask)

    def grade(self, episodes: Sequence[Episode]) -> list[Grade]:
        def ask(env: Env, places: list[int]) -> list[Grade]:
            asked = (episodes[place] for place in places)
            return env.grade([replace(e, problem=_asked(e.problem), state=e.state.inner) for e in asked])

        members = [episode.state.member for episode in episodes]
        return [self._own(member, grade) for member, grade in zip(members, self._each(members, ask), strict=True)]

    def validate(self) -> None:
        """Every member's own check."""
        for member, env in self.envs.items():
            try:
                env.validate()
            except ValueError as error:
                raise ValueError(f"{self.name}: {member}: {error}") from error

    def manifest(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "source": "mixture",
            "weights": dict(self.weights),
            "normalise": self.normalise,
            "sizes": {name: self.split(name).size for name in SPLITS},
            "members": {member: dict(env.manifest()) for member, env in self.envs.items()},
        }

    def _each(self, members: Sequence[str], ask: Callable[[Env, list[int]], list[T]]) -> list[T]:
        """What ``ask`` answers for each place, in one call for each member that occurs, of all its places."""
        places: dict[str, list[int]] = defaultdict(list)
        for place, member in enumerate(members):
            places[member].append(place)
        answers: dict[int, T] = {}
        for member, own in places.items():
            answers.update(zip(own, ask(self.envs[member], own), strict=True))
        return [answers[place] for place in range(len(members))]

    def _own(self, member: str, grade: Grade) -> Grade:
        """A member's grade as the mixture's."""
        parts = {**grade.parts, "reward": grade.reward}
        if grade.correct is not None:
            parts["accuracy"] = float(grade.correct)
        scale = _best(self.envs[member]) if self.normalise else 1.0
        return replace(
            grade,
            reward=grade.reward / scale,
            turn_rewards=tuple(reward / scale for reward in grade.turn_rewards),
            parts={f"{member}/{part}": value for part, value in parts.items()},
        )


@dataclass(frozen=True)
class _State:
    """A member's state, and whose it is."""

    member: str
    inner: Any


@dataclass(frozen=True)
class _Turns:
    """Who is at each place of a split: in every round, a member has as many places as its weight, evenly spread, until
    it has had ``places`` (infinity: never)."""

    weights: Mapping[str, int]
    places: Mapping[str, float]

    def at(self, index: int) -> tuple[str, int]:
        """The member at place ``index``, and how many places it had before. Works in O(log index): indices may be
        drawn out of 2**63."""
        done = bisect_right(range(index + 1), index, key=self._until) - 1
        turns = [
            ((place + 0.5) / weight, member, done * weight + place)
            for member, weight in self.weights.items()
            for place in range(weight)
            if done * weight + place < self.places[member]
        ]
        _, member, own = sorted(turns)[index - self._until(done)]
        return member, own

    def _until(self, rounds: int) -> int:
        """Places taken in the first ``rounds`` rounds."""
        return sum(int(min(rounds * weight, self.places[member])) for member, weight in self.weights.items())


def _best(env: Env) -> float:
    """What a perfect completion earns, 0 if the environment doesn't say."""
    return float(getattr(env, "max_reward", 0.0))


def _of_member(member: str, problem: Problem) -> Problem:
    if "member" in problem.meta:
        raise ValueError(
            f"problem {problem.id} of {member} says itself what `member` it is of: name the members of a mixture in "
            "the outer one"
        )
    return replace(problem, id=f"{member}/{problem.id}", meta={**problem.meta, "member": member})


def _asked(problem: Problem) -> Problem:
    """The problem as its member knows it."""
    meta = dict(problem.meta)
    return replace(problem, id=problem.id.removeprefix(f"{meta.pop('member')}/"), meta=meta)

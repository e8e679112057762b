"""Comparisons of generated notes, labelled by the known rule of ``envs.notes``: people's preferences, simulated.

Left out: labels that depend on anything but which note is better by the rule, and the noise; Gao et al. 2022
(arXiv:2210.10760) label in the same way.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs.data.base import Splits, first_problems
from envs.data.noise import check_noise, with_noise
from envs.data.note_texts import KINDS
from envs.notes import Notes
from rlreason.types import Comparison, Problem, Split

DRAWS = 1000
"""Pairs that are drawn for a prompt before it is given up."""


@dataclass(frozen=True)
class SyntheticComparisons:
    """A pair of notes for each of the first problems of ``env``: ``num_train`` from its train split, ``num_validation``
    from its validation split. The kinds of notes (``envs.data.note_texts.KINDS``) are drawn alike.

    The better one by ``env``'s grade is chosen; the difference is the margin, and at least ``min_difference``: people
    are not asked about what is hardly different. In train each label is wrong with probability ``noise`` (the two
    change places, the margin stays). ``category`` is the kind of the note that is truly worse. ``seed`` decides all of
    this.

    Raises ValueError for settings that make no sense, for more problems than there are, and if notes differ too little.
    """

    env: Notes
    num_train: int
    num_validation: int
    noise: float = 0.0
    min_difference: float = 0.05
    seed: int = 0
    name: str = "synthetic"
    _splits: Splits[Comparison] = field(init=False, repr=False, compare=False)
    _flipped: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_noise(self.noise, self.name)
        if not self.min_difference > 0:
            raise ValueError(f"{self.name}: min_difference is {self.min_difference}; it must be above 0: no ties")
        clean = self._comparisons(self.env.split("train"), self.num_train, "num_train")
        train, flipped = with_noise(clean, self.noise, self.seed)
        validation = self._comparisons(self.env.split("validation"), self.num_validation, "num_validation")
        object.__setattr__(self, "_splits", Splits(train, validation))
        object.__setattr__(self, "_flipped", flipped)

    def split(self, name: str) -> Sequence[Comparison]:
        return self._splits[name]

    def manifest(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "source": "generated",
            "noise": self.noise,
            "flipped": self._flipped,
            "min_difference": self.min_difference,
            "seed": self.seed,
            "sizes": self._splits.sizes,
            "env": self.env.manifest(),
        }

    def _comparisons(self, split: Split, count: int, key: str) -> list[Comparison]:
        return [self._comparison(problem) for problem in first_problems(split, count, what=f"{self.name}: {key}")]

    def _comparison(self, problem: Problem) -> Comparison:
        rng = random.Random(f"synthetic/{self.seed}/{problem.id}")
        for _ in range(DRAWS):
            written = []
            for kind in rng.choices([*KINDS], k=2):
                text = KINDS[kind](rng, problem.meta["topic"])
                written.append((self.env.grade_text(problem, text, "stop").reward, kind, text))
            worse, better = sorted(written)
            if (margin := better[0] - worse[0]) >= self.min_difference:
                return Comparison(
                    problem.prompt,
                    [{"role": "assistant", "content": better[2]}],
                    [{"role": "assistant", "content": worse[2]}],
                    margin,
                    worse[1],
                    problem.id,
                )
        raise ValueError(
            f"{self.name}: of {DRAWS} pairs of notes for {problem.id} none differs by min_difference="
            f"{self.min_difference}; lower it"
        )

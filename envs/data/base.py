"""What data sets share: their two splits, drawing from an environment's problems, and holding out for validation.

Left out: a test split. What is trained on these data is judged by an environment's test problems.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from rlreason.types import Problem, Split

SPLITS = ("train", "validation")

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Splits(Generic[T]):
    """The examples of both splits, in memory, and why others were left out, with their numbers."""

    train: Sequence[T]
    validation: Sequence[T]
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Sequence[T]:
        """ValueError unless ``name`` is a split."""
        if name not in SPLITS:
            raise ValueError(f"there is no split {name!r} of a data set; the splits are {' and '.join(SPLITS)}")
        return self.train if name == "train" else self.validation

    def each(self, make: Callable[[T], U]) -> Splits[U]:
        """The same splits of what ``make`` makes of the examples."""
        return Splits([make(one) for one in self.train], [make(one) for one in self.validation], self.left_out)

    @property
    def sizes(self) -> Mapping[str, int]:
        return {"train": len(self.train), "validation": len(self.validation)}


def first_problems(split: Split, count: int | None, *, what: str) -> list[Problem]:
    """The first ``count`` problems; None: all of them.

    Raises ValueError, beginning with ``what`` (the setting that says how many), if there are fewer, or if all are
    wanted of a split that has no end.
    """
    if count is None and split.size is None:
        raise ValueError(f"{what} is null (all problems), but this environment's problems have no end; give a number")
    if count is not None and count < 1:
        raise ValueError(f"{what} is {count}; it must be at least 1")
    if count is not None and split.size is not None and count > split.size:
        raise ValueError(f"{what} is {count}, but the environment has only {split.size} such problems; lower it")
    return [split[index] for index in range(count or split.size or 0)]


def arranged(
    train: Sequence[T],
    validation: Sequence[T] | None,
    *,
    identity: Callable[[T], Hashable],
    unit: Callable[[T], str],
    share: float,
    seed: int,
    what: str,
) -> Splits[T]:
    """The two splits: exact repeats (by ``identity``) once, and no ``unit`` (what is asked) in both of them.

    Without ``validation``, ``share`` of the units, and at least one, is held out with all its examples. With it, the
    training examples whose unit is in it are left out. Validation is in an order that mixes its sources, since
    evaluations may read only the first ones. All of this depends on ``seed`` and the examples alone.

    Raises ValueError, beginning with ``what`` (the data set), if a split would be empty, or for an impossible share.
    """
    if not 0 < share < 1:
        raise ValueError(f"{what}: validation_share is {share}; it must lie between 0 and 1")
    examples, held = _unique(train, identity), _unique(validation or [], identity)
    repeats = len(train) + len(validation or []) - len(examples) - len(held)
    if validation is None:
        units = sorted({unit(example) for example in examples}, key=lambda text: _shuffled(seed, text))
        chosen = set(units[: max(1, round(share * len(units)))])
        held = [example for example in examples if unit(example) in chosen]
    else:
        chosen = {unit(example) for example in held}
    kept = [example for example in examples if unit(example) not in chosen]
    if not kept or not held:
        raise ValueError(
            f"{what}: of {len(train)} examples {len(kept)} are left to train on, and {len(held)} to validate with; "
            "both need at least one (examples of the same prompt stay on one side)"
        )
    held = sorted(held, key=lambda example: _shuffled(seed, unit(example)))
    left_out = {"repeats": repeats, "prompt_in_validation": 0 if validation is None else len(examples) - len(kept)}
    return Splits(kept, held, left_out)


def _unique(examples: Sequence[T], identity: Callable[[T], Hashable]) -> list[T]:
    first: dict[Hashable, T] = {}
    for example in examples:
        first.setdefault(identity(example), example)
    return [*first.values()]


def _shuffled(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}/{text}".encode("utf-8", "surrogatepass")).digest()

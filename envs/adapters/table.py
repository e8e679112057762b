"""Rows of a table, each with a prompt, as problems: what the adapters share that come with data instead of a generator.

A problem's ``answer`` is its whole row, for the scorer's eyes only.

Left out: a test split where the data have a validation split of their own. ``envs.data.sources`` reads two.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from envs.base import SPLITS, ListSplit, check_split, split_of
from envs.data.messages import as_text, turns
from envs.data.sources import Row
from envs.jsonl import malformed
from rlreason.types import Message, Problem, Split


@dataclass(frozen=True)
class Table:
    """Problems by split, and how many training rows were left out because a validation row asks the same."""

    name: str
    splits: Mapping[str, Split]
    left_out: int

    def split(self, name: str) -> Split:
        """ValueError for a split that there is not."""
        check_split(name)
        if name not in self.splits:
            raise ValueError(
                f"{self.name} has no {name} split, since its data have a validation split of their own; evaluate with "
                "split=validation"
            )
        return self.splits[name]

    def details(self) -> dict[str, Any]:
        """For the manifest."""
        return {"sizes": {name: split.size for name, split in self.splits.items()}, "left_out": self.left_out}


def table(
    name: str, train: Sequence[Row], validation: Sequence[Row] | None, *, keys: Collection[str], example: str
) -> Table:
    """The rows as problems; the prompt is under the first of ``keys`` that a row has, as a text or as messages.

    Without ``validation`` the rows are split by a hash of the prompt: 60 % train, 20 % validation, 20 % test. With it,
    training rows are left out whose prompt is among its own. So no prompt is ever in two splits.

    Raises ValueError, saying where, for a row without a prompt that ends with the user's turn, and if train or
    validation would be empty.
    """
    problems = [_problem(f"{name}/train/{place}", row, keys, example) for place, row in enumerate(train)]
    if validation is None:
        found = {split: [p for p in problems if split_of(as_text(p.prompt)) == split] for split in SPLITS}
        left_out = 0
    else:
        held = [_problem(f"{name}/validation/{place}", row, keys, example) for place, row in enumerate(validation)]
        theirs = {as_text(problem.prompt) for problem in held}
        kept = [problem for problem in problems if as_text(problem.prompt) not in theirs]
        found, left_out = {"train": kept, "validation": held}, len(problems) - len(kept)
    for split in ("train", "validation"):
        if not found[split]:
            raise ValueError(
                f"{name}: the {split} split is empty, with {len(problems)} rows to train on ({left_out} left out, "
                "whose prompt is in validation); give more rows, or a source.validation of other ones"
            )
    return Table(name, {split: ListSplit(rows) for split, rows in found.items()}, left_out)


def _problem(id: str, row: Row, keys: Collection[str], example: str) -> Problem:
    if not isinstance(row.value, Mapping):
        raise malformed(row.where, "this is not a JSON object", example)
    key = next((key for key in keys if row.value.get(key) is not None), None)
    if key is None:
        raise malformed(row.where, f"there is no {' or '.join(map(repr, keys))}", example)
    try:
        prompt: list[Message] = turns(row.value[key], key, role="user")
        if prompt[-1]["role"] != "user":
            raise ValueError(f"the last turn of {key!r} is the {prompt[-1]['role']}'s, not the user's")
    except ValueError as error:
        raise malformed(row.where, str(error), example) from None
    return Problem(id, prompt, dict(row.value), {"source": row.where})


def gold(problem: Problem, key: str | None) -> str | None:
    """The text in the column ``key``; None without a key. ValueError if there is none."""
    if key is None:
        return None
    value = problem.answer.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{problem.meta['source']}: the column {key!r} (gold_key) is {value!r}, not a text")
    return value

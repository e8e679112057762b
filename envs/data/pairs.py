"""Comparisons, one a row, in the forms in which preference data are published:

- ``{"prompt": ..., "chosen": ..., "rejected": ...}``, each a text or messages; ``chosen`` and ``rejected`` may repeat
  the prompt (UltraFeedback, Cui et al. 2023, arXiv:2310.01377, as binarised for Zephyr);
- ``{"chosen": [...], "rejected": [...]}``: whole conversations, whose common head is the prompt;
- ``{"chosen": "\\n\\nHuman: ...", "rejected": ...}``: the same as transcripts (hh-rlhf, Bai et al. 2022,
  arXiv:2204.05862).

Left out: rankings of more than two, and ties: a pair with equal scores says nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from envs.data.base import Splits, arranged
from envs.data.messages import as_text, check_answered, opening, transcript, turns
from envs.data.sources import Row, Source
from envs.jsonl import malformed
from rlreason.types import Comparison, Message

_EXAMPLE_ROW = '{"prompt": "...", "chosen": "...", "rejected": "..."}'


@dataclass(frozen=True)
class Columns:
    """What else a row says, by the names of its columns: the ``category`` that accuracy is reported by (None: the name
    of the file or data set), and by how much the chosen one is better: its ``margin``, or the difference of two scores.

    ValueError for one score without the other, or with a margin.
    """

    category: str | None = None
    margin: str | None = None
    score_chosen: str | None = None
    score_rejected: str | None = None

    def __post_init__(self) -> None:
        scores = [key for key in (self.score_chosen, self.score_rejected) if key is not None]
        if len(scores) == 1 or (scores and self.margin is not None):
            raise ValueError(
                f"columns: margin is {self.margin!r}, score_chosen {self.score_chosen!r} and score_rejected "
                f"{self.score_rejected!r}; give the two scores, or the margin, or none of them"
            )


@dataclass(frozen=True)
class Pairs:
    """The comparisons of ``source``, read on construction; exact repeats count once.

    Where ``source`` has no validation rows, ``validation_share`` of the prompts is held out, chosen by ``seed``; those
    with the same first user turn stay together. Where it has, the training rows that begin like one of them are left
    out.

    Pairs whose two scores are equal are left out, and counted in the manifest as ties.
    A row that can't be used is an error that says where and why, or with ``skip_bad`` is left out and counted in the
    manifest by its reason; a line that is no JSON is always an error. ValueError too if a split would be empty.
    """

    source: Source
    columns: Columns = field(default_factory=Columns)
    skip_bad: bool = False
    validation_share: float = 0.1
    seed: int = 0
    name: str = "pairs"
    _splits: Splits[Comparison] = field(init=False, repr=False, compare=False)
    _details: Mapping[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rows = self.source.load(_EXAMPLE_ROW)
        bad: Counter[str] = Counter()
        ties: Counter[str] = Counter(ties=0)
        splits = arranged(
            self._comparisons(rows.train, bad, ties),
            None if rows.validation is None else self._comparisons(rows.validation, bad, ties),
            identity=lambda pair: (as_text(pair.prompt), as_text(pair.chosen), as_text(pair.rejected)),
            unit=lambda pair: opening(pair.prompt),
            share=self.validation_share,
            seed=self.seed,
            what=self.name,
        )
        object.__setattr__(self, "_splits", replace(splits, left_out={**splits.left_out, **ties}))
        object.__setattr__(self, "_details", {**rows.details, "bad_rows": dict(bad)})

    def split(self, name: str) -> Sequence[Comparison]:
        return self._splits[name]

    def manifest(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            **self._details,
            "validation_share": self.validation_share,
            "seed": self.seed,
            "sizes": self._splits.sizes,
            "left_out": self._splits.left_out,
        }

    def _comparisons(self, rows: Sequence[Row], bad: Counter[str], ties: Counter[str]) -> list[Comparison]:
        """Those of the rows; the reasons of bad ones are counted in ``bad``, those with equal scores in ``ties``."""
        comparisons = []
        for row in rows:
            try:
                comparison = _comparison(row, self.columns)
            except ValueError as error:
                if not self.skip_bad:
                    raise malformed(
                        row.where, f"{error}", f"{_EXAMPLE_ROW} (data.skip_bad=true leaves out bad ones)"
                    ) from None
                bad[f"{error}"] += 1
                continue
            if self.columns.score_chosen is not None and comparison.margin == 0:
                ties["ties"] += 1
            else:
                comparisons.append(comparison)
        return comparisons


def _comparison(row: Row, columns: Columns) -> Comparison:
    """Raises ValueError saying why the row is none."""
    if not isinstance(row.value, Mapping):
        raise ValueError("this is not a JSON object")
    chosen, rejected = _conversation(row.value, "chosen"), _conversation(row.value, "rejected")
    if chosen == rejected:
        raise ValueError("'chosen' and 'rejected' are the same")
    shorter = min(len(chosen), len(rejected))
    shared = next((place for place in range(shorter) if chosen[place] != rejected[place]), shorter)
    if shared == shorter:
        raise ValueError("one of 'chosen' and 'rejected' is the beginning of the other")
    if not chosen[shared]["role"] == rejected[shared]["role"] == "assistant":
        raise ValueError("'chosen' and 'rejected' differ before the assistant's turn")
    return Comparison(
        chosen[:shared],
        chosen[shared:],
        rejected[shared:],
        _margin(row.value, columns),
        row.origin if columns.category is None else _category(row.value, columns.category),
        row.where,
    )


def _conversation(row: Mapping[str, Any], key: str) -> list[Message]:
    """The whole conversation of which ``key`` is the end, or all."""
    value = row.get(key)
    if "prompt" in row:
        prompt = turns(row["prompt"], "prompt", "user")
        messages = turns(value, key, "assistant")
        if messages[: len(prompt)] != prompt:
            if messages[0]["role"] != "assistant":
                raise ValueError(f"{key!r} begins neither with the prompt nor with the assistant's turn")
            messages = [*prompt, *messages]
    else:
        messages = transcript(value, key) if isinstance(value, str) else turns(value, key)
    check_answered(messages, key)
    return messages


def _category(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value:
        raise ValueError(f"the category {column!r} is missing, empty or not a text")
    return value


def _margin(row: Mapping[str, Any], columns: Columns) -> float:
    if columns.margin is not None:
        margin = _number(row, columns.margin)
    elif columns.score_chosen is not None and columns.score_rejected is not None:
        margin = _number(row, columns.score_chosen) - _number(row, columns.score_rejected)
    else:
        return 0.0
    if margin < 0:
        raise ValueError("by the margin, 'rejected' is the better one")
    return margin


def _number(row: Mapping[str, Any], column: str) -> float:
    value = row.get(column)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{column!r} is missing or not a finite number")
    return float(value)

"""Examples out of a run folder's traces: samples worth imitating, and comparisons of samples of one problem.

``rlreason/record.py`` lists the columns. Only samples of training problems are read: the others are there to judge by.

Left out: quotas for each problem, and prompts other than those that were sampled from; ``rlreason.sample`` has both.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from envs.data.base import Splits, arranged
from envs.data.messages import as_text
from envs.data.noise import check_noise, with_noise
from rlreason.types import Comparison, Demonstration, Message

_SCHEMAS = ("1", "2", "3")
_COLUMNS = (
    *("split", "problem", "group", "sample", "segment"),
    *("prompt", "messages", "finish", "reward", "correct", "status", "parts", "tools"),
)


@dataclass(frozen=True)
class _Sample:
    """A rollout that was graded. ``scores`` are its reward and the reward's parts, by name; None: not finite."""

    source: str
    prompt: list[Message]
    reply: list[Message]
    finish: str
    correct: bool | None
    scores: Mapping[str, float | None]
    tools: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class AcceptedTraces:
    """Demonstrations: the samples in ``path`` (a run folder, or one file of its traces) that are not wrong and came to
    their end, with a reward of at least ``min_reward`` where that is given; exact repeats count once.

    All assistant turns are learned, those of the prompt (a worked example) among them.

    ``validation_share`` of the prompts is held out, chosen by ``seed``; they are taken whole, since with a worked
    example all begin alike. Raises FileNotFoundError without traces, and ValueError if they are of another schema, if
    they have no verdicts and there is no ``min_reward``, or if too little is accepted for two splits.
    """

    path: str
    min_reward: float | None = None
    validation_share: float = 0.1
    seed: int = 0
    name: str = "accepted"
    _splits: Splits[Demonstration] = field(init=False, repr=False, compare=False)
    _hashes: Mapping[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        samples, hashes = _samples(self.path)
        splits = arranged(
            [sample for sample in samples if sample.finish == "stop" and self._passes(sample)],
            None,
            identity=lambda sample: as_text([*sample.prompt, *sample.reply]),
            unit=lambda sample: as_text(sample.prompt),
            share=self.validation_share,
            seed=self.seed,
            what=self.name,
        ).each(lambda sample: Demonstration([*sample.prompt, *sample.reply], sample.source, sample.tools))
        object.__setattr__(self, "_splits", splits)
        object.__setattr__(self, "_hashes", hashes)

    def split(self, name: str) -> Sequence[Demonstration]:
        return self._splits[name]

    def manifest(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "source": "traces",
            "path": self.path,
            "sha256": self._hashes,
            "min_reward": self.min_reward,
            "validation_share": self.validation_share,
            "seed": self.seed,
            "sizes": self._splits.sizes,
            "left_out": self._splits.left_out,
        }

    def _passes(self, sample: _Sample) -> bool:
        if sample.correct is None and self.min_reward is None:
            raise ValueError(
                f"{sample.source}: a reward and no verdict; say from which reward on a sample is good enough to "
                "imitate, by data.min_reward"
            )
        reward = sample.scores["reward"]
        good = self.min_reward is None or (reward is not None and reward >= self.min_reward)
        return good and sample.correct is not False


@dataclass(frozen=True)
class LabelledTraces:
    """Comparisons of two samples of one problem in ``path`` (a run folder, or one file of its traces): the one with the
    higher ``part`` of its grade (``reward``, or one of the reward's parts) is chosen, the difference is the margin.

    Of each problem's pairs that differ by ``min_difference`` or more, up to ``pairs_per_problem`` are drawn;
    equal texts are one sample. ``validation_share`` of the prompts is held out. In train, each label is wrong with
    probability ``noise`` (the two change places, the margin stays). ``seed`` decides all of this.

    Raises FileNotFoundError without traces, and ValueError for settings that make no sense, for traces of another
    schema or without that part, and if there are too few pairs for two splits.
    """

    path: str
    part: str = "reward"
    pairs_per_problem: int = 4
    min_difference: float = 0.1
    noise: float = 0.0
    validation_share: float = 0.1
    seed: int = 0
    name: str = "labelled"
    _splits: Splits[Comparison] = field(init=False, repr=False, compare=False)
    _flipped: int = field(init=False, repr=False, compare=False)
    _hashes: Mapping[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_noise(self.noise, self.name)
        if self.pairs_per_problem < 1:
            raise ValueError(f"{self.name}: pairs_per_problem is {self.pairs_per_problem}; it must be at least 1")
        if not self.min_difference > 0:
            raise ValueError(f"{self.name}: min_difference is {self.min_difference}; it must be above 0: no ties")
        samples, hashes = _samples(self.path)
        clean = arranged(
            self._comparisons(samples),
            None,
            identity=lambda pair: (as_text(pair.prompt), as_text(pair.chosen), as_text(pair.rejected)),
            unit=lambda pair: as_text(pair.prompt),
            share=self.validation_share,
            seed=self.seed,
            what=self.name,
        )
        train, flipped = with_noise(clean.train, self.noise, self.seed)
        object.__setattr__(self, "_splits", Splits(train, clean.validation, clean.left_out))
        object.__setattr__(self, "_flipped", flipped)
        object.__setattr__(self, "_hashes", hashes)

    def split(self, name: str) -> Sequence[Comparison]:
        return self._splits[name]

    def manifest(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "source": "traces",
            "path": self.path,
            "sha256": self._hashes,
            "part": self.part,
            "pairs_per_problem": self.pairs_per_problem,
            "min_difference": self.min_difference,
            "noise": self.noise,
            "flipped": self._flipped,
            "validation_share": self.validation_share,
            "seed": self.seed,
            "sizes": self._splits.sizes,
            "left_out": self._splits.left_out,
        }

    def _comparisons(self, graded: Sequence[_Sample]) -> list[Comparison]:
        by_prompt: dict[str, dict[str, tuple[_Sample, float]]] = defaultdict(dict)
        for sample in graded:
            if (score := self._score(sample)) is not None:
                by_prompt[as_text(sample.prompt)].setdefault(as_text(sample.reply), (sample, score))
        comparisons = []
        for prompt, samples in by_prompt.items():
            pairs = [
                (better, worse, margin)
                for better, worse in itertools.permutations(samples.values(), 2)
                if (margin := better[1] - worse[1]) >= self.min_difference
            ]
            rng = random.Random(f"labelled/{self.seed}/{prompt}")
            for (better, _), (worse, _), margin in rng.sample(pairs, min(self.pairs_per_problem, len(pairs))):
                source = f"{better.source} against {worse.source}"
                comparisons.append(Comparison(better.prompt, better.reply, worse.reply, margin, source=source))
        return comparisons

    def _score(self, sample: _Sample) -> float | None:
        if self.part not in sample.scores:
            raise ValueError(f"{sample.source}: its grade has no part {self.part!r}; it has {', '.join(sample.scores)}")
        return sample.scores[self.part]


def read_rows(path: str, columns: Sequence[str]) -> tuple[list[tuple[str, dict[str, Any]]], dict[str, str]]:
    """The rows of the traces in ``path`` (a run folder, or one file of its traces), in the order in which they were
    written, each after the name of its file, with those of ``columns`` that it has; and the SHA-256 of each file.
    Raises FileNotFoundError without traces, and ValueError if they are of another schema."""
    place = Path(path)
    files = [place] if place.is_file() else sorted((place / "traces").glob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"no traces in {path}; give a run folder that has traces/, or a .parquet file")
    rows: list[tuple[str, dict[str, Any]]] = []
    hashes = {}
    for file in files:
        with file.open("rb") as content:
            hashes[str(file)] = hashlib.file_digest(content, "sha256").hexdigest()
        with pq.ParquetFile(file) as parquet:
            version = (parquet.schema_arrow.metadata or {}).get(b"rlreason.schema", b"none").decode()
            if version not in _SCHEMAS:
                raise ValueError(f"{file}: schema version {version} of the traces, but this reads versions {_SCHEMAS}")
            there = [name for name in columns if name in parquet.schema_arrow.names]
            rows += [(str(file), row) for row in parquet.read(columns=there).to_pylist()]
    return rows, hashes


def _samples(path: str) -> tuple[list[_Sample], dict[str, str]]:
    """The graded samples of training problems, in the order in which they were drawn, and the SHA-256 of each file."""
    rows, hashes = read_rows(path, _COLUMNS)
    samples = [
        _sample(f"{file}, problem {row['problem']}, group {row['group']}, sample {row['sample']}", row)
        for file, row in rows
        if row["split"] == "train" and row["segment"] == 0 and row["status"] != "error"
    ]
    return samples, hashes


def _sample(source: str, row: Mapping[str, Any]) -> _Sample:
    prompt = json.loads(row["prompt"])
    if prompt[-1]["role"] == "assistant":  # a turn that was begun for the policy: it is in the messages, whole
        prompt.pop()
    return _Sample(
        source=source,
        prompt=prompt,
        reply=json.loads(row["messages"])[len(prompt) :],
        finish=row["finish"],
        correct=row["correct"],
        scores={**json.loads(row["parts"]), "reward": row["reward"]},
        tools=tuple(json.loads(row.get("tools") or "[]")),
    )

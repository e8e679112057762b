"""Mathematics: rows of a problem and its answer, from the Hugging Face hub or a local folder, graded by sympy.

``env=math`` is MATH (Hendrycks et al. 2021, https://arxiv.org/abs/2103.03874); ``math500``, ``aime``, ``amc`` and
``svamp`` are the same class with other data. Answers may be whatever ``envs.verify`` can compare: numbers, formulas,
intervals, sets, matrices, words.

Left out: proofs, and answers that only a person or a model can judge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envs.base import SPLITS, Answer, BatchGradedEnv, ListSplit, NoSplitError, check_split, make_prompt
from envs.formats import Boxed, Format, best_reward, checked_weights, grade_answers
from envs.jsonl import malformed
from envs.rows import hold_out, hub_tables, local_rows
from envs.verify import Extraction, MathVerifier, Verifier, check_gold
from rlreason.types import Grade, Problem, Split

_FILES = {"train": "train.jsonl", "test": "test.jsonl"}
_BOXED = Extraction(("boxed",), after_thinking=False)


@dataclass(frozen=True)
class Math(BatchGradedEnv):
    """Problems with answers that can be compared. Data are read on construction.

    ``source`` ``hub`` reads ``dataset`` (its ``config``, at ``revision``), ``local`` the files ``train.jsonl`` and
    ``test.jsonl`` of ``data_dir``. ``problem_key`` and ``answer_key`` are the columns of problem and answer, several
    ones joined by blanks; an answer in ``\\boxed{}`` is taken out of it, so that a column of solutions will do.
    ``splits`` says which split of the data is ``train`` and which ``test``; without a ``train`` the environment is
    for evaluation. Of ``train`` ``num_validation`` rows are held out, the same ones for equal data and ``seed``.

    A right answer that can't be read is an error, unless ``skip_unreadable``: then its row is left out, and the
    manifest says how many there were.

    Raises FileNotFoundError for a missing folder or file, ConnectionError if the hub can't be reached, and ValueError
    for settings that make no sense and, naming file and line, for malformed rows.
    """

    source: str = "hub"
    data_dir: str | None = None
    dataset: str = "nlile/hendrycks-MATH-benchmark"
    config: str = "default"
    revision: str | None = None
    splits: Mapping[str, str | None] = field(default_factory=lambda: {"train": "train", "test": "test"})
    problem_key: str | Sequence[str] = "problem"
    answer_key: str = "answer"
    skip_unreadable: bool = False
    num_validation: int = 200
    format: Format = field(default_factory=Boxed)
    system: str | None = None
    seed: int = 0
    weights: Mapping[str, float] = field(default_factory=lambda: {"accuracy": 1.0, "format": 0.0, "lenient": 0.0})
    verifier: Verifier = field(default_factory=MathVerifier)
    name: str = "math"
    _problems: Mapping[str, Split] = field(init=False, repr=False, compare=False)
    _details: Mapping[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", checked_weights(self.weights))
        if self.source not in ("hub", "local"):
            raise ValueError(f"{self.name}: source is {self.source!r}; it must be hub or local")
        if (self.source == "local") != (self.data_dir is not None):
            raise ValueError(f"{self.name}: source=local goes with env.data_dir=<folder with the .jsonl files>")
        if self.num_validation < 1:
            raise ValueError(f"{self.name}: num_validation is {self.num_validation}; it must be at least 1")
        if not set(self.splits) <= set(_FILES) or self.splits.get("test") is None:
            raise ValueError(f"{self.name}: splits are {dict(self.splits)}; they must name test, and may name train")
        rows, details = (
            self._hub_rows() if self.data_dir is None else self._local_rows(Path(self.data_dir).expanduser())
        )
        problems = {split: self._read(split, found) for split, found in rows.items()}
        left_out = {split: len(found) - len(problems[split]) for split, found in rows.items()}
        found = (
            hold_out(problems["train"], problems["test"], self.num_validation, env=self.name, seed=self.seed)
            if "train" in problems
            else {"test": ListSplit(problems["test"])}
        )
        object.__setattr__(self, "_problems", found)
        object.__setattr__(self, "_details", {**details, "left_out": left_out})

    @property
    def max_reward(self) -> float:
        return best_reward(self.format, self.weights)

    def split(self, name: str) -> Split:
        check_split(name)
        if name not in self._problems:
            raise NoSplitError(
                f"{self.name} is for evaluation and has no {name} split: evaluate with split=test, or train on other "
                "data, such as env=math"
            )
        return self._problems[name]

    def grade_texts(self, answers: Sequence[Answer]) -> list[Grade]:
        return grade_answers(answers, self.verifier, format=self.format, weights=self.weights)

    def gold(self, problem: Problem) -> str:
        return self.format.gold(problem.meta["solution"], problem.answer)

    def manifest(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            **self._details,
            "seed": self.seed,
            "sizes": {name: self._problems[name].size for name in SPLITS if name in self._problems},
            "format": {"type": type(self.format).__name__, "instruction": self.format.instruction},
            "weights": dict(self.weights),
            "verifier": str(self.verifier),
        }

    @property
    def _columns(self) -> tuple[str, ...]:
        return (self.problem_key,) if isinstance(self.problem_key, str) else tuple(self.problem_key)

    @property
    def _theirs(self) -> dict[str, str]:
        """The splits of the data that are read, by ours."""
        return {split: theirs for split, theirs in self.splits.items() if theirs is not None}

    @property
    def _what_to_do(self) -> str:
        files = " and ".join(_FILES[split] for split in self._theirs)
        return f"Give a folder with {files} (env.source=local env.data_dir=<folder>)."

    @property
    def _example(self) -> str:
        return "{" + ", ".join(f'"{key}": "..."' for key in self._columns) + f', "{self.answer_key}": "18"' + "}"

    def _local_rows(self, folder: Path) -> tuple[dict[str, list[tuple[str, Any]]], dict[str, Any]]:
        files = {split: _FILES[split] for split in self._theirs}
        rows, hashes = local_rows(folder, files, env=self.name, example=self._example, what_to_do=self._what_to_do)
        return rows, {"source": "local", "data_dir": str(folder.resolve()), "sha256": hashes}

    def _hub_rows(self) -> tuple[dict[str, list[tuple[str, Any]]], dict[str, Any]]:
        tables, revision = hub_tables(
            self.dataset,
            self.config,
            self.revision,
            env=self.name,
            splits=self._theirs.values(),
            columns=(*self._columns, self.answer_key),
            what_to_do=self._what_to_do,
        )
        rows = {
            split: [(f"{self.dataset}, {theirs}, row {place}", row) for place, row in enumerate(tables[theirs])]
            for split, theirs in self._theirs.items()
        }
        return rows, {"source": "hub", "dataset": self.dataset, "config": self.config, "revision": revision}

    def _read(self, split: str, rows: Iterable[tuple[str, Any]]) -> list[Problem]:
        """Problems; ids are ``<name>/<split>/<row from 0>``. ValueError for a malformed row."""
        problems = []
        for place, (where, row) in enumerate(rows):
            if not isinstance(row, Mapping):
                raise malformed(where, "this is not a JSON object", self._example)
            for key in self._columns:
                if not isinstance(row.get(key), str) or not row[key].strip():
                    raise malformed(where, f"{key!r} is missing, empty or not a string", self._example)
            answer = row.get(self.answer_key)
            if isinstance(answer, bool) or not isinstance(answer, str | int | float) or not str(answer).strip():
                raise malformed(where, f"{self.answer_key!r} is missing, empty or no answer", self._example)
            answer = str(answer).strip()
            answer = (_BOXED(answer) or "") if "\\boxed" in answer else answer
            try:
                check_gold(answer)
            except ValueError as error:
                if self.skip_unreadable:
                    continue
                what = f"{error}; env.skip_unreadable=true leaves such rows out"
                raise malformed(where, what, self._example) from None
            question = " ".join(row[key].strip() for key in self._columns)
            prompt = make_prompt(question, self.format.instruction, self.system)
            meta = {"solution": str(row.get("solution") or ""), "level": row.get("level")}
            problems.append(Problem(f"{self.name}/{split}/{place}", prompt, answer, meta))
        return problems

"""GSM8K: grade-school word problems (Cobbe et al. 2021, https://arxiv.org/abs/2110.14168).

The data come from the Hugging Face hub, from a local folder, or, where neither can be had, from a generator of
similar but easier problems. The generated ones are never passed off as GSM8K: the environment is then called
``gsm8k-synthetic``, which is in every metric name, and the manifest says so too.

Left out: the calculator that the paper lets the model call; its annotations ``<<48/2=24>>`` are removed from the
solutions.
"""

from __future__ import annotations

import hashlib
import random
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envs.base import SPLITS, Answer, BatchGradedEnv, GeneratedSplit, ListSplit, check_split, make_prompt, split_of
from envs.formats import R1, Format, best_reward, checked_weights, grade_answers
from envs.jsonl import malformed
from envs.rows import hold_out, hub_tables, local_rows
from envs.verify import MathVerifier, Verifier
from envs.verify.numbers import canonical, parse_number
from envs.word_problems import MAX_STEPS, WordProblem, word_problem
from rlreason.types import Grade, Message, Problem, Split

SOURCES = ("auto", "hub", "local", "synthetic")

SYNTHETIC_TEST = 1000
"""Test problems of the generated stand-in, where so many different ones exist."""

_ANNOTATION = re.compile(r"<<[^<>\n]*>>")
_FILES = {"train": "train.jsonl", "test": "test.jsonl"}
_EXAMPLE_ROW = '{"question": "...", "answer": "... #### 18"}'
_WHAT_TO_DO = (
    "Either give a folder with train.jsonl and test.jsonl (env.source=local env.data_dir=<folder>; they are in "
    "https://github.com/openai/grade-school-math under grade_school_math/data), or use generated problems that are not "
    "GSM8K (env.source=synthetic)."
)


class SyntheticDataWarning(UserWarning):
    """Generated problems stand in for GSM8K."""


@dataclass(frozen=True)
class _Data:
    """What was loaded; ``details`` go into the manifest."""

    name: str
    splits: Mapping[str, Split]
    details: Mapping[str, Any]


@dataclass(frozen=True)
class _Example:
    question: str
    solution: str
    answer: str


# Ours, of no data set.
EXAMPLE = _Example(
    question="Ann has 3 red pens and 4 blue pens. She gives 2 pens away. How many pens does Ann have now?",
    solution="Ann has 3 + 4 = 7 pens. After giving 2 away she has 7 - 2 = 5 pens.",
    answer="5",
)


@dataclass(frozen=True)
class Gsm8k(BatchGradedEnv):
    """GSM8K, graded by the value of the final answer. Data are read on construction.

    ``source``:

    - ``local``: ``train.jsonl`` and ``test.jsonl`` in ``data_dir``; each row has ``question`` and ``answer``, which
      ends in ``#### 18``;
    - ``hub``: ``dataset`` (its ``config``, at ``revision``) from the Hugging Face hub. Where the hub does not answer
      within ``HUB_SECONDS``, or HF_HUB_OFFLINE is set, a copy in the datasets cache is used;
    - ``synthetic``: generated word problems with the numbers of steps in ``synthetic_steps``, drawn alike;
    - ``auto``: ``local`` if ``data_dir`` is given, else ``hub``, else ``synthetic`` after a ``SyntheticDataWarning``.
      Only an unreachable hub leads there; a data set that does not exist or has bad rows is an error.

    ``worked_example`` puts one problem, solved in the format, before the question, as an earlier turn: a small model
    that never hits the format by itself then does at times, so that there is something to reinforce.

    ``validation`` is ``num_validation`` problems held out of train. ``seed`` chooses them (and the generated problems);
    it is the environment's own and should stay as it is while the run's seed varies.

    Raises ValueError for settings that make no sense and for malformed rows (file and line), FileNotFoundError for a
    missing folder or file, ConnectionError if the hub is needed and can't be reached.
    """

    source: str = "auto"
    data_dir: str | None = None
    dataset: str = "openai/gsm8k"
    config: str = "main"
    revision: str | None = None
    num_validation: int = 200
    synthetic_steps: tuple[int, ...] = (1, 2, 3)
    format: Format = field(default_factory=R1)
    system: str | None = None
    worked_example: bool = False
    seed: int = 0
    weights: Mapping[str, float] = field(default_factory=lambda: {"accuracy": 1.0, "format": 0.2, "lenient": 0.0})
    verifier: Verifier = field(default_factory=lambda: MathVerifier(percent_as_unit=True))
    _data: _Data = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "synthetic_steps", tuple(self.synthetic_steps))
        object.__setattr__(self, "weights", checked_weights(self.weights))
        if self.source not in SOURCES:
            raise ValueError(f"gsm8k: source is {self.source!r}; it must be one of {', '.join(SOURCES)}")
        if self.source == "local" and self.data_dir is None:
            raise ValueError("gsm8k: source=local needs env.data_dir=<folder with train.jsonl and test.jsonl>")
        if self.source in ("hub", "synthetic") and self.data_dir is not None:
            raise ValueError(
                f"gsm8k: data_dir is given ({self.data_dir}) but source={self.source} does not read it; "
                "use source=local, or leave data_dir out"
            )
        if self.num_validation < 1:
            raise ValueError(f"gsm8k: num_validation is {self.num_validation}; it must be at least 1")
        if not self.synthetic_steps or not all(1 <= steps <= MAX_STEPS for steps in self.synthetic_steps):
            raise ValueError(
                f"gsm8k: synthetic_steps is {list(self.synthetic_steps)}; it must be numbers from 1 to {MAX_STEPS}"
            )
        object.__setattr__(self, "_data", self._load())

    @property
    def name(self) -> str:
        return self._data.name

    @property
    def max_reward(self) -> float:
        return best_reward(self.format, self.weights)

    def split(self, name: str) -> Split:
        check_split(name)
        return self._data.splits[name]

    def grade_texts(self, answers: Sequence[Answer]) -> list[Grade]:
        return grade_answers(answers, self.verifier, format=self.format, weights=self.weights)

    def gold(self, problem: Problem) -> str:
        return self.format.gold(problem.meta["solution"], problem.answer)

    def _prompt(self, question: str) -> list[Message]:
        asked = make_prompt(question, self.format.instruction, self.system)
        if not self.worked_example:
            return asked
        system, user = asked[:-1], asked[-1]
        shown = make_prompt(EXAMPLE.question, self.format.instruction, None)
        solved: Message = {"role": "assistant", "content": self.format.gold(EXAMPLE.solution, EXAMPLE.answer)}
        return [*system, *shown, solved, user]

    def manifest(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "worked_example": self.worked_example,
            **self._data.details,
            "seed": self.seed,
            "sizes": {name: self.split(name).size for name in SPLITS},
            "format": {"type": type(self.format).__name__, "instruction": self.format.instruction},
            "weights": dict(self.weights),
            "verifier": str(self.verifier),
        }

    def _load(self) -> _Data:
        if self.source == "synthetic":
            return self._load_synthetic()
        if self.data_dir is not None:
            return self._load_local(Path(self.data_dir).expanduser())
        try:
            return self._load_hub()
        except ConnectionError as error:
            if self.source == "hub":
                raise
            warnings.warn(_box(str(error.__cause__ or error)), SyntheticDataWarning, stacklevel=4)
            return self._load_synthetic()

    def _load_local(self, folder: Path) -> _Data:
        rows, hashes = local_rows(folder, _FILES, env="gsm8k", example=_EXAMPLE_ROW, what_to_do=_WHAT_TO_DO)
        problems = {split: self._problems(split, found) for split, found in rows.items()}
        details = {"source": "local", "data_dir": str(folder.resolve()), "sha256": hashes}
        return _Data("gsm8k", self._hold_out(problems), details)

    def _load_hub(self) -> _Data:
        tables, revision = hub_tables(
            self.dataset,
            self.config,
            self.revision,
            env="gsm8k",
            splits=_FILES,
            columns=("question", "answer"),
            what_to_do=_WHAT_TO_DO,
        )
        problems = {}
        for split in _FILES:
            rows = ((f"{self.dataset}, {split}, row {place}", row) for place, row in enumerate(tables[split]))
            problems[split] = self._problems(split, rows)
        details = {"source": "hub", "dataset": self.dataset, "config": self.config, "revision": revision}
        return _Data("gsm8k", self._hold_out(problems), details)

    def _problems(self, file: str, rows: Iterable[tuple[str, Any]]) -> list[Problem]:
        """Problems from (where, row) pairs; ids are ``gsm8k/<file>/<row from 0>``. ValueError for a malformed row."""
        problems = []
        for place, (where, row) in enumerate(rows):
            question, solution, answer = _parse_row(where, row)
            problems.append(self._problem(f"gsm8k/{file}/{place}", question, solution, answer, {}))
        return problems

    def _problem(self, id: str, question: str, solution: str, answer: str, meta: Mapping[str, Any]) -> Problem:
        return Problem(
            id=id,
            prompt=self._prompt(question),
            answer=answer,
            meta={**meta, "solution": solution},
        )

    def _hold_out(self, problems: Mapping[str, list[Problem]]) -> dict[str, Split]:
        return hold_out(problems["train"], problems["test"], self.num_validation, env="gsm8k", seed=self.seed)

    def _load_synthetic(self) -> _Data:
        splits: dict[str, Split] = {
            "train": GeneratedSplit(None, lambda index: self._synthetic_problem(self._draw("train", index)))
        }
        for split, wanted in (("validation", self.num_validation), ("test", SYNTHETIC_TEST)):
            # 50 draws for each: with one-step problems only, there may not be so many different ones.
            by_key: dict[str, WordProblem] = {}
            for index in range(50 * wanted):
                drawn = self._draw(split, index)
                by_key.setdefault(drawn.key, drawn)
                if len(by_key) == wanted:
                    break
            splits[split] = ListSplit([self._synthetic_problem(drawn) for drawn in by_key.values()])
        return _Data("gsm8k-synthetic", splits, {"source": "synthetic", "synthetic_steps": list(self.synthetic_steps)})

    def _draw(self, split: str, index: int) -> WordProblem:
        rng = random.Random(f"gsm8k-synthetic/{self.seed}/{split}/{index}")
        steps = rng.choice(self.synthetic_steps)
        while True:
            drawn = word_problem(rng, steps)
            if split_of(drawn.key) == split:
                return drawn

    def _synthetic_problem(self, drawn: WordProblem) -> Problem:
        wording = hashlib.sha256(drawn.question.encode()).hexdigest()[:12]
        meta = {"operations": list(drawn.operations), "steps": len(drawn.operations)}
        id = f"gsm8k-synthetic/{drawn.key}/{wording}"
        return self._problem(id, drawn.question, drawn.solution, str(drawn.answer), meta)


def _parse_row(where: str, row: Any) -> tuple[str, str, str]:
    """Question, solution and the canonical final answer of a row; ValueError saying where if it is malformed."""
    if not isinstance(row, Mapping):
        raise malformed(where, "this is not a JSON object", _EXAMPLE_ROW)
    for key in ("question", "answer"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise malformed(where, f"{key!r} is missing, empty or not a string", _EXAMPLE_ROW)
    solution, mark, gold = row["answer"].rpartition("####")
    if not mark:
        raise malformed(where, "'answer' has no '####' with the final number after it", _EXAMPLE_ROW)
    value = parse_number(gold)
    if value is None:
        raise malformed(where, f"the final answer {gold.strip()!r} after '####' is not a number", _EXAMPLE_ROW)
    return row["question"].strip(), _ANNOTATION.sub("", solution).strip(), canonical(value)


def _box(reason: str) -> str:
    lines = [
        "GENERATED WORD PROBLEMS STAND IN FOR GSM8K",
        "",
        "The numbers of this run are NOT GSM8K results: they are far easier problems.",
        "Metric names say gsm8k-synthetic, and the manifest says source: synthetic.",
        "",
        "For the real data: env.data_dir=<folder with train.jsonl and test.jsonl>,",
        "or run where the Hugging Face hub can be reached. To choose the generated",
        "problems and see no warning: env.source=synthetic.",
        "",
        f"Why: {' '.join(reason.split())}"[:300],
    ]
    width = max(map(len, lines))
    edge = "#" * (width + 6)
    return "\n".join(["", edge, *(f"## {line:<{width}} ##" for line in lines), edge])

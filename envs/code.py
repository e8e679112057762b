"""Programming: problems whose answer is a Python program, graded by running it against tests in the sandbox.

``env=code`` is MBPP (Austin et al. 2021, https://arxiv.org/abs/2108.07732), ``env=humaneval`` is HumanEval (Chen et
al. 2021, https://arxiv.org/abs/2107.03374); problems of stdin and stdout have rows of their own
(``envs.sandbox.problems``).

The policy sees ``shown_tests`` of a problem's tests, one by default, which tells it the names; it is graded by all of
them, so that a program which only knows the answer it was shown fails.

Left out: other languages, several files, and feedback from the tests to the policy (a matter of several turns).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envs.base import SPLITS, Answer, BatchGradedEnv, ListSplit, NoSplitError, check_split, make_prompt
from envs.formats import checked_weights
from envs.rows import hold_out, hub_tables
from envs.sandbox import Outcome, Sandbox
from envs.sandbox.problems import CodeProblem, extract_code, json_rows, problem_from_row
from rlreason.types import Grade, Problem, Split, Status

PARTS = ("accuracy", "tests", "format")
"""The parts of a grade, each in [0, 1]: ``accuracy`` (every test passes), ``tests`` (the share that passes),
``format`` (the program stands in a fenced block)."""

_STATUS: Mapping[str, Status] = {"timeout": "timeout", "memory": "timeout", "sandbox_error": "error"}


@dataclass(frozen=True)
class Code(BatchGradedEnv):
    """Problems that a program solves. Data are read on construction.

    ``source`` ``hub`` reads ``dataset`` (its ``config``, at ``revision``), of which ``splits`` names the parts that
    are ``train``, ``validation`` and ``test``; ``local`` reads those of ``files`` in ``data_dir``, ``.jsonl`` or
    ``.jsonl.gz``. ``task_ids`` takes of a file only the rows whose ``task_id`` lies in an inclusive range, for a data
    set in one file. Without a validation part ``num_validation`` rows of train are held out; without train the
    environment is for evaluation.

    ``weights`` are of ``PARTS``; one for ``tests`` gives partial credit.

    Raises FileNotFoundError for a missing file, ConnectionError if the hub can't be reached, SandboxUnavailable if
    this machine can't contain programs, and ValueError for settings that make no sense and, naming file and line, for
    malformed rows.
    """

    sandbox: Sandbox = field(repr=False, compare=False)
    source: str = "hub"
    data_dir: str | None = None
    dataset: str = "google-research-datasets/mbpp"
    config: str = "full"
    revision: str | None = None
    splits: Mapping[str, str | None] = field(default_factory=lambda: {name: name for name in SPLITS})
    files: Mapping[str, str | None] = field(default_factory=lambda: {name: f"{name}.jsonl" for name in SPLITS})
    task_ids: Mapping[str, Sequence[int]] | None = None
    num_validation: int = 50
    shown_tests: int = 1
    instruction: str = "Answer with a Python program in one block of ```python code."
    system: str | None = None
    seed: int = 0
    weights: Mapping[str, float] = field(default_factory=lambda: {"accuracy": 1.0, "tests": 0.0, "format": 0.0})
    name: str = "code"
    _found: Mapping[str, Split] = field(init=False, repr=False, compare=False)
    _problems: Mapping[str, CodeProblem] = field(init=False, repr=False, compare=False)
    _details: Mapping[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", checked_weights(self.weights, PARTS))
        if self.source not in ("hub", "local"):
            raise ValueError(f"{self.name}: source is {self.source!r}; it must be hub or local")
        if (self.source == "local") != (self.data_dir is not None):
            raise ValueError(f"{self.name}: source=local goes with env.data_dir=<folder with the .jsonl files>")
        if self.num_validation < 1 or self.shown_tests < 0:
            counts = f"num_validation is {self.num_validation} and shown_tests {self.shown_tests}"
            raise ValueError(f"{self.name}: {counts}; they must be at least 1 and 0")
        chosen = self.splits if self.data_dir is None else self.files
        if not set(chosen) <= set(SPLITS) or chosen.get("test") is None:
            raise ValueError(f"{self.name}: the parts are {dict(chosen)}; they must name test, and may name train")
        rows, details = (
            self._hub_rows() if self.data_dir is None else self._local_rows(Path(self.data_dir).expanduser())
        )
        code: dict[str, CodeProblem] = {}
        found = {split: self._read(split, pairs, code) for split, pairs in rows.items()}
        splits: dict[str, Split] = {split: ListSplit(problems) for split, problems in found.items()}
        if "train" in found and "validation" not in found:
            splits = hold_out(found["train"], found["test"], self.num_validation, env=self.name, seed=self.seed)
        object.__setattr__(self, "_found", splits)
        object.__setattr__(self, "_problems", code)
        object.__setattr__(self, "_details", details)

    @property
    def max_reward(self) -> float:
        return sum(self.weights.values())

    def split(self, name: str) -> Split:
        check_split(name)
        if name not in self._found:
            raise NoSplitError(
                f"{self.name} is for evaluation and has no {name} split: evaluate with split=test, or train on other "
                "data, such as env=code"
            )
        return self._found[name]

    def grade_texts(self, answers: Sequence[Answer]) -> list[Grade]:
        problems = [self._problems[answer.problem.id] for answer in answers]
        programs = [problem.extract(answer.text) for problem, answer in zip(problems, answers, strict=True)]
        written = [place for place, program in enumerate(programs) if program.strip()]
        outcomes = self.sandbox.run([problems[place].check(programs[place]) for place in written])
        by_place = dict(zip(written, outcomes, strict=True))
        return [self._grade(answer, by_place.get(place)) for place, answer in enumerate(answers)]

    def gold(self, problem: Problem) -> str:
        return f"```python\n{problem.answer}\n```"

    def manifest(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            **self._details,
            "seed": self.seed,
            "sizes": {name: self._found[name].size for name in SPLITS if name in self._found},
            "shown_tests": self.shown_tests,
            "instruction": self.instruction,
            "weights": dict(self.weights),
            "sandbox": self.sandbox.describe(),
        }

    def _grade(self, answer: Answer, outcome: Outcome | None) -> Grade:
        if outcome is not None and outcome.status == "sandbox_error":
            return Grade(0.0, None, "error")
        parts = {
            "accuracy": float(outcome is not None and outcome.status == "ok"),
            "tests": outcome.passed / outcome.total if outcome is not None and outcome.total else 0.0,
            "format": float(extract_code(answer.text) != answer.text),
        }
        status: Status = "unparseable" if outcome is None else _STATUS.get(outcome.status, "ok")
        reward = sum(self.weights.get(part, 0.0) * value for part, value in parts.items())
        return Grade(reward, bool(parts["accuracy"]), status, parts)

    def _local_rows(self, folder: Path) -> tuple[dict[str, list[tuple[str, Any]]], dict[str, Any]]:
        rows, hashes = {}, {}
        for split, file in self.files.items():
            if file is not None:
                path = folder / file
                if not path.is_file():
                    raise FileNotFoundError(f"{self.name}: there is no file {path}. {self._what_to_do}")
                hashes[file] = hashlib.sha256(path.read_bytes()).hexdigest()
                rows[split] = [(where, row) for where, row in json_rows(path) if self._belongs(split, row)]
        return rows, {"source": "local", "data_dir": str(folder.resolve()), "sha256": hashes}

    def _belongs(self, split: str, row: Any) -> bool:
        if self.task_ids is None or not isinstance(row, Mapping):
            return True  # whether it is a row is seen later
        first, last = self.task_ids.get(split, (0, -1))
        task_id = row.get("task_id")
        return isinstance(task_id, int) and first <= task_id <= last

    def _hub_rows(self) -> tuple[dict[str, list[tuple[str, Any]]], dict[str, Any]]:
        theirs = {split: name for split, name in self.splits.items() if name is not None}
        tables, revision = hub_tables(
            self.dataset,
            self.config,
            self.revision,
            env=self.name,
            splits=theirs.values(),
            columns=("task_id",),
            what_to_do=self._what_to_do,
        )
        rows = {
            split: [(f"{self.dataset}, {name}, row {place}", row) for place, row in enumerate(tables[name])]
            for split, name in theirs.items()
        }
        return rows, {"source": "hub", "dataset": self.dataset, "config": self.config, "revision": revision}

    @property
    def _what_to_do(self) -> str:
        files = ", ".join(dict.fromkeys(file for file in self.files.values() if file is not None))
        return f"Give a folder with {files} (env.source=local env.data_dir=<folder>)."

    def _read(self, split: str, rows: Iterable[tuple[str, Any]], code: dict[str, CodeProblem]) -> list[Problem]:
        """Problems; ids are ``<name>/<split>/<task_id>``. Fills ``code``. ValueError for a malformed row."""
        problems = []
        for where, row in rows:
            found = problem_from_row(where, row)
            id = f"{self.name}/{split}/{found.task_id}"
            if id in code:
                raise ValueError(f"{where}: a second problem {found.task_id!r}; remove one of them")
            code[id] = found
            prompt = make_prompt(self._question(found), self.instruction, self.system)
            problems.append(Problem(id, prompt, found.reference))
        return problems

    def _question(self, problem: CodeProblem) -> str:
        if problem.prefix:
            return f"Complete this function:\n```python\n{problem.prompt.rstrip()}\n```"
        if problem.cases:
            shown = [f"Input:\n{given}\nOutput:\n{expected}" for given, expected in problem.cases[: self.shown_tests]]
            return "\n\n".join([problem.prompt.strip(), *shown])
        shown = list(problem.tests[: self.shown_tests])
        return "\n".join([problem.prompt.strip(), *(["It must pass this:", *shown] if shown else [])])

"""Competition mathematics: rows of a problem and its answer, from the Hugging Face hub or a local folder.

Answers are numbers here, compared exactly. Rows whose answer is none (a surd, an interval, an expression) are left out,
and the manifest says how many. MATH is of Hendrycks et al. 2021, https://arxiv.org/abs/2103.03874.

Left out: symbolic equivalence. It takes a verifier that can be killed, since a policy's expression may take forever.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envs.base import SPLITS, SingleTurnEnv, check_split, make_prompt
from envs.formats import R1, Format, best_reward, checked_weights, grade_number
from envs.rows import hold_out, hub_tables, local_rows, malformed
from envs.verify.numbers import canonical, parse_number
from rlreason.types import Finish, Grade, Problem, Split

_FILES = {"train": "train.jsonl", "test": "test.jsonl"}
_EXAMPLE_ROW = '{"problem": "...", "answer": "18"}'
_WHAT_TO_DO = "Give a folder with train.jsonl and test.jsonl (env.source=local env.data_dir=<folder>)."


@dataclass(frozen=True)
class Math(SingleTurnEnv):
    """Problems with numeric answers. Data are read on construction.

    ``source`` ``hub`` reads ``dataset`` (its ``config``, at ``revision``), ``local`` the files ``train.jsonl`` and
    ``test.jsonl`` of ``data_dir``; rows have ``problem`` and ``answer``, and may have ``solution``. ``num_validation``
    rows are held out of train, the same ones for equal data and ``seed``.

    Raises FileNotFoundError for a missing folder or file, ConnectionError if the hub can't be reached, and ValueError
    for settings that make no sense and, naming file and line, for malformed rows.
    """

    source: str = "hub"
    data_dir: str | None = None
    dataset: str = "nlile/hendrycks-MATH-benchmark"
    config: str = "default"
    revision: str | None = None
    num_validation: int = 200
    format: Format = field(default_factory=R1)
    system: str | None = None
    seed: int = 0
    weights: Mapping[str, float] = field(default_factory=lambda: {"accuracy": 1.0, "format": 0.2, "lenient": 0.0})
    name: str = "math"
    _splits: Mapping[str, Split] = field(init=False, repr=False, compare=False)
    _details: Mapping[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", checked_weights(self.weights))
        if self.source not in ("hub", "local"):
            raise ValueError(f"math: source is {self.source!r}; it must be hub or local")
        if (self.source == "local") != (self.data_dir is not None):
            raise ValueError("math: source=local goes with env.data_dir=<folder with train.jsonl and test.jsonl>")
        if self.num_validation < 1:
            raise ValueError(f"math: num_validation is {self.num_validation}; it must be at least 1")
        rows, details = (
            self._hub_rows() if self.data_dir is None else self._local_rows(Path(self.data_dir).expanduser())
        )
        problems = {split: self._problems(split, found) for split, found in rows.items()}
        left_out = {split: len(found) - len(problems[split]) for split, found in rows.items()}
        splits = hold_out(problems["train"], problems["test"], self.num_validation, env="math", seed=self.seed)
        object.__setattr__(self, "_splits", splits)
        object.__setattr__(self, "_details", {**details, "left_out": left_out})

    @property
    def max_reward(self) -> float:
        return best_reward(self.format, self.weights)

    def split(self, name: str) -> Split:
        check_split(name)
        return self._splits[name]

    def grade_text(self, problem: Problem, text: str, finish: Finish) -> Grade:
        return grade_number(
            text, finish, answer=problem.answer, prompt=problem.prompt, format=self.format, weights=self.weights
        )

    def gold(self, problem: Problem) -> str:
        return self.format.gold(problem.meta["solution"], problem.answer)

    def manifest(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            **self._details,
            "seed": self.seed,
            "sizes": {name: self.split(name).size for name in SPLITS},
            "format": {"type": type(self.format).__name__, "instruction": self.format.instruction},
            "weights": dict(self.weights),
        }

    def _local_rows(self, folder: Path) -> tuple[dict[str, list[tuple[str, Any]]], dict[str, Any]]:
        rows, hashes = local_rows(folder, _FILES, env="math", example=_EXAMPLE_ROW, what_to_do=_WHAT_TO_DO)
        return rows, {"source": "local", "data_dir": str(folder.resolve()), "sha256": hashes}

    def _hub_rows(self) -> tuple[dict[str, list[tuple[str, Any]]], dict[str, Any]]:
        tables, revision = hub_tables(
            self.dataset,
            self.config,
            self.revision,
            env="math",
            splits=_FILES,
            columns=("problem", "answer"),
            what_to_do=_WHAT_TO_DO,
        )
        rows = {
            split: [(f"{self.dataset}, {split}, row {place}", row) for place, row in enumerate(tables[split])]
            for split in _FILES
        }
        return rows, {"source": "hub", "dataset": self.dataset, "config": self.config, "revision": revision}

    def _problems(self, split: str, rows: Iterable[tuple[str, Any]]) -> list[Problem]:
        """Rows with a numeric answer; ids are ``math/<split>/<row from 0>``. ValueError for a malformed row."""
        problems = []
        for place, (where, row) in enumerate(rows):
            if not isinstance(row, Mapping):
                raise malformed(where, "this is not a JSON object", _EXAMPLE_ROW)
            for key in ("problem", "answer"):
                if not isinstance(row.get(key), str) or not row[key].strip():
                    raise malformed(where, f"{key!r} is missing, empty or not a string", _EXAMPLE_ROW)
            value = parse_number(row["answer"])
            if value is not None:
                prompt = make_prompt(row["problem"].strip(), self.format.instruction, self.system)
                meta = {"solution": str(row.get("solution") or ""), "level": row.get("level")}
                problems.append(Problem(f"math/{split}/{place}", prompt, canonical(value), meta))
        return problems

"""Any data set of the package ``reasoning-gym`` by its name, scored by its own scorer.

Its documentation: https://github.com/open-thought/reasoning-gym (Stojanovski et al. 2025, arXiv:2505.24760). Questions
and scores come from a process of their own; why, and what is done about scorers that evaluate what they are given,
``gym_worker`` says.

The splits partition the library's problems by a hash of the question's text, so that no question is in two of them, for
every seed. Questions that ask the same in other words may be: only the library could know.

Left out: its curricula, whose levels are settings of the data sets (``params``).
"""

from __future__ import annotations

import math
import random
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from envs.adapters.gym_process import GymProcess, Outcome
from envs.base import SPLITS, GeneratedSplit, SingleTurnEnv, check_split, make_prompt, split_of
from envs.formats import R1, Format, best_reward, checked_weights
from rlreason.types import Finish, Grade, Problem, Split, Status

PARTS = ("accuracy", "format")
"""The parts of a grade, each in [0, 1]: ``accuracy``, the library's score, and ``format``, the format's own."""

INSTRUCTION = (
    "Put the reasoning in <think> </think> and nothing but the answer in <answer> </answer> tags, like this: "
    "<think> reasoning process here </think> <answer> answer here </answer>"
)

MAX_DRAWS = 1000
"""A split of which so many questions in a row are not is taken for empty."""

MAX_ANSWER = 10_000
"""Longest answer that is scored, in characters; a longer one is unparseable."""

# A scorer that takes the distance from the right number may find nothing wrong with a distance that is no number.
_NO_NUMBER = re.compile(r"[\s(+-]*(?:nan|inf(?:inity)?)j?(?:[\s+-]+(?:nan|inf(?:inity)?)j?)*[\s)]*", re.IGNORECASE)

UNSOUND = {
    "coin_flip": "its scorer takes any beginning of the right number for right, such as 0",
    "game_of_life_halting": "its scorer takes any answer for right",
}
"""Data sets of which a policy can have the full score without deserving it, as of reasoning-gym 0.1.25."""

_STATUS: Mapping[Outcome, Status] = {"scored": "ok", "raised": "unparseable", "timeout": "timeout", "error": "error"}


@dataclass(frozen=True)
class ReasoningGym(SingleTurnEnv):
    """Problems of ``dataset`` with its settings ``params``, of which ``size`` belong to the library's ``seed``.

    The format extracts the answer, and the library scores it. It is correct if the score is at least
    ``pass_threshold``; a lower score is partial credit, which some data sets give for almost anything (0.01). An
    answer for which the scorer raises an exception scores 0 and is ``unparseable``; one that takes it more than
    ``cpu_seconds`` or ``memory_mb`` is ``timeout``.

    Raises ImportError without the package, and ValueError for what it refuses, for a setting that makes no sense and,
    at any problem, if nearly all questions of ``params`` belong to other splits.
    """

    dataset: str
    params: Mapping[str, Any] = field(default_factory=dict)
    size: int = 20_000
    pass_threshold: float = 1.0
    format: Format = field(default_factory=lambda: R1(INSTRUCTION))
    system: str | None = None
    seed: int = 0
    weights: Mapping[str, float] = field(default_factory=lambda: {"accuracy": 1.0, "format": 0.2})
    cpu_seconds: float = 2.0
    memory_mb: int = 1024
    name: str = ""
    _process: GymProcess = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", checked_weights(self.weights, PARTS))
        object.__setattr__(self, "name", self.name or self.dataset)
        if reserved := {"seed", "size"} & self.params.keys():
            raise ValueError(
                f"{self.name}: params has {', '.join(sorted(reserved))}; set env.seed and env.size instead"
            )
        if not 0 < self.pass_threshold <= 1:
            raise ValueError(f"{self.name}: pass_threshold is {self.pass_threshold}; it must be above 0, at most 1")
        if self.size < 1 or self.cpu_seconds <= 0 or self.memory_mb < 16:
            raise ValueError(
                f"{self.name}: size is {self.size}, cpu_seconds {self.cpu_seconds} and memory_mb {self.memory_mb}; "
                "they must be at least 1, above 0 and at least 16"
            )
        if find_spec("reasoning_gym") is None:
            raise ImportError("env=reasoning_gym needs a package: pip install 'rlreason[reasoning-gym]'")
        try:
            process = GymProcess(
                self.dataset,
                self.params,
                seed=self.seed,
                size=self.size,
                cpu_seconds=self.cpu_seconds,
                memory_mb=self.memory_mb,
            )
        except ValueError as error:
            raise ValueError(f"env.dataset={self.dataset} with params {dict(self.params)}: {error}") from None
        if self.dataset in UNSOUND:
            warnings.warn(f"env.dataset={self.dataset}: {UNSOUND[self.dataset]}", stacklevel=2)
        object.__setattr__(self, "_process", process)
        for name in SPLITS:
            self._draw(name, 0)

    @property
    def max_reward(self) -> float:
        return best_reward(self.format, self.weights)

    def split(self, name: str) -> Split:
        check_split(name)
        return GeneratedSplit(None, lambda index: self._draw(name, index))

    def grade_text(self, problem: Problem, text: str, finish: Finish) -> Grade:
        answer = self.format.extract(text)
        if answer is not None and finish == "length" and text.rstrip().endswith(answer):
            answer = None  # nothing closes it: the token limit may have cut it off
        score, status = self._score(problem, answer)
        if status == "error":
            return Grade(0.0, None, "error")
        parts = {"accuracy": score}
        format_score = self.format.score(text)
        if format_score is not None:
            parts["format"] = format_score
        reward = sum(self.weights.get(part, 0.0) * value for part, value in parts.items())
        return Grade(reward, score >= self.pass_threshold, status, parts, answer)

    def gold(self, problem: Problem) -> str:
        return self.format.gold("", problem.answer)

    def manifest(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "source": f"reasoning-gym {version('reasoning-gym')}",
            "dataset": self.dataset,
            "params": dict(self.params),
            "size": self.size,
            "seed": self.seed,
            "sizes": {name: self.split(name).size for name in SPLITS},
            "pass_threshold": self.pass_threshold,
            "format": {"type": type(self.format).__name__, "instruction": self.format.instruction},
            "weights": dict(self.weights),
        }

    def _draw(self, split: str, index: int) -> Problem:
        rng = random.Random(f"reasoning_gym/{self.seed}/{split}/{index}")
        for _ in range(MAX_DRAWS):
            place = rng.randrange(self.size)
            question, answer = self._process.entry(place)
            if split_of(" ".join(question.split())) == split:
                return Problem(
                    id=f"{self.name}/{self.seed}/{place}",
                    prompt=make_prompt(question.strip(), self.format.instruction, self.system),
                    answer=answer,
                    meta={"dataset": self.dataset, "index": place},
                )
        raise ValueError(
            f"{self.name}: of {MAX_DRAWS} problems of {self.dataset} none belongs to {split}, so it has very few "
            "different questions; change env.params so that there are more"
        )

    def _score(self, problem: Problem, answer: str | None) -> tuple[float, Status]:
        if answer is None or len(answer) > MAX_ANSWER:
            return 0.0, "unparseable"
        no_number = _NO_NUMBER.fullmatch(answer) and not (problem.answer and _NO_NUMBER.fullmatch(problem.answer))
        if no_number:
            return 0.0, "unparseable"
        outcome, score = self._process.score(problem.meta["index"], answer)
        return (min(max(score, 0.0), 1.0) if math.isfinite(score) else 0.0), _STATUS[outcome]

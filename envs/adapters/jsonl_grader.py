"""Rows of JSON with a Python grader, as OpenAI's reinforcement fine-tuning takes them.

A row is ``{"messages": [...], ...}`` (or ``prompt``) that ends with the user's turn, with whatever columns the grader
wants (https://platform.openai.com/docs/guides/reinforcement-fine-tuning). The grader is a Python file with
``grade(sample, item) -> float`` (https://platform.openai.com/docs/guides/graders): ``item`` is the row, ``sample`` has
``output_text``, ``choices``, ``output_tools`` (none), and ``output_json`` if the text is JSON.

The grader is trusted: it runs in this process, without limits. Code that a model wrote belongs in ``env=code``. Left
out: the graders that are no Python (a reward model is ``env=rlhf``), OpenAI's time and memory limits, response
formats, tools.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envs.adapters.scored import ScoredEnv, check_threshold, complain, finite
from envs.adapters.table import Table, gold, table
from envs.base import Answer
from envs.data.sources import Source
from rlreason.types import Grade, Problem

_EXAMPLE = '{"messages": [{"role": "user", "content": "What is 2 + 3?"}], "reference_answer": "5"}'


@dataclass(frozen=True)
class JsonlGrader(ScoredEnv):
    """The rows of ``source``, rewarded by the function ``grade`` of the file ``grader``.

    Where it raises an exception, or returns no finite number, the reward is 0 and the status ``unparseable``, as
    OpenAI's service gives 0; a warning says in which line of it. Parts of a grade: ``score`` and ``raised``. A
    completion is correct if its score is at least ``pass_threshold``; None: there is no verdict. ``gold_key`` names a
    column with a completion that deserves the best score, for ``validate``.

    Raises FileNotFoundError for a missing file, and ValueError, with file and line, for a grader that can't be loaded
    and for a row that can't be used.
    """

    source: Source
    grader: str
    pass_threshold: float | None = 1.0
    gold_key: str | None = None
    name: str = "jsonl_grader"
    _grade: Callable[[dict[str, Any], dict[str, Any]], Any] = field(init=False, repr=False, compare=False)
    _table: Table = field(init=False, repr=False, compare=False)
    _details: Mapping[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_threshold(self.name, self.pass_threshold)
        path = Path(self.grader).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.name}: there is no file {path}; env.grader is a .py file with grade(sample, item)"
            )
        rows = self.source.load(_EXAMPLE)
        found = table(self.name, rows.train, rows.validation, keys=("messages", "prompt"), example=_EXAMPLE)
        hashed = hashlib.sha256(path.read_bytes()).hexdigest()
        object.__setattr__(self, "_grade", _load(path))
        object.__setattr__(self, "_table", found)
        object.__setattr__(self, "_details", {**rows.details, "grader": str(path.resolve()), "grader_sha256": hashed})

    @property
    def table(self) -> Table:
        return self._table

    def grade_texts(self, answers: Sequence[Answer]) -> list[Grade]:
        return [self._graded(answer) for answer in answers]

    def gold(self, problem: Problem) -> str | None:
        return gold(problem, self.gold_key)

    def manifest(self) -> Mapping[str, Any]:
        return {"name": self.name, **self._details, **self._table.details(), "pass_threshold": self.pass_threshold}

    def _graded(self, answer: Answer) -> Grade:
        try:
            score = finite(self._grade(_sample(answer), deepcopy(answer.problem.answer)))
        except Exception as error:
            complain("the grader", error)
            return Grade(
                0.0, None if self.pass_threshold is None else False, "unparseable", {"score": 0.0, "raised": 1.0}
            )
        correct = None if self.pass_threshold is None else score >= self.pass_threshold
        return Grade(score, correct, "ok", {"score": score, "raised": 0.0})


def _sample(answer: Answer) -> dict[str, Any]:
    """What the grader is told of a completion."""
    message = {"role": "assistant", "content": answer.text}
    sample: dict[str, Any] = {
        "output_text": answer.text,
        "output_tools": [],
        "choices": [{"index": 0, "message": message, "finish_reason": answer.finish}],
    }
    with suppress(ValueError, RecursionError):
        sample["output_json"] = json.loads(answer.text)
    return sample


def _load(path: Path) -> Callable[[dict[str, Any], dict[str, Any]], Any]:
    """The function ``grade`` of a file. ValueError, with the line, if there is none or it can't be run."""
    name = f"rlreason_grader_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file; its name must end with .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there for the module that they are in
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else 1
        raise ValueError(f"{path}:{line}: the grader can't be loaded: {type(error).__name__}: {error}") from error
    grade = getattr(module, "grade", None)
    if not callable(grade):
        raise ValueError(f"{path}: the grader has no function grade(sample, item)")
    try:
        inspect.signature(grade).bind({}, {})
    except TypeError:
        line = inspect.getsourcelines(grade)[1]
        raise ValueError(f"{path}:{line}: grade must take two arguments, sample and item") from None
    return grade

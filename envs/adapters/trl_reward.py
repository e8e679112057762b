"""Reward functions in TRL's form, ``f(prompts, completions, **columns) -> list[float | None]``, with a data set.

As TRL 1.16's ``GRPOTrainer`` calls them (``_calculate_rewards``): with all columns of the data set but ``prompt``,
repeated for each completion; conversational prompts (lists of messages) with completions that are lists of one
message, prompts that are texts with texts. ``None`` and NaN mean that a function does not apply to a completion: it
leaves the weighted sum. A completion that no function applies to is left out of the training, which is status
``error`` here; so a function that declines what it can't read lets the policy have itself left out. Functions may be
asynchronous.

``log_extra`` and ``log_metric`` are given, and what is logged by them is dropped: each function's score is a part of
the grade. Left out: ``completion_ids``, ``trainer_state`` and ``environments``, which no environment here sees; a
function that asks for one is refused. What it does with them, ``algo`` may have (``overlong_coef``), and a reward
model is ``env=rlhf``.
"""

from __future__ import annotations

import functools
import inspect
import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs.adapters.scored import ScoredEnv, awaited, check_threshold, complain, finite
from envs.adapters.table import Table, gold, table
from envs.base import Answer
from envs.data.sources import Source
from rlreason.types import Grade, Problem

Function = Callable[..., Any]

_EXAMPLE = '{"prompt": "What is 2 + 3?", "solution": "5"} or {"prompt": [{"role": "user", "content": "..."}], ...}'
_NOT_GIVEN = ("completion_ids", "trainer_state", "environments")
_OWN = ("prompt", "completion", "completion_ids")


@dataclass(frozen=True)
class TrlReward(ScoredEnv):
    """The prompts of ``source``, rewarded by the weighted sum of what ``functions`` give (``weights``; None: 1 each).

    A function is named by its import path (``trl.rewards.accuracy_reward``), or is one. Where one raises an exception
    on a batch, it is asked for each completion by itself; one that it raises on gets ``failed_score``, which should be
    no more than it gives for the worst. Parts of a grade are the functions' scores, by their names, unweighted, and
    ``raised``.

    A completion is correct if its reward is at least ``pass_threshold``; None: there is no verdict. ``gold_key`` names
    a column with a completion that deserves the best reward, for ``validate``.

    Raises ValueError for a function that can't be used, and, saying where, for a row that can't.
    """

    source: Source
    functions: str | Function | Sequence[str | Function]
    weights: Sequence[float] | None = None
    pass_threshold: float | None = None
    failed_score: float = 0.0
    gold_key: str | None = None
    name: str = "trl_reward"
    _functions: Mapping[str, Function] = field(init=False, repr=False, compare=False)
    _columns: Sequence[str] = field(init=False, repr=False, compare=False)
    _table: Table = field(init=False, repr=False, compare=False)
    _details: Mapping[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_threshold(self.name, self.pass_threshold)
        given = [self.functions] if isinstance(self.functions, str) or callable(self.functions) else [*self.functions]
        functions = _named([_function(one) for one in given])
        weights = [1.0] * len(given) if self.weights is None else [*self.weights]
        if not given or len(weights) != len(given) or not all(map(math.isfinite, [*weights, self.failed_score])):
            raise ValueError(
                f"{self.name}: there are {len(given)} functions and weights {weights}, and failed_score is "
                f"{self.failed_score}; there must be a function, a weight for each, and all numbers finite"
            )
        rows = self.source.load(_EXAMPLE)
        found = table(self.name, rows.train, rows.validation, keys=("prompt",), example=_EXAMPLE)
        every = [split[place] for split in found.splits.values() for place in range(split.size or 0)]
        kinds = {type(problem.answer["prompt"]).__name__ for problem in every}
        if len(kinds) > 1:
            raise ValueError(f"{self.name}: some prompts are texts and some are messages; TRL wants one or the other")
        columns = dict.fromkeys(key for problem in every for key in problem.answer if key not in _OWN)
        object.__setattr__(self, "weights", tuple(weights))
        object.__setattr__(self, "_functions", functions)
        object.__setattr__(self, "_columns", tuple(columns))
        object.__setattr__(self, "_table", found)
        object.__setattr__(self, "_details", rows.details)
        for function_name, function in functions.items():
            _check(function_name, function, columns)

    @property
    def table(self) -> Table:
        return self._table

    def grade_texts(self, answers: Sequence[Answer]) -> list[Grade]:
        if not answers:
            return []
        scores = [self._scores(name, function, answers) for name, function in self._functions.items()]
        return [self._grade(of_one) for of_one in zip(*scores, strict=True)]

    def gold(self, problem: Problem) -> str | None:
        return gold(problem, self.gold_key)

    def manifest(self) -> Mapping[str, Any]:
        weights = dict(zip(self._functions, self.weights or (), strict=True))
        return {
            "name": self.name,
            **self._details,
            **self._table.details(),
            "functions": [f"{getattr(f, '__module__', '')}.{name}" for name, f in self._functions.items()],
            "weights": weights,
            "pass_threshold": self.pass_threshold,
        }

    def _grade(self, scores: Sequence[float | Exception | None]) -> Grade:
        """From what each function gave for one completion: a score, None, or the exception that it raised."""
        assert self.weights is not None
        parts: dict[str, float] = {}
        reward = 0.0
        for name, weight, score in zip(self._functions, self.weights, scores, strict=True):
            if score is not None:
                parts[name] = self.failed_score if isinstance(score, Exception) else score
                reward += weight * parts[name]
        if not parts:
            return Grade(0.0, None, "error")
        raised = any(isinstance(score, Exception) for score in scores)
        parts["raised"] = float(raised)
        correct = None if self.pass_threshold is None else reward >= self.pass_threshold
        return Grade(reward, correct, "unparseable" if raised else "ok", parts)

    def _scores(self, name: str, function: Function, answers: Sequence[Answer]) -> list[float | Exception | None]:
        try:
            return [_score(value) for value in self._call(name, function, answers)]
        except Exception as error:
            if len(answers) == 1:
                complain(name, error)
                return [error]
        return [score for answer in answers for score in self._scores(name, function, [answer])]

    def _call(self, name: str, function: Function, answers: Sequence[Answer]) -> list[Any]:
        rows = [answer.problem.answer for answer in answers]
        chat = not isinstance(rows[0]["prompt"], str)
        given: dict[str, Any] = {key: [row.get(key) for row in rows] for key in self._columns}
        given |= {"prompts": [row["prompt"] for row in rows], "log_extra": _drop, "log_metric": _drop}
        given["completions"] = [
            [{"role": "assistant", "content": answer.text}] if chat else answer.text for answer in answers
        ]
        found = awaited(function(**given)) if _is_async(function) else function(**given)
        if len(found) != len(answers):
            raise ValueError(f"{name} returned {len(found)} rewards for {len(answers)} completions")
        return [*found]


def _function(given: str | Function) -> Function:
    if not isinstance(given, str):
        return given
    try:
        found = pkgutil.resolve_name(given)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"functions: can't import {given!r} ({error}); give package.module.name of what is installed, or lies in "
            "the folder that this is started from"
        ) from error
    if not callable(found):
        raise ValueError(f"functions: {given!r} is no function, but {type(found).__name__}")
    return found


def _named(functions: Sequence[Function]) -> dict[str, Function]:
    """By name; a second one of a name gets a number."""
    named: dict[str, Function] = {}
    for function in functions:
        inner = function
        while isinstance(inner, functools.partial):
            inner = inner.func
        name = getattr(inner, "__name__", type(inner).__name__)
        taken = sum(other.partition("#")[0] == name for other in named)
        named[f"{name}#{taken + 1}" if taken or name == "raised" else name] = function
    return named


def _check(name: str, function: Function, columns: Mapping[str, None]) -> None:
    """ValueError if the function wants what it will not be given, or does not take what it will."""
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    wanted = {p.name for p in named if p.default is p.empty}
    if hidden := wanted & {*_NOT_GIVEN}:
        raise ValueError(f"functions: {name} needs {', '.join(sorted(hidden))}, which environments here do not see")
    given = {"prompts", "completions", "log_extra", "log_metric", *columns}
    if missing := wanted - given:
        raise ValueError(f"functions: {name} needs the columns {sorted(missing)}; the data have {sorted(columns)}")
    names = {p.name for p in named}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters) and (unknown := given - names):
        raise ValueError(
            f"functions: {name} does not take {sorted(unknown)}; end its parameters with **kwargs, as TRL asks"
        )


def _is_async(function: Function) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    # An instance may carry the `async` on its class's `__call__`.
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _score(value: Any) -> float | None:
    return None if value is None or math.isnan(float(value)) else finite(value)


def _drop(*arguments: Any) -> None:
    """Takes what a function logs."""

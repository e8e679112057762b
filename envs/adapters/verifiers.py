"""Single-turn environments of the package ``verifiers``, with their own rubrics, parsers and data.

This is the form of ``verifiers`` 0.1 (https://docs.primeintellect.ai/verifiers/v0/environments): a module with
``load_environment(**args)`` that returns a ``SingleTurnEnv``. Version 0.4 has done away with it.

Prompts and columns are as the environment makes them. A completion's state is built by the environment
(``init_state``, ``setup_state``), gets the completion as its one turn, and is scored by the environment's rubric,
which may be asynchronous: the reward is the rubric's weighted sum, its functions are the parts. A function that raises
an exception gives 0 there, which the library logs.

Refused: environments of several turns, which drive the client themselves; tools; rewards that compare the rollouts of a
group. Left out: ``responses`` and token ids in the state, for there is no client; a judge that asks a model brings its
own, and its failures score 0, as the library has it.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from envs.adapters.scored import ScoredEnv, awaited, check_threshold, complain, finite
from envs.adapters.table import Table, gold, table
from envs.base import Answer
from envs.data.sources import Row
from rlreason.types import Grade, Problem

_EXAMPLE = '{"prompt": [{"role": "user", "content": "..."}], "answer": "..."}'


@dataclass(frozen=True)
class VerifiersEnv(ScoredEnv):
    """The environment ``env``, an installed one's id or a module with ``load_environment``, called with ``args``.

    Its data are ``train``, its evaluation data ``validation``; without those, see ``table``. A completion is correct
    if its reward is at least ``pass_threshold``; None: there is no verdict. ``gold_key`` names a column with a
    completion that deserves the best reward, for ``validate``.

    Raises ImportError without the package, and ValueError for an environment that can't be loaded or is refused.
    """

    env: str
    args: Mapping[str, Any] = field(default_factory=dict)
    pass_threshold: float | None = None
    gold_key: str | None = None
    name: str = ""
    _env: Any = field(init=False, repr=False, compare=False)
    _table: Table = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.env.split("/")[-1])
        check_threshold(self.name, self.pass_threshold)
        if find_spec("verifiers") is None:
            raise ImportError("env=verifiers needs a package: pip install 'rlreason[verifiers]'")
        env = _loaded(self.env, self.args)
        train, evaluation = env.build_dataset(), env.build_eval_dataset()
        if train is None:
            raise ValueError(f"{self.name}: the environment has evaluation data only, and none to train on")
        held = None if evaluation is None else _rows(self.name, "evaluation", evaluation)
        object.__setattr__(self, "_env", env)
        object.__setattr__(
            self, "_table", table(self.name, _rows(self.name, "train", train), held, keys=("prompt",), example=_EXAMPLE)
        )
        try:
            awaited(self._score(Answer(self._table.split("train")[0], "", "stop")))
        except Exception as error:
            raise ValueError(
                f"{self.name}: its rubric can't score a completion by itself ({type(error).__name__}: {error}). Those "
                "that compare the rollouts of a group are refused, since environments here grade each by itself"
            ) from error

    @property
    def table(self) -> Table:
        return self._table

    def grade_texts(self, answers: Sequence[Answer]) -> list[Grade]:
        return awaited(self._grades(answers))

    def gold(self, problem: Problem) -> str | None:
        return gold(problem, self.gold_key)

    def manifest(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "source": f"verifiers {version('verifiers')}",
            "env": self.env,
            "args": dict(self.args),
            **self._table.details(),
            "pass_threshold": self.pass_threshold,
        }

    async def _grades(self, answers: Sequence[Answer]) -> list[Grade]:
        return list(await asyncio.gather(*map(self._grade, answers)))

    async def _grade(self, answer: Answer) -> Grade:
        try:
            state = await self._score(answer)
            reward = finite(state["reward"])
            parts = {name: finite(value) for name, value in state["metrics"].items()}
        except Exception as error:
            complain("the rubric", error)
            return Grade(0.0, None if self.pass_threshold is None else False, "unparseable", {"raised": 1.0})
        correct = None if self.pass_threshold is None else reward >= self.pass_threshold
        return Grade(reward, correct, "ok", {**parts, "raised": 0.0})

    async def _score(self, answer: Answer) -> Any:
        """The library's state of a rollout that ended with this completion, scored."""
        state = await self._env.init_state(answer.problem.answer, client=None, model="policy")
        state = await self._env.setup_state(state) or state
        prompt = state["prompt"]
        completion: Any = answer.text
        if not isinstance(prompt, str):
            completion = [{"role": "assistant", "content": answer.text}]
        cut_off = answer.finish == "length"
        state["trajectory"].append(
            {
                "prompt": prompt,
                "completion": completion,
                "response": None,
                "tokens": None,
                "reward": None,
                "advantage": None,
                "is_truncated": cut_off,
                "trajectory_id": state["trajectory_id"],
                "extras": {},
            }
        )
        state["completion"], state["is_completed"], state["is_truncated"] = completion, True, cut_off
        await self._env.rubric.score_rollout(state)
        return state


def _loaded(name: str, args: Mapping[str, Any]) -> Any:
    """The library's environment. ValueError if it can't be loaded or is of a kind that is refused."""
    import verifiers as vf

    try:
        with _signals_kept():
            env = vf.load_environment(name, **args)
    except Exception as error:  # whatever somebody's code raises
        raise ValueError(f"verifiers can't load env={name!r} with args {dict(args)}: {error}") from error
    if not isinstance(env, vf.SingleTurnEnv):
        raise ValueError(
            f"env={name!r} is a {type(env).__name__}, and only verifiers.SingleTurnEnv is taken: one of several turns "
            "drives the client itself, and the tokens trained on would not be those that the policy wrote"
        )
    if getattr(env, "oai_tools", None) or getattr(env, "tool_defs", None):
        raise ValueError(f"env={name!r} gives the model tools, which are not passed on")
    return env


@contextmanager
def _signals_kept() -> Iterator[None]:
    """The library's environments take over Ctrl-C and SIGTERM, which are the trainer's to handle."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _rows(name: str, part: str, dataset: Any) -> list[Row]:
    return [Row(f"{name}, {part} data, row {place}", name, row) for place, row in enumerate(dataset)]

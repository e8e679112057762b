"""Any single-turn environment, with tools.

A turn with a call in it is no answer: the calls are run, in order, and each is answered by a message of role ``tool``,
whether it could be run or not. A turn without a call is the answer, which the environment grades as if nothing had gone
before. So an answer that stands beside a call doesn't count, nor does what the policy says that a tool has said
(``<tool_response>``, which is taken out); an episode that ends in a call, since a budget was spent or since it was cut
off, has no answer, and is graded as an empty text.

How a call is written is the chat template's matter (``envs.tools.calls`` lists what is read). The harness ends a turn
where the policy does, so give ``sampling.stop=["</tool_call>"]``, or the tag of the tool, to a policy that doesn't stop
after its call.

Left out: rewards for calling. What the calls are worth shows in the accuracy; ``calls`` and ``malformed`` are logged.
Thoughts that go on after a call: with ``R1`` the last turn has to have both tags.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from envs.base import BatchGradedEnv, GeneratedSplit, splits_of
from envs.tools.calls import Call, Malformed, read_calls, without_responses
from envs.tools.tool import Result, Schema, Tool
from rlreason.types import Episode, Grade, Message, Problem, Split

NO_CALLS_LEFT = "There are no calls left: give the answer."

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_TAKEN = ("tool_call", "tool_response")


@dataclass
class _State:
    """What an episode has used."""

    calls: int = 0
    malformed: int = 0
    broken: bool = False


@dataclass(frozen=True)
class ToolUse:
    """``env`` whose problems come with ``tools``; a ``rlreason.types.Env`` again.

    An episode has ``max_calls`` calls, malformed ones counted; the last one's result says so, and a turn with a call
    after that ends the episode. Results are cut to ``max_result_chars``. Rewards are the environment's; its parts get
    company from ``calls``, the number of calls, and ``malformed``, the share of them that could not be run.
    ``name`` is the environment's with ``_tools`` unless it is given.

    Raises ValueError for settings that make no sense.
    """

    env: BatchGradedEnv
    tools: Sequence[Tool]
    max_calls: int = 4
    max_result_chars: int = 400
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tools", tuple(self.tools))
        if not isinstance(self.env, BatchGradedEnv):
            raise ValueError(
                f"tools: env is {type(self.env).__name__}; it must be a single-turn environment, one that is no "
                "wrapper itself"
            )
        object.__setattr__(self, "name", self.name or f"{self.env.name}_tools")
        names = [_name(function) for function in self._functions]
        bad = [name for name in names if not _NAME.fullmatch(name) or name in _TAKEN or names.count(name) > 1]
        if bad or not names:
            raise ValueError(
                f"{self.name}: the tools are called {names}; there must be at least one, each with a name of its own "
                f"of letters, digits, _ and -, none of {', '.join(_TAKEN)}"
            )
        if self.max_calls < 1 or self.max_result_chars < 1:
            raise ValueError(
                f"{self.name}: max_calls is {self.max_calls} and max_result_chars {self.max_result_chars}; they must "
                "be at least 1"
            )

    @property
    def max_reward(self) -> float:
        """What a perfect answer earns."""
        return self.env.max_reward

    @property
    def _functions(self) -> tuple[Schema, ...]:
        return tuple(tool.schema for tool in self.tools)

    def split(self, name: str) -> Split:
        inner = self.env.split(name)
        return GeneratedSplit(inner.size, lambda index: replace(inner[index], tools=self._functions))

    def start(self, problem: Problem, seed: int) -> _State:
        return _State()

    def replies(self, states: Sequence[_State], conversations: Sequence[list[Message]]) -> list[list[Message] | None]:
        """The results of the calls in the last turn of each conversation; None for one that has given its answer, or
        called in vain."""
        asked = [
            read_calls(conversation[-1]["content"], self._functions)[: self.max_calls - state.calls]
            for state, conversation in zip(states, conversations, strict=True)
        ]
        replies: list[list[Message] | None] = []
        for state, results in zip(states, self._run(asked), strict=True):
            state.calls += len(results)
            state.malformed += sum(result.status == "refused" for result in results)
            state.broken = any(result.status == "error" for result in results)
            texts = [self._shown(result) for result in results]
            if texts and state.calls == self.max_calls:
                texts[-1] += f"\n{NO_CALLS_LEFT}"
            replies.append(None if state.broken or not texts else [{"role": "tool", "content": text} for text in texts])
        return replies

    def grade(self, episodes: Sequence[Episode]) -> list[Grade]:
        grades = self.env.grade([self._answered(episode) for episode in episodes])
        return [self._own(grade, episode.state) for grade, episode in zip(grades, episodes, strict=True)]

    def gold(self, problem: Problem) -> str:
        """A completion that answers without a call and earns ``max_reward``."""
        return self.env.gold(problem)

    def validate(self) -> None:
        """The environment's own check and the tools'; and that no tool takes a gold completion for a call."""
        self.env.validate()
        for tool in self.tools:
            tool.validate()
        for split in splits_of(self).values():
            problem = split[0]
            text = self.gold(problem)
            called = read_calls(text, self._functions)
            if called:
                raise ValueError(
                    f"{self.name}: problem {problem.id}: the gold completion {text!r} reads like a call, {called[0]}; "
                    "give that tool another name"
                )

    def manifest(self) -> Mapping[str, Any]:
        return {
            **self.env.manifest(),
            "name": self.name,
            "tools": [dict(tool.manifest()) for tool in self.tools],
            "max_calls": self.max_calls,
            "max_result_chars": self.max_result_chars,
        }

    def _run(self, asked: Sequence[Sequence[Call | Malformed]]) -> list[list[Result]]:
        """The results of each conversation's calls: each tool is asked once, for all of its calls."""
        by_tool: dict[str, dict[tuple[int, int], Mapping[str, Any]]] = defaultdict(dict)
        found: dict[tuple[int, int], Result] = {}
        for row, calls in enumerate(asked):
            for place, call in enumerate(calls):
                if isinstance(call, Malformed):
                    found[row, place] = Result(call.why, "refused")
                else:
                    by_tool[call.name][row, place] = call.arguments
        for tool in self.tools:
            wanted = by_tool[_name(tool.schema)]
            found.update(zip(wanted, tool([*wanted.values()]), strict=True))
        return [[found[row, place] for place in range(len(calls))] for row, calls in enumerate(asked)]

    def _shown(self, result: Result) -> str:
        text = f"Error: {result.text}" if result.status == "refused" else result.text
        return text if len(text) <= self.max_result_chars else f"{text[: self.max_result_chars]}… (cut off)"

    @staticmethod
    def _own(grade: Grade, state: _State) -> Grade:
        """The environment's grade as this one's."""
        if state.broken:
            return Grade(0.0, None, "error")
        share = state.malformed / state.calls if state.calls else 0.0
        return replace(grade, parts={**grade.parts, "calls": float(state.calls), "malformed": share})

    def _answered(self, episode: Episode) -> Episode:
        """The episode as the environment knows it: its problem, and the answer."""
        answered = not read_calls(episode.text, self._functions)
        return replace(
            episode,
            problem=replace(episode.problem, tools=()),
            state=None,
            text=without_responses(episode.text) if answered else "",
        )


def _name(function: Schema) -> str:
    name: str = function["function"]["name"]
    return name

"""An episode while it goes on: whose turn it is, the tokens so far, and what is left of its budgets.

The tokens of a conversation are append-only: a turn's ids stay as the policy sampled them, and what the environment
answers is rendered and appended. Where the chat template rewrites what went before (strips earlier thoughts, say), a
new segment starts with the conversation rendered anew.

Left out: keeping an engine's cache from one turn to the next; the history is run again, which costs little beside
writing it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from rlreason.chat import appended
from rlreason.policy import Policy, Prompt
from rlreason.sampler import derived_seed
from rlreason.types import Completion, Episode, Finish, Grade, Message, Problem, Request, Rollout, Sampling, Segment


@dataclass
class Conversation:
    """One episode. ``seed`` decides its draws; ``messages`` begin as the problem's prompt."""

    problem: Problem
    group: int
    seed: int
    state: Any
    messages: list[Message]
    segments: list[Segment] = field(default_factory=list)
    text: str = ""
    finish: Finish = "stop"
    turns: int = 0
    _prompt: Prompt | None = None  # what the last turn was written to
    _last: list[int] = field(default_factory=list)  # that turn

    def ask(self, policy: Policy, sampling: Sampling, max_length: int) -> Request | None:
        """What the engine is to write next; None, and the episode is cut off, where a budget of ``sampling`` or of
        ``max_length`` tokens of prompt and completion is spent.

        The first turn's budget is not cut to ``max_length``: the engine refuses a request that it can't hold.
        """
        prompt = policy.render(self.messages, self.problem.tools)
        begun = self._begun(policy, prompt)
        ids = begun.prompt_ids + begun.completion_ids
        budget = sampling.max_completion_length
        if sampling.max_total_length is not None:
            budget = min(budget, sampling.max_total_length - sum(sum(s.mask) for s in self.segments))
        if self.turns:
            budget = min(budget, max_length - len(ids))
        if budget < 1 or self.turns == sampling.max_turns:
            self.finish = "length"
            return None
        if begun.completion_ids:
            self.segments[-1] = begun
        else:
            self.segments.append(begun)
        self._prompt = prompt
        return Request(ids, replace(sampling, max_completion_length=budget), derived_seed(self.seed, self.turns))

    def take(self, policy: Policy, completion: Completion) -> None:
        """The turn that was asked for."""
        assert self._prompt is not None
        self.segments[-1] = _written(self.segments[-1], completion)
        self._last = completion.ids
        self.text = self._prompt.opened + policy.decode(completion.ids)
        self.finish = completion.finish
        self.turns += 1
        if self.messages[-1]["role"] == "assistant":  # a turn that was begun for the policy
            self.messages.pop()
        self.messages.append({"role": "assistant", "content": self.text})

    def episode(self) -> Episode:
        """What the environment grades."""
        return Episode(self.problem, self.state, self.messages, self.text, self.finish)

    def rollout(self, grade: Grade, seconds: float) -> Rollout:
        """The episode with its verdict, whose call took ``seconds``. Raises ValueError for rewards of other turns."""
        if grade.turn_rewards and len(grade.turn_rewards) != self.turns:
            raise ValueError(
                f"problem {self.problem.id}: the environment's grade has {len(grade.turn_rewards)} turn_rewards, but "
                f"the policy had {self.turns} turns; give one for each, or none"
            )
        return Rollout(self.problem, self.group, self.segments, self.messages, self.text, self.finish, grade, seconds)

    def _begun(self, policy: Policy, prompt: Prompt) -> Segment:
        """The segment that the next turn goes on, as far as it is there: the last one and what was answered to it, or
        a new one."""
        if self._prompt is not None:
            end = self._last[-1] if self._last[-1] in policy.end_ids else None
            written = policy.decode(self._last)
            after = appended(policy.tokenizer, self._prompt.text, written, end, prompt.text)
            if after:
                return _answered(self.segments[-1], after)
        return Segment(prompt.ids, [], [], [])


def _written(segment: Segment, completion: Completion) -> Segment:
    """With a turn of the policy."""
    return Segment(
        segment.prompt_ids,
        segment.completion_ids + completion.ids,
        segment.sampler_logp + completion.logprobs,
        segment.mask + [True] * len(completion.ids),
        None if completion.seconds is None else completion.seconds + (segment.generate_seconds or 0.0),
    )


def _answered(segment: Segment, ids: list[int]) -> Segment:
    """With what the environment has the policy go on from."""
    return replace(
        segment,
        completion_ids=segment.completion_ids + ids,
        sampler_logp=segment.sampler_logp + [0.0] * len(ids),
        mask=segment.mask + [False] * len(ids),
    )

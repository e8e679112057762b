"""collect(): draw problems, render them, generate turn by turn, grade.

Dynamic sampling lives here. A turn after the first starts a new segment whose prompt is the conversation rendered
anew: exact for every template, at the price of running the history again. Left out: appending to the same segment
where the template allows it, and budgets of turns and tokens (another issue).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rlreason.clock import Clock
from rlreason.engines import generate
from rlreason.policy import Policy
from rlreason.sampler import UniformSampler, derived_seed
from rlreason.types import (
    Completion,
    Engine,
    Env,
    Episode,
    Finish,
    Message,
    Problem,
    Request,
    Rollout,
    Sampling,
    Segment,
)


@dataclass(frozen=True)
class Collected:
    """A step's rollouts: those to train on, and those that dynamic sampling turned away (kept for the traces)."""

    rollouts: list[Rollout]
    rejected: list[Rollout]
    attempts: int


@dataclass(frozen=True)
class Collector:
    """How a step's rollouts are drawn. ``rank`` of ``world`` processes draws its share of the groups."""

    engine: Engine
    env: Env
    policy: Policy
    sampler: UniformSampler
    sampling: Sampling
    num_prompts: int
    num_generations: int
    max_attempts: int
    seed: int
    clock: Clock
    rank: int = 0
    world: int = 1

    def collect(self, step: int) -> Collected:
        """Rollouts of ``num_prompts`` groups over all processes.

        With ``max_attempts`` > 1, groups whose samples are all right or all wrong are drawn anew (DAPO's dynamic
        sampling, on correctness, never on a shaped reward) until enough carry signal or the attempts are spent.
        """
        wanted = len(range(self.rank, self.num_prompts, self.world))
        kept: list[Rollout] = []
        rejected: list[Rollout] = []
        groups = attempt = 0
        while groups < wanted and attempt < self.max_attempts:
            with self.clock.measure("draw"):
                drawn_by_all = self.sampler.draw(step, attempt, self.num_prompts)
            problems = drawn_by_all[self.rank :: self.world][: wanted - groups]
            numbers = [attempt * self.num_prompts + self.rank + i * self.world for i in range(len(problems))]
            drawn = roll_out(
                self.engine,
                self.env,
                self.policy,
                problems,
                self.sampling,
                samples=self.num_generations,
                groups=numbers,
                seed=derived_seed(self.seed, "rollout", step),
                clock=self.clock,
            )
            for group in _groups(drawn):
                if self.max_attempts == 1 or carries_signal(group):
                    kept += group
                    groups += 1
                else:
                    rejected += group
            attempt += 1
        return Collected(kept, rejected, attempt)


def carries_signal(group: Sequence[Rollout]) -> bool:
    """Whether some samples of a group are right and some wrong. Raises ValueError where nothing says what is right."""
    verdicts = {r.grade.correct for r in group if r.grade.status != "error"}
    if None in verdicts:
        raise ValueError("dynamic sampling needs an environment that says what is correct; set algo.max_attempts=1")
    return len(verdicts) > 1


def _groups(rollouts: Sequence[Rollout]) -> list[list[Rollout]]:
    found: dict[int, list[Rollout]] = defaultdict(list)
    for rollout in rollouts:
        found[rollout.group].append(rollout)
    return list(found.values())


@dataclass
class _Conversation:
    problem: Problem
    group: int
    seed: int
    state: Any
    messages: list[Message]
    segments: list[Segment]
    text: str = ""
    finish: Finish = "stop"


def roll_out(
    engine: Engine,
    env: Env,
    policy: Policy,
    problems: Sequence[Problem],
    sampling: Sampling,
    *,
    samples: int,
    groups: Sequence[int],
    seed: int,
    clock: Clock,
    on_completion: Callable[[], None] = lambda: None,
) -> list[Rollout]:
    """``samples`` graded rollouts of each problem, neighbours, numbered by ``groups``.

    Each sample's draws depend on (seed, group, sample, turn) alone. ``clock`` gets ``draw`` (up to rendered prompts),
    ``generate`` (the engine alone) and ``grade`` (texts, the environment's replies and its verdicts);
    ``on_completion`` is called as each completion is done.
    """
    open_: list[_Conversation] = []
    with clock.measure("draw"):
        for problem, group in zip(problems, groups, strict=True):
            for sample in range(samples):
                own = derived_seed(seed, group, sample)
                state = env.start(problem, own)
                open_.append(_Conversation(problem, group, own, state, list(problem.prompt), []))
    everyone, turn = list(open_), 0
    while open_:
        with clock.measure("draw"):
            prompts = [policy.render(c.messages) for c in open_]
            requests = [
                Request(prompt.ids, sampling, derived_seed(c.seed, turn))
                for c, prompt in zip(open_, prompts, strict=True)
            ]
        with clock.measure("generate"):
            completions = generate(engine, requests, on_completion)
        with clock.measure("grade"):
            for c, prompt, completion in zip(open_, prompts, completions, strict=True):
                c.segments.append(_segment(prompt.ids, completion))
                c.text = prompt.opened + policy.decode(completion.ids)
                c.finish = completion.finish
                if c.messages[-1]["role"] == "assistant":  # a turn that was begun for the policy
                    c.messages.pop()
                c.messages.append({"role": "assistant", "content": c.text})
            open_ = [c for c in open_ if c.finish == "stop"]  # a turn that was cut off ends the episode
            replies = env.replies([c.state for c in open_], [c.messages for c in open_])
            for c, reply in zip(open_, replies, strict=True):
                c.messages.extend(reply or [])
            open_ = [c for c, reply in zip(open_, replies, strict=True) if reply is not None]
        turn += 1
    with clock.measure("grade"):
        began = time.perf_counter()
        grades = env.grade([Episode(c.problem, c.state, c.messages, c.text, c.finish) for c in everyone])
        seconds = time.perf_counter() - began
    return [
        Rollout(c.problem, c.group, c.segments, c.messages, c.text, c.finish, grade, seconds)
        for c, grade in zip(everyone, grades, strict=True)
    ]


def _segment(prompt_ids: list[int], completion: Completion) -> Segment:
    return Segment(prompt_ids, completion.ids, completion.logprobs, [True] * len(completion.ids), completion.seconds)

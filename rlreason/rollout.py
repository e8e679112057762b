"""collect(): draw problems, render them, generate turn by turn, grade.

Dynamic sampling lives here; what a conversation's tokens are, ``conversation.py`` knows.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rlreason.clock import Clock
from rlreason.conversation import Conversation
from rlreason.policy import Policy
from rlreason.sampler import Sampler, derived_seed
from rlreason.types import Engine, Env, Message, Problem, Rollout, Sampling

ANSWERED = 4
"""Turns are answered when they are a quarter of those still being written, so that the environment gets several at a
time. Counted in turns, never in seconds: a run repeats exactly."""


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
    sampler: Sampler
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

    Each sample's draws depend on (seed, group, sample, turn) alone. Conversations of several turns don't wait for each
    other: those that the environment has answered fill the places in the batch of those that have ended.
    ``clock`` gets ``draw`` (up to rendered prompts), ``generate`` (the engine alone) and ``grade`` (texts, the
    environment's replies, rendering them, and its verdicts); ``on_completion`` is called as each episode ends.
    """
    conversations: list[Conversation] = []
    flying: dict[int, Conversation] = {}
    began: dict[int, float] = {}

    def submit(those: Sequence[Conversation]) -> None:
        for conversation in those:
            request = conversation.ask(policy, sampling, engine.max_length)
            if request is None:
                on_completion()
            else:
                ticket = engine.submit(request)
                flying[ticket], began[ticket] = conversation, time.perf_counter()

    def answer(those: list[Conversation]) -> None:
        open_ = [c for c in those if c.finish == "stop"]  # a turn that was cut off ends the episode
        replies = env.replies([c.state for c in open_], [c.messages for c in open_]) if open_ else []
        answered = []
        for conversation, reply in zip(open_, replies, strict=True):
            if reply is not None:
                conversation.messages.extend(_some(reply, conversation.problem))
                answered.append(conversation)
        for _ in range(len(those) - len(answered)):
            on_completion()
        submit(answered)

    with clock.measure("draw"):
        for problem, group in zip(problems, groups, strict=True):
            for sample in range(samples):
                own = derived_seed(seed, group, sample)
                conversations.append(Conversation(problem, group, own, env.start(problem, own), list(problem.prompt)))
        submit(conversations)
    while flying:
        completed, written = engine.completed(), list[Conversation]()
        while True:
            with clock.measure("generate"):
                done = next(completed, None)
            if done is None:
                break
            with clock.measure("grade"):
                ticket, completion = done
                conversation = flying.pop(ticket)
                seconds = time.perf_counter() - began.pop(ticket)
                conversation.take(policy, replace(completion, seconds=seconds))
                written.append(conversation)
                if len(written) * ANSWERED >= len(flying):
                    answer(written)
                    written = []
        with clock.measure("grade"):
            answer(written)
    with clock.measure("grade"):
        asked = time.perf_counter()
        grades = env.grade([conversation.episode() for conversation in conversations])
        seconds = time.perf_counter() - asked
    return [conversation.rollout(grade, seconds) for conversation, grade in zip(conversations, grades, strict=True)]


def _some(reply: list[Message], problem: Problem) -> list[Message]:
    if not reply:
        raise ValueError(
            f"problem {problem.id}: the environment's reply has no message; let replies() return None to end an episode"
        )
    return reply

"""What the policy is trained on: gold answers, splits, lengths of prompts.

Left out: near duplicates across splits. Two prompts meet if they are the same words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, Protocol, runtime_checkable

from rlreason.assembly import check_prompts
from rlreason.checks import Verdict, failed, passed, skipped, warned
from rlreason.config import ConfigError
from rlreason.policy import Policy
from rlreason.types import Env, Episode, Grade, Message, Problem, Sampling, Split

SPLITS = ("train", "validation", "test")

GRADED = 16
"""Problems of each split whose gold answers are graded, at most."""

WRONG = 3
"""Wrong answers that each of them is graded with, at most."""

COMPARED = 20_000
"""Problems of a finite split that are compared with the other splits', at most; a tenth of it of an endless one."""

MEET = 0.01
"""Share of the smaller split that may have its words in another one before it is more than a warning: real data sets
do repeat a question."""


@runtime_checkable
class HasGold(Env, Protocol):
    """An environment that can write a right completion."""

    def gold(self, problem: Problem) -> str:
        """A completion that gives ``problem.answer``."""
        ...


def gold(env: Env) -> Verdict:
    """Whether right completions are right and those for another problem's answer are wrong, problem by problem."""
    if not isinstance(env, HasGold):
        return skipped("the environment writes no gold completions; its own validate() stands alone")
    counted = 0
    for name in SPLITS:
        problems = [problem for problem in spread(env.split(name), GRADED) if problem.answer is not None]
        right, unreadable = _graded(env, [(problem, problem) for problem in problems])
        if unreadable is not None:
            problem, error = unreadable
            return failed(
                f"{name} problem {problem.id}: its answer {problem.answer!r} can't be graded",
                f"{error}; mend the answer or leave the problem out",
            )
        for problem, grade in zip(problems, right, strict=True):
            if grade.correct is not True:
                return failed(
                    f"{name} problem {problem.id}: the gold answer {problem.answer!r} is not right: {grade}",
                    "the verifier can't read the answers of these data: mend one of them",
                )
        wrong = [
            (problem, replace(problem, answer=answer)) for problem in problems for answer in _others(problem, problems)
        ]
        paid: dict[str, list[bool]] = {problem.id: [] for problem in problems}
        for (problem, _), grade in zip(wrong, _graded(env, wrong)[0], strict=True):
            paid[problem.id].append(grade.correct is not False)
        for problem, answered in wrong:
            if sum(paid[problem.id]) > len(paid[problem.id]) / 2:  # one may be the same number in other words
                return failed(
                    f"{name} problem {problem.id}: the wrong answer {answered.answer!r} is as right as the gold answer "
                    f"{problem.answer!r}",
                    "the verifier does not tell right from wrong: whatever is trained by it, it is not the task",
                )
        counted += len(problems)
    return passed(f"{counted} gold answers right, wrong ones wrong") if counted else skipped("no answers are known")


def environment(env: Env) -> Verdict:
    """The environment's own check."""
    try:
        env.validate()
    except ValueError as error:
        return failed("env.validate() refuses", str(error))
    return passed("env.validate() agrees")


def splits(env: Env) -> Verdict:
    """Whether a problem is in two splits, by its id or its words."""
    found = {name: _known(env.split(name)) for name in SPLITS}
    for a, b in combinations(SPLITS, 2):
        (ids_a, words_a), (ids_b, words_b) = found[a], found[b]
        same = sorted(ids_a & ids_b)
        if same:
            return failed(
                f"{len(same)} problems are in {a} and {b}, {same[0]} for one",
                "accuracy there is memory, not skill: cut the splits so that they don't meet",
            )
        met = [words_a[text] for text in words_a if text in words_b]
        if met:
            share = len(met) / min(len(words_a), len(words_b))
            verdict = failed if share > MEET else warned
            return verdict(
                f"{len(met)} prompts of {a} ({share:.1%} of the smaller split) are in {b}, {met[0]} for one",
                "accuracy there is partly memory: leave them out of one of the two",
            )
    sizes = ", ".join(f"{len(ids)} of {name}" for name, (ids, _) in found.items())
    return passed(f"no problem twice among {sizes}")


def context(env: Env, policy: Policy, sampling: Sampling) -> Verdict:
    """Whether prompts and completions fit the model's context."""
    asked = sampling.max_completion_length
    try:
        longest = max(check_prompts(env, name, policy, sampling) for name in SPLITS)
    except ConfigError as error:
        return failed(f"a prompt and {asked} tokens exceed the context of {policy.context}", str(error))
    return passed(f"longest prompt {longest} tokens, completions up to {asked}, context {policy.context}")


def spread(split: Split, count: int) -> list[Problem]:
    """``count`` problems evenly spread over a finite split, or the first of an endless one."""
    if split.size is None:
        return [split[i] for i in range(count)]
    count = min(count, split.size)
    return [split[i * split.size // count] for i in range(count)]


def _graded(
    env: HasGold, written: Sequence[tuple[Problem, Problem]]
) -> tuple[list[Grade], tuple[Problem, Exception] | None]:
    """Grades of the first problem of each pair for the gold completion of the second, all in one call; or, if that
    raises, the problem that makes it raise."""
    try:
        return env.grade([_episode(env, *pair) for pair in written]), None
    except Exception as error:
        for pair in written:
            try:
                env.grade([_episode(env, *pair)])
            except Exception as own:
                return [], (pair[0], own)
        raise error  # it takes several of them


def _others(problem: Problem, problems: Sequence[Problem]) -> list[Any]:
    """Different answers of other problems."""
    found = {str(other.answer): other.answer for other in problems if str(other.answer) != str(problem.answer)}
    return list(found.values())[:WRONG]


def _episode(env: HasGold, problem: Problem, answered: Problem) -> Episode:
    text = env.gold(answered)
    said: Message = {"role": "assistant", "content": text}
    return Episode(problem, env.start(problem, 0), [*problem.prompt, said], text, "stop")


def _known(split: Split) -> tuple[set[str], dict[tuple[Any, ...], str]]:
    """Ids of a split's problems, and ids by the words of their prompts."""
    problems: Sequence[Problem] = spread(split, COMPARED if split.size is not None else COMPARED // 10)
    words = {
        tuple((message["role"], *message["content"].lower().split()) for message in problem.prompt): problem.id
        for problem in problems
    }
    return {problem.id for problem in problems}, words

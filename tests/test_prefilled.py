"""A turn that the environment begins: the prompt's ids, the graded text and the conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from helpers import tiny
from hydra.utils import instantiate
from test_chat import OPENS, Scripted

from envs.arithmetic import Arithmetic
from envs.base import GeneratedSplit
from envs.formats import R1
from envs.prefilled import Prefilled
from rlreason.clock import Clock
from rlreason.models import CHATML_TEMPLATE
from rlreason.rollout import roll_out
from rlreason.types import Env, Episode, Grade, Message, Problem, Rollout, Sampling, Split

BEGUN = "<think>\nI know this.\n</think>\n<answer>"
SUMS = Arithmetic(format=R1())
PREFILLED = Prefilled(SUMS, BEGUN, "sums-at-once")


def rolled(env: Env, problem: Problem, turns: list[str], template: str = CHATML_TEMPLATE) -> tuple[Any, Rollout]:
    policy = tiny()
    policy.tokenizer.chat_template = template
    (rollout,) = roll_out(
        Scripted(policy.tokenizer, turns, 2), env, policy, [problem], Sampling(), samples=1, groups=[0], seed=0,
        clock=Clock(),
    )  # fmt: skip
    return policy.tokenizer, rollout


@pytest.mark.parametrize("template", [CHATML_TEMPLATE, OPENS], ids=["chatml", "opens the thought"])
def test_the_prompt_ends_in_the_text_and_the_graded_text_begins_with_it(template: str) -> None:
    problem = PREFILLED.split("train")[0]
    tokenizer, rollout = rolled(PREFILLED, problem, [f"{problem.answer}</answer>"], template)
    (segment,) = rollout.segments
    asked = tokenizer.apply_chat_template(problem.prompt[:-1], tokenize=False, add_generation_prompt=True)
    text = asked.removesuffix("<think>\n") + BEGUN
    assert segment.prompt_ids == tokenizer(text, add_special_tokens=False).input_ids
    assert segment.completion_ids == [*tokenizer(f"{problem.answer}</answer>").input_ids, 2]
    assert rollout.text == f"{BEGUN}{problem.answer}</answer>"
    assert rollout.messages == [*problem.prompt[:-1], {"role": "assistant", "content": rollout.text}]
    # With the perfect format, which the text begins; without it, what was written would have none.
    assert rollout.grade.correct
    assert rollout.grade.reward == SUMS.max_reward


def test_what_begins_the_turn_is_no_part_of_the_question() -> None:
    """An environment that lets no echo of its prompt pass grades what it asked, not what was put into the answer's
    mouth."""
    problem = PREFILLED.split("train")[0]
    wrong = "0" if problem.answer != "0" else "1"
    _, rollout = rolled(PREFILLED, problem, [f"{wrong}</answer>"])
    assert rollout.grade.correct is False
    plain = SUMS.split("train")[0]
    answered = f"{BEGUN}{problem.answer}</answer>"
    (expected,) = SUMS.grade([Episode(plain, None, [], answered, "stop")])
    (found,) = PREFILLED.grade([Episode(problem, None, [], answered, "stop")])
    assert found == expected
    assert [*plain.prompt, {"role": "assistant", "content": BEGUN}] == problem.prompt
    assert (problem.id, problem.answer) == (plain.id, plain.answer)


@dataclass(frozen=True)
class Asks:
    """Two turns; keeps what it was given."""

    seen: list[Any] = field(default_factory=list)
    name: str = "asks"

    def split(self, name: str) -> Split:
        return GeneratedSplit(3, lambda i: Problem(f"{name}/{i}", [{"role": "user", "content": f"{i}?"}], i))

    def start(self, problem: Problem, seed: int) -> str:
        self.seen.append(problem)
        return problem.id

    def replies(self, states: Sequence[Any], conversations: Sequence[list[Message]]) -> list[list[Message] | None]:
        return [[{"role": "user", "content": "Sure?"}] if len(c) == 2 else None for c in conversations]

    def grade(self, episodes: Sequence[Episode]) -> list[Grade]:
        self.seen.extend(episodes)
        return [Grade(1.0, None) for _ in episodes]

    def validate(self) -> None:
        raise ValueError("never right")

    def manifest(self) -> Mapping[str, Any]:
        return {"source": "made up"}


def test_only_the_first_turn_is_begun() -> None:
    inner = Asks()
    env = Prefilled(inner, "Well, ", "begun")
    tokenizer, rollout = rolled(env, env.split("train")[1], ["yes", "no"])
    assert [message["content"] for message in rollout.messages] == ["1?", "Well, yes", "Sure?", "no"]
    assert [message["role"] for message in rollout.messages] == ["user", "assistant"] * 2
    (segment,) = rollout.segments
    assert tokenizer.decode(segment.prompt_ids).endswith("<|im_start|>assistant\nWell, ")
    assert tokenizer.decode(segment.completion_ids) == (
        "yes<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\nno<|im_end|>"
    )
    written = [token for token, own in zip(segment.completion_ids, segment.mask, strict=True) if own]
    assert tokenizer.decode(written) == "yes<|im_end|>no<|im_end|>"
    asked, episode = inner.seen
    assert asked.prompt == episode.problem.prompt == [{"role": "user", "content": "1?"}]
    assert (episode.state, episode.text) == ("train/1", "no")


def test_it_is_an_environment_again() -> None:
    env = Prefilled(Asks(), "Well, ", "begun")
    assert isinstance(env, Env)
    assert env.name == "begun"
    assert env.split("test").size == 3
    assert env.manifest() == {"source": "made up", "name": "begun", "prefilled": "Well, "}
    assert Prefilled(Asks(), "Well, ").name == f"{Asks().name}_prefilled"
    with pytest.raises(ValueError, match="never right"):
        env.validate()
    PREFILLED.validate()
    inner = {"_target_": "envs.arithmetic.Arithmetic", "format": {"_target_": "envs.formats.R1"}}
    built = instantiate({"_target_": "envs.prefilled.Prefilled", "env": inner, "text": BEGUN, "name": "sums-at-once"})
    assert built == PREFILLED

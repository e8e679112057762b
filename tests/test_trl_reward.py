"""Reward functions of TRL: its own, unmodified; and the semantics of ``None``, weights and columns, by hand."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from envs.adapters.trl_reward import TrlReward
from envs.base import Answer
from envs.data.sources import JsonLines
from rlreason.types import Env, Grade

ROWS = [
    {
        "prompt": [{"role": "user", "content": f"What is {a} + {a}?"}],
        "solution": f"${2 * a}$",
        "best": f"<think>\nTwice {a}.\n</think>\nIt is \\boxed{{{2 * a}}}.",
    }
    for a in range(1, 21)
]
TEXTS = [{"prompt": row["prompt"][0]["content"], "a": place} for place, row in enumerate(ROWS)]  # type: ignore[index]


def jsonl(folder: Path, rows: list[Any], name: str = "rows") -> JsonLines:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JsonLines(str(path))


def grades(env: TrlReward, *texts: str) -> list[Grade]:
    return env.grade_texts([Answer(env.split("train")[place], text, "stop") for place, text in enumerate(texts)])


def test_trls_own_functions(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    pytest.importorskip("math_verify")
    env = TrlReward(
        jsonl(tmp_path, ROWS),
        ["trl.rewards.accuracy_reward", "trl.rewards.think_format_reward"],
        weights=[1.0, 0.5],
        pass_threshold=1.5,
        gold_key="best",
    )
    assert isinstance(env, Env)
    env.validate()
    problem = env.split("train")[0]
    gold = problem.answer["best"]
    texts = [gold, gold.replace("<think>", ""), "<think>\nHm.\n</think>\nIt is \\boxed{1}.", ""]
    found = env.grade_texts([Answer(problem, text, "stop") for text in texts])
    # accuracy + 0.5 * format
    assert [grade.reward for grade in found] == [1.5, 1.0, 0.5, 0.0]
    assert [grade.correct for grade in found] == [True, False, False, False]
    assert found[2].parts == {"accuracy_reward": 0.0, "think_format_reward": 1.0, "raised": 0.0}
    names = ["trl.rewards.accuracy_rewards.accuracy_reward", "trl.rewards.format_rewards.think_format_reward"]
    assert env.manifest()["functions"] == names


def test_a_function_in_the_form_of_trls_documentation_gets_texts_and_columns(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def matches(prompts: list[str], completions: list[str], a: list[int], **kwargs: Any) -> list[float]:
        seen.update(prompts=prompts, completions=completions, a=a, others=sorted(kwargs))
        kwargs["log_metric"]("mine", 1.0)
        kwargs["log_extra"]("mine", a)
        found = [re.search(r"\d+", completion) for completion in completions]
        return [1.0 if match and int(match[0]) == number else 0.0 for match, number in zip(found, a, strict=True)]

    env = TrlReward(jsonl(tmp_path, TEXTS), matches)
    problems = [env.split("train")[place] for place in (0, 1)]
    right = str(problems[0].answer["a"])
    found = env.grade_texts([Answer(problems[0], right, "stop"), Answer(problems[1], "-", "stop")])
    assert [grade.reward for grade in found] == [1.0, 0.0]
    assert [grade.correct for grade in found] == [None, None]
    assert seen == {
        "prompts": [problem.prompt[0]["content"] for problem in problems],
        "completions": [right, "-"],
        "a": [problem.answer["a"] for problem in problems],
        "others": ["log_extra", "log_metric"],
    }


def test_none_leaves_the_sum_and_a_row_without_any_score_is_left_out(tmp_path: Path) -> None:
    def some(completions: list[str], **kwargs: Any) -> list[float | None]:
        return [None if "x" in text else 1.0 for text in completions]

    async def others(completions: list[str], **kwargs: Any) -> list[float | None]:
        await asyncio.sleep(0)
        return [float("nan") if "y" in text else -2.0 for text in completions]

    env = TrlReward(jsonl(tmp_path, TEXTS), [some, others], weights=[1.0, 0.25])
    both, first, second, neither = grades(env, "", "y", "x", "xy")
    # 1 * 1 + 0.25 * -2; 1 * 1; 0.25 * -2; nothing
    assert [grade.reward for grade in (both, first, second)] == [0.5, 1.0, -0.5]
    assert first.parts == {"some": 1.0, "raised": 0.0}
    assert (neither.status, neither.correct) == ("error", None)
    # As TRL itself sums them up, for the rows that have a score.
    torch = pytest.importorskip("torch")
    table = torch.tensor([[1.0, -2.0], [1.0, torch.nan], [torch.nan, -2.0]])
    assert (table * torch.tensor([1.0, 0.25])).nansum(dim=1).tolist() == [0.5, 1.0, -0.5]


@pytest.mark.parametrize("value", ["raise", "inf", "text"])
def test_a_function_that_fails_on_a_completion_fails_on_that_one_only(tmp_path: Path, value: str) -> None:
    def fragile(completions: list[str], **kwargs: Any) -> list[Any]:
        if value == "raise":
            return [1.0 / len(text) for text in completions]
        return [1.0 / len(text) if text else {"inf": float("inf"), "text": "good"}[value] for text in completions]

    env = TrlReward(jsonl(tmp_path, TEXTS), fragile, failed_score=-1.0, pass_threshold=0.0)
    with pytest.warns(UserWarning, match=r"\.py:\d+: fragile raised"):
        found = grades(env, "ab", "", "abcd")
    assert [grade.reward for grade in found] == [0.5, -1.0, 0.25]
    assert [grade.status for grade in found] == ["ok", "unparseable", "ok"]
    assert [grade.parts["raised"] for grade in found] == [0.0, 1.0, 0.0]


def of_tokens(completion_ids: list[list[int]], **kwargs: Any) -> list[float]: ...
def of_steps(completions: list[str], trainer_state: Any, **kwargs: Any) -> list[float]: ...
def of_columns(completions: list[str], solution: list[str], **kwargs: Any) -> list[float]: ...
def without_kwargs(prompts: list[str], completions: list[str]) -> list[float]: ...


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (of_tokens, "of_tokens needs completion_ids"),
        (of_steps, "of_steps needs trainer_state"),
        (of_columns, r"of_columns needs the columns \['solution'\]; the data have \['a'\]"),
        (without_kwargs, r"does not take .*'log_extra'.*\*\*kwargs"),
        ("trl.rewards.no_such_reward", "can't import 'trl.rewards.no_such_reward'"),
        ("no_such_module.f", "can't import 'no_such_module.f'"),
        ("math.pi", "'math.pi' is no function"),
        ([], "0 functions"),
    ],
)
def test_functions_that_can_not_be_used_are_refused(tmp_path: Path, function: Any, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        TrlReward(jsonl(tmp_path, TEXTS), function)


def test_a_wrong_number_of_rewards_is_not_guessed_at(tmp_path: Path) -> None:
    def one(completions: list[str], **kwargs: Any) -> list[float]:
        return [1.0]

    env = TrlReward(jsonl(tmp_path, TEXTS), one)
    assert [grade.reward for grade in grades(env, "a", "b")] == [1.0, 1.0]  # asked one by one, it can be used

    def none(completions: list[str], **kwargs: Any) -> list[float]:
        return []

    env = TrlReward(jsonl(tmp_path, TEXTS), none)
    with (
        pytest.warns(UserWarning, match="none raised ValueError"),
        pytest.raises(ValueError, match="every text makes the scorer"),
    ):
        env.validate()


def test_rows(tmp_path: Path) -> None:
    def zero(completions: list[str], **kwargs: Any) -> list[float]:
        return [0.0] * len(completions)

    make: Callable[[JsonLines], TrlReward] = lambda source: TrlReward(source, zero)  # noqa: E731
    repeated = make(jsonl(tmp_path, TEXTS + TEXTS))
    asked = [
        {repeated.split(name)[place].prompt[0]["content"] for place in range(repeated.split(name).size or 0)}
        for name in ("train", "validation", "test")
    ]
    assert not asked[0] & asked[1]
    assert not (asked[0] | asked[1]) & asked[2]
    assert len(asked[0] | asked[1] | asked[2]) == 20
    own = jsonl(tmp_path, TEXTS[:5], "own")
    given = make(JsonLines(jsonl(tmp_path, TEXTS).train, own.train))
    assert given.manifest()["sizes"] == {"train": 15, "validation": 5}
    assert given.manifest()["left_out"] == 5
    with pytest.raises(ValueError, match="no test split"):
        given.split("test")
    for row, what in (
        ({"question": "?"}, r"rows.jsonl:21: there is no 'prompt'"),
        ({"prompt": ""}, r"rows.jsonl:21: prompt\[0\] has no content"),
        ({"prompt": [{"role": "assistant", "content": "Yes."}]}, "rows.jsonl:21: the last turn"),
        ([1], "rows.jsonl:21: this is not a JSON object"),
        ({"prompt": [{"role": "user", "content": "Hi."}]}, "some prompts are texts and some are messages"),
    ):
        with pytest.raises(ValueError, match=what):
            make(jsonl(tmp_path, [*TEXTS, row]))
    with pytest.raises(ValueError, match="split is empty"):
        make(jsonl(tmp_path, TEXTS[:1]))

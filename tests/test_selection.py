"""Which samples are kept: by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlreason.selection import Sample, Selection

_RIGHT = Sample("p", 1, 0, 0, [], [{"role": "assistant", "content": "7"}], 1.0, True, "ok", "stop")


def right(text: str, *, problem: str = "p", sample: int = 0, reward: float | None = 1.0) -> Sample:
    reply = [{"role": "assistant", "content": text}]
    return replace(_RIGHT, problem=problem, sample=sample, reply=reply, reward=reward)  # type: ignore[arg-type]


def wrong(problem: str = "p") -> Sample:
    return replace(right("8", problem=problem, reward=0.0), correct=False)


def texts(rule: Selection, samples: list[Sample]) -> list[str]:
    return [kept.sample.reply[-1]["content"] for kept in rule(samples).kept]


def test_counts_by_hand() -> None:
    samples = [
        right("3 + 4 is 7"), right("3 + 4  IS\n7"), right("seven", sample=2), wrong(),  # the second repeats the first
        replace(right("7 and", problem="q"), finish="length"), wrong("q"),
        replace(right("7", problem="r"), status="error", correct=None, reward=0.0),
        wrong("s"),
    ]  # fmt: skip
    found = Selection()(samples)
    assert found.passes == {"p": (4, 3), "q": (2, 1), "s": (1, 0)}  # nothing of r was graded
    assert (found.accepted, found.truncated, found.duplicates) == (3, 1, 1)
    assert {kept.sample.problem for kept in found.kept} == {"p"}
    assert sorted(kept.sample.reply[0]["content"] for kept in found.kept)[-1] == "seven"
    assert [kept.pass_rate for kept in found.kept] == [3 / 4, 3 / 4]
    cut = Selection(allow_truncated=True)(samples)
    assert (cut.accepted, cut.truncated) == (4, 0)
    assert [kept.sample.problem for kept in cut.kept] == ["p", "p", "q"]
    assert cut.kept[-1].pass_rate == 1 / 2


def test_unicode_variants_are_one_wording() -> None:
    assert len(texts(Selection(), [right("x² = 4"), right("x2 = 4"), right("x = 2")])) == 2  # NFKC: ² is 2


def test_equal_replies_to_two_problems_are_no_duplicates() -> None:
    assert texts(Selection(), [right("7"), right("7", problem="q")]) == ["7", "7"]


def test_replies_of_several_turns_differ_in_any_of_them() -> None:
    first = replace(right("7"), reply=[{"role": "assistant", "content": "look"}, *right("7").reply])
    second = replace(right("7"), reply=[{"role": "assistant", "content": "search"}, *right("7").reply])
    assert len(Selection()([first, second, first]).kept) == 2


@pytest.mark.parametrize(
    ("passed", "graded", "quota"),
    # ceil((1 - p) * 10), at least 1
    [(1, 20, 1), (10, 10, 1), (9, 10, 1), (5, 10, 5), (3, 4, 3), (4, 20, 4), (12, 13, 1), (7, 10, 3)],
)
def test_difficulty(passed: int, graded: int, quota: int) -> None:
    samples = [right(f"{i}", sample=i) for i in range(passed)] + [wrong()] * (graded - passed)
    assert len(texts(Selection(max_per_problem=10, balance="difficulty"), samples)) == quota
    assert len(texts(Selection(max_per_problem=10), samples)) == min(passed, 10)


def test_the_hardest_keep_all_that_is_allowed() -> None:
    # p = 2/8 keeps up to ceil(0.75 * 2) = 2, p = 7/8 up to ceil(0.125 * 2) = 1
    samples = [right(f"{i}", problem="hard", sample=i) for i in range(2)] + [wrong("hard")] * 6
    samples += [right(f"{i}", problem="easy", sample=i) for i in range(7)] + [wrong("easy")]
    found = Selection(max_per_problem=2, balance="difficulty")(samples)
    assert [kept.sample.problem for kept in found.kept] == ["hard", "hard", "easy"]


def test_the_best_rewards_are_kept() -> None:
    samples = [
        right("low", reward=1.0),
        right("high", reward=1.2),
        right("unknown", reward=None),
        right("mid", reward=1.1),
    ]
    assert texts(Selection(max_per_problem=2), samples) == ["high", "mid"]
    # of two equal replies, the one that earned more stands for both
    assert Selection()([right("a", reward=1.0), right("A", reward=1.2)]).kept[0].sample.reward == 1.2
    # a duplicate does not take another's place
    repeated = [
        right("high", reward=1.2),
        right("mid", reward=1.1),
        right("high", reward=0.5),
        right("low", reward=0.9),
    ]
    assert texts(Selection(max_per_problem=3), repeated) == ["high", "mid", "low"]


def test_chance_is_the_seeds_alone() -> None:
    samples = [right(f"{i}", sample=i) for i in range(8)]
    picks = [tuple(texts(Selection(max_per_problem=2, seed=seed), samples)) for seed in range(20)]
    assert len(set(picks)) > 5
    for seed, pick in enumerate(picks):
        assert tuple(texts(Selection(max_per_problem=2, seed=seed), samples[::-1])) == pick  # the order does not matter


def test_rewards_without_verdicts() -> None:
    judged = [replace(right(f"{reward}", reward=reward), correct=None) for reward in (0.2, 0.5, 0.9)]
    with pytest.raises(ValueError, match=r"problem p .* selection\.min_reward"):
        Selection()(judged)
    assert texts(Selection(min_reward=0.5), judged) == ["0.9", "0.5"]
    assert Selection(min_reward=0.5)(judged).passes == {"p": (3, 2)}
    # not finite, as the traces have it
    assert texts(Selection(min_reward=-9.0), [replace(judged[0], reward=None), judged[1]]) == ["0.5"]


def test_with_a_verdict_the_least_reward_comes_on_top() -> None:
    well_formed, ill_formed = right("good", reward=1.2), right("bad", reward=1.0)
    generous = replace(wrong(), reward=1.2)
    assert texts(Selection(min_reward=1.1), [well_formed, ill_formed, generous]) == ["good"]


@pytest.mark.parametrize(
    ("options", "said"), [({"max_per_problem": 0}, "max_per_problem is 0"), ({"balance": "hard"}, "'hard'.*difficulty")]
)
def test_mistakes(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Selection(**options)  # type: ignore[arg-type]

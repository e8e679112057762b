"""Which problems are drawn: the plain sampler, problems at the edge, and schedules."""

from __future__ import annotations

import pickle
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from test_train import CAPITALS, metrics_of, texts_of, tiny_config

from envs.base import GeneratedSplit
from rlreason.analysis.load import read_traces
from rlreason.config import ConfigError
from rlreason.curricula import EdgeSampler, ScheduledSampler
from rlreason.sampler import UniformSampler, shares
from rlreason.train import run
from rlreason.types import Grade, Problem, Rollout, Split, Status


def numbered(size: int | None, **meta: Callable[[int], Any]) -> Split:
    """Problems called by their index."""
    return GeneratedSplit(size, lambda i: Problem(f"{i}", [], None, {key: value(i) for key, value in meta.items()}))


def group_of(problem: Problem, group: int, verdicts: Sequence[bool | Status | None]) -> list[Rollout]:
    """A group with these verdicts; a text is a status, without a verdict."""
    grades = [Grade(0.0, None, v) if isinstance(v, str) else Grade(0.0, v) for v in verdicts]
    return [Rollout(problem, group, [], [], "", "stop", grade) for grade in grades]


def show(sampler: EdgeSampler, successes: Mapping[int, float], *, of: int = 10) -> dict[str, float]:
    """Let it see groups of ``of`` samples, of problems by index, with these shares of right ones."""
    rollouts = []
    for group, (index, success) in enumerate(successes.items()):
        right = round(success * of)
        rollouts += group_of(sampler.split[index], group, [True] * right + [False] * (of - right))
    return sampler.observe(rollouts)


def ids(problems: Sequence[Problem]) -> list[int]:
    return [int(problem.id) for problem in problems]


# --- uniform


def test_uniform_draws_what_it_always_drew() -> None:
    """Runs from before there were curricula go on as they were."""
    sampler = UniformSampler(numbered(7), 5)
    assert [ids(sampler.draw(step, 0, 4)) for step in (1, 2, 3)] == [[0, 6, 2, 5], [4, 1, 3, 1], [6, 2, 5, 3]]
    assert ids(sampler.draw(2, 1, 4)) == [2, 5, 2, 0]
    assert ids(UniformSampler(numbered(None), 5).draw(2, 1, 2)) == [2306665026856663880, 4387801181792097876]
    assert sampler.state_dict() == {}


def test_shares_count_groups_and_not_samples() -> None:
    split = numbered(None, member=lambda i: "ab"[i % 2])
    rollouts = group_of(split[0], 0, [True] * 5) + group_of(split[1], 1, [True]) + group_of(split[3], 4, [True])
    assert shares(rollouts, "member") == {"sampler/share/a": 1 / 3, "sampler/share/b": 2 / 3}
    assert shares(rollouts, "level") == {}
    assert UniformSampler(split, 0).observe(rollouts) == shares(rollouts, "member")


# --- edge


def test_the_edge_is_between_the_bounds() -> None:
    sampler = EdgeSampler(numbered(100), 1, new=0.0, revisit=0.0)
    found = show(sampler, {0: 0.0, 1: 0.1, 2: 0.2, 3: 0.5, 4: 0.8, 5: 0.9, 6: 1.0, 7: 0.3})
    assert sorted(ids(sampler.draw(2, 0, 4))) == [2, 3, 4, 7]
    assert found == {
        "sampler/at_edge": 4 / 8,
        "sampler/drawn/new": 1, "sampler/drawn/edge": 0, "sampler/drawn/revisited": 0,
        "sampler/known": 8, "sampler/known/success": pytest.approx(3.8 / 8),
        "sampler/known/failed": 2 / 8, "sampler/known/edge": 4 / 8, "sampler/known/mastered": 2 / 8,
    }  # fmt: skip
    found = show(sampler, {3: 0.5, 0: 0.5, 8: 0.5})
    assert [found[f"sampler/drawn/{kind}"] for kind in ("new", "edge", "revisited")] == pytest.approx([1 / 3] * 3)


def test_success_is_an_exponential_mean() -> None:
    """1, then 0: 0.5 at a rate of 0.5, and forgotten work is work again; then 0: 0.25; then 0: 0.125, below."""
    sampler = EdgeSampler(numbered(100), 1, new=0.0, revisit=0.0)
    for success, mean, edge in ((1.0, 1.0, 0), (0.0, 0.5, 1), (0.0, 0.25, 1), (0.0, 0.125, 0), (1.0, 0.5625, 1)):
        found = show(sampler, {3: success})
        assert (found["sampler/known/success"], found["sampler/known/edge"]) == (mean, edge)
    assert EdgeSampler(numbered(9), 1, rate=1.0)._known == {}
    latest = EdgeSampler(numbered(9), 1, rate=1.0)
    assert [show(latest, {3: success})["sampler/known/success"] for success in (1.0, 0.4)] == [1.0, 0.4]


def test_shares_of_new_and_revisited_problems() -> None:
    sampler = EdgeSampler(numbered(None), 1, new=0.3, revisit=0.1)
    show(sampler, {**dict.fromkeys(range(100), 0.5), **{i: float(i % 2) for i in range(100, 200)}})
    counts: Counter[str] = Counter()
    for step in range(1, 501):
        drawn = ids(sampler.draw(step, 0, 8))
        assert len(set(drawn)) == 8
        counts.update("edge" if i < 100 else "revisited" if i < 200 else "new" for i in drawn)
        counts.update("failed" for i in drawn if i in range(100, 200, 2))
    # 4000 draws: standard deviations of 29, 19 and 31.
    assert counts["new"] == pytest.approx(1200, abs=120)
    assert counts["revisited"] == pytest.approx(400, abs=80)
    assert counts["edge"] == pytest.approx(2400, abs=125)
    assert counts["failed"] == pytest.approx(counts["revisited"] / 2, abs=50)  # and mastered ones as often


def test_a_place_that_has_no_problem_goes_to_another_kind() -> None:
    nothing_new = EdgeSampler(numbered(6), 1, new=1.0, revisit=0.0)
    assert sorted(ids(nothing_new.draw(1, 0, 6))) == [0, 1, 2, 3, 4, 5]  # 16 candidates for each find them
    show(nothing_new, {0: 0.5, 1: 0.5, 2: 0.0, 3: 0.0, 4: 1.0, 5: 1.0})
    assert sorted(ids(nothing_new.draw(2, 0, 2))) == [0, 1]  # the edge comes first
    assert sorted(ids(nothing_new.draw(2, 0, 6))) == [0, 1, 2, 3, 4, 5]
    more = ids(nothing_new.draw(2, 0, 9))
    assert set(more) == {0, 1, 2, 3, 4, 5}
    assert len(more) == 9
    no_edge = EdgeSampler(numbered(None), 1, new=0.0, revisit=0.0)
    show(no_edge, {0: 0.0})
    assert 0 not in ids(no_edge.draw(2, 0, 8))  # new ones


def test_a_draw_is_a_function_of_step_attempt_and_state() -> None:
    def fresh() -> EdgeSampler:
        return EdgeSampler(numbered(50, member=lambda i: "ab"[i % 2]), 7)

    seen = {i: (i % 11) / 10 for i in range(40)}
    first, second = fresh(), fresh()
    show(first, seen)
    rollouts = [r for g, (i, s) in enumerate(seen.items()) for r in group_of(first.split[i], g, _verdicts(s))]
    random.Random(0).shuffle(rollouts)  # several processes gather theirs in another order
    second.observe(rollouts)
    assert second.state_dict() == first.state_dict()
    restored = fresh()
    assert restored.state_dict()  # or checkpoints would leave it out
    restored.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    draws = [
        [ids(sampler.draw(step, attempt, 8)) for step in (1, 2) for attempt in (0, 1)]
        for sampler in (first, first, second, restored)
    ]
    assert draws[0] == draws[1] == draws[2] == draws[3]
    assert len({tuple(sorted(drawn)) for drawn in draws[0]}) == 4  # each with other problems
    assert show(restored, {3: 0.5}) == show(first, {3: 0.5})
    other = EdgeSampler(first.split, 8)
    other.load_state_dict(first.state_dict())
    assert ids(other.draw(1, 0, 8)) != draws[0][0]


def _verdicts(success: float) -> list[bool]:
    return [i < round(success * 10) for i in range(10)]


def test_the_memory_is_bounded_and_keeps_what_was_observed_last() -> None:
    sampler = EdgeSampler(numbered(None), 1, memory=3)
    show(sampler, dict.fromkeys(range(4), 0.5))
    show(sampler, {1: 0.5})
    found = show(sampler, {9: 0.5})
    assert found["sampler/known"] == 3
    assert [int(problem.id) for problem, _ in sampler.state_dict()["known"]] == [3, 1, 9]


def test_a_family_without_signal_gets_less_but_never_nothing() -> None:
    sampler = EdgeSampler(numbered(None, member=lambda i: "live" if i % 2 else "dead"), 1, new=1.0, revisit=0.0)
    found = show(sampler, {i: 0.5 if i % 2 else 0.0 for i in range(20)})
    # Ten groups each: 0.9 ** 10 and 1.
    assert found["sampler/promise/dead"] == pytest.approx(0.9**10)
    assert found["sampler/promise/live"] == 1
    counts = Counter(i % 2 for step in range(500) for i in ids(sampler.draw(step, 0, 8)))
    # Half of the candidates each, so as their weights: 0.349 to 1, a share of 0.259 (standard deviation 0.007).
    assert counts[0] / 4000 == pytest.approx(0.9**10 / (0.9**10 + 1), abs=0.03)
    show(sampler, dict.fromkeys(range(0, 20, 2), 0.5))  # the same problems again say nothing of new ones
    assert sampler.state_dict()["promise"]["dead"] == pytest.approx(0.9**10)


def test_a_family_without_signal_does_not_get_what_others_have_no_problems_for() -> None:
    """All ten live problems are known, and at the edge; of the dead ones there is no end."""
    split = numbered(None, member=lambda i: "dead" if i >= 10 else "live")
    sampler = EdgeSampler(split, 1, new=0.3, revisit=0.0)
    show(sampler, {i: 0.5 if i < 10 else 0.0 for i in range(20)})
    counts = Counter(i < 10 for step in range(500) for i in ids(sampler.draw(step, 0, 8)))
    # 0.3 of 4000 draws, times 0.9 ** 10: 418, with a standard deviation of 19.
    assert counts[False] == pytest.approx(0.3 * 0.9**10 * 4000, abs=80)
    # With a single family the share is as stated, whatever it promises; with an empty edge it is all of them.
    for family, success, expected in (("other", 0.5, 1200), ("member", 0.0, 4000)):
        sampler = EdgeSampler(split, 1, new=0.3, revisit=0.0, family=family)
        show(sampler, {i: success if i < 10 else 0.0 for i in range(20)})
        counts = Counter(i >= 20 for step in range(500) for i in ids(sampler.draw(step, 0, 8)))
        assert counts[True] == pytest.approx(expected, abs=120 if expected < 4000 else 0)


def test_samples_without_a_verdict_do_not_count() -> None:
    sampler = EdgeSampler(numbered(9), 1)
    found = sampler.observe(
        group_of(sampler.split[0], 0, [True, False, "error", "error"])
        + group_of(sampler.split[1], 1, ["error", "error"])
        + group_of(sampler.split[2], 2, [True, False, None, "timeout"])
    )
    assert (found["sampler/known"], found["sampler/known/success"]) == (2, 0.5)
    assert sampler.observe(group_of(sampler.split[1], 0, ["error"])) == {}
    with pytest.raises(ValueError, match="never says what is right"):
        sampler.observe(group_of(sampler.split[1], 0, [None, None]))


@pytest.mark.parametrize("sampler", [UniformSampler, EdgeSampler])
def test_the_edge_finds_what_can_be_learned(sampler: type[EdgeSampler] | type[UniformSampler]) -> None:
    """A third of the problems is always solved, a third never, a third half of the time: the share of groups with
    signal (right and wrong samples) over 40 steps of 16 groups of 8."""
    odds = {"easy": 1.0, "hard": 0.0, "edge": 0.5}
    split = numbered(None, member=lambda i: list(odds)[i % 3])
    chosen, chance, signal = sampler(split, 3), random.Random(3), []
    for step in range(1, 41):
        rollouts = []
        for group, problem in enumerate(chosen.draw(step, 0, 16)):
            verdicts = [chance.random() < odds[problem.meta["member"]] for _ in range(8)]
            signal.append(len(set(verdicts)) > 1)
            rollouts += group_of(problem, group, verdicts)
        chosen.observe(rollouts)
    share = sum(signal) / len(signal)
    if sampler is UniformSampler:
        assert share == pytest.approx(1 / 3, abs=0.06)
    else:
        # 0.6 at the edge, nearly all of 0.3 new ones from the family that has some; the first steps know nothing.
        assert share > 0.75


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 0.8}, r"low is 0\.8 and high is 0\.8"),
        ({"high": 1.5}, r"high is 1\.5"),
        ({"new": 0.9, "revisit": 0.2}, r"new is 0\.9 and revisit is 0\.2; they are shares"),
        ({"new": -0.1}, r"new is -0\.1"),
        ({"rate": 0.0}, r"rate is 0\.0"),
        ({"memory": 0}, "memory is 0 problems"),
    ],
)
def test_edges_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EdgeSampler(numbered(9), 1, **options)


# --- schedules

RISING = {"1": [[1, 1], [11, 0]], 2: [[1, 0], [11, 1]], 3: [[6, 0], [11, 3]]}


@pytest.mark.parametrize("size", [30, None])
def test_a_schedule_interpolates_weights(size: int | None) -> None:
    """A step's weights by hand: at 6, 0.5 each and 0; at 8.5, 0.25, 0.75 and 1.5; from 11 on, 0, 1 and 3."""
    split = numbered(size, level=lambda i: 1 if i % 10 == 0 else 2 if i % 2 else 3)
    sampler = ScheduledSampler(split, 4, weights=RISING, family="level")
    for step, expected in (
        (0, (1, 0, 0)),
        (1, (1, 0, 0)),
        (6, (0.5, 0.5, 0)),
        (11, (0, 0.25, 0.75)),
        (50, (0, 0.25, 0.75)),
    ):
        drawn = [problem for attempt in range(100) for problem in sampler.draw(step, attempt, 20)]
        counts = Counter(problem.meta["level"] for problem in drawn)
        for level, share in zip((1, 2, 3), expected, strict=True):
            assert counts[level] / 2000 == pytest.approx(share, abs=0.04 if 0 < share < 1 else 0)
    assert sampler._weights(8.5) == pytest.approx([0.25, 0.75, 1.5])
    assert ids(sampler.draw(6, 0, 20)) == ids(sampler.draw(6, 0, 20)) != ids(sampler.draw(6, 1, 20))
    assert sampler.observe(group_of(split[1], 0, [None])) == {"sampler/share/2": 1}
    assert sampler.state_dict() == {}


def test_problems_of_a_family_are_drawn_alike() -> None:
    sampler = ScheduledSampler(
        numbered(30, level=lambda i: i % 3), 4, weights={key: [[1, 1]] for key in "012"}, family="level"
    )
    counts = Counter(ids(sampler.draw(1, 0, 3000)))
    assert sorted(counts) == list(range(30))
    assert max(abs(count - 100) for count in counts.values()) < 50  # five standard deviations


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": [], "b": [[1, 1]]}, r"weights\.a needs points \[step, weight\], with rising steps"),
        ({"a": [[1]], "b": [[1, 1]]}, r"weights\.a needs points"),
        ({"a": [[5, 1], [5, 2]], "b": [[1, 1]]}, r"weights\.a needs points .* rising"),
        ({"a": [[1, -1]], "b": [[1, 1]]}, r"weights\.a has a weight that is no number of 0 or more"),
        ({"a": [[1, float("nan")]], "b": [[1, 1]]}, r"weights\.a has a weight"),
        ({"a": [[1, 1], [9, 0]], "b": [[5, 0]]}, "at step 9 every weight is 0"),
        ({"a": [[1, 1]]}, r"problem 1 has member b, which weights leaves out; give it \[\[1, 0\]\]"),
        ({"a": [[1, 1]], "b": [[1, 1]], "c": [[1, 1]]}, "no problem has member c; there are a, b"),
    ],
)
@pytest.mark.parametrize("size", [10, None])
def test_schedules_that_make_no_sense(size: int | None, weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScheduledSampler(numbered(size, member=lambda i: "ab"[i % 2]), 1, weights=weights)


def test_a_schedule_needs_something_to_go_by() -> None:
    with pytest.raises(ValueError, match=r"problem 0 has no 'member' in its meta, only level: set sampler\.family"):
        ScheduledSampler(numbered(9, level=lambda i: i), 1, weights={"a": [[1, 1]]})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("sampler=schedule",), r"sampler\.weights"),
        (("sampler=schedule", "sampler.weights={a: [[1, 1]]}"), "sampler: problem train/0 has no 'member' in its meta"),
        (("sampler=edge", "sampler.low=0.9"), r"sampler: low is 0\.9 and high is 0\.8"),
    ],
)
def test_the_command_line_is_told(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tiny_config(*CAPITALS, *overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_observes_what_dynamic_sampling_turned_away(tmp_path: Path) -> None:
    run(
        tiny_config(*CAPITALS, "sampler=edge", "algo.max_attempts=3", "algo.num_generations=2", "max_steps=2"), tmp_path
    )
    rows = read_traces(tmp_path, ["split", "step", "problem", "group", "advantage"]).query("split == 'train'")
    assert rows["advantage"].isna().any()  # of what was turned away, and in nothing else
    for step, line in enumerate(metrics_of(tmp_path)[1:], start=1):
        assert line["sampler/known"] == rows.query(f"step <= {step}")["problem"].nunique()
    assert metrics_of(tmp_path)[1]["sampler/drawn/new"] > 0.5


def test_a_run_from_before_there_were_samplers_is_uniform(tmp_path: Path) -> None:
    for name, sampler in {"now": "sampler=uniform", "then": "~sampler"}.items():  # their config.yaml has no such key
        run(tiny_config(*CAPITALS, "max_steps=1", "eval_limit=1", sampler), tmp_path / name)
    assert texts_of(tmp_path / "now") == texts_of(tmp_path / "then")

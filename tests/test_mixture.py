"""Several environments in one: who stands where, who is asked what, and what is logged of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from test_train import metrics_of, tiny_config

from envs.arithmetic import Arithmetic
from envs.base import SPLITS, GeneratedSplit, SingleTurnEnv, check_split
from envs.mixture import Mixture
from rlreason.analysis.load import read_traces
from rlreason.config import CONF, build, register
from rlreason.evaluate import summarise
from rlreason.metrics import rollout_metrics
from rlreason.train import run
from rlreason.types import Env, Episode, Finish, Grade, Message, Problem, Rollout, Segment, Split


@dataclass(frozen=True)
class Numbers(SingleTurnEnv):
    """Say the number. ``size`` problems in each split (None: no end), of which ``best`` is to be had."""

    size: int | None = 3
    best: float = 1.0
    name: str = "numbers"

    @property
    def max_reward(self) -> float:
        return self.best

    def split(self, name: str) -> Split:
        check_split(name)
        return GeneratedSplit(self.size, lambda i: Problem(f"n{i}", _ask(f"Say {i}!"), str(i), {"place": i}))

    def grade_text(self, problem: Problem, text: str, finish: Finish) -> Grade:
        right = text == problem.answer
        return Grade(self.best * right, right, parts={"digits": float(text.isdigit())})

    def gold(self, problem: Problem) -> str:
        return str(problem.answer)

    def manifest(self) -> Mapping[str, Any]:
        return {"name": self.name, "source": "generated"}


class Dialogue:
    """Two turns, no notion of right; keeps what it was asked."""

    def __init__(self, size: int = 4) -> None:
        self.size = size
        self.calls: list[tuple[str, list[Any]]] = []

    @property
    def name(self) -> str:
        return "dialogue"

    def split(self, name: str) -> Split:
        check_split(name)
        return GeneratedSplit(self.size, lambda i: Problem(f"{name}/d{i}", _ask(f"Talk {i}!"), None))

    def start(self, problem: Problem, seed: int) -> Any:
        return (problem, seed)

    def replies(self, states: Sequence[Any], conversations: Sequence[list[Message]]) -> list[list[Message] | None]:
        self.calls.append(("replies", list(states)))
        return [_ask("Go on.") if len(conversation) < 3 else None for conversation in conversations]

    def grade(self, episodes: Sequence[Episode]) -> list[Grade]:
        self.calls.append(("grade", [(episode.problem, episode.state) for episode in episodes]))
        turns = [tuple(1.0 for message in e.messages if message["role"] == "assistant") for e in episodes]
        return [
            Grade(3.0, None, parts={"length": float(len(e.text))}, turn_rewards=own)
            for e, own in zip(episodes, turns, strict=True)
        ]

    def validate(self) -> None:
        raise ValueError("nothing to check")

    def manifest(self) -> Mapping[str, Any]:
        return {"name": self.name, "source": "generated"}


def _ask(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def places(split: Split, count: int | None = None) -> list[str]:
    """The ids of a split's problems."""
    size = split.size if count is None else count
    assert size is not None
    return [split[place].id for place in range(size)]


# --- who stands where


def test_members_take_turns_by_weight_until_they_have_no_more() -> None:
    env = Mixture({"a": Numbers(3), "b": Numbers(4)}, {"a": 2})  # b has 1
    # A round is a at 1/4, b at 1/2, a at 3/4. a ends in the second round, then b goes on by itself.
    expected = ["a/n0", "b/n0", "a/n1", "a/n2", "b/n1", "b/n2", "b/n3"]
    for name in ("validation", "test"):
        assert places(env.split(name)) == expected
    with pytest.raises(IndexError):
        env.split("test")[7]


def test_in_training_a_small_member_begins_again() -> None:
    env = Mixture({"a": Numbers(3), "b": Numbers(4)}, {"a": 2, "b": 1})
    # Four rounds until all of b was there: a b a, a b a, ...
    assert places(env.split("train")) == [
        "a/n0", "b/n0", "a/n1", "a/n2", "b/n1", "a/n0", "a/n1", "b/n2", "a/n2", "a/n0", "b/n3", "a/n1",
    ]  # fmt: skip


def test_an_endless_member_makes_it_endless() -> None:
    env = Mixture({"a": Numbers(3), "b": Numbers(None)}, {"a": 1, "b": 1})
    assert [env.split(name).size for name in SPLITS] == [None] * 3
    assert places(env.split("test"), 8) == ["a/n0", "b/n0", "a/n1", "b/n1", "a/n2", "b/n2", "b/n3", "b/n4"]
    assert places(env.split("train"), 8) == ["a/n0", "b/n0", "a/n1", "b/n1", "a/n2", "b/n2", "a/n0", "b/n3"]
    # Samplers draw out of 2**63: even places are a's, odd ones b's; of test, a has 3.
    far = 2**62 + 1
    assert env.split("train")[far].id == f"b/n{2**61}"
    assert env.split("train")[far - 1].id == f"a/n{2**61 % 3}"
    assert env.split("test")[far].id == f"b/n{far - 3}"


def test_every_prefix_keeps_to_the_weights() -> None:
    weights = {"a": 50, "b": 30, "c": 20}
    split = Mixture({name: Numbers(None) for name in weights}, weights).split("validation")
    members = [split[place].meta["member"] for place in range(1000)]
    for length in (10, 100, 250, 1000):
        counts = Counter(members[:length])
        assert all(abs(counts[name] - weight * length / 100) < 1 for name, weight in weights.items())
    problems = {split[place].id for place in range(1000)}
    assert problems == {f"{name}/n{i}" for name, weight in weights.items() for i in range(10 * weight)}


def test_a_member_of_weight_0_is_not_there() -> None:
    env = Mixture({"a": Numbers(2), "b": Numbers(5)}, {"b": 0})
    assert places(env.split("test")) == ["a/n0", "a/n1"]
    assert set(env.envs) == {"a"}


def test_the_same_problem_is_never_in_two_splits() -> None:
    """Though two members share problems: 3 + 5 is one of one digit, and one of up to two."""
    env = Mixture({"one": Arithmetic(), "two": Arithmetic(digits=2)}, {})
    prompts = [{str(env.split(name)[i].prompt) for i in range(400)} for name in SPLITS]
    assert all(not one & other for one in prompts for other in prompts if one is not other)


# --- who is asked what


def test_each_member_is_asked_once_about_its_own_problems() -> None:
    talk = Dialogue()
    env = Mixture({"say": Numbers(4), "talk": talk}, {})
    problems = [env.split("test")[i] for i in range(6)]
    assert [p.id for p in problems] == [f"{who}{i}" for i in range(3) for who in ("say/n", "talk/test/d")]
    assert problems[2] == replace(Numbers().split("test")[1], id="say/n1", meta={"place": 1, "member": "say"})
    states = [env.start(problem, seed) for seed, problem in enumerate(problems)]
    own = [(talk.split("test")[i], 2 * i + 1) for i in range(3)]

    conversations: list[list[Message]] = [[*p.prompt, {"role": "assistant", "content": "1"}] for p in problems]
    answers = env.replies(states, conversations)
    assert answers == [None, _ask("Go on.")] * 3
    assert env.replies(states[3:4], [[*conversations[3], *_ask("Go on.")]]) == [None]
    assert env.replies([], []) == []

    episodes = [Episode(p, s, m, "1", "stop") for p, s, m in zip(problems, states, conversations, strict=True)]
    grades = env.grade(episodes)
    assert talk.calls == [
        ("replies", own),
        ("replies", own[1:2]),
        ("grade", [(state[0], state) for state in own]),  # as it knows them: without the member's name
    ]
    assert [grade.reward for grade in grades] == [0, 3, 1, 3, 0, 3]
    assert [grade.correct for grade in grades] == [False, None, True, None, False, None]
    assert grades[2].parts == {"say/digits": 1, "say/reward": 1, "say/accuracy": 1}
    assert grades[3].parts == {"talk/length": 1, "talk/reward": 3}
    assert grades[3].turn_rewards == (1,)


def test_normalised_rewards_are_at_most_1() -> None:
    env = Mixture({"a": Numbers(best=4.0), "b": Numbers(best=0.5)}, {}, normalise=True)
    problems = [env.split("train")[i] for i in range(2)]
    grades = env.grade([Episode(p, env.start(p, 0), [], "0", "stop") for p in problems])
    assert [grade.reward for grade in grades] == [1, 1]
    assert [grade.parts[f"{who}/reward"] for who, grade in zip("ab", grades, strict=True)] == [4, 0.5]


@dataclass(frozen=True)
class Turns(SingleTurnEnv):
    """Pays 2 of 4 in the second turn."""

    name: str = "turns"
    max_reward: float = 4.0  # type: ignore[assignment,misc]

    def split(self, name: str) -> Split:
        return Numbers().split(name)

    def grade_text(self, problem: Problem, text: str, finish: Finish) -> Grade:
        return Grade(3.0, True, turn_rewards=(0.0, 2.0))

    def gold(self, problem: Problem) -> str:
        return ""

    def manifest(self) -> Mapping[str, Any]:
        return {}


def test_rewards_of_turns_are_normalised_too() -> None:
    env = Mixture({"a": Turns()}, {}, normalise=True)
    problem = env.split("train")[0]
    (grade,) = env.grade([Episode(problem, env.start(problem, 0), [], "", "stop")])
    assert (grade.reward, grade.turn_rewards) == (0.75, (0.0, 0.5))


@pytest.mark.parametrize(
    ("envs", "weights", "options", "message"),
    [
        ({"a": Numbers()}, {"b": 1}, {}, r"weights\.b belongs to no member; they are a"),
        ({"a": Numbers()}, {"a": 0.5}, {}, r"weights\.a is 0\.5; it must be a whole number .* 7 and 3"),
        ({"a": Numbers()}, {"a": -1}, {}, r"weights\.a is -1"),
        ({"a": Numbers()}, {"a": True}, {}, r"weights\.a is True"),
        ({"a": Numbers()}, {"a": 10**6}, {}, r"weights\.a is 1000000"),
        ({"a": Numbers()}, {"a": 0}, {}, "no member has a weight above 0"),
        ({}, {}, {}, "no member has a weight above 0"),
        ({"a": Numbers()}, {}, {"name": ""}, "name is empty"),
        ({"a": Dialogue()}, {}, {"normalise": True}, "largest reward, which a has none of"),
        ({"a": Numbers(best=0.0)}, {}, {"normalise": True}, "largest reward, which a has none of"),
    ],
)
def test_settings_that_make_no_sense(
    envs: dict[str, Env], weights: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Mixture(envs, weights, **options)


def test_what_no_mixture_can_be_made_of() -> None:
    with pytest.raises(ValueError, match=r"a has no train problems; leave it out: weights\.a=0"):
        Mixture({"a": Numbers(0), "b": Numbers()}, {}).split("train")
    inner = Mixture({"a": Numbers()}, {})
    with pytest.raises(ValueError, match="problem a/n0 of c says itself what `member` it is of"):
        Mixture({"c": inner}, {}).split("train")[0]
    with pytest.raises(ValueError, match="there is no split 'dev'"):
        inner.split("dev")


def test_every_member_is_validated() -> None:
    Mixture({"one": Arithmetic(), "two": Arithmetic(digits=2)}, {}).validate()
    with pytest.raises(ValueError, match="mixture: talk: nothing to check"):
        Mixture({"one": Arithmetic(), "talk": Dialogue()}, {}).validate()


# --- what is logged


def graded(group: int, parts: dict[str, float], *, status: Any = "ok") -> Rollout:
    segment = Segment([5], [6, 2], [-1.0, -1.0], [True, True])
    problem = Problem(f"p{group}", _ask("?"), None)
    return Rollout(problem, group, [segment], [], "", "stop", Grade(1.0, None, status, parts))


ROLLOUTS = [
    graded(0, {"a/form": 1.0, "a/reward": 4.0}), graded(0, {"a/form": 0.0, "a/reward": 2.0}),
    graded(1, {"b/reward": 7.0}), graded(1, {"b/reward": 8.0}),
    graded(2, {"a/form": 0.0, "a/reward": 0.0}), graded(2, {"a/reward": 9.0}, status="error"),
]  # fmt: skip


def test_training_logs_the_parts_of_those_that_have_them() -> None:
    metrics = rollout_metrics(ROLLOUTS)
    # Graded samples with a: 4, 2, 0 and 1, 0, 0. With b: 7, 8.
    assert {name: value for name, value in metrics.items() if name.startswith("rewards/")} == pytest.approx(
        {
            "rewards/a/form/mean": 1 / 3, "rewards/a/form/std": (2 / 9) ** 0.5,
            "rewards/a/reward/mean": 2, "rewards/a/reward/std": (8 / 3) ** 0.5,
            "rewards/b/reward/mean": 7.5, "rewards/b/reward/std": 0.5,
        }
    )  # fmt: skip


def test_evaluation_estimates_parts_over_the_problems_that_have_them() -> None:
    found = summarise(ROLLOUTS, k=())
    assert {name: (value.mean, value.n) for name, value in found.items() if "/" in name} == {
        "a/form": ((0.5 + 0) / 2, 2), "a/reward": ((3 + 0) / 2, 2), "b/reward": (7.5, 1),
    }  # fmt: skip


RUN = (
    "~env",
    "env={_target_: envs.mixture.Mixture, _convert_: all, weights: {say: 1, shout: 3}, envs: {"
    "say: {_target_: test_mixture.Numbers}, talk: {_target_: test_mixture.Dialogue}, "
    "shout: {_target_: test_train.Capitals}}}",
    "max_steps=1", "eval_limit=5", "algo.num_prompts=10",
)  # fmt: skip


def test_a_run_shows_each_member(tmp_path: Path) -> None:
    run(tiny_config(*RUN), tmp_path)
    before, after = metrics_of(tmp_path)
    rows = read_traces(tmp_path, ["split", "step", "problem", "segment", "meta", "parts", "messages"])
    first = rows[(rows["split"] == "validation") & (rows["step"] == 0)]
    # A round is shout at 1/6, say, talk and shout at 1/2, shout at 5/6.
    assert [name.split("/")[0] for name in first["problem"].unique()] == ["shout", "say", "shout", "talk", "shout"]
    assert first["meta"].map(lambda text: '"member"' in text).all()
    for line in (before, after):
        assert {
            "eval/mixture/shout/accuracy", "eval/mixture/shout/accuracy_low", "eval/mixture/shout/accuracy_high",
            "eval/mixture/shout/capitals", "eval/mixture/say/accuracy", "eval/mixture/say/digits",
            "eval/mixture/talk/reward", "eval/mixture/talk/length",
        } <= line.keys()  # fmt: skip
        assert "eval/mixture/accuracy" not in line  # talk has no notion of right
    assert {"rewards/shout/accuracy/mean", "rewards/say/accuracy/mean", "rewards/talk/reward/mean"} <= after.keys()
    shares = [after[f"sampler/share/{who}"] for who in ("say", "shout", "talk")]
    drawn = rows[rows["split"] == "train"].drop_duplicates("problem")
    assert sum(shares) == pytest.approx(1)
    assert all(shares)
    assert set(drawn["problem"].map(lambda name: name.split("/")[0])) == {"say", "talk", "shout"}


def test_the_configured_mixture() -> None:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(
            "train", ["env=mixture", "+env@env.envs.products=arithmetic", "env.envs.products.operations=['*']"]
        )
        wrong = compose("train", ["env=mixture", "env.weights.arithmetic=0.5"])
    env = build(cfg, "env")
    env.validate()
    assert list(env.weights) == list(env.envs) == ["arithmetic", "letters", "products"]
    assert env.envs["products"].operations == ("*",)
    assert {env.split("train")[i].meta["member"] for i in range(3)} == set(env.envs)
    assert env.manifest()["members"]["products"]["operations"] == ["*"]
    with pytest.raises(ValueError, match=r"env.*weights\.arithmetic is 0\.5"):
        build(wrong, "env")

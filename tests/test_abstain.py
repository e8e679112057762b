""" "I don't know" as an allowed answer: which texts abstain, what each outcome earns, and the probe that says what is
known."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import make_rollout
from hydra import compose, initialize_config_dir

from envs.abstain import PHRASES, Abstain, Rewards
from envs.arithmetic import Arithmetic
from envs.base import SPLITS, Answer, BatchGradedEnv
from envs.controls import Controlled, Flipped
from envs.countdown import Countdown
from envs.formats import R1, Boxed, Format, Hash, Plain
from envs.jagged import Jagged
from envs.known import Tally, main, tallies, write
from envs.letters import Letters
from envs.logic import Logic
from envs.math import Math
from envs.prefilled import Prefilled
from rlreason.config import CONF, build, register
from rlreason.traces import SplitName, write_traces
from rlreason.types import Env, Episode, Finish, Grade, Problem, Rollout, Status

PLAIN = Arithmetic()
FORMATS = {"text": Plain(), "hash": Hash(), "boxed": Boxed(), "answer": R1()}
THOUGHT = "<think>I don't know, 3 + 5 might be 7 or 9.</think>"


def sums(format: Format, **settings: Any) -> Abstain:
    return Abstain(Arithmetic(format=format), **settings)


def problem_of(env: Env, answer: str) -> Problem:
    train = env.split("train")
    assert train.size is not None
    return next(train[i] for i in range(train.size) if train[i].answer == answer)


def graded(env: BatchGradedEnv, text: str, finish: Finish = "stop", answer: str = "8") -> Grade:
    (grade,) = env.grade_texts([Answer(problem_of(env, answer), text, finish)])
    return grade


def outcome(grade: Grade) -> str:
    """Of the three, which one; that exactly one is 1 is checked."""
    shares = {name: grade.parts[name] for name in ("accuracy", "abstained", "confident_error")}
    assert sorted(shares.values()) == [0, 0, 1]
    assert grade.correct is (shares["accuracy"] == 1)
    return next(name for name, share in shares.items() if share)


# Slots


@pytest.mark.parametrize("slot", FORMATS)
def test_it_is_an_environment_that_tells_right_from_wrong(slot: str) -> None:
    env = sums(FORMATS[slot])
    env.validate()  # gold earns 1, corrupted gold and an empty text are incorrect
    assert env.slot == slot
    assert isinstance(env, Env)
    assert (env.name, env.max_reward) == ("arithmetic_abstain", 1.0)


# In each format a text that abstains, and the same with an answer in it.
ABSTAINS = {
    "text": ["I don't know", "  i DON'T know. ", "I don\u2019t know!", "I do not know.", "*I'm not sure*"],
    "hash": ["It is 7 or 9.\n#### I don't know", "#### I don't know\n#### I'm not sure.", "####I do not know"],
    "boxed": [r"Is it 7? \boxed{I don't know}", r"$\boxed{\text{I don't know.}}$", r"</think> \boxed{I am not sure}"],
    "answer": [f"{THOUGHT}<answer>I don't know</answer>", f"{THOUGHT}\n<answer>\nI'm not sure.\n</answer>\n"],
}  # fmt: skip
HEDGES = {
    "text": ["I don't know, 8", "8. I don't know.", "I don't know\n8", "I'm not sure. The answer is 8."],
    "hash": ["#### I don't know\n#### 8", "#### 8\n#### I don't know", "#### 8 (I'm not sure)"],
    "boxed": [r"\boxed{8} \boxed{I don't know}", r"\boxed{I don't know} \boxed{8}", r"\boxed{8\text{, I am not sure}}"],
    "answer": [
        f"{THOUGHT}<answer>8</answer><answer>I don't know</answer>",
        f"{THOUGHT}<answer>I don't know</answer><answer>8</answer>",
        f"{THOUGHT}<answer>I don't know. 8</answer>",
    ],
}  # fmt: skip


@pytest.mark.parametrize("slot", FORMATS)
def test_abstaining(slot: str) -> None:
    env = sums(FORMATS[slot])
    for text in ABSTAINS[slot]:
        grade = graded(env, text)
        assert outcome(grade) == "abstained", text
        assert (grade.reward, grade.status, grade.answer) == (0.0, "ok", "I don't know"), text


@pytest.mark.parametrize("slot", FORMATS)
def test_an_abstention_and_an_answer_together_are_wrong(slot: str) -> None:
    """Whether or not the answer would have been right: 8 is."""
    env = sums(FORMATS[slot])
    for text in HEDGES[slot]:
        grade = graded(env, text)
        assert outcome(grade) == "confident_error", text
        assert (grade.reward, grade.answer) == (-1.0, None), text


@pytest.mark.parametrize(
    ("slot", "text", "found"),
    [
        ("answer", f"{THOUGHT}<answer>8</answer>", "accuracy"),  # doubts in the thought are not the answer
        ("boxed", r"I don't know. It may be \boxed{8}", "accuracy"),
        ("hash", "I'm not sure, but I think so.\n#### 8", "accuracy"),
        ("answer", f"{THOUGHT}I don't know", "confident_error"),  # not where the answer stands
        ("answer", "I don't know", "confident_error"),
        ("answer", "<answer>I don't know</answer>", "confident_error"),  # R1 wants the thought closed
        ("answer", f"{THOUGHT}<answer>I don't know", "confident_error"),
        ("answer", f"{THOUGHT}<answer></answer>", "confident_error"),
        ("boxed", "I don't know", "confident_error"),
        ("hash", "I don't know", "confident_error"),
        ("text", "", "confident_error"),  # saying nothing is no abstention
        ("text", "unknown", "confident_error"),
        ("text", "I know", "confident_error"),
        ("text", "I don't know the answer to that.", "confident_error"),
        ("text", "\u0399 don't know", "confident_error"),  # a Greek capital iota
        ("text", "9", "confident_error"),
        ("text", "8", "accuracy"),
    ],
)
def test_only_the_answer_counts(slot: str, text: str, found: str) -> None:
    assert outcome(graded(sums(FORMATS[slot]), text)) == found


@pytest.mark.parametrize("slot", FORMATS)
def test_what_was_cut_off_does_not_abstain(slot: str) -> None:
    """Who knows what would have followed."""
    for text in ABSTAINS[slot]:
        assert outcome(graded(sums(FORMATS[slot]), text, "length")) == "confident_error", text


@pytest.mark.parametrize("slot", FORMATS)
def test_the_prompt_quoted_is_neither(slot: str) -> None:
    env = sums(FORMATS[slot])
    problem = problem_of(env, "8")
    (content,) = [message["content"] for message in problem.prompt]
    assert content.endswith(env.instruction)
    for text in (content, env.instruction):
        assert outcome(graded(env, text)) == "confident_error"
    right = env.gold(problem)
    assert outcome(graded(env, f"{env.instruction} {right}")) == "accuracy"
    assert outcome(graded(env, f"{content} {right}")) == "accuracy"


def test_the_environment_sees_what_it_posed() -> None:
    """Arithmetic lets no echo of its prompt pass: 7 + 0 ends in a number that is no answer of the policy's."""
    env = sums(Plain())
    for index in range(20):
        posed, own = env.split("train")[index], PLAIN.split("train")[index]
        assert (posed.id, posed.answer) == (own.id, own.answer)
        assert posed.prompt[0]["content"] == f"{own.prompt[0]['content']}\n{env.instruction}"
        (grade,) = env.grade_texts([Answer(posed, own.prompt[0]["content"], "stop")])
        assert grade.answer is None
    silent = sums(Plain(), instruction="")
    assert silent.split("train")[0].prompt == PLAIN.split("train")[0].prompt


def test_a_system_message_stays() -> None:
    env = Abstain(Arithmetic(system="Be brief."))
    system, user = env.split("test")[0].prompt
    assert system == {"role": "system", "content": "Be brief."}
    assert user["content"].endswith(env.instruction)


def test_mathematics_by_its_verifier(tmp_path: Path) -> None:
    """The verifier reads words as answers too."""
    rows = [{"problem": f"{n} halves?", "answer": rf"\frac{{{n}}}{{2}}"} for n in range(1, 9)]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        cfg = compose(
            "train",
            overrides=[
                "env=abstain", "env@env.env=math", "env.env.source=local", f"env.env.data_dir={tmp_path}",
                "env.env.num_validation=3", "env.env.verifier.workers=1",
            ],
        )  # fmt: skip
    env = build(cfg, "env")
    assert isinstance(env.env, Math)
    assert env.slot == "boxed"
    env.validate()
    problem = env.split("test")[0]
    boxes = ["{I don't know}", r"{\text{I don't know}}", "{0.5}", r"{I don't know} \boxed{0.5}"]
    texts = [rf"\boxed{box}" for box in boxes]
    found = env.grade_texts([Answer(problem, text, "stop") for text in texts])
    assert [outcome(grade) for grade in found] == ["abstained", "abstained", "accuracy", "confident_error"]


@pytest.mark.parametrize("env", [Countdown(), Letters(), Jagged(), Logic()], ids=lambda env: env.name)
def test_around_the_other_environments(env: BatchGradedEnv) -> None:
    """Whose answers are words or expressions, too."""
    wrapped = Abstain(env)
    wrapped.validate()
    problem = wrapped.split("train")[0]
    texts = [
        f"{THOUGHT}<answer>I don't know</answer>",
        f"{THOUGHT}<answer>I don't know, 5</answer>",
        wrapped.gold(problem),
    ]
    found = wrapped.grade_texts([Answer(problem, text, "stop") for text in texts])
    assert [outcome(grade) for grade in found] == ["abstained", "confident_error", "accuracy"]


@pytest.mark.parametrize("slot", FORMATS)
def test_long_and_nested_texts_cost_little(slot: str) -> None:
    env = sums(FORMATS[slot])
    pieces = ["<answer>", r"\boxed{", "####", "{", r"\text{", "9", "\n#### ", *ABSTAINS[slot]]
    problem = problem_of(env, "8")
    began = time.process_time()
    for piece in pieces:
        text = "</think>" + piece * (100_000 // len(piece))
        (grade,) = env.grade_texts([Answer(problem, text, "stop")])
        assert grade.correct is False
    assert time.process_time() - began < 3  # 100,000 characters each: a second pass over each would take minutes


# Rewards


def test_each_outcome_has_its_reward(tmp_path: Path) -> None:
    known, unknown = (PLAIN.split("train")[i] for i in range(2))
    write(tmp_path / "known.jsonl", {known.id: Tally(8, 8), unknown.id: Tally(8, 0)})
    env = Abstain(PLAIN, str(tmp_path / "known.jsonl"), rewards=Rewards(1.0, 0.7, 0.2, -0.5))
    env.validate()
    found = {}
    for problem in (known, unknown):
        texts = {"right": env.gold(problem), "wrong": "1000", "abstains": "I don't know."}
        grades = env.grade_texts([Answer(problem, text, "stop") for text in texts.values()])
        found[problem.id] = dict(zip(texts, grades, strict=True))
    rewards = {name: {which: g.reward for which, g in grades.items()} for name, grades in found.items()}
    assert rewards == {
        known.id: {"right": 1.0, "wrong": -0.5, "abstains": 0.2},
        unknown.id: {"right": 1.0, "wrong": -0.5, "abstains": 0.7},
    }
    assert [grades["abstains"].parts["abstained_known"] for grades in found.values()] == [1.0, 0.0]
    assert [grades["right"].answer for grades in found.values()] == [known.answer, unknown.answer]
    assert all(grades["right"].parts["lenient"] == 1 for grades in found.values())  # what the inner one says stays


@pytest.mark.parametrize(
    "given",
    [(1, 1, 0, -1), (1, 0.2, 0.3, -1), (1, 0.5, -2, -1), (0.5, 0.2, 0.2, float("nan")), (1, 0, 0, 0), (1, 0.5, 0, 0.6)],
)
def test_rewards_that_teach_something_else_are_refused(given: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match="right > abstain_unknown >= abstain_known >= wrong"):
        Rewards(*given)


class Broken(Arithmetic):
    """For the test only: a verifier that fails, or gives no verdict."""

    def grade_texts(self, answers: Any) -> list[Grade]:
        return [Grade(0.0, None, "error") if answer.text == "dies" else Grade(0.5, None) for answer in answers]


def test_errors_pass_and_no_verdict_is_refused() -> None:
    env = Abstain(Broken())
    problem = env.split("train")[0]
    assert env.grade_texts([Answer(problem, "dies", "stop")]) == [Grade(0.0, None, "error")]
    with pytest.raises(ValueError, match=r"does not say whether the answer to arithmetic/.* is right"):
        env.grade_texts([Answer(problem, "8", "stop")])


def test_controls_go_around_it() -> None:
    env = Controlled(sums(Plain()), Flipped())
    problem = env.split("train")[0]
    (grade,) = env.grade([Episode(problem, env.start(problem, 0), [], "I don't know", "stop")])
    assert (grade.reward, grade.parts["as_graded"], grade.parts["abstained"]) == (1.0, 0.0, 1.0)


# The probe


def probe_of(problems: list[Problem], right: dict[int, int], asked: int = 8) -> dict[str, Tally]:
    return {problems[i].id: Tally(asked, count) for i, count in right.items()}


def test_unknown_is_what_is_hardly_ever_right(tmp_path: Path) -> None:
    problems = [PLAIN.split("train")[i] for i in range(5)]
    file = tmp_path / "known.jsonl"
    write(file, probe_of(problems, {0: 0, 1: 1, 2: 2, 3: 8}) | {problems[4].id: Tally(3, 0)})

    def known(**settings: Any) -> list[bool]:
        split = Abstain(PLAIN, [str(file)], **settings).split("train")
        return [split[i].meta["known"] for i in range(5)]

    assert known() == [False, True, True, True, True]  # the last was asked three times only
    assert known(min_asked=3) == [False, True, True, True, False]
    assert known(unknown_at_most=0.125) == [False, False, True, True, True]
    assert known(unknown_at_most=0.25) == [False, False, False, True, True]
    env = Abstain(PLAIN, [str(file)])
    assert env.split("train")[1].meta["probe"] == {"asked": 8, "right": 1}
    assert env.split("train")[4].meta["probe"] is None
    manifest = env.manifest()
    assert manifest["abstain"]["probed"] == {"known": 3, "unknown": 1}
    assert list(manifest["abstain"]["probe"]) == [str(file)]
    assert (manifest["name"], manifest["source"]) == ("arithmetic_abstain", "generated")
    json.dumps(manifest)


def test_without_a_probe_everything_is_known() -> None:
    env = sums(Plain())
    assert all(env.split("validation")[i].meta["known"] for i in range(10))
    assert graded(env, "I don't know").parts["abstained_known"] == 1


def test_unprobed_questions_can_be_left_out(tmp_path: Path) -> None:
    problems = {name: [PLAIN.split(name)[i] for i in range(6)] for name in SPLITS}
    probed = [problems["train"][i] for i in (1, 4, 5)] + problems["validation"][2:4]
    file = tmp_path / "known.jsonl"
    write(file, {problem.id: Tally(8, 2) for problem in probed} | {problems["train"][0].id: Tally(2, 0)})
    env = Abstain(PLAIN, [str(file)], unprobed="left_out")
    split = env.split("train")
    assert split.size == 3
    assert [split[i].id for i in range(3)] == [problems["train"][i].id for i in (1, 4, 5)]
    assert env.split("validation").size == 2
    with pytest.raises(ValueError, match=r"no question of the test split is in the probe.*split=test"):
        env.split("test")
    with pytest.raises(IndexError):
        split[3]


def test_a_probe_that_can_not_be_meant_is_refused(tmp_path: Path) -> None:
    other, few, endless = (tmp_path / f"{name}.jsonl" for name in ("other", "few", "endless"))
    write(other, {"gsm8k/train/1": Tally(8, 0)})
    write(few, {PLAIN.split("train")[0].id: Tally(1, 0)})
    words = Arithmetic(word_problem_steps=2)
    write(endless, {words.split("train")[7].id: Tally(8, 0)})
    with pytest.raises(ValueError, match=r"none of the questions in .*other\.jsonl is one of arithmetic's"):
        Abstain(PLAIN, [str(other)])
    with pytest.raises(ValueError, match=r"of the 1 questions in .* none was asked 4 times"):
        Abstain(PLAIN, [str(few)])
    assert not Abstain(words, [str(endless)]).split("train")[7].meta["known"]
    with pytest.raises(ValueError, match=r"has no end.*env\.unprobed=known"):
        Abstain(words, [str(endless)], unprobed="left_out")
    with pytest.raises(ValueError, match="there is no probe"):
        Abstain(PLAIN, unprobed="left_out")


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"unknown_at_most": 1.0}, "unknown_at_most is 1.0"),
        ({"unknown_at_most": -0.1}, "unknown_at_most is -0.1"),
        ({"min_asked": 0}, "min_asked is 0"),
        ({"unprobed": "unknown"}, "unprobed is 'unknown'; it must be known or left_out"),
        ({"slot": "tags"}, "slot is 'tags'.*answer, boxed, hash, text"),
        ({"env": Prefilled(PLAIN, "8")}, "env is Prefilled; it must be a single-turn environment"),
        ({"env": replace(PLAIN, format=object())}, "slot is None; say where arithmetic has its answer"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        Abstain(**{"env": PLAIN, **settings})


def asked(group: int, correct: bool | None, *, segments: int = 1, status: Status = "ok") -> Rollout:
    """A sample of the problem ``problem-<group>``."""
    rollout = make_rollout(group, [1], [2], correct=correct, status=status)
    return replace(rollout, segments=rollout.segments * segments)


def run_folder(path: Path, **files: list[Rollout]) -> str:
    """``train_1`` is the first step of a training run, ``validation_1`` the evaluation after it."""
    (path / "traces").mkdir(parents=True)
    for name, rollouts in files.items():
        split, _, step = name.partition("_")
        named: SplitName = "train" if split == "train" else "validation"
        file = f"{'step' if split == 'train' else f'eval-{split}'}-{int(step):06d}.parquet"
        write_traces(path / "traces" / file, rollouts, step=int(step), split=named, env="e")
    return str(path)


def test_a_run_is_counted(tmp_path: Path) -> None:
    """Every split and every file; several segments are one sample; errors are none."""
    run = run_folder(
        tmp_path / "run",
        train_1=[asked(0, True, segments=2), asked(0, False), asked(0, None, status="error"), asked(1, False)],
        train_2=[asked(0, True)],
        validation_1=[asked(2, True)],
    )
    found, hashes = tallies([run])
    assert found == {"problem-0": Tally(3, 2), "problem-1": Tally(1, 0), "problem-2": Tally(1, 1)}
    assert len(hashes) == 3
    one = f"{run}/traces/step-000001.parquet"
    assert tallies([one])[0] == {"problem-0": Tally(2, 1), "problem-1": Tally(1, 0)}
    written = tmp_path / "known.jsonl"
    assert main([run, one, str(written)]) == 0
    both = {"problem-0": Tally(5, 3), "problem-1": Tally(2, 0), "problem-2": Tally(1, 1)}
    assert tallies([str(written)])[0] == both


def test_what_can_not_be_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*none.jsonl; make it by: python -m envs.known"):
        tallies([str(tmp_path / "none.jsonl")])
    with pytest.raises(FileNotFoundError, match="no traces in"):
        tallies([str(tmp_path)])
    run = run_folder(tmp_path / "run", train_1=[asked(0, None)])
    with pytest.raises(ValueError, match="nothing says whether the answers to problem problem-0 are right"):
        tallies([run])
    bad = tmp_path / "bad.jsonl"
    good = '{"problem": "a", "asked": 8, "right": 8}\n'
    counts = ['"asked": 2, "right": 3', '"asked": true, "right": true', '"asked": 0, "right": 0', '"right": 1']
    rows = [f'{{"problem": "a", {count}}}' for count in counts]
    for line in (*rows, '{"problem": 3, "asked": 1, "right": 1}', "[]", "{"):
        bad.write_text(good + line + "\n", encoding="utf-8")
        with pytest.raises(ValueError, match=r"bad\.jsonl:2: .*Each row must be like"):
            tallies([str(bad)])
    assert main([str(bad), str(tmp_path / "out.jsonl")]) == 2
    assert "bad.jsonl:2" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(SystemExit):
        main([run, str(tmp_path / "other")])  # a run folder in the place of the file to write


def test_config(tmp_path: Path) -> None:
    register()
    file = tmp_path / "known.jsonl"
    write(file, {PLAIN.split("train")[0].id: Tally(8, 0)})
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=["env=abstain", f"env.probe=[{file}]", "env.rewards.wrong=-2"])
    env = build(cfg, "env")
    assert env == Abstain(PLAIN, (str(file),), rewards=Rewards(wrong=-2))
    assert not env.split("train")[0].meta["known"]
    env.validate()


def test_a_thousand_a_second() -> None:
    env = sums(R1())
    problem = problem_of(env, "8")
    texts = [*ABSTAINS["answer"], *HEDGES["answer"], env.gold(problem)] * 200
    began = time.process_time()
    env.grade_texts([Answer(problem, text, "stop") for text in texts])
    assert len(texts) / (time.process_time() - began) > 1000


def test_every_phrase_is_in_its_plain_form() -> None:
    for phrase in PHRASES:
        assert outcome(graded(sums(Plain()), phrase.upper())) == "abstained"

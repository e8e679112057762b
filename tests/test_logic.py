"""Knights and knaves: statements by hand, one solution each, splits that know no names, and what is read."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from envs.base import SPLITS
from envs.formats import Boxed, Hash, Plain
from envs.logic import Logic, Statement, _fitting, _key, solutions, tagged
from rlreason.types import Finish, Grade, Problem

CONF = str(Path(__file__).resolve().parent.parent / "conf")
T, F = True, False
KINDS = ("is", "not", "and", "or", "if", "iff")


@pytest.mark.parametrize(
    ("kind", "words", "truth"),
    [  # truth for (Bob, Cleo) = knight knight, knight knave, knave knight, knave knave
        ("and", "both of these are true: Bob is a knight, and Cleo is a knave", (F, T, F, F)),
        ("or", "at least one of these is true: Bob is a knight, or Cleo is a knave", (T, T, F, T)),
        ("if", "if Bob is a knight, then Cleo is a knave", (F, T, T, T)),
        ("iff", "Bob is a knight if and only if Cleo is a knave", (F, T, T, F)),
    ],
)
def test_statements_by_hand(kind: str, words: str, truth: tuple[bool, ...]) -> None:
    statement = Statement(kind, ((1, T), (2, F)))
    assert statement.words(0, ["Ann", "Bob", "Cleo"]) == words
    assert statement.words(1, ["Ann", "Bob", "Cleo"]) == words.replace("Bob is", "I am")
    roles = [(T, bob, cleo) for bob, cleo in itertools.product((T, F), repeat=2)]
    assert tuple(statement.holds(each) for each in roles) == truth


def test_a_statement_about_one_person() -> None:
    knave, denied = Statement("is", ((1, F),)), Statement("not", ((1, F),))
    assert [(knave.holds((T, bob)), denied.holds((T, bob))) for bob in (T, F)] == [(F, T), (T, F)]
    assert denied.words(0, ["Ann", "Bob"]) == "it is not true that Bob is a knave"


def test_puzzles_by_hand() -> None:
    # Ann: Bob is a knave. Bob: both of us are knaves. If Ann lied, Bob would be a knight who calls himself a knave.
    assert solutions([Statement("is", ((1, F),)), Statement("and", ((0, F), (1, F)))]) == [(T, F)]
    # Each calls the other a knave: one of them is a knight, nobody knows which.
    assert solutions([Statement("is", ((1, F),)), Statement("is", ((0, F),))]) == [(T, F), (F, T)]
    # Ann: if I am a knight, Bob is one. Bob: Ann is a knave. A knave can't have said Ann's, so Bob would be both.
    assert solutions([Statement("if", ((0, T), (1, T))), Statement("is", ((0, F),))]) == []


def parsed(problem: Problem) -> tuple[list[str], list[str]]:
    """Names, and for each what is said as a Python expression over ``knight[name]``: read from the prompt alone."""
    spoken = re.findall(r"^(\w+): (.+)\.$", problem.prompt[-1]["content"], flags=re.MULTILINE)
    expressions = []
    for speaker, words in spoken:
        said = re.sub(r"\bI am\b", f"{speaker} is", words)
        said = re.sub(r"(\w+) is a knight", r"knight['\1']", said)
        said = re.sub(r"(\w+) is a knave", r"(not knight['\1'])", said)
        for pattern, python in (
            (r"Both of these are true: (.+), and (.+)", r"\1 and \2"),
            (r"At least one of these is true: (.+), or (.+)", r"\1 or \2"),
            (r"If (.+), then (.+)", r"(not \1) or \2"),
            (r"(.+) if and only if (.+)", r"\1 == \2"),
            (r"It is not true that (.+)", r"not \1"),
        ):
            said = re.sub(f"^{pattern}$", python, said)
        expressions.append(said)
    return [speaker for speaker, _ in spoken], expressions


@pytest.mark.parametrize("persons", [2, 3, 5])
def test_the_prompt_has_one_solution_and_it_is_the_answer(persons: int) -> None:
    """Statements are taken from the words that the policy reads, and evaluated by Python."""
    env = Logic(persons=[persons])
    env.validate()
    shares = []
    for name in SPLITS:
        for problem in (env.split(name)[index] for index in range(40)):
            names, expressions = parsed(problem)
            assert names == problem.meta["names"]
            assert len({*names}) == persons
            fitting = []
            for roles in itertools.product((T, F), repeat=persons):
                knight = dict(zip(names, roles, strict=True))
                if all(bool(eval(said, {"knight": knight})) == knight[who] for who, said in zip(names, expressions)):  # noqa: B905
                    fitting.append(", ".join(f"{who}: {'knight' if knight[who] else 'knave'}" for who in names))
            assert fitting == [problem.answer]
            shares.append(problem.answer.count("knight") / persons)
    assert abs(sum(shares) / len(shares) - 0.5) < 0.15  # always "knight" is no good guess


def renamed(rng: random.Random, statements: list[Statement]) -> list[Statement]:
    """The same puzzle in other words: people in another order, sides swapped, with and without "not" and "if"."""
    order = rng.sample(range(len(statements)), len(statements))
    found: dict[int, Statement] = {}
    for speaker, statement in enumerate(statements):
        about = [(order[person], knight) for person, knight in statement.about]
        kind = statement.kind
        if kind in ("is", "not") and rng.random() < 0.5:
            kind, about = ("not" if kind == "is" else "is"), [(about[0][0], not about[0][1])]
        elif kind == "if" and rng.random() < 0.5:
            kind, about = "or", [(about[0][0], not about[0][1]), about[1]]
        elif kind == "iff" and rng.random() < 0.5:
            about = [(person, not knight) for person, knight in about]
        if kind in ("and", "or", "iff") and rng.random() < 0.5:
            about.reverse()
        found[order[speaker]] = Statement(kind, tuple(about))
    return [found[person] for person in range(len(statements))]


def test_the_key_is_the_same_in_other_words_and_tells_puzzles_apart() -> None:
    rng = random.Random(0)
    keys = set()
    for _ in range(300):
        roles = tuple(rng.random() < 0.5 for _ in range(3))
        statements = [_fitting(rng, speaker, roles) for speaker in range(3)]
        other = renamed(rng, statements)
        assert _key(statements) == _key(other)
        assert len(solutions(statements)) == len(solutions(other))  # it is the same puzzle indeed
        keys.add(_key(statements))
    assert len(keys) > 250
    one = [Statement("is", ((1, F),)), Statement("and", ((0, F), (1, F)))]
    for changed in (Statement("and", ((0, T), (1, F))), Statement("or", ((0, F), (1, F))), Statement("is", ((0, F),))):
        assert _key([one[0], changed]) != _key(one)


def test_splits_do_not_meet_and_follow_the_seed() -> None:
    env, again, other = Logic(), Logic(), Logic(seed=1)
    asked = {}
    for name in SPLITS:
        problems = [env.split(name)[index] for index in range(100)]
        assert problems == [again.split(name)[index] for index in range(100)]
        assert problems != [other.split(name)[index] for index in range(100)]
        words = [problem.prompt[0]["content"] for problem in problems]
        names = [problem.meta["names"] for problem in problems]
        asked[name] = {  # without names, which is all that most of the puzzles of two people differ in
            re.sub("|".join(each), lambda found, each=each: str(each.index(found[0])), text)  # type: ignore[misc]
            for text, each in zip(words, names, strict=True)
        }
    for a, b in itertools.combinations(SPLITS, 2):
        assert not asked[a] & asked[b]


def test_problems_are_pinned() -> None:
    """The same on every machine and in every process."""
    problem = Logic(persons=[2], system="Think.").split("train")[0]
    assert [message["role"] for message in problem.prompt] == ["system", "user"]
    assert problem.prompt[1]["content"].split("\n") == [
        "Knights always tell the truth, and knaves always lie. Each of these people is a knight or a knave.",
        "Sam: I am a knight if and only if Yann is a knight.",
        "Yann: If Sam is a knave, then I am a knave.",
        "Who is a knight, and who is a knave?",
        tagged().instruction,
    ]
    # Yann a knave: he would say the truth, as "if" with a false first half is. Yann a knight: Sam is one, or would not
    # be what he denies to be.
    assert problem.answer == "Sam: knight, Yann: knight"


PROBLEM = Problem("one", [], "Ann: knight, Bob: knave", {"names": ["Ann", "Bob"], "solution": ""})


def grade(answer: str, finish: Finish = "stop") -> Grade:
    text = answer if answer.startswith("<think>") else f"<think>Hm.</think>\n<answer>{answer}</answer>"
    return Logic().grade_text(PROBLEM, text, finish)


@pytest.mark.parametrize(
    "answer",
    [
        "Ann: knight, Bob: knave",
        "Bob: knave, Ann: knight",
        " ann:KNIGHT;\nBOB : Knave. ",
        "Ann is a knight and Bob is a knave",
        "Ann is a knight, and Bob is a knave.",
        "Ann = knight\nBob = knave",
    ],
)
def test_right_in_other_words(answer: str) -> None:
    assert grade(answer) == Grade(1.1, True, "ok", {"accuracy": 1.0, "format": 1.0}, "Ann: knight, Bob: knave")


def test_wrong_roles() -> None:
    for answer in ("Ann: knave, Bob: knight", "Ann: knight, Bob: knight", "Ann: knave, Bob: knave"):
        assert grade(answer) == Grade(0.1, False, "ok", {"accuracy": 0.0, "format": 1.0}, answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Ann: knight",
        "Ann: knight, Bob: knave, Bob: knight",
        "Ann: knight, Bob: knave, Bob: knave",
        "Ann: knight, Ann: knight",
        "Ann: knight, Bob: knave, Cleo: knave",
        "Ann: knight, Bob: knight or knave",
        "Ann: knight, Bob: knave or Ann: knave, Bob: knight",
        "Ann: knight, Bob: not a knave",
        "Ann: \u212anight, Bob: knave",  # the Kelvin sign, which is a k where case is ignored by Unicode
        "Ann: knight, Bob: kna\x00ve",
        "Ann: knight, Bob: knave\ud800",
        "name: knight, name: knave",
        "knight, knave",
        f"Ann: knight, {' ' * 1000} Bob: knave",
        "Ann: knight, " * 10_000,
        "<think>Hm.</think><answer>Ann: knight, Bob: knave",
        "<think>Ann: knight, Bob: knave</think>",
        "<think>Hm.</think><answer>Ann: knight, Bob: knave</answer><answer>Ann: knave, Bob: knave</answer>",
    ],
)
@pytest.mark.parametrize("finish", ["stop", "length"])
def test_no_single_answer_is_none(answer: str, finish: Finish) -> None:
    result = grade(answer, finish)
    assert (result.correct, result.status, result.answer, result.parts["accuracy"]) == (False, "unparseable", None, 0.0)


def test_an_echo_of_the_prompt_earns_nothing() -> None:
    env = Logic()
    problem = env.split("train")[0]
    for text in (problem.prompt[0]["content"], tagged().instruction):
        assert env.grade_text(problem, text, "stop").reward == 0.0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"persons": 3}, r"persons is 3; it must be a list of numbers, such as \[2, 3\]"),
        ({"persons": []}, r"persons is \[\]"),
        ({"persons": [1]}, r"persons is \[1\]; it must be whole numbers from 2 to 7"),
        ({"persons": [8]}, r"persons is \[8\]"),
        ({"persons": ["2"]}, r"persons is \['2'\]"),
        ({"weights": {"lenient": 1.0}}, "no reward part 'lenient'; the parts are accuracy, format"),
        ({"name": ""}, "name is empty"),
        ({"format": Plain()}, r"the format Plain can't hold roles; use env\.format\._target_=envs\.logic\.tagged"),
        ({"format": Hash()}, "the format Hash can't hold"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Logic(**settings)


def test_config() -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        env = instantiate(compose(overrides=["+env=logic"]).env)
        boxed = instantiate(
            compose(overrides=["+env=logic", "env.persons=[4]", "env.format._target_=envs.formats.Boxed"]).env
        )
    assert env == Logic()  # the config and the class agree on every default
    assert boxed == Logic(persons=(4,), format=Boxed())
    boxed.validate()
    assert boxed.manifest()["persons"] == [4]

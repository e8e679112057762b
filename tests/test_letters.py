"""Letters: what is asked and answered, which answers count, splits by word, and settings that make no sense."""

from __future__ import annotations

import itertools
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from envs.base import SPLITS, make_prompt
from envs.formats import PARTS, R1, Boxed, Format, Hash, Plain
from envs.letters import NUMERIC, TASKS, Letters, canonical, tagged
from envs.words import ENGLISH, made_up
from rlreason.types import Finish, Grade, Problem

CONF = str(Path(__file__).resolve().parent.parent / "conf")


def problems(env: Letters, split: str, count: int = 500) -> list[Problem]:
    found = env.split(split)
    return [found[index] for index in range(count if found.size is None else found.size)]


def everything(env: Letters) -> dict[str, Problem]:
    return {problem.id: problem for name in SPLITS for problem in problems(env, name)}


def subject(problem: Problem) -> str:
    """The word or the row that is asked about, read off the prompt."""
    question = problem.prompt[-1]["content"].split("\n")[0]
    return question.removeprefix("How many dots are in this row? ") if "dots" in question else word(question)


def word(question: str) -> str:
    found = re.search(r'word "([a-z]+)"', question)
    assert found
    return found[1]


def answered(env: Letters, problem: Problem, answer: str, finish: Finish = "stop") -> Grade:
    return env.grade_text(problem, f"<think>I see.</think><answer>{answer}</answer>", finish)


ENV = Letters(min_length=3, max_length=10)
ALL = everything(ENV)
GARDEN = {task: next(p for id, p in ALL.items() if id.startswith(f"letters/{task}/garden")) for task in TASKS[:4]}


# What is asked


def test_problems_by_hand() -> None:
    """Of strawberry the 3rd, 6th and 9th letters are r, b and r, and three of its letters are r."""
    spell = ALL["letters/spell/strawberry"]
    assert spell.prompt == make_prompt('Spell the word "strawberry" with a hyphen between each two letters.',
                                       tagged().instruction, None)  # fmt: skip
    assert (spell.answer, spell.meta["solution"]) == (
        "s-t-r-a-w-b-e-r-r-y",
        "1 s, 2 t, 3 r, 4 a, 5 w, 6 b, 7 e, 8 r, 9 r, 10 y",
    )
    nth = everything(Letters(min_length=9, max_length=10, min_n=3))["letters/nth_letters/strawberry/3"]
    assert nth.prompt[0]["content"].startswith(
        'Write every 3rd letter of the word "strawberry", beginning with the 3rd, as one word.\n'
    )
    assert (nth.answer, nth.meta) == (
        "rbr",
        {
            "task": "nth_letters",
            "length": 10,
            "n": 3,
            "solution": "1 s, 2 t, 3 r, 4 a, 5 w, 6 b, 7 e, 8 r, 9 r, 10 y\nEvery 3rd: 3 r, 6 b, 9 r",
        },
    )
    reverse = ALL["letters/reverse/egg"]
    assert reverse.prompt[0]["content"].startswith('Write the word "egg" backwards.\n')
    assert (reverse.answer, reverse.meta["solution"]) == ("gge", "e-g-g\nBackwards: g-g-e")
    dots = everything(Letters(tasks=("count_dots",), format=Plain(), system="Be brief."))["letters/count_dots/5"]
    assert dots == Problem(
        id="letters/count_dots/5",
        prompt=make_prompt("How many dots are in this row? .....", "", "Be brief."),
        answer="5",
        meta={"task": "count_dots", "length": 5, "solution": "1 ., 2 ., 3 ., 4 ., 5 ."},
    )


def test_how_many_rs_are_in_strawberry() -> None:
    seeds = (everything(Letters(tasks=("count_letter",), max_length=10, seed=seed)) for seed in range(100))
    problem = next(found[id] for found in seeds if (id := "letters/count_letter/strawberry/r") in found)
    assert problem.prompt[0]["content"].startswith(
        'How many times does the letter "r" occur in the word "strawberry"?\n'
    )
    assert problem.answer == "3"
    assert problem.meta["solution"] == (
        "s-t-r-a-w-b-e-r-r-y\nThe number of r so far: s 0, t 0, r 1, a 1, w 1, b 1, e 1, r 2, r 3, y 3"
    )
    assert ENV.gold(problem).endswith("r 3, y 3\n</think>\n<answer>3</answer>")


@pytest.mark.parametrize("words", ["english", "made_up"])
def test_every_answer_follows_from_its_prompt(words: str) -> None:
    env = Letters(words=words, min_length=5, max_length=12, min_n=2, max_n=5, min_dots=1, max_dots=60)
    seen: dict[str, set[int]] = {task: set() for task in TASKS}
    details: set[Any] = set()
    for problem in problems(env, "train"):
        text, meta = subject(problem), problem.meta
        task, content = meta["task"], problem.prompt[0]["content"]
        assert meta["length"] == len(text)
        seen[task].add(len(text))
        if task == "count_letter":
            letter = re.search(r'letter "([a-z])"', content)
            assert letter is not None
            assert letter[1] == meta["letter"]
            assert int(problem.answer) == sum(other == letter[1] for other in text)
        elif task == "nth_letters":
            nth = re.search(r"every (\d)(?:nd|rd|th) letter", content)
            assert nth is not None
            assert int(nth[1]) == meta["n"]
            assert [*problem.answer] == [a for place, a in enumerate(text, start=1) if place % meta["n"] == 0]
            details.add(meta["n"])
        elif task == "reverse":
            assert [*problem.answer] == [text[-place] for place in range(1, len(text) + 1)]
            assert problem.answer != text
        elif task == "spell":
            assert problem.answer.split("-") == list(text)
        else:
            assert (set(text), problem.answer) == ({"."}, str(len(text)))
    assert all(seen[task] >= {5, 6, 7, 8} for task in TASKS[:4])
    assert all(max(seen[task]) <= 12 for task in TASKS[:4])
    assert details == {2, 3, 4, 5}


def test_no_count_is_nearly_always_right() -> None:
    answers = [p.answer for p in problems(Letters(tasks=("count_letter",)), "train")]
    shares = [answers.count(count) / len(answers) for count in "0123"]
    assert len(answers) == 329
    assert shares == pytest.approx([0.40, 0.43, 0.155, 0.015], abs=0.01)


def test_words() -> None:
    assert len(ENGLISH) == len(set(ENGLISH)) == 632
    for text in ENGLISH:
        assert re.fullmatch(r"[a-z]{3,}", text)
        assert text != text[::-1]
    rng = random.Random(0)
    made = [made_up(rng, length) for length in range(3, 21) for _ in range(200)]
    assert [len(text) for text in made[::200]] == [*range(3, 21)]
    assert all(re.fullmatch(r"[a-z]+", text) and text != text[::-1] for text in made)
    assert all(re.search(r"[aeiou]", text) for text in made)
    assert len(set(made)) > 2500


# Which answers count


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("tac", "tac"),
        (' "Tac". ', "tac"),
        ("**TAC**", "tac"),
        ("t-a-c", "t-a-c"),
        ("T, A, C", "t-a-c"),
        ("t a\nc.", "t-a-c"),
        ("t", "t"),
        ("ta-c", None),
        ("t--c", None),
        ("tac or cat", None),
        ("tac cat", None),
        ("tac, cat", None),
        ("the word is tac", None),
        ("tàc", None),
        ("\u212aite", None),  # the Kelvin sign, whose lower case is k
        ("ｔａｃ", None),  # full-width letters
        ("t\u200bac", None),
        ("tac1", None),
        ("", None),
        (" . ", None),
        ("<b>tac</b>", None),
    ],
)
def test_canonical_answers(text: str, read: str | None) -> None:
    assert canonical(text) == read


@pytest.mark.parametrize(
    ("task", "right", "wrong"),
    [
        ("spell", ["g-a-r-d-e-n", "G A R D E N", "g, a, r, d, e, n."], ["garden", "g-a-r-d-e", "ga-rden"]),
        ("reverse", ["nedrag", "NEDRAG", '"nedrag"'], ["garden", "n-e-d-r-a-g", "nedrag garden", "nedra g"]),
    ],
)  # fmt: skip
def test_answers_of_letters(task: str, right: list[str], wrong: list[str]) -> None:
    for text in right:
        grade = answered(ENV, GARDEN[task], text)
        assert (grade.correct, grade.status, grade.reward, grade.answer) == (True, "ok", 1.2, GARDEN[task].answer)
    for text in wrong:
        grade = answered(ENV, GARDEN[task], text)
        assert (grade.correct, grade.parts["accuracy"], grade.reward) == (False, 0.0, 0.2), text


@pytest.mark.parametrize("task", ["spell", "nth_letters", "reverse", "count_letter"])
def test_what_cannot_be_bought(task: str) -> None:
    problem = GARDEN[task]
    gold, other = problem.answer, "7" if task in NUMERIC else "edge"
    hedges = [
        f"<think>a</think><answer>{gold}</answer><answer>{other}</answer>",
        f"<think>a</think><answer>{gold} or {other}</answer>",
        f"<think>a</think><answer>{gold} {other}</answer>",
        f"<think>a</think><answer><answer>{gold}</answer></answer>",
        f"<think>a</think><answer>{gold}",
        f"<think><answer>{gold}</answer></think>",
        f"<answer>{gold}</answer>",
        f"<think>a</think>{gold}",
        f"<think>a</think><answer>{gold * 5000}</answer>",
        "<think>a</think><answer>nan</answer>",
        "<think>a</think><answer></answer>",
        "<think>a</think><answer>" + "".join(chr(ord(c) + 0xFEE0) for c in gold) + "</answer>",  # full-width
        problem.prompt[0]["content"],
        "",
    ]
    for text in hedges:
        grade = ENV.grade_text(problem, text, "stop")
        assert (grade.correct, grade.parts["accuracy"]) == (False, 0.0), text
    assert answered(ENV, problem, gold).correct is True
    assert answered(ENV, problem, gold, "length").correct is True  # it was closed before the cut
    assert ENV.grade_text(problem, f"<think>a</think><answer>{gold}", "length").correct is False


def test_an_echo_earns_nothing_whatever_the_weights() -> None:
    env = Letters(weights=dict.fromkeys(PARTS, 1.0))
    for problem in problems(env, "test", 100):
        content = problem.prompt[0]["content"]
        for echo in (content, content.split("\n")[0], f"{content}\n{content}", tagged().instruction):
            assert env.grade_text(problem, echo, "stop").reward == 0.0, echo


def test_the_lenient_part() -> None:
    problem = GARDEN["reverse"]
    for text, lenient in {
        "Backwards it is nedrag.": 1.0,
        "<answer>nedrag</answer>": 1.0,
        "**Nedrag**": 1.0,
        "nedrag, not garden": 0.0,
        "n-e-d-r-a-g": 0.0,
        "nedrags": 0.0,
    }.items():
        grade = ENV.grade_text(problem, text, "stop")
        assert (grade.parts["lenient"], grade.correct, grade.status) == (lenient, False, "unparseable"), text
    assert ENV.grade_text(problem, "It is nedrag", "length").parts["lenient"] == 0.0  # perhaps it goes on
    assert ENV.grade_text(GARDEN["spell"], "So: g-a-r-d-e-n.", "stop").parts["lenient"] == 1.0


@pytest.mark.parametrize("piece", ["a-", "a ", " ", "-", "<", "<a>", ".", "</think><answer>a</answer>", "a, "])
def test_time_is_linear_on_hostile_text(piece: str) -> None:
    start = time.process_time()
    for task in ("spell", "count_letter"):
        answered(ENV, GARDEN[task], piece * (200_000 // len(piece)))
    assert time.process_time() - start < 3


def test_at_least_a_thousand_grades_a_second() -> None:
    found = [(p, ENV.gold(p)) for p in problems(ENV, "test")[:100]] * 10
    start = time.process_time()
    assert all(ENV.grade_text(problem, text, "stop").correct for problem, text in found)
    assert time.process_time() - start < 1.0


# Splits


def test_a_word_is_in_one_split_whatever_is_asked() -> None:
    where: dict[str, set[str]] = {}
    made = {"words": "made_up", "min_length": 3, "max_length": 3}  # few enough to be drawn in several settings
    for env in (Letters(), Letters(tasks=("reverse",), seed=5), ENV, Letters(**made), Letters(**made, seed=1)):  # type: ignore[arg-type]
        for name in SPLITS:
            for problem in problems(env, name, 1000):
                where.setdefault(subject(problem), set()).add(name)
    assert len(where) > 800
    assert all(len(names) == 1 for names in where.values())


def test_english_splits_hold_each_word_once_for_each_task() -> None:
    found = {name: problems(Letters(), name) for name in SPLITS}
    assert {name: len(many) for name, many in found.items()} == {"train": 1330, "validation": 441, "test": 513}
    asked = [(p.meta["task"], subject(p)) for many in found.values() for p in many]
    words = [text for text in ENGLISH if 4 <= len(text) <= 8]
    rows = [("count_dots", "." * count) for count in range(3, 31)]
    assert sorted(asked) == sorted([*itertools.product(TASKS[:4], words), *rows])


def test_tasks_take_turns() -> None:
    for env in (Letters(), Letters(words="made_up")):
        assert [p.meta["task"] for p in problems(env, "train")[:10]] == [*TASKS, *TASKS]
    few = [p.meta["task"] for p in problems(Letters(), "validation")]
    assert few[-4:] == [*TASKS[:4]]  # the dots are used up


def test_seeds() -> None:
    for words in ("english", "made_up"):
        one, same, other = (problems(Letters(words=words, seed=seed), "train", 100) for seed in (1, 1, 2))
        assert one == same
        assert [p.id for p in one] != [p.id for p in other]
    pinned = {
        "english": ["spell/bakery", "count_letter/mill/l", "nth_letters/father/3"],
        "made_up": ["spell/breet", "count_letter/zing/z", "nth_letters/zimclam/3"],
    }
    for words, ids in pinned.items():
        assert [p.id for p in problems(Letters(words=words), "test", 3)[:3]] == [f"letters/{id}" for id in ids]


def test_endless_splits() -> None:
    env = Letters(words="made_up")
    split = env.split("train")
    assert split.size is None
    assert split[10**12] == split[10**12]
    assert len({split[index].id for index in range(0, 1000, 5)}) > 190  # spelling
    assert Letters(words="made_up", tasks=("count_dots",)).split("train").size == 14


# Formats and settings


@pytest.mark.parametrize("format", [tagged(), R1(), Boxed()], ids=lambda format: type(format).__name__)
@pytest.mark.parametrize("words", ["english", "made_up"])
def test_validates(format: Format, words: str) -> None:
    Letters(format=format, words=words).validate()
    Letters(format=format, words=words, weights={"accuracy": 0.5, "lenient": 0.5}).validate()


@pytest.mark.parametrize("format", [Plain(), Hash()], ids=lambda format: type(format).__name__)
def test_formats_for_numbers_hold_numbers_only(format: Format) -> None:
    Letters(format=format, tasks=NUMERIC).validate()
    with pytest.raises(ValueError, match=rf"format {type(format).__name__} can't hold the answers of spell, reverse,"):
        Letters(format=format, tasks=("count_dots", "spell", "reverse"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tasks": ()}, r"tasks is \[\]; it must be one or more of"),
        ({"tasks": ("spell", "spel")}, r"tasks is \['spell', 'spel'\]"),
        ({"tasks": ("spell", "spell")}, "each at most once"),
        ({"words": "german"}, "words is 'german'; it must be one of english, made_up"),
        ({"min_length": 2}, "words of 2 to 8 letters; min_length must be at least 3"),
        ({"max_length": 21}, "at most 20"),
        ({"min_length": 9}, "words of 9 to 8 letters"),
        ({"min_n": 1}, "n from 1 to 3; min_n must be at least 2"),
        ({"max_n": 5}, r"max_n no less and at most min_length \(4\)"),
        ({"min_dots": 0}, "0 to 30 dots; min_dots must be at least 1"),
        ({"max_dots": 201}, "at most 200"),
        ({"min_length": 12, "max_length": 14}, r"the train split has 1 english words.*use words=made_up"),
        ({"max_dots": 4}, r"min_dots is 3 and max_dots is 4; of these the train split has 1 rows of dots.*widen"),
        ({"name": ""}, "name is empty"),
        ({"weights": {"length": 1.0}}, "no reward part 'length'"),
    ],
)
def test_refuses(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Letters(**settings)


def from_config(*overrides: str) -> Any:
    with initialize_config_dir(CONF, version_base="1.3"):
        return instantiate(compose(overrides=["+env=letters", *overrides]).env)


def test_config() -> None:
    assert from_config() == Letters()
    env = from_config("env.tasks=[count_letter,count_dots]", "env.format._target_=envs.formats.Hash", "env.max_dots=50")
    assert env == Letters(tasks=NUMERIC, format=Hash(), max_dots=50)
    assert from_config("+env.format.instruction='Use tags.'").format == R1("Use tags.")
    with pytest.raises(Exception, match="unexpected keyword argument 'task'"):
        from_config("+env.task=spell")


def test_manifest() -> None:
    manifest = Letters(name="abc").manifest()
    assert (manifest["name"], manifest["format"]["type"]) == ("abc", "R1")
    assert manifest["sizes"] == {"train": 1330, "validation": 441, "test": 513}

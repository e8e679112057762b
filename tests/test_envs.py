"""Formats, grades, the single-turn base class, generated arithmetic and word problems."""

from __future__ import annotations

import itertools
import math
import random
import re
import time
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from envs.arithmetic import Arithmetic
from envs.base import SPLITS, Answer, GeneratedSplit, ListSplit, SingleTurnEnv, split_of
from envs.formats import PARTS, R1, Format, Hash, Plain, best_reward, checked_weights, grade_number
from envs.word_problems import MAX_ADDEND, MAX_STEPS, MAX_VALUE, word_problem
from rlreason.types import Env, Episode, Finish, Grade, Message, Problem, Split

CONF = str(Path(__file__).resolve().parent.parent / "conf")
WEIGHTS = {"accuracy": 1.0, "format": 0.2, "lenient": 0.0}
FORMATS: list[Format] = [Plain(), Hash(), R1()]


def grade(
    text: str,
    answer: str,
    format: Format,
    finish: Finish = "stop",
    question: str = "How many?",
    weights: Mapping[str, float] = WEIGHTS,
) -> Grade:
    content = f"{question}\n{format.instruction}" if format.instruction else question
    prompt: list[Message] = [{"role": "user", "content": content}]
    return grade_number(Answer(Problem("one", prompt, answer), text, finish), format=format, weights=weights)


# Formats


@pytest.mark.parametrize(
    ("text", "answer", "score"),
    [
        ("2 + 2 = 4\n#### 4", "4", 1.0),
        ("#### 4", "4", 1.0),
        ("####4\n\n", "4", 1.0),
        ("x\n  #### $1,200.  ", "$1,200.", 1.0),
        ("#### 4\nSo it is 4.", "4", 0.5),  # not at the end
        ("So it is #### 4", "4", 0.5),  # not on a line of its own
        ("#### 4\n#### 5", "5", 0.5),  # a hedge: the last one counts, the format is not kept
        ("#### Step 2: add\n#### 4", "4", 0.5),
        ("#### 4\n#### Step 2: add", "4", 0.5),
        ("#### 4 apples", None, 0.5),
        ("#### about 4", None, 0.0),
        ("##### 4", None, 0.0),
        ("### 4", None, 0.0),
        ("####\n4", None, 0.0),
        ("4", None, 0.0),
        ("", None, 0.0),
    ],
)
def test_hash(text: str, answer: str | None, score: float) -> None:
    assert Hash().extract(text) == answer
    assert Hash().score(text) == score


@pytest.mark.parametrize(
    ("text", "answer", "score"),
    [
        ("<think>2 + 2</think><answer>4</answer>", "4", 1.0),
        (" <think>\n2 + 2\n</think>\n\n<answer> 4 </answer>\n", "4", 1.0),
        ("<think>a</think> so <answer>4</answer>", "4", 0.75),
        ("Hm. <think>a</think><answer>4</answer>", "4", 0.75),
        ("<think>a</think><answer>4</answer> Bye.", "4", 0.75),
        ("a</think><answer>4</answer>", "4", 0.75),
        ("</think><answer>4</answer>", "4", 0.75),
        ("<think>a<answer>4</answer>", None, 0.75),
        ("<think>a</think><answer>4", None, 0.75),
        ("<answer>4</answer><think>a</think>", None, 0.75),  # all four, in the wrong order
        ("<think>a <answer>3</answer> b</think><answer>4</answer>", "4", 0.5),  # a draft inside the thoughts
        ("<think>a</think><answer>4</answer><answer>5</answer>", None, 0.5),
        ("<think>a</think><answer>4</answer><answer>4.0</answer>", "4", 0.5),
        ("<think>a</think><answer>4</answer><answer>four</answer>", None, 0.5),
        ("<think>a</think><answer>4</answer><think>b</think><answer>5</answer>", None, 0.0),
        ("<think>a</think><answer>4 <answer>5</answer>", None, 0.75),
        ("<think>a</think><answer>4</answer> or <answer>", None, 0.75),
        ("<think>a</think><answer>4</answer></answer>", None, 0.75),
        ("<think>a<think>b</think><answer>4</answer>", "4", 0.75),
        ("<think></think><answer>4</answer>", "4", 0.5),  # empty thoughts are no thoughts
        ("<think>a</think><answer> </answer>", "", 0.5),
        ("<think>a</think>4", None, 0.5),
        ("<answer>4</answer>", None, 0.5),
        ("<think>a", None, 0.25),
        ("<think>a<think>", None, 0.0),
        ("<Think>a</Think><Answer>4</Answer>", None, 0.0),
        ("4", None, 0.0),
        ("", None, 0.0),
    ],
)
def test_r1(text: str, answer: str | None, score: float) -> None:
    assert R1().extract(text) == answer
    assert R1().score(text) == score


def test_plain_takes_the_last_number_and_has_no_score() -> None:
    assert Plain().extract("3 + 5 = 8, so 8.") == "8"
    assert Plain().extract("eight") is None
    assert Plain().score("8") is None
    assert Plain().instruction == ""


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: type(format).__name__)
@pytest.mark.parametrize("answer", ["18", "-3", "3/4"])
@pytest.mark.parametrize("reasoning", ["", "12 + 6 = 99"])
def test_gold_is_perfect(format: Format, answer: str, reasoning: str) -> None:
    text = format.gold(reasoning, answer)
    result = grade(text, answer, format)
    assert (result.correct, result.status, result.answer) == (True, "ok", answer)
    assert result.reward == best_reward(format, WEIGHTS) == (1.0 if isinstance(format, Plain) else 1.2)


def test_formats_are_frozen() -> None:
    for format in FORMATS:
        with pytest.raises(FrozenInstanceError):
            format.instruction = ""  # type: ignore[misc]


# Grades


def test_parts_are_unweighted_and_all_there() -> None:
    text = "<think>a</think> <answer>7</answer> No, it is 8."
    result = grade(text, "8", R1(), weights={"accuracy": 1.0, "format": 0.2, "lenient": 0.5})
    assert result.parts == {"accuracy": 0.0, "format": 0.75, "lenient": 1.0}
    assert result.reward == pytest.approx(0.2 * 0.75 + 0.5, abs=1e-12)
    assert (result.correct, result.status, result.answer) == (False, "ok", "7")
    assert grade(text, "8", R1(), weights={"accuracy": 1.0}).reward == 0.0
    assert grade("It is 8.", "8", Plain()).parts == {"accuracy": 1.0, "lenient": 1.0}
    assert set(result.parts) == set(PARTS)


def test_equal_numbers_are_equal_answers() -> None:
    for text in ("$1,200.00", "1200", "+1200.", "2400/2", "1.2e3"):
        result = grade(f"<think>a</think><answer>{text}</answer>", "1200", R1())
        assert (result.correct, result.answer) == (True, "1200"), text


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("8", "unparseable"),
        ("<think>a</think><answer>eight</answer>", "unparseable"),
        ("<think>a</think><answer>8 apples</answer>", "unparseable"),
        ("<think>a</think><answer>7</answer><answer>8</answer>", "unparseable"),
        ("<think>a</think><answer>" + "8" * 5000 + "</answer>", "unparseable"),
        ("<think>a</think><answer>8/0</answer>", "unparseable"),
        ("<think>a</think><answer>7</answer>", "ok"),
    ],
)
def test_no_single_right_answer_is_incorrect(text: str, status: str) -> None:
    result = grade(text, "8", R1())
    assert (result.correct, result.status, result.parts["accuracy"]) == (False, status, 0.0)
    assert (result.answer is None) == (status == "unparseable")


def test_many_answers_pay_only_by_the_last_one() -> None:
    everything = " ".join(map(str, range(100)))
    assert grade(everything, "8", Plain()).correct is False
    assert grade(everything, "99", Plain()).correct is True  # documented: Plain cannot tell
    hedge = "#### 7\n#### 8"
    assert (grade(hedge, "8", Hash()).correct, grade(hedge, "7", Hash()).correct) == (True, False)
    assert grade(hedge, "8", Hash()).parts["format"] == 0.5


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: type(format).__name__)
@pytest.mark.parametrize("question", ["What is 0 + 5?", "Of 7 eggs, Ann eats 2.\nHow many are left of 5?"])
def test_a_prompt_echo_earns_nothing(format: Format, question: str) -> None:
    whole = f"{question}\n{format.instruction}"
    pieces = [whole, question, format.instruction, *format.instruction.splitlines(), f"{whole}\n{whole}"]
    for text in pieces:
        result = grade(text, "5", format, question=question, weights=dict.fromkeys(PARTS, 1.0))
        assert (result.reward, result.correct, result.status) == (0.0, False, "unparseable"), text
    # An answer after the echo still counts, the format part by what the policy added to it.
    result = grade(f"{whole}\n{format.gold('0 + 5 = 5', '5')}", "5", format, question=question)
    assert result.correct is True
    assert result.parts.get("format") in (None, 0.5, 0.75)


def test_quoted_blocks_of_the_instruction_earn_nothing_alone() -> None:
    for block in re.findall(r"<think>.*?</think> <answer>.*?</answer>", R1().instruction):
        assert R1().score(block) == 0.0
    assert R1().score("<think>\nreasoning  process here </think><answer>4</answer>") == 0.5
    own = R1("Use the tags.")  # quotes no block; empty ones earn nothing all the same
    assert own.score("<think>\n</think><answer>4</answer>") == 0.5
    assert own.score("<think>reasoning process here</think><answer>4</answer>") == 1.0


@pytest.mark.parametrize(
    ("text", "format", "correct", "lenient"),
    [
        ("2 + 6 = 8. Now let me", Plain(), True, 1.0),
        ("The answer is 8", Plain(), False, 0.0),  # perhaps 80
        ("The answer is 8.", Plain(), False, 0.0),  # perhaps 8.5
        ("a 4\n#### 8", Hash(), False, 0.0),
        ("#### 8\nand", Hash(), True, 1.0),
        ("<think>2 + 6 = 8 and", R1(), False, 0.0),
        ("<think>a</think><answer>8", R1(), False, 0.0),
        ("<think>a</think><answer>8</answer> so", R1(), True, 1.0),
        ("<think>a</think><answer>7</answer> or 8, so", R1(), False, 1.0),
    ],
)
def test_truncated(text: str, format: Format, correct: bool, lenient: float) -> None:
    result = grade(text, "8", format, finish="length")
    assert (result.correct, result.parts["lenient"]) == (correct, lenient)


def test_an_unreadable_gold_answer_never_pays() -> None:
    with pytest.raises(ValueError, match="own answer, 'eight', is not a number"):
        grade("eight", "eight", Plain())


def test_weights_are_checked() -> None:
    with pytest.raises(ValueError, match="no reward part 'acuracy'; the parts are accuracy, format, lenient"):
        checked_weights({"acuracy": 1.0})
    for bad in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"format is .*; a weight must be a finite number, 0 or more"):
            Arithmetic(weights={"format": bad})
    assert checked_weights({"accuracy": 1}) == {"accuracy": 1.0}


def test_at_least_a_thousand_grades_a_second() -> None:
    thoughts = "First 12 * 3 = 36, then we take 5 away, which leaves $31.00 for the rest. " * 25  # about 600 tokens
    env = Arithmetic(format=R1())
    problem = env.split("test")[0]
    episode = Episode(problem, None, [], R1().gold(thoughts, problem.answer), "stop")
    start = time.process_time()
    grades = env.grade([episode] * 1000)
    assert time.process_time() - start < 1.0
    assert all(result.correct for result in grades)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: type(format).__name__)
@pytest.mark.parametrize(
    "piece",
    ["<answer>", "</think><answer>", "<think></think>", "<answer>8</answer>", "#### ", "####\n", "#### 8\n", "9"],
)
def test_time_is_linear_on_hostile_text(format: Format, piece: str) -> None:
    text = "</think>" + piece * (200_000 // len(piece))
    start = time.process_time()
    grade(text, "8", format)
    assert time.process_time() - start < 3


# The base class


def test_splits_refuse_what_is_not_there() -> None:
    problem = Problem("p", [], "1")
    for split in (ListSplit([problem]), GeneratedSplit(1, lambda index: problem)):
        assert split.size == 1
        assert split[0] is problem
        for index in (-1, 1):
            with pytest.raises(IndexError, match=f"problem {index} does not exist"):
                split[index]
    endless = GeneratedSplit(None, lambda index: Problem(str(index), [], "1"))
    assert endless[10**9].id == "1000000000"
    with pytest.raises(IndexError, match="problem -1"):
        endless[-1]


@dataclass(frozen=True)
class Stub(SingleTurnEnv):
    """Answers "0", "1", ...; ``broken`` is what its verifier does wrong."""

    broken: str = ""
    answers: int = 3
    name: str = "stub"
    max_reward: float = 1.0

    def split(self, name: str) -> Split:
        return ListSplit([Problem(f"{name}/{i}", [], str(i % self.answers)) for i in range(6)])

    def grade_text(self, problem: Problem, text: str, finish: Finish) -> Grade:
        right = text == f"it is {problem.answer}"
        if self.broken == "gold" and problem.id == "test/4":
            right = False
        if self.broken == "corrupted" and text and problem.id == "validation/2":
            right = True
        if self.broken == "empty" and not text:
            right = True
        return Grade(0.5 if self.broken == "reward" else float(right), right)

    def gold(self, problem: Problem) -> str:
        return f"it is {problem.answer}"

    def manifest(self) -> Mapping[str, Any]:
        return {}


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("gold", r"stub: problem test/4: the gold completion should be correct and earn 1.0, but 'it is 1' got Grade"),
        ("reward", r"stub: problem train/0: .* earn 1.0, but 'it is 0' got Grade\(reward=0.5"),
        (
            "corrupted",
            r"problem validation/2: a corrupted gold completion should be incorrect, but 'it is 0' got",
        ),
        ("empty", r"problem train/0: an empty text should be incorrect, but '' got Grade"),
    ],
)
def test_validate_finds_a_broken_verifier(broken: str, says: str) -> None:
    Stub().validate()
    with pytest.raises(ValueError, match=says):
        Stub(broken).validate()


def test_validate_refuses_to_check_nothing() -> None:
    with pytest.raises(ValueError, match="no two problems with different answers"):
        Stub(answers=1).validate()


def test_single_turn() -> None:
    env = Stub()
    assert isinstance(env, Env)
    problem = env.split("test")[1]
    assert env.start(problem, seed=3) is None  # type: ignore[func-returns-value]
    assert env.replies([None, None], [[], []]) == [None, None]
    texts = ["it is 1", "it is 2"]
    assert [g.correct for g in env.grade([Episode(problem, None, [], text, "stop") for text in texts])] == [True, False]
    with pytest.raises(TypeError, match="abstract"):
        SingleTurnEnv()  # type: ignore[abstract]


def test_split_of_is_pinned() -> None:
    """Splits must not move between versions: results on them would not compare."""
    keys = ("+*3+*5", "+*3+*4", "+*2+*4", "+*8+*9")
    assert [split_of(key) for key in keys] == [
        "validation",
        "train",
        "test",
        "test",
    ]
    counts = {name: sum(split_of(str(i)) == name for i in range(10_000)) for name in SPLITS}
    for name, share in (("train", 0.6), ("validation", 0.2), ("test", 0.2)):
        assert abs(counts[name] / 10_000 - share) < 0.015  # three standard deviations


# Arithmetic


def problems(env: Arithmetic, split: str, count: int = 50) -> list[Problem]:
    found = env.split(split)
    return [found[index] for index in range(count if found.size is None else found.size)]


def test_one_digit_addition_is_partitioned_exactly() -> None:
    """100 ordered problems, 55 different ones: 68 train, 18 validation, 14 test (32 held out, 18 different ones)."""
    env = Arithmetic()
    by_split = {name: [p.id for p in problems(env, name)] for name in SPLITS}
    assert {name: len(ids) for name, ids in by_split.items()} == {"train": 68, "validation": 18, "test": 14}
    everything = [id for ids in by_split.values() for id in ids]
    assert sorted(everything) == sorted(f"arithmetic/{a}+{b}" for a in range(10) for b in range(10))
    pairs = {name: {tuple(sorted(id[len("arithmetic/") :].split("+"))) for id in ids} for name, ids in by_split.items()}
    assert {name: len(found) for name, found in pairs.items()} == {"train": 37, "validation": 10, "test": 8}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not pairs[one] & pairs[other]


def test_problem() -> None:
    env = Arithmetic(format=Hash(), system="You are good at sums.")
    problem = next(p for name in SPLITS for p in problems(env, name) if p.id == "arithmetic/3+5")
    assert problem == Problem(
        id="arithmetic/3+5",
        prompt=[
            {"role": "system", "content": "You are good at sums."},
            {"role": "user", "content": f"What is 3 + 5?\n{Hash().instruction}"},
        ],
        answer="8",
        meta={"operations": ["+"], "digits": 1, "terms": 2, "solution": "3 + 5 = 8"},
    )
    assert env.gold(problem) == "3 + 5 = 8\n#### 8"
    plain = Arithmetic().split("train")[0]
    assert [message["role"] for message in plain.prompt] == ["user"]
    assert re.fullmatch(r"What is \d \+ \d\?", plain.prompt[0]["content"])


def test_the_seed_orders_but_does_not_move_problems_between_splits() -> None:
    one, same, other = Arithmetic(seed=1), Arithmetic(seed=1), Arithmetic(seed=2)
    for name in SPLITS:
        ids = [p.id for p in problems(one, name)]
        assert ids == [p.id for p in problems(same, name)]
        assert ids != [p.id for p in problems(other, name)]
        assert sorted(ids) == sorted(p.id for p in problems(other, name))


def test_order_is_pinned() -> None:
    """The same on every machine and in every process: no hash() that Python randomises."""
    assert [p.id for p in problems(Arithmetic(), "test")[:3]] == ["arithmetic/2+6", "arithmetic/4+2", "arithmetic/9+8"]
    lazy = problems(Arithmetic(digits=3), "test", 3)
    assert [p.id for p in lazy] == ["arithmetic/920+192", "arithmetic/507+647", "arithmetic/463+376"]


def test_larger_configurations_keep_the_splits_of_smaller_ones() -> None:
    small, large = Arithmetic(), Arithmetic(operations=("+", "-", "*", "/"), digits=1)
    for name in SPLITS:
        assert {p.id for p in problems(small, name)} <= {p.id for p in problems(large, name)}


def terms_of(id: str) -> tuple[Any, ...]:
    """The signed products of an id like ``arithmetic/2-6*4/3``, each with its factors sorted: an independent key."""
    signed = re.findall(r"([+-]?)([0-9*/]+)", id[len("arithmetic/") :])
    return tuple(
        sorted((sign or "+", tuple(sorted(re.findall(r"[*/]\d+", f"*{product}")))) for sign, product in signed)
    )


@pytest.mark.parametrize(
    ("operations", "terms", "total"),
    [
        (("+",), 3, 1000),
        (("+", "*"), 3, 4000),
        (("+", "-", "*", "/"), 2, 332),  # 3 * 100, and 32 exact quotients: 9 of 0, 23 of divisors
    ],
)
def test_what_commutes_is_in_one_split(operations: tuple[str, ...], terms: int, total: int) -> None:
    env = Arithmetic(operations=operations, terms=terms)
    where: dict[tuple[Any, ...], set[str]] = {}
    count = 0
    for name in SPLITS:
        for problem in problems(env, name):
            where.setdefault(terms_of(problem.id), set()).add(name)
            count += 1
    assert count == total
    assert all(len(names) == 1 for names in where.values())
    assert len(where) < total


@pytest.mark.parametrize("text", ["6 / 3", "6/3.", "It is 6 / 3", "6  /3", "6 / 3 = "])
@pytest.mark.parametrize("format", FORMATS, ids=lambda format: type(format).__name__)
def test_a_copied_division_is_no_answer(text: str, format: Format) -> None:
    env = Arithmetic(operations=("/",), format=format)
    problem = replace(env.split("train")[0], answer="2", meta={"solution": "6 / 3 = 2"})
    assert env.grade_text(problem, format.gold("", text), "stop").correct is False
    assert env.grade_text(problem, format.gold(text, "2"), "stop").correct is True
    assert env.grade_text(problem, format.gold(text, "16/8"), "stop").correct is True  # another fraction is worked out


@pytest.mark.parametrize(
    "env",
    [
        Arithmetic(operations=("+", "-", "*", "/")),
        Arithmetic(operations=("+", "-", "*", "/"), digits=2, terms=4),
        Arithmetic(operations=("/", "-"), digits=6, terms=3),
        Arithmetic(operations=("*",), digits=30, terms=3),
        Arithmetic(operations=("-",), digits=2),
    ],
    ids=lambda env: f"{''.join(env.operations)}{env.digits}x{env.terms}",
)
def test_answers_follow_precedence_and_divisions_are_exact(env: Arithmetic) -> None:
    seen: set[str] = set()
    negative = 0
    for problem in problems(env, "train", 200):
        question = problem.prompt[-1]["content"].removeprefix("What is ").removesuffix("?")
        value = eval(question)  # our own text; a float as soon as it holds a division
        assert value == int(problem.answer), question
        assert all(int(operand) < 10**env.digits for operand in re.findall(r"\d+", question))
        assert len(re.findall(r"\d+", question)) == env.terms
        seen.update(problem.meta["operations"])
        negative += problem.answer.startswith("-")
    assert seen == set(env.operations)
    assert (negative > 0) == ("-" in env.operations)


def test_precedence_by_hand() -> None:
    env = Arithmetic(operations=("+", "-", "*", "/"), terms=3)  # 16,000 ordered expressions before exactness
    answers = {p.id: p.answer for name in SPLITS for p in problems(env, name)}
    wanted = {"2+3*4": "14", "2*3-9": "-3", "9-8/4": "7", "8/4/2": "1", "8/4*2": "4", "2-3-4": "-5", "4*3/6": "2"}
    assert {text: answers[f"arithmetic/{text}"] for text in wanted} == wanted
    assert "arithmetic/4/6*3" not in answers
    assert "arithmetic/7/2+1" not in answers
    assert "arithmetic/5/0+1" not in answers


def test_large_spaces_are_lazy() -> None:
    start = time.process_time()
    env = Arithmetic(operations=("+", "-", "*", "/"), digits=12, terms=8)
    for name in SPLITS:
        split = env.split(name)
        assert split.size is None
        assert split[10**12] == split[10**12]
        assert split[10**12].id != split[10**12 + 1].id
    assert time.process_time() - start < 1.0
    assert Arithmetic(digits=2).split("train").size == 6060  # 10,000 ordered expressions are still listed
    assert Arithmetic(digits=2, operations=("+", "-")).split("train").size is not None  # 20,000
    assert Arithmetic(digits=2, operations=("+", "-", "*")).split("train").size is None


def test_lazy_splits_do_not_meet_and_follow_the_seed() -> None:
    env = Arithmetic(digits=3, operations=("+", "*"))
    keys = {name: {terms_of(p.id) for p in problems(env, name, 3000)} for name in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not keys[one] & keys[other]
    again = Arithmetic(digits=3, operations=("+", "*"), seed=1)
    assert [p.id for p in problems(env, "train")] != [p.id for p in problems(again, "train")]


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: type(format).__name__)
@pytest.mark.parametrize(
    "settings",
    [{}, {"operations": ("-", "/")}, {"digits": 5, "terms": 4}, {"word_problem_steps": 1}, {"word_problem_steps": 4}],
    ids=str,
)
def test_arithmetic_validates(format: Format, settings: dict[str, Any]) -> None:
    Arithmetic(format=format, **settings).validate()
    Arithmetic(format=format, weights={"accuracy": 0.5, "lenient": 0.5}, **settings).validate()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"operations": ()}, r"operations is \[\]"),
        ({"operations": ("+", "^")}, r"operations is \['\+', '\^'\]; it must be one or more of"),
        ({"operations": ("+", "+")}, "each at most once"),
        ({"digits": 0}, "digits is 0"),
        ({"terms": 1}, "terms is 1"),
        ({"digits": 51}, "their product at most 100"),
        ({"word_problem_steps": 5}, "word_problem_steps is 5"),
        ({"word_problem_steps": -1}, "word_problem_steps is -1"),
        ({"word_problem_steps": 1, "digits": 2}, "no effect on word problems"),
        ({"name": ""}, "name is empty"),
        ({"weights": {"length": 1.0}}, "no reward part 'length'"),
    ],
)
def test_arithmetic_refuses(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Arithmetic(**settings)


def test_unknown_split() -> None:
    with pytest.raises(ValueError, match="no split 'dev'; the splits are train, validation, test"):
        Arithmetic().split("dev")


def test_arithmetic_manifest() -> None:
    manifest = Arithmetic(name="sums").manifest()
    assert manifest["name"] == "sums"
    assert manifest["sizes"] == {"train": 68, "validation": 18, "test": 14}
    assert manifest["format"] == {"type": "Plain", "instruction": ""}


# Word problems


@pytest.mark.parametrize("steps", range(1, MAX_STEPS + 1))
def test_word_problems_are_worked_out_right(steps: int) -> None:
    """The solution is recomputed line by line, and every number in the key is in the question."""
    seen: set[str] = set()
    for seed in range(300):
        drawn = word_problem(random.Random(seed), steps)
        assert drawn == word_problem(random.Random(seed), steps)
        lines = re.findall(r"^(\d+) ([-+*/]) (\d+) = (\d+)$", drawn.solution, flags=re.MULTILINE)
        assert len(lines) == len(drawn.operations) == steps
        value = lines[0][0]
        for left, operation, right, result in lines:
            assert left == value  # each step begins with what the last one gave
            exact = {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}
            assert int(result) * int(right) == int(left) if operation == "/" else int(result) == exact[operation]
            assert 0 <= int(result) <= MAX_VALUE + MAX_STEPS * MAX_ADDEND
            value = result
        assert int(value) == drawn.answer
        assert tuple(line[1] for line in lines) == drawn.operations
        numbers = sorted([lines[0][0], *(line[2] for line in lines)])
        assert sorted(re.findall(r"\d+", drawn.question)) == sorted(re.findall(r"\d+", drawn.key)) == numbers
        assert "{" not in drawn.question
        seen.update(drawn.operations)
    assert seen == {"+", "-", "*", "/"}


def test_word_problem_keys_are_canonical() -> None:
    """The key has the problem's value, told by another route, and is the same for steps in another order."""
    by_key: dict[str, set[tuple[str, ...]]] = {}
    for seed in range(20_000):
        drawn = word_problem(random.Random(seed), 2)
        by_key.setdefault(drawn.key, set()).add(drawn.operations)
        value = 0
        for number, run in enumerate(drawn.key.split("|")):
            moves = re.findall(r"([-+*/])(\d+)", run)
            if number == 0 and moves[0][0] in "*/":
                value = 1
            for operation, amount in sorted(moves, key=lambda move: "+-*/".index(move[0])):
                value = {
                    "+": value + int(amount),
                    "-": value - int(amount),
                    "*": value * int(amount),
                    "/": value // int(amount),
                }[operation]
        assert value == drawn.answer
    assert any(len(operations) > 1 for operations in by_key.values())  # + then -, and - then +


def test_word_problem_splits_do_not_meet() -> None:
    env = Arithmetic(word_problem_steps=1)
    keys = {name: {p.id.split("/words/")[1].rpartition("/")[0] for p in problems(env, name, 1000)} for name in SPLITS}
    assert all(len(found) > 300 for found in keys.values())
    for one, other in itertools.combinations(SPLITS, 2):
        assert not keys[one] & keys[other]
    problem = env.split("train")[0]
    assert env.split("train").size is None
    assert problem == Arithmetic(word_problem_steps=1).split("train")[0]
    assert problem != Arithmetic(word_problem_steps=1, seed=1).split("train")[0]
    assert problem.meta["steps"] == 1


def test_word_problems_have_1_to_4_steps() -> None:
    for steps in (0, MAX_STEPS + 1):
        with pytest.raises(ValueError, match=f"1 to 4 steps, not {steps}"):
            word_problem(random.Random(0), steps)


# Configuration


def from_config(*overrides: str) -> Any:
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose(overrides=["+env=arithmetic", *overrides])
    return instantiate(config.env)


def test_arithmetic_config_has_the_defaults() -> None:
    assert from_config() == Arithmetic()


def test_arithmetic_config_overrides() -> None:
    env = from_config(
        "env.operations=['+','-']",
        "env.digits=2",
        "env.name=arithmetic_2digits",
        "env.format._target_=envs.formats.Hash",
        "+env.format.instruction='Write ####.'",
        "env.weights.lenient=0.5",
    )
    assert env == Arithmetic(
        operations=("+", "-"),
        digits=2,
        name="arithmetic_2digits",
        format=Hash("Write ####."),
        weights={"accuracy": 1.0, "format": 0.2, "lenient": 0.5},
    )
    env.validate()


def test_a_misspelled_key_is_refused() -> None:
    with pytest.raises(Exception, match="unexpected keyword argument 'digit'"):
        from_config("+env.digit=2")
    with pytest.raises(Exception, match="no reward part 'lenint'"):
        from_config("+env.weights.lenint=2")

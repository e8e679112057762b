"""Tools: calls in every syntax, episodes by hand and through the rollout, the calculator against Python's fractions and
against GSM8K's own annotations, search, and demonstrations."""

from __future__ import annotations

import itertools
import json
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny
from test_chat import HERMES, Scripted, shipped
from test_experiments import config

from envs.arithmetic import Arithmetic
from envs.data.tool_use import CalculatorUse
from envs.formats import R1, Hash
from envs.gsm8k import Gsm8k
from envs.prefilled import Prefilled
from envs.sandbox import Limits, Outcome, Sandbox
from envs.tools import Calculator, Call, Malformed, Python, Result, Search, ToolUse, read_calls, text_function, written
from envs.tools.calculator import MAX_LENGTH, MAX_PARENTHESES
from envs.tools.env import NO_CALLS_LEFT
from envs.verify.numbers import MAX_DIGITS, parse_number
from rlreason import sft
from rlreason.chat import demonstrated
from rlreason.clock import Clock
from rlreason.config import build
from rlreason.models import CHATML_TEMPLATE, PLAIN_TEMPLATE
from rlreason.rollout import roll_out
from rlreason.types import Env, Episode, Finish, Grade, Message, Problem, Sampling

PRODUCTS = Arithmetic(operations=("*",), digits=2)
ENV = ToolUse(PRODUCTS, [Calculator()])
PAIR = {
    "type": "function",
    "function": {
        "name": "pair",
        "description": "pairs",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "string"}, "c": {"type": ["string", "null"]}},
            "required": ["a"],
        },
    },
}
NOW = {"type": "function", "function": {"name": "now", "description": "tells the time"}}  # it takes nothing
FUNCTIONS = [Calculator().schema, PAIR, NOW]


def called(expression: str) -> str:
    return f"<calculator>{expression}</calculator>"


def problem(env: ToolUse = ENV) -> Problem:
    """69 * 83, say."""
    return env.split("train")[0]


def other(answer: str) -> str:
    return str(int(answer) + 1)


def played(env: ToolUse, asked: Problem, *turns: str, finish: Finish = "stop") -> tuple[Grade, list[str]]:
    """The verdict on an episode of these turns, the last of which ended in ``finish``, and the tools' messages. The
    harness asks for no reply to a turn that was cut off."""
    state, messages = env.start(asked, 0), [*asked.prompt]
    for number, text in enumerate(turns, start=1):
        messages.append({"role": "assistant", "content": text})
        if number < len(turns) or finish == "stop":
            (reply,) = env.replies([state], [messages])
            assert (reply is None) == (number == len(turns)), f"turn {number} was answered by {reply}"
            messages += reply or []
    (grade,) = env.grade([Episode(asked, state, messages, turns[-1], finish)])
    return grade, [message["content"] for message in messages if message["role"] == "tool"]


# Calls


def a_call(expression: str = "1 + 2") -> Call:
    return Call("calculator", {"expression": expression})


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("The answer is 3.", []),
        ("", []),
        ("<calculator>1 + 2</calculator>", [a_call()]),
        ("I see: <calculator>\n1 + 2\n</calculator> so", [a_call()]),
        ('<tool_call>\n{"name": "calculator", "arguments": {"expression": "1 + 2"}}\n</tool_call>', [a_call()]),
        ('<tool_call>{"name": "calculator", "parameters": {"expression": "1 + 2"}}</tool_call>', [a_call()]),
        ('{"name": "calculator", "parameters": {"expression": "1 + 2"}}', [a_call()]),
        (' <|python_tag|>{"name": "calculator", "parameters": {"expression": "1 + 2"}}\n', [a_call()]),
        ('Now [TOOL_CALLS] [{"name": "calculator", "arguments": {"expression": "1 + 2"}}]', [a_call()]),
        ('<pair>{"a": 1, "b": "x", "c": null}</pair>', [Call("pair", {"a": 1, "b": "x", "c": None})]),
        # several, in order
        (called("1 + 2") + called("3"), [a_call(), a_call("3")]),
        ('[TOOL_CALLS] [{"name": "calculator", "arguments": {"expression": "3"}}, '
         '{"name": "pair", "arguments": {"a": 1}}]', [a_call("3"), Call("pair", {"a": 1})]),
        # within a thought, too
        (f"<think>{called('1 + 2')}</think>", [a_call()]),
        # what only looks like one
        ('{"answer": 3}', []),
        ('{"name": "Ann", "age": 3}', []),
        ('See {"name": "calculator", "parameters": {"expression": "1 + 2"}}', []),
        ("{1, 2}", []),
        ("<b>3</b> </calculator>", []),
        ("<now>{}</now>", [Call("now", {})]),
    ],
)  # fmt: skip
def test_calls_are_read_in_every_syntax(text: str, calls: list[Call]) -> None:
    assert read_calls(text, FUNCTIONS) == calls


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<calculator>1 + 2", "<calculator> is not closed by </calculator>"),
        ("<calculator>", "<calculator> is not closed"),
        ("<tool_call>1 + 2</tool_call>", "'1 + 2' is no call; write {\"name\""),
        ('<tool_call>{"name": "calculator", "arguments": {"expression": "1 + 2"}</tool_call>', "is no call; write"),
        ('<tool_call>["calculator"]</tool_call>', "is no call; write"),
        ('<tool_call>{"name": 3, "arguments": {}}</tool_call>', "is no call; write"),
        (
            '<tool_call>{"name": "weather", "arguments": {}}</tool_call>',
            "is no tool 'weather'; there is calculator, pair, ",
        ),
        ('<tool_call>{"name": "calculator", "arguments": "1 + 2"}</tool_call>', "must be a JSON object of expression"),
        ('<tool_call>{"name": "calculator"}</tool_call>', "calculator needs the argument expression"),
        ('<tool_call>{"name": "calculator", "arguments": {"expression": 3}}</tool_call>', "must be of type string"),
        ('<tool_call>{"name": "calculator", "arguments": {"x": "3"}}</tool_call>', "has no argument 'x'; it has expr"),
        ('<pair>{"a": true}</pair>', "the argument a of pair must be of type integer"),
        ('<pair>{"a": 1.5}</pair>', "the argument a of pair must be of type integer"),
        ('<pair>{"b": "x"}</pair>', "pair needs the argument a"),
        ("<pair>1</pair>", "the arguments of pair must be a JSON object of a, b, c"),
        ("<|python_tag|>print(1)", "'print(1)' is no call"),
        ("[TOOL_CALLS] calculator", "'calculator' is no JSON list of calls"),
        ("[TOOL_CALLS] [1]", "is no call; write"),
        (f"<tool_call>{'[' * 100_000}</tool_call>", "is no call; write"),
        (f"<tool_call>{'9' * 5000}</tool_call>", "is no call; write"),
        ('<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>', "there is no tool '\\ud800'"),
    ],
)
def test_malformed_calls_say_what_is_wrong(text: str, why: str) -> None:
    (found,) = read_calls(text, FUNCTIONS)
    assert isinstance(found, Malformed)
    assert why in found.why
    assert len(found.why) < 200
    found.why.encode()  # it will be tokenised


def test_calls_are_read_in_linear_time() -> None:
    begin = time.process_time()
    assert len(read_calls("<calculator><tool_call>" * 20_000, FUNCTIONS)) == 20_000
    assert time.process_time() - begin < 5


@pytest.mark.parametrize("syntax", ["tags", "hermes", "llama"])
@pytest.mark.parametrize("call", [a_call('"1" + \\2</x>'), Call("pair", {"a": 1, "b": "é\n"})])
def test_what_is_written_is_read(call: Call, syntax: str) -> None:
    function = next(schema for schema in FUNCTIONS if schema["function"]["name"] == call.name)
    assert read_calls(written(function, call.arguments, syntax), FUNCTIONS) == [call]


# Episodes by hand


def test_an_episode_by_hand() -> None:
    asked = problem()
    expression = asked.meta["solution"].partition(" = ")[0]
    assert asked.tools == (Calculator().schema,)
    grade, results = played(ENV, asked, called(expression), f"The answer is {asked.answer}.")
    assert results == [asked.answer]
    (alone,) = PRODUCTS.grade([Episode(PRODUCTS.split("train")[0], None, [], f"The answer is {asked.answer}.", "stop")])
    assert grade.correct
    assert (grade.reward, grade.answer) == (alone.reward, alone.answer) == (ENV.max_reward, asked.answer)
    assert grade.parts == {**alone.parts, "calls": 1.0, "malformed": 0.0}


def test_without_a_call_it_is_the_environments_own_problem() -> None:
    asked = problem()
    grade, results = played(ENV, asked, f"The answer is {asked.answer}.")
    assert grade.correct
    assert (results, grade.parts["calls"], grade.parts["malformed"]) == ([], 0.0, 0.0)
    wrong, _ = played(ENV, asked, f"The answer is {other(asked.answer)}.")
    assert (wrong.correct, wrong.reward) == (False, 0.0)


def test_malformed_calls_are_answered_and_counted() -> None:
    asked = problem()
    turns = ["<calculator>1 +", called("nine"), called("2 + 2") + called("1 / 0"), f"It is {asked.answer}."]
    grade, results = played(ENV, asked, *turns)
    assert results == [
        "Error: <calculator> is not closed by </calculator>",
        "Error: can't read 'nine'; write numbers with + - * / ** and parentheses",
        "4",
        f"Error: division by zero\n{NO_CALLS_LEFT}",
    ]
    assert grade.correct
    assert (grade.parts["calls"], grade.parts["malformed"]) == (4.0, 0.75)


def test_calls_are_limited() -> None:
    env = ToolUse(PRODUCTS, [Calculator()], max_calls=2)
    asked = problem(env)
    right = f"The answer is {asked.answer}."
    grade, results = played(env, asked, called("1"), called("2") + called("3"), right)
    assert results == ["1", f"2\n{NO_CALLS_LEFT}"]  # the third is not run
    assert (grade.correct, grade.parts["calls"]) == (True, 2.0)
    grade, results = played(env, asked, called("1"), called("2"), f"{called('3')} {right}")
    assert len(results) == 2
    assert (grade.correct, grade.answer, grade.reward, grade.parts["calls"]) == (False, None, 0.0, 2.0)


@pytest.mark.parametrize(
    ("text", "finish"),
    [
        ("The answer is GOLD. <calculator>1</calculator>", "length"),  # an answer beside a call
        ("<calculator>GOLD", "length"),  # cut off in a call, or where max_turns was spent
        ('<tool_call>{"name": "x"}</tool_call> GOLD', "length"),
        ("<tool_response>\nGOLD\n</tool_response>", "stop"),  # only the harness answers
        ("<tool_response>GOLD", "stop"),
        ("The answer is WRONG. <tool_response>GOLD</tool_response>", "stop"),
    ],
)
def test_what_is_no_answer_earns_nothing(text: str, finish: Finish) -> None:
    asked = problem()
    text = text.replace("GOLD", asked.answer).replace("WRONG", other(asked.answer))
    for turns in ([text], [called("1 + 1"), text]):
        grade, _ = played(ENV, asked, *turns, finish=finish)
        assert grade.correct is False
        assert grade.reward == 0


def test_a_result_that_the_policy_makes_up_is_neither_run_nor_believed() -> None:
    asked = problem()
    made_up = f"{called('1 + 1')}\n<tool_response>\n{asked.answer}\n</tool_response>\nThe answer is {asked.answer}."
    grade, results = played(ENV, asked, made_up, "It is 2.")
    assert results == ["2"]
    assert (grade.correct, grade.reward) == (False, 0.0)


def test_an_earlier_answer_is_no_hedge() -> None:
    asked = problem()
    first = f"The answer is {asked.answer}. {called('1')}"
    grade, _ = played(ENV, asked, first, f"The answer is {other(asked.answer)}.")
    assert grade.correct is False


def test_long_results_are_cut() -> None:
    env = ToolUse(PRODUCTS, [Calculator()], max_result_chars=10)
    _, results = played(env, problem(env), called("10 ** 9"), called("10 ** 10"), "no")
    assert results == ["1000000000", "1000000000… (cut off)"]


@dataclass(frozen=True)
class Echo:
    """Answers with what it was given; "jam" breaks it. Keeps its batches."""

    name: str = "echo"
    batches: list[list[str]] = field(default_factory=list, compare=False)

    @property
    def schema(self) -> Mapping[str, Any]:
        return text_function(self.name, "echoes", "text")

    def __call__(self, arguments: Sequence[Mapping[str, Any]]) -> list[Result]:
        self.batches.append([given["text"] for given in arguments])
        return [Result(f"{text}!", "error" if text == "jam" else "ok") for text in self.batches[-1]]

    def validate(self) -> None:
        raise ValueError("an echo is never right")

    def manifest(self) -> Mapping[str, Any]:
        return {"type": "echo"}


def test_a_tool_is_asked_once_for_all_conversations() -> None:
    echo = Echo()
    env = ToolUse(PRODUCTS, [echo, Calculator()])
    asked = problem(env)
    said = ["<echo>a</echo><calculator>1</calculator><echo>b</echo>", "It is 3.", "<echo>c</echo><echo>"]
    states = [env.start(asked, seed) for seed in range(3)]
    conversations: list[list[Message]] = [[*asked.prompt, {"role": "assistant", "content": text}] for text in said]
    replies = env.replies(states, conversations)
    assert echo.batches == [["a", "b", "c"]]
    assert replies == [
        [{"role": "tool", "content": text} for text in ("a!", "1", "b!")],
        None,
        [{"role": "tool", "content": text} for text in ("c!", "Error: <echo> is not closed by </echo>")],
    ]


def test_where_the_harness_fails_nothing_is_learned() -> None:
    env = ToolUse(PRODUCTS, [Echo()])
    asked = problem(env)
    grade, _ = played(env, asked, "<echo>x</echo>", "<echo>jam</echo>")
    assert grade == Grade(0.0, None, "error")


# As rollouts


@pytest.mark.parametrize(
    ("template", "syntax", "marks"),
    [
        (CHATML_TEMPLATE, "tags", ("<tool_response>\n", "\n</tool_response>")),
        (HERMES, "hermes", ("<tool_response>", "</tool_response>")),
        (shipped("qwen2_5"), "hermes", ("<tool_response>\n", "\n</tool_response>")),
        (shipped("qwen3"), "hermes", ("<tool_response>\n", "\n</tool_response>")),
    ],
    ids=["chatml", "hermes", "qwen2.5", "qwen3"],
)
@pytest.mark.parametrize("stopped", [False, True], ids=["ends its turn", "stop string"])
def test_an_episode_is_one_segment(template: str, syntax: str, marks: tuple[str, str], stopped: bool) -> None:
    policy = tiny()
    policy.tokenizer.chat_template = template
    asked = problem()
    turns = [written(asked.tools[0], {"expression": "2 * 21"}, syntax), f"It is {asked.answer}."]
    engine = Scripted(policy.tokenizer, turns, 2)
    if stopped:  # the end token is the environment's then
        engine.ids[0].pop()
    (rollout,) = roll_out(
        engine, ENV, policy, [asked], Sampling(max_turns=2), samples=1, groups=[0], seed=0, clock=Clock()
    )
    (segment,) = rollout.segments
    marked = zip(segment.completion_ids, segment.mask, strict=True)
    runs = [
        (policy.tokenizer.decode([token for token, _ in run]), own)
        for own, run in itertools.groupby(marked, key=lambda pair: pair[1])
    ]
    end = "<|im_end|>"
    result = f"\n<|im_start|>user\n{marks[0]}42{marks[1]}{end}\n<|im_start|>assistant\n"
    assert runs == [
        (turns[0] + ("" if stopped else end), True),
        ((end if stopped else "") + result, False),
        (turns[1] + end, True),
    ]
    assert rollout.grade.correct
    assert [message["role"] for message in rollout.messages] == ["user", "assistant", "tool", "assistant"]
    if not stopped:  # what is demonstrated is the very row
        (row,) = demonstrated(policy.tokenizer, policy.end_ids, rollout.messages, tools=asked.tools)
        assert (row.prompt_ids, row.completion_ids, row.mask) == (
            segment.prompt_ids, segment.completion_ids, segment.mask,
        )  # fmt: skip


def test_the_prompt_shows_what_is_read() -> None:
    """The tags in a rendered prompt are those that the environment reads."""
    policy = tiny()
    shown = re.search(r"<calculator>.*</calculator>", policy.render(problem().prompt, problem().tools).text)
    assert shown is not None
    assert read_calls(shown[0], problem().tools) == [a_call("expression")]


@pytest.mark.parametrize("template", [CHATML_TEMPLATE, PLAIN_TEMPLATE, HERMES], ids=["chatml", "plain", "hermes"])
def test_an_episode_whose_turns_are_spent_has_no_answer(template: str) -> None:
    policy = tiny()
    policy.tokenizer.chat_template = template
    engine = Scripted(policy.tokenizer, [called("1"), f"{problem().answer} {called('2')}"], 2)
    (rollout,) = roll_out(
        engine, ENV, policy, [problem()], Sampling(max_turns=2), samples=1, groups=[0], seed=0, clock=Clock()
    )
    assert (rollout.finish, rollout.grade.correct, rollout.grade.parts["calls"]) == ("length", False, 2.0)


# The environment


def test_it_is_an_environment_again() -> None:
    assert isinstance(ENV, Env)
    ENV.validate()
    assert ENV.name == "arithmetic_tools"
    assert ToolUse(PRODUCTS, [Calculator()], name="products").name == "products"
    assert ENV.split("test").size == PRODUCTS.split("test").size
    (own, inner) = (e.split("test")[5] for e in (ENV, PRODUCTS))
    assert (own.id, own.prompt, own.answer, own.meta) == (inner.id, inner.prompt, inner.answer, inner.meta)
    manifest = ENV.manifest()
    assert json.loads(json.dumps(manifest)) == manifest
    assert manifest["operations"] == ["*"]
    assert manifest["tools"][0]["name"] == "calculator"
    with pytest.raises(ValueError, match="an echo is never right"):
        ToolUse(PRODUCTS, [Echo()]).validate()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"env": Prefilled(PRODUCTS, "x")}, "env is Prefilled; it must be a single-turn environment"),
        ({"tools": []}, "there must be at least one"),
        ({"tools": [Calculator(), Calculator()]}, r"called \['calculator', 'calculator'\]"),
        ({"tools": [Calculator("a b")]}, "a name of its own of letters"),
        ({"tools": [Calculator("tool_call")]}, "none of tool_call, tool_response"),
        ({"max_calls": 0}, "max_calls is 0"),
        ({"max_result_chars": 0}, "max_result_chars 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ToolUse(**{"env": PRODUCTS, "tools": [Calculator()], **settings})


def test_a_tool_called_like_the_formats_tags_is_found_out() -> None:
    with pytest.raises(ValueError, match=r"the gold completion .* reads like a call"):
        ToolUse(Arithmetic(format=R1()), [Calculator("answer")]).validate()


def test_grading_is_quick() -> None:
    episodes = [Episode(problem(), ENV.start(problem(), 0), [], f"so it is {i}", "stop") for i in range(2000)]
    begin = time.process_time()
    ENV.grade(episodes)
    assert time.process_time() - begin < 2  # 1,000 a second


def test_real_word_problems_with_a_calculator(shared_data: Path) -> None:
    """Every sum that GSM8K's solutions annotate is a call, and then the answer."""
    inner = Gsm8k(source="local", data_dir=str(shared_data / "gsm8k"), format=Hash())
    env = ToolUse(inner, [Calculator()], max_calls=8)
    assert env.name == "gsm8k_tools"
    rows = (shared_data / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    split = env.split("train")
    for index in range(0, 1000, 50):
        asked = split[index]
        row = json.loads(rows[int(asked.id.rpartition("/")[2])])
        sums = re.findall(r"<<([^<>=]+)=([^<>]+)>>", row["answer"])[:8]
        grade, results = played(env, asked, *(called(sum_) for sum_, _ in sums), inner.gold(asked))
        for result, (_, value) in zip(results, sums, strict=True):
            found, wanted = parse_number(result.removesuffix(f"\n{NO_CALLS_LEFT}")), parse_number(value)
            assert found is not None
            assert wanted is not None
            assert abs(found - wanted) <= Fraction(1, 100) * max(1, abs(wanted))  # some solutions round
        assert grade.correct
        assert grade.parts["calls"] == len(sums)


# The calculator


def calculated(expression: str) -> Result:
    (result,) = Calculator()([{"expression": expression}])
    return result


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("47 * 38", "1786"),
        ("2 + 3 * 4", "14"),
        ("(2 + 3) * 4", "20"),
        ("8 / 2 / 2", "2"),
        ("8 - 3 - 2", "3"),
        ("2 ** 3 ** 2", "512"),
        ("-2 ** 2", "-4"),
        ("2 ** -3", "0.125"),
        ("--3 + +1", "4"),
        ("0.1 + 0.2", "0.3"),
        ("-1 / 8", "-0.125"),
        ("2 / 3", "0.6666666667"),
        ("100000 / 7", "14285.71429"),
        ("1,234 + 1", "1235"),
        ("1.5e3 * 2", "3000"),
        ("48÷2 × 3 − 1 =", "71"),
        ("3^2", "9"),
        ("10 ** 99", "1" + "0" * 99),
        ("(-1) ** 10 ** 90", "1"),
        ("0 ** 5", "0"),
        ("1 ** -7", "1"),
    ],
)
def test_sums_by_hand(expression: str, value: str) -> None:
    assert calculated(expression) == Result(value)


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("", "a number is missing at the end"),
        ("3 *", "a number is missing at the end"),
        ("* 3", "a number is missing before '*'"),
        ("(3", "a parenthesis is not closed"),
        ("3)", "')' stands where the expression should end"),
        ("2(3)", "'(' stands where"),
        ("1 / 0", "division by zero"),
        ("0 ** -1", "division by zero"),
        ("2 ** 0.5", "an exponent must be a whole number"),
        ("12,34", "can't read the number '12,34'"),
        ("1 = 1", "can't read '= 1'"),
        ("١ + ٢", "can't read '١ + ٢'"),
        ("nan", "can't read 'nan'"),
        ("print(1)", "can't read 'print(1)'"),
        ("10 ** 100", f"a value has more than {MAX_DIGITS} digits"),
        ("9 ** 9 ** 9", "a value has more than"),
        ("9 ** (9 ** 60)", "a value has more than"),
        ("(1/3) ** 1000", "a value has more than"),
        ("9" * 101, "can't read the number"),
        ("1" * (MAX_LENGTH + 1), "more than 300 characters"),
        ("(" * (MAX_PARENTHESES + 1), "30 pairs of parentheses"),
        ("\ud800", "can't read '\\ud800'"),
    ],
)
def test_what_can_not_be_worked_out_is_said(expression: str, said: str) -> None:
    result = calculated(expression)
    assert result.status == "refused"
    assert said in result.text
    result.text.encode()


def test_the_calculator_agrees_with_pythons_fractions() -> None:
    rng = random.Random(0)

    def drawn(depth: int) -> str:
        if depth == 0 or rng.random() < 0.2:
            return f"{rng.randint(0, 99)}" if rng.random() < 0.8 else f"{rng.randint(1, 9)}.{rng.randint(0, 99):02d}"
        if rng.random() < 0.1:
            return f"-({drawn(depth - 1)}) ** {rng.randint(0, 3)}"
        return f"({drawn(depth - 1)}) {rng.choice('+-*/')} {drawn(depth - 1)}"

    worked = 0
    for _ in range(500):
        expression = drawn(4)
        if len(expression) > MAX_LENGTH or expression.count("(") > MAX_PARENTHESES:
            continue
        exact = re.sub(r"[0-9]+(\.[0-9]+)?(?!\*)", lambda found: f"Fraction('{found[0]}')", expression)
        exact = re.sub(r"\*\* Fraction\('(\d)'\)", r"** \1", exact)
        try:
            value = eval(exact)  # our own text
        except ZeroDivisionError:
            assert calculated(expression).text == "division by zero"
            continue
        found = calculated(expression)
        assert found.status == "ok"
        read = parse_number(found.text)
        assert read is not None
        assert abs(read - value) <= abs(value) / 10**9
        if value.denominator == 1:
            assert read == value
        worked += 1
    assert worked > 300


def test_nothing_costs_the_calculator_time() -> None:
    deep = "(" * MAX_PARENTHESES + "1" + "**1)" * MAX_PARENTHESES
    hard = ["**".join("9" * 100), "-" * 299 + "1", deep, "9" * 100 + "*" + "9" * 100, "(1/3)**99+" * 20 + "1"]
    begin = time.process_time()
    for expression in hard * 20:
        calculated(expression)
    assert time.process_time() - begin < 2


def test_a_calculator_that_errs_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    Calculator().validate()
    monkeypatch.setattr("envs.tools.calculator._GOLD", (("1 + 1", "3"),))
    with pytest.raises(ValueError, match=r"1 \+ 1 should be 3"):
        Calculator().validate()


# Python


@pytest.fixture(scope="module")
def python() -> Iterator[Python]:
    with Sandbox(workers=2, limits=Limits(cpu_seconds=2, wall_seconds=4)) as sandbox:
        yield Python(sandbox)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("print(2 ** 100)", str(2**100)),
        ("\n```python\nfor i in range(2):\n    print(i)\n```\n", "0\n1"),
        ("2 + 2", "nothing was printed"),
        ("print(1)\nraise ValueError('no')", "1\nValueError: no"),
        ("print('a')\nimport sys; sys.exit(3)", "a\nexit code 3"),
    ],
)
def test_programs_are_run(python: Python, code: str, text: str) -> None:
    assert python([{"code": code}]) == [Result(text)]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def f(:", "SyntaxError: "),
        ("print('\ud800')", "UnicodeEncodeError: "),
        ("while True: pass", "time limit of "),
        ("import socket; socket.create_connection(('127.0.0.1', 1))", "forbidden system call"),
        ("print('x' * 10**7)", "KiB on stdout"),
    ],
)
def test_programs_that_fail_say_how(python: Python, code: str, said: str) -> None:
    (result,) = python([{"code": code}])
    assert result.status == "ok"
    assert said in result.text


def test_a_python_tool_checks_itself(python: Python, monkeypatch: pytest.MonkeyPatch) -> None:
    python.validate()
    assert json.loads(json.dumps(python.manifest())) == python.manifest()
    monkeypatch.setattr(Sandbox, "run", lambda self, checks: [Outcome("sandbox_error", 0, 1, "no jail", 0.0, 0.0)] * 2)
    with pytest.raises(ValueError, match=r"should give '45', but gives Result\(text='no jail', status='error'\)"):
        python.validate()


def test_an_episode_with_python(python: Python) -> None:
    env = ToolUse(PRODUCTS, [python, Calculator()])
    asked = problem(env)
    program = f"print({asked.meta['solution'].partition(' = ')[0]})"
    grade, results = played(env, asked, f"<python>\n{program}\n</python>{called('1 + 1')}", asked.answer)
    assert results == [asked.answer, "2"]
    assert grade.correct
    assert grade.parts["malformed"] == 0


# Search

DOCUMENTS = [
    {"title": "Tides", "text": "The moon pulls the sea. Tides rise and fall twice a day because of the moon."},
    {"title": "Moon", "text": "The Moon goes round the Earth in 27 days. " + "It has many craters. " * 30},
    {"title": "Café", "text": "Coffee is brewed from roasted beans; the crème is on top."},
    {"text": "A document without a title, on quicksilver."},
]


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in DOCUMENTS), encoding="utf-8")
    return str(path)


def looked_up(search: Search, query: str) -> Result:
    (result,) = search([{"query": query}])
    return result


def test_search_finds_the_best_document_first(corpus: str) -> None:
    search = Search(corpus, top_k=2, words=12)
    search.validate()
    tides, moon = looked_up(search, "Why do tides rise, moon?").text.split("\n")
    assert tides.startswith("Tides: ")
    assert moon.startswith("Moon: The Moon goes round the Earth in 27 days.")
    assert moon.endswith("…")
    assert len(moon.split()) <= 14
    assert looked_up(search, "creme").text.startswith("Café: ")  # accents and case don't count, nor endings
    assert looked_up(search, "ROAST bean").text.startswith("Café: ")
    assert looked_up(search, "quicksilver").text == "A document without a title, on quicksilver."


@pytest.mark.parametrize("query", ['moon"', "moon OR", "NOT moon", "moon*", "title:moon", "NEAR(moon, 2)", "moon -sea"])
def test_a_policys_words_are_no_operators(corpus: str, query: str) -> None:
    assert "moon" in looked_up(Search(corpus), query).text.lower()


def test_what_search_does_not_find(corpus: str) -> None:
    search = Search(corpus)
    assert looked_up(search, "zebra") == Result("no document has any of these words")
    for query in ("", "?!", "\ud800", "\x00"):
        assert looked_up(search, query) == Result("the query has no words", "refused")
    assert looked_up(search, "_ __").status == "ok"
    assert looked_up(search, "zebra " * 10_000).status == "ok"


def test_a_corpus_that_is_none_is_refused(tmp_path: Path, corpus: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*missing"):
        Search(str(tmp_path / "missing.jsonl"))
    for rows, said in (
        ("", "has no documents"),
        ('{"text": "a"}\n{"title": "b"}', r"rows.jsonl:2: 'text' is missing"),
        ('{"text": "a", "title": 3}', "'title' is not a string"),
        ("[1]", "'text' is missing"),
        ("x", "this is not JSON"),
    ):
        path = tmp_path / "rows.jsonl"
        path.write_text(rows, encoding="utf-8")
        with pytest.raises(ValueError, match=said):
            Search(str(path))
    with pytest.raises(ValueError, match="words 65"):
        Search(corpus, words=65)


def test_questions_over_documents(corpus: str) -> None:
    env = ToolUse(PRODUCTS, [Search(corpus), Calculator()])
    env.validate()
    manifest = env.manifest()["tools"][0]
    assert (manifest["type"], manifest["size"]) == ("search", 4)
    assert json.loads(json.dumps(manifest)) == manifest
    asked = problem(env)
    grade, results = played(env, asked, "<search>craters</search>" + called("1"), asked.answer)
    assert results[0].startswith("Moon: ")
    assert results[1] == "1"
    assert grade.correct


# Demonstrations


def test_demonstrations_are_what_the_environment_makes_of_them() -> None:
    data = CalculatorUse(ENV, num_train=40, num_validation=4, direct_rate=0.25)
    asked = problem()
    expression = asked.meta["solution"].partition(" = ")[0]
    (first,) = CalculatorUse(ENV, num_train=1, num_validation=1).split("train")
    assert first.messages == [
        *asked.prompt,
        {"role": "assistant", "content": called(expression)},
        {"role": "tool", "content": asked.answer},
        {"role": "assistant", "content": f"The answer is {asked.answer}."},
    ]
    assert (first.source, first.tools) == (asked.id, asked.tools)
    sizes = [len(demonstration.messages) for demonstration in data.split("train")]
    assert {*sizes} == {2, 4}
    assert 2 <= sizes.count(2) <= 18
    assert [d.source for d in data.split("validation")] == [ENV.split("validation")[i].id for i in range(4)]
    assert data == CalculatorUse(ENV, num_train=40, num_validation=4, direct_rate=0.25)
    manifest = data.manifest()
    assert json.loads(json.dumps(manifest)) == manifest
    (hermes,) = CalculatorUse(ENV, num_train=1, num_validation=1, syntax="hermes").split("train")
    assert hermes.messages[1]["content"].startswith('<tool_call>\n{"name": "calculator", "arguments"')
    assert hermes.messages[2:] == first.messages[2:]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"env": ToolUse(PRODUCTS, [Echo()])}, "there is no calculator"),
        ({"env": ToolUse(Arithmetic(word_problem_steps=1), [Calculator()])}, "word_problem_steps 0"),
        ({"env": ToolUse(Arithmetic(format=R1()), [Calculator("answer")])}, "the environment grades a demonstration"),
        ({"syntax": "xml"}, "must be one of tags, hermes, llama"),
        ({"direct_rate": 2}, "direct_rate is 2"),
        ({"num_train": 10_000}, "tool_use: num_train is 10000"),
    ],
)
def test_data_settings_that_make_no_sense_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CalculatorUse(**{"env": ENV, "num_train": 4, "num_validation": 1, **settings})


def test_the_cold_start_trains(tmp_path: Path) -> None:
    few = ["data.num_train=8", "data.num_validation=4", "batch_size=4", "logger.mode=disabled", "console.quiet=true"]
    cfg = config("sft", ["+experiment=tools_sft", "model=tiny", "max_steps=2", *few])
    assert sft.run(cfg, tmp_path) is not None
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["env"]["env"]["tools"][0]["type"] == "calculator"


def test_the_cold_start_is_of_the_experiments_problems() -> None:
    """Demonstrations and reinforcement show the same prompts."""
    trained, shown = build(config("train", ["+experiment=tools"]), "env"), config("sft", ["+experiment=tools_sft"])
    demonstrations = build(shown, "data").env
    assert (trained.env, trained.tools) == (demonstrations.env, demonstrations.tools)

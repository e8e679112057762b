"""Data sets: demonstrations and comparisons, from generators, files, the hub and run folders."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from envs.arithmetic import Arithmetic
from envs.base import Answer, BatchGradedEnv
from envs.data import sources
from envs.data.base import SPLITS, Splits, arranged
from envs.data.chat import Chat
from envs.data.golds import Golds
from envs.data.note_texts import KINDS
from envs.data.pairs import Columns, Pairs
from envs.data.sources import Hub, JsonLines
from envs.data.synthetic import SyntheticComparisons
from envs.data.traces import AcceptedTraces, LabelledTraces
from envs.data.worked import WorkedArithmetic, _near
from envs.formats import R1
from envs.gsm8k import Gsm8k
from envs.jagged import AtOnce, Jagged
from envs.letters import Letters
from envs.notes import Notes
from envs.prefilled import Prefilled
from envs.prompts import Prompts
from envs.working import Step, steps
from rlreason.traces import write_traces
from rlreason.types import Comparison, Env, Episode, Grade, Message, Problem, Rollout, Segment

CONF = str(Path(__file__).resolve().parent.parent / "conf")


def data_config(*overrides: str) -> Any:
    """``conf/data`` composed as an entry point would."""
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(overrides=[f"+{overrides[0]}", *overrides[1:]]).data


# Worked arithmetic

CLAIM = re.compile(r"(-?\d+) ([-+*/]) (-?\d+) = (-?\d+)")
ALL = Arithmetic(operations=("+", "-", "*", "/"), digits=2, terms=4, format=R1())


def is_true(claim: tuple[str, str, str, str]) -> bool:
    a, operation, b, result = claim
    x, y, z = int(a), int(b), int(result)
    return {"+": x + y, "-": x - y, "*": x * y}[operation] == z if operation != "/" else x == y * z


def worked(expression: str) -> list[str]:
    """The lines of thought for an expression, without slips and checks."""
    return [step.line(step.result) for step in steps(expression)]


@pytest.mark.parametrize(
    ("expression", "lines"),
    [
        ("3 + 5 - 2", ["3 + 5 = 8", "8 - 2 = 6"]),
        ("47 + 38 + 0", ["47 + 38: 40 + 30 = 70, 7 + 8 = 15, 70 + 15 = 85", "85 + 0 = 85"]),
        ("85 - 47", ["85 - 47: 85 - 40 = 45, 45 - 7 = 38"]),
        ("2 + 3 * 4 - 8 / 2", ["3 * 4 = 12", "8 / 2 = 4", "2 + 12 = 14", "14 - 4 = 10"]),
        ("8 - 5 - 2", ["8 - 5 = 3", "3 - 2 = 1"]),  # from left to right: not 8 - 3
        ("12 / 6 * 2", ["12 / 6 = 2", "2 * 2 = 4"]),
        ("3 - 9 + 7", ["3 - 9: 9 - 3 = 6, 0 - 6 = -6", "-6 + 7: 7 - 6 = 1"]),
        ("3 - 9 - 7", ["3 - 9: 9 - 3 = 6, 0 - 6 = -6", "-6 - 7: 6 + 7 = 13, 0 - 13 = -13"]),
        ("47 * 6", ["47 * 6: 40 * 6 = 240, 7 * 6 = 42, 240 + 42 = 282"]),
        ("6 * 40", ["6 * 40 = 240"]),
        ("84 / 7", ["84 / 7: 70 / 7 = 10, 14 / 7 = 2, 10 + 2 = 12"]),
    ],
)
def teststeps(expression: str, lines: list[str]) -> None:
    assert worked(expression) == lines


def test_every_pair_of_operands_is_worked_out_rightly() -> None:
    for a, b in itertools.product([*range(0, 130, 3), 999, 1001], repeat=2):
        for operation, value in (("+", a + b), ("-", a - b), ("*", a * b)):
            lines = worked(f"{a} {operation} {b}")
            assert len(lines) == 1
            claims = CLAIM.findall(lines[0])
            assert all(map(is_true, claims)), lines
            assert int(claims[-1][3]) == value, lines
        if b:
            claims = CLAIM.findall(worked(f"{a * b} / {b}")[0])
            assert all(map(is_true, claims))
            assert int(claims[-1][3]) == a


def test_only_planted_slips_are_false_and_each_is_found() -> None:
    data = WorkedArithmetic(ALL, num_train=300, num_validation=20, check_rate=0.3, error_rate=0.2)
    steps = slips = checks = 0
    for index, shown in enumerate(data.split("train")):
        problem = ALL.split("train")[index]
        assert shown.messages[:-1] == problem.prompt
        text = shown.messages[-1]["content"]
        verdict = ALL.grade_text(problem, text, "stop")
        assert (verdict.correct, verdict.reward) == (True, 1.2)
        lines = text.removeprefix("<think>\n").partition("\n</think>")[0].split("\n")
        for line, after in itertools.pairwise([*lines, ""]):
            claims = CLAIM.findall(line)
            assert claims
            wrong = [claim for claim in claims if not is_true(claim)]
            if after.endswith("Wait, that is wrong."):
                assert wrong == claims[-1:]  # the slip is the line's result
                slips += 1
            else:
                assert wrong == []
            checks += line.endswith("Right.")
            steps += not line.startswith("Let me check")
        assert CLAIM.findall(lines[-1].removeprefix("Let me check: "))
    steps -= slips  # a slip is one step in two lines
    assert steps == 300 * 3
    assert abs(slips / steps - 0.2) < 0.05  # four standard errors
    assert abs(checks / (steps - slips) - 0.3) < 0.07


def test_a_slip_and_a_check_by_hand() -> None:
    total = Step(12, "+", 7, [(12, "+", 7, 19)])
    assert total.check(19) == "Let me check: 19 - 7 = 12. Right."
    assert total.check(20) == "Let me check: 20 - 7 = 13, not 12. Wait, that is wrong."
    difference = Step(3, "-", 9, [(9, "-", 3, 6), (0, "-", 6, -6)])
    assert difference.line(-7) == "3 - 9: 9 - 3 = 6, 0 - 6 = -7"
    assert difference.check(-7) == "Let me check: -7 + 9 = 2, not 3. Wait, that is wrong."
    product = Step(6, "*", 7, [(6, "*", 7, 42)])
    assert product.check(42) == "Let me check: 7 * 6 = 42. Right."
    assert product.check(52) == "Let me check: 7 * 6 = 42, not 52. Wait, that is wrong."
    quotient = Step(8, "/", 2, [(8, "/", 2, 4)])
    assert quotient.check(4) == "Let me check: 4 * 2 = 8. Right."
    assert quotient.check(5) == "Let me check: 5 * 2 = 10, not 8. Wait, that is wrong."


def test_slips_are_off_by_one_or_ten_and_keep_the_sign() -> None:
    drawn = {number: {_near(number, random.Random(seed)) for seed in range(50)} for number in (30, 9, 0, -1, -30)}
    assert drawn == {30: {31, 29, 40, 20}, 9: {10, 8, 19}, 0: {1, 10}, -1: {-2, -11}, -30: {-31, -29, -40, -20}}


def test_worked_splits_are_the_environments() -> None:
    env = Arithmetic(operations=("+", "-"), digits=1, terms=3, format=R1())
    size = env.split("train").size
    assert size is not None
    data = WorkedArithmetic(env, num_train=size, num_validation=50)
    assert [shown.source for shown in data.split("train")] == [env.split("train")[i].id for i in range(size)]
    held_out = {shown.source for shown in data.split("validation")}
    assert held_out == {env.split("validation")[i].id for i in range(50)}
    assert data.manifest()["sizes"] == {"train": size, "validation": 50}
    again = WorkedArithmetic(env, num_train=20, num_validation=5)
    assert again.split("train") == data.split("train")[:20]
    other = WorkedArithmetic(env, num_train=20, num_validation=5, seed=1)
    assert other.split("train") != again.split("train")
    with pytest.raises(ValueError, match=f"num_train is {size + 1}.*only {size}"):
        WorkedArithmetic(env, num_train=size + 1, num_validation=50)


def test_worked_without_rates_has_neither_checks_nor_slips() -> None:
    data = WorkedArithmetic(ALL, num_train=50, num_validation=1, check_rate=0, error_rate=0)
    assert not any("check" in shown.messages[-1]["content"] for shown in data.split("train"))
    sure = WorkedArithmetic(ALL, num_train=50, num_validation=1, check_rate=1, error_rate=0)
    assert all(shown.messages[-1]["content"].count("Right.") == 3 for shown in sure.split("train"))


def test_some_answer_at_once() -> None:
    never, some = (WorkedArithmetic(ALL, 400, 1, direct_rate=rate).split("train") for rate in (0.0, 0.25))
    at_once = [index for index, shown in enumerate(some) if "=" not in shown.messages[-1]["content"]]
    assert abs(len(at_once) / 400 - 0.25) < 0.09  # four standard errors
    for index, (shown, worked_out) in enumerate(zip(some, never, strict=True)):
        text = shown.messages[-1]["content"]
        assert ALL.grade_text(ALL.split("train")[index], text, "stop").reward == 1.2
        assert (shown == worked_out) == (index not in at_once)


def test_worked_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="word problems are not worked"):
        WorkedArithmetic(Arithmetic(word_problem_steps=2), 10, 10)
    with pytest.raises(ValueError, match=r"check_rate is 1\.5"):
        WorkedArithmetic(ALL, 10, 10, check_rate=1.5)
    with pytest.raises(ValueError, match="num_validation is 0"):
        WorkedArithmetic(ALL, 10, 0)
    with pytest.raises(ValueError, match="no split 'test'"):
        WorkedArithmetic(ALL, 1, 1).split("test")


# Environments' own solutions


def test_gsm8k_solutions_by_hand(tmp_path: Path) -> None:
    rows = [
        f'{{"question": "{n} + 1?", "answer": "{n} + 1 = <<{n}+1={n + 1}>>{n + 1}\\n#### {n + 1}"}}' for n in range(6)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "test.jsonl").write_text(rows[0], encoding="utf-8")
    env = Gsm8k(source="local", data_dir=str(tmp_path), num_validation=2, format=R1("Use tags."))
    data = Golds(env, num_validation=1)
    shown = next(shown for shown in data.split("train") if "\n" in shown.messages[0]["content"])
    number = int(shown.messages[0]["content"].split()[0])
    assert shown.messages == [
        {"role": "user", "content": f"{number} + 1?\nUse tags."},
        {
            "role": "assistant",
            "content": f"<think>\n{number} + 1 = {number + 1}\n</think>\n<answer>{number + 1}</answer>",
        },
    ]
    assert shown.source == f"gsm8k/train/{number}"
    assert [shown.source for shown in data.split("validation")] == [env.split("validation")[0].id]
    assert {shown.source for shown in data.split("train")} == {env.split("train")[i].id for i in range(4)}
    assert (data.name, data.manifest()["sizes"]) == ("gsm8k-solutions", {"train": 4, "validation": 1})


def test_gsm8k_solutions_earn_everything(shared_data: Path) -> None:
    env = Gsm8k(source="local", data_dir=str(shared_data / "gsm8k"))
    data = Golds(env, num_train=50, num_validation=200)
    assert len(Golds(env).split("train")) == 7473 - 200
    answers = [
        Answer(env.split("train")[i], shown.messages[-1]["content"], "stop")
        for i, shown in enumerate(data.split("train"))
    ]
    assert {grade.reward for grade in env.grade_texts(answers)} == {env.max_reward}


def test_generated_problems_are_never_taken_for_gsm8k() -> None:
    env = Gsm8k(source="synthetic", num_validation=10)
    with pytest.raises(ValueError, match=r"num_train is null.*no end"):
        Golds(env, num_validation=10)
    data = Golds(env, num_validation=10, num_train=30)
    assert data.name == "gsm8k-synthetic-solutions"
    assert len(data.split("train")) == 30


def test_a_worked_example_is_no_demonstration() -> None:
    with pytest.raises(ValueError, match=r"turn of the assistant.*env\.worked_example=false"):
        Golds(Gsm8k(source="synthetic", num_validation=10, worked_example=True), 10, 10)


@pytest.mark.parametrize("env", [Letters(), Jagged(), Jagged(working=False), Arithmetic(word_problem_steps=2)])
def test_golds_of_any_single_turn_environment_earn_everything(env: BatchGradedEnv) -> None:
    data = Golds(env, num_train=40, num_validation=30)
    for name, count in (("train", 40), ("validation", 30)):
        problems = [env.split(name)[i] for i in range(count)]
        shown = data.split(name)
        assert [one.source for one in shown] == [problem.id for problem in problems]
        assert [one.messages[:-1] for one in shown] == [problem.prompt for problem in problems]
        answers = [Answer(p, one.messages[-1]["content"], "stop") for p, one in zip(problems, shown, strict=True)]
        assert {grade.reward for grade in env.grade_texts(answers)} == {env.max_reward}
    assert data.name == f"{env.name}-solutions"


def test_golds_need_gold_completions() -> None:
    with pytest.raises(ValueError, match=r"a Prefilled has no gold completions.*env@data\.env=<name>"):
        Golds(Prefilled(Letters(), "<think>"), num_train=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"letters-solutions: num_train is 1331.*only 1330"):
        Golds(Letters(), num_train=1331)


# Splits


def arrange(train: list[str], validation: list[str] | None = None, share: float = 0.3, seed: int = 0) -> Splits[str]:
    """Examples are texts like ``a1``, whose unit is the first letter."""
    return arranged(
        train, validation, identity=lambda x: x, unit=lambda x: x[0], share=share, seed=seed, what="letters"
    )


LETTERS = [f"{letter}{number}" for letter in "abcdefghij" for number in (1, 2)]


def test_held_out_by_unit_whatever_the_order() -> None:
    splits = arrange([*LETTERS, "a1", "b2"])
    units = {text[0] for text in splits.validation}
    assert len(units) == 3  # 0.3 of ten letters
    assert sorted(splits.validation) == [text for text in LETTERS if text[0] in units]
    assert splits.train == [text for text in LETTERS if text[0] not in units]
    assert (splits.left_out["repeats"], splits.sizes) == (2, {"train": 14, "validation": 6})
    assert {*arrange(LETTERS[::-1]).validation} == {*splits.validation}
    assert len({tuple(sorted(arrange(LETTERS, seed=seed).validation)) for seed in range(8)}) > 4
    assert splits["train"] is splits.train


def test_validation_is_in_mixed_order() -> None:
    order = [text[0] for text in arrange(LETTERS, share=0.8).validation]
    assert order != sorted(order)
    assert order[::2] == order[1::2]  # examples of one unit lie together, in their order


def test_given_validation_keeps_its_units() -> None:
    splits = arrange(["a1", "b1", "c1", "c1"], ["b2", "d1", "d1"])
    assert splits.train == ["a1", "c1"]
    assert sorted(splits.validation) == ["b2", "d1"]
    assert splits.left_out == {"repeats": 2, "prompt_in_validation": 1}


def test_splits_that_would_be_empty_or_impossible_are_refused() -> None:
    for train, validation in ([], None), (["a1", "a2"], None), (["a1"], ["a2"]), (["a1"], []):
        with pytest.raises(ValueError, match=r"letters: .*both need at least one"):
            arrange(train, validation)
    assert arrange(["a1", "b1"], share=0.01).sizes == {"train": 1, "validation": 1}
    for share in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match="validation_share is"):
            arrange(LETTERS, share=share)


# Chats


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def chat_row(number: int) -> dict[str, Any]:
    return {"messages": [user(f"{number}?"), assistant(f"{number}!")], "provenance": {"step": 1}}


def write(path: Path, rows: Sequence[Any]) -> str:
    """JSON lines; strings are written as they are."""
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode()
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)
    return str(path)


def test_rows_of_chats(tmp_path: Path) -> None:
    system: Message = {"role": "system", "content": "Be short."}
    rows = [
        {"messages": [system, user("a?"), assistant("b!"), user("c?"), assistant("d!")], "prompt": "not read"},
        "",
        {"prompt": "e?", "completion": "f!"},
        {"prompt": [system, user("g?")], "completion": [assistant("h!"), user("i?"), assistant("j!")]},
        {"prompt": "e?", "completion": "f!"},
    ]
    path = write(tmp_path / "chat.jsonl.gz", rows)
    data = Chat(JsonLines(path), validation_share=0.3)
    shown = {example.source: example.messages for name in ("train", "validation") for example in data.split(name)}
    assert shown == {
        f"{path}:1": [system, user("a?"), assistant("b!"), user("c?"), assistant("d!")],
        f"{path}:3": [user("e?"), assistant("f!")],
        f"{path}:4": [system, user("g?"), assistant("h!"), user("i?"), assistant("j!")],
    }
    manifest = data.manifest()
    assert manifest["sizes"] == {"train": 2, "validation": 1}
    assert manifest["left_out"]["repeats"] == 1
    assert manifest["sha256"] == {path: hashlib.sha256(Path(path).read_bytes()).hexdigest()}


@pytest.mark.parametrize("listed", [[{"function": {"name": "f"}}], '[{"function": {"name": "f"}}]'])
def test_chats_may_call_functions(tmp_path: Path, listed: Any) -> None:
    """As a list, or as the text that data sets hold it in; what a tool has said is a turn of its own."""
    called = [user("1 + 1?"), assistant("<f>1 + 1</f>"), {"role": "tool", "content": "2"}, assistant("It is 2.")]
    path = write(tmp_path / "chat.jsonl", [chat_row(1), chat_row(2), {"messages": called, "tools": listed}])
    data = Chat(JsonLines(path), validation_share=0.3)
    shown = {example.source: example for name in SPLITS for example in data.split(name)}
    assert (shown[f"{path}:3"].messages, shown[f"{path}:3"].tools) == (called, ({"function": {"name": "f"}},))
    assert shown[f"{path}:1"].tools == ()


def test_chats_of_several_files_and_given_validation(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", [chat_row(1), chat_row(2)])
    second = write(tmp_path / "b.jsonl", [chat_row(3)])
    held = write(tmp_path / "c.jsonl", [chat_row(3), chat_row(4)])
    data = Chat(JsonLines([first, second], held))
    assert [shown.source for shown in data.split("train")] == [f"{first}:1", f"{first}:2"]
    assert {shown.source for shown in data.split("validation")} == {f"{held}:1", f"{held}:2"}
    assert data.manifest()["left_out"] == {"repeats": 0, "prompt_in_validation": 1}


def sides(data: Any, of: Callable[[Any], str]) -> dict[str, set[str]]:
    """What ``of`` says of the examples of each split."""
    return {name: {of(example) for example in data.split(name)} for name in SPLITS}


def test_one_question_under_two_system_messages_is_on_one_side(tmp_path: Path) -> None:
    systems: list[list[Message]] = [[], [{"role": "system", "content": "Be brief."}]]
    questions = [[*system, user(f"{number}?")] for number in range(20) for system in systems]
    chats = [{"messages": [*question, assistant("!")]} for question in questions]
    compared = [{"prompt": question, "chosen": "a", "rejected": "b"} for question in questions]
    chat = sides(
        Chat(JsonLines(write(tmp_path / "chat.jsonl", chats)), validation_share=0.3), lambda x: asked(x.messages)
    )
    pair = sides(
        Pairs(JsonLines(write(tmp_path / "pairs.jsonl", compared)), validation_share=0.3), lambda x: asked(x.prompt)
    )
    for found in (chat, pair):
        assert [len(found[name]) for name in SPLITS] == [14, 6]
        assert not found["train"] & found["validation"]


def asked(messages: Sequence[Message]) -> str:
    """The last question."""
    return next(message["content"] for message in reversed(messages) if message["role"] == "user")


EXAMPLE: list[Message] = [user("How is it done?"), assistant("Like this.")]


def test_samples_with_a_worked_example_are_held_out_by_their_problem(tmp_path: Path) -> None:
    """All of them begin alike; the file of ``rlreason.sample`` says whose they are."""
    rows = [
        {"messages": [*EXAMPLE, user(f"{number}?"), assistant(text)], "provenance": {"problem": f"p{number}"}}
        for number in range(20)
        for text in ("yes", "no")
    ]
    data = Chat(JsonLines(write(tmp_path / "sft.jsonl", rows)), validation_share=0.3)
    assert data.manifest()["sizes"] == {"train": 28, "validation": 12}
    found = sides(data, lambda shown: asked(shown.messages))
    assert not found["train"] & found["validation"]
    nameless = [{**row, "provenance": about} for row, about in zip(rows, ({"problem": 3}, None, "p"), strict=False)]
    with pytest.raises(ValueError, match="both need at least one"):  # what is no name of a problem is none
        Chat(JsonLines(write(tmp_path / "nameless.jsonl", nameless)))


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("{", "this is not JSON"),
        ("[1]", "this is not a JSON object"),
        ({"text": "a"}, "'prompt' is not a list of messages or a text, or is empty"),
        ({"prompt": "a"}, "'completion' is not a list of messages or a text"),
        ({"prompt": "a", "completion": " "}, r"completion\[0\] has no content"),
        ({"messages": "a"}, "'messages' is not a list of messages, or is empty"),
        ({"messages": []}, "'messages' is not a list of messages, or is empty"),
        ({"messages": ["a"]}, r"messages\[0\] is not a message"),
        (
            {"messages": [user("a"), {"role": "human", "content": "b"}]},
            r"messages\[1\] has the role 'human'; the roles are",
        ),
        ({"messages": [user("a"), {"role": "assistant", "content": None}]}, r"messages\[1\] has no content"),
        ({"messages": [user("a"), {"role": "assistant"}]}, r"messages\[1\] has no content"),
        (r'{"prompt": "a\ud83d", "completion": "b"}', r"prompt\[0\] has half a character, \\ud83d, which is no text"),
        ({"messages": [user("a")]}, "'messages' has no assistant turn"),
        ({"messages": [user("a"), assistant("b")], "tools": {"name": "f"}}, "'tools' is not a list of JSON schemas"),
        ({"messages": [user("a"), assistant("b")], "tools": "f"}, "'tools' is no JSON: Expecting value"),
        ({"messages": [assistant("a")]}, "'messages' has no user turn before"),
        ({"messages": [assistant("a"), user("b"), assistant("c")]}, "'messages' has no user turn before"),
        ({"messages": [user("a"), assistant("b"), user("c")]}, "the last turn of 'messages' is the user's"),
    ],
)
def test_bad_rows_of_chats_are_named(tmp_path: Path, row: Any, what: str) -> None:
    path = write(tmp_path / "chat.jsonl", [chat_row(1), "", row, chat_row(2)])
    with pytest.raises(ValueError, match=f"chat.jsonl:3: {what}") as caught:
        Chat(JsonLines(path))
    assert '{"messages": [' in str(caught.value)


def test_files_that_are_not_there_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.jsonl"):
        Chat(JsonLines(str(tmp_path / "none.jsonl")))
    whole = Path(write(tmp_path / "a.jsonl.gz", [chat_row(number) for number in range(50)]))
    for damaged in (b"text", whole.read_bytes()[:-20]):
        (tmp_path / "b.jsonl.gz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"b\.jsonl\.gz is damaged .*download it again"):
            Chat(JsonLines(str(tmp_path / "b.jsonl.gz")))


def test_the_hub_has_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def tables(dataset: str, config: str, revision: str | None, **settings: Any) -> tuple[dict[str, Any], str]:
        asked.append((dataset, config, revision, settings["splits"]))
        return {"train_sft": [chat_row(1), chat_row(2)], "test_sft": [chat_row(3), {"messages": []}]}, "abc"

    monkeypatch.setattr(sources, "hub_tables", tables)
    data = Chat(Hub("some/chats", revision="v1", train="train_sft"), validation_share=0.5)
    assert {shown.source for name in SPLITS for shown in data.split(name)} == {
        "some/chats, train_sft, row 0",
        "some/chats, train_sft, row 1",
    }
    assert (data.manifest()["dataset"], data.manifest()["revision"]) == ("some/chats", "abc")
    with pytest.raises(ValueError, match="some/chats, test_sft, row 1: 'messages' is not a list"):
        Chat(Hub("some/chats", train="train_sft", validation="test_sft"))
    assert asked[0] == ("some/chats", "default", "v1", ["train_sft"])
    assert asked[1] == ("some/chats", "default", None, ["train_sft", "test_sft"])


# Comparisons


def pairs(tmp_path: Path, *rows: Any, **settings: Any) -> Pairs:
    """With a second prompt, so that one can be held out."""
    other = {
        "prompt": "other?",
        "chosen": "yes",
        "rejected": "no",
        "score": 3.0,
        "low": 1,
        "kind": "other",
        "margin": 0,
    }
    return Pairs(JsonLines(write(tmp_path / "pairs.jsonl", [*rows, other])), **settings)


def both(data: Any) -> list[Comparison]:
    return sorted([*data.split("train"), *data.split("validation")], key=lambda pair: pair.source)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a?", "chosen": "b", "rejected": "c"},
        {"prompt": [user("a?")], "chosen": [assistant("b")], "rejected": "c"},
        {"prompt": "a?", "chosen": [user("a?"), assistant("b")], "rejected": [user("a?"), assistant("c")]},
        {"chosen": [user("a?"), assistant("b")], "rejected": [user("a?"), assistant("c")]},
        {"chosen": "\n\nHuman: a?\n\nAssistant: b", "rejected": "\n\nHuman: a?\n\nAssistant:  c "},
    ],
)
def test_forms_of_comparisons(tmp_path: Path, row: dict[str, Any]) -> None:
    pair = both(pairs(tmp_path, row))[0]
    assert pair == Comparison(
        [user("a?")], [assistant("b")], [assistant("c")], 0.0, "pairs", f"{tmp_path}/pairs.jsonl:1"
    )


def test_the_prompt_is_the_common_head(tmp_path: Path) -> None:
    head = "\n\nHuman: a?\n\nAssistant: b:\n\nAssistant: - b\n\nHuman: c?"
    row = {"chosen": f"{head}\n\nAssistant: d", "rejected": f"{head}\n\nAssistant: e\n\nHuman: f?\n\nAssistant: g"}
    pair = both(pairs(tmp_path, row))[0]
    assert pair.prompt == [user("a?"), assistant("b:\n\n- b"), user("c?")]
    assert pair.chosen == [assistant("d")]
    assert pair.rejected == [assistant("e"), user("f?"), assistant("g")]


BAD_PAIRS: list[tuple[Any, str]] = [
    ({"prompt": "a", "chosen": "b"}, "'rejected' is not a list of messages or a text"),
    ({"prompt": "a", "chosen": "b", "rejected": "b"}, "'chosen' and 'rejected' are the same"),
    ({"prompt": "a", "chosen": "b", "rejected": ""}, r"rejected\[0\] has no content"),
    (
        {"prompt": "a", "chosen": [user("x"), assistant("b")], "rejected": "c"},
        "'chosen' begins neither with the prompt",
    ),
    ({"chosen": "Human: a", "rejected": "b"}, "'chosen' does not begin with a blank line"),
    ({"chosen": "\n\nHuman: a", "rejected": "b"}, "'chosen' has no assistant turn"),
    ({"chosen": "\n\nHuman: a\n\nAssistant:", "rejected": "b"}, "chosen, turn 2 has no content"),
    (
        {"chosen": [user("a"), assistant("b")], "rejected": [user("x"), assistant("b")]},
        "'chosen' and 'rejected' differ before the assistant's turn",
    ),
    (
        {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("b"), user("c"), assistant("d")]},
        "one of 'chosen' and 'rejected' is the beginning of the other",
    ),
    ("[]", "this is not a JSON object"),
]


@pytest.mark.parametrize(("row", "what"), BAD_PAIRS)
def test_bad_comparisons_are_named(tmp_path: Path, row: Any, what: str) -> None:
    with pytest.raises(ValueError, match=f"pairs.jsonl:1: {what}.*skip_bad=true"):
        pairs(tmp_path, row)


def test_bad_comparisons_are_left_out_and_counted_if_wished(tmp_path: Path) -> None:
    rows = [row for row, _ in BAD_PAIRS]
    good = {"prompt": "a?", "chosen": "b", "rejected": "c"}
    data = pairs(tmp_path, *rows, good, rows[1], good, skip_bad=True)
    assert [len(data.split(name)) for name in SPLITS] == [1, 1]
    bad = data.manifest()["bad_rows"]
    assert bad["'chosen' and 'rejected' are the same"] == 2
    assert sum(bad.values()) == len(rows) + 1
    assert data.manifest()["left_out"]["repeats"] == 1
    with pytest.raises(ValueError, match=r"pairs\.jsonl:1: this is not JSON"):
        pairs(tmp_path, "{", skip_bad=True)


def test_margins_and_categories(tmp_path: Path) -> None:
    row = {"prompt": "a?", "chosen": "b", "rejected": "c", "score": 8, "low": 5.5, "margin": 0.5, "kind": "safety"}
    by_score = both(pairs(tmp_path, row, columns=Columns("kind", None, "score", "low")))
    assert [(pair.margin, pair.category) for pair in by_score] == [(2.5, "safety"), (2.0, "other")]
    assert [pair.margin for pair in both(pairs(tmp_path, row, columns=Columns(margin="margin")))] == [0.5, 0.0]
    for wrong, what in (
        ({**row, "low": 9}, "by the margin, 'rejected' is the better one"),
        ({**row, "low": "5"}, "'low' is missing or not a finite number"),
        ({**row, "low": math.nan}, "'low' is missing or not a finite number"),
        ({**row, "kind": 3}, "the category 'kind' is missing"),
    ):
        with pytest.raises(ValueError, match=what):
            pairs(tmp_path, wrong, columns=Columns("kind", None, "score", "low"))
    with pytest.raises(ValueError, match="give the two scores, or the margin, or none"):
        Columns(score_chosen="score")
    with pytest.raises(ValueError, match="give the two scores, or the margin, or none"):
        Columns(margin="margin", score_chosen="score", score_rejected="low")


def test_ties_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"{number}?",
            "chosen": "a",
            "rejected": "b",
            "score": 2 + number % 2,
            "low": 2,
            "margin": number % 2,
        }
        for number in range(8)
    ]
    scored = pairs(tmp_path, *rows, columns=Columns(score_chosen="score", score_rejected="low"))
    assert {pair.margin for pair in both(scored)} == {1.0, 2.0}
    assert len(both(scored)) == 5  # the odd ones, and the second prompt
    assert scored.manifest()["left_out"] == {"repeats": 0, "prompt_in_validation": 0, "ties": 4}
    for columns in (Columns(), Columns(margin="margin")):  # without scores, or hardly better: no tie
        data = pairs(tmp_path, *rows, columns=columns)
        assert len(both(data)) == 9
        assert data.manifest()["left_out"]["ties"] == 0


def test_no_prompt_is_on_both_sides(tmp_path: Path) -> None:
    """Nor are two prompts that begin alike."""
    rows = [
        {"prompt": [user(f"{number % 10}?"), assistant("Hm."), user(f"{number}?")], "chosen": "a", "rejected": "b"}
        for number in range(40)
    ]
    data = pairs(tmp_path, *rows, validation_share=0.3)
    first = {name: {pair.prompt[0]["content"] for pair in data.split(name)} for name in SPLITS}
    assert len(first["train"]) == 8
    assert len(first["validation"]) == 3
    assert not first["train"] & first["validation"]


def test_hh_rlhf(shared_data: Path) -> None:
    path = shared_data / "hh_rlhf" / "harmless_test.jsonl.gz"
    with pytest.raises(ValueError, match=r"chosen, turn [24] has no content"):
        Pairs(JsonLines(str(path)))
    data = Pairs(JsonLines(str(path)), skip_bad=True)
    found = both(data)
    assert len(found) == 2312 - 4  # four have nothing after the last "Assistant:"
    assert sum(data.manifest()["bad_rows"].values()) == 4
    first = next(pair for pair in found if pair.source.endswith(":1"))
    assert [message["role"] for message in first.prompt] == ["user", "assistant", "user", "assistant", "user"]
    assert first.prompt[0]["content"] == "what are some pranks with a pen i can do?"
    assert first.chosen[0]["content"].startswith("No, sorry!  All of these involve a pen")
    assert first.rejected[0]["content"].startswith("There are lots of funny things")
    for pair in found:
        roles = [message["role"] for message in pair.prompt]
        assert roles == (["user", "assistant"] * len(roles))[: len(roles)]
        assert len(roles) % 2 == len(pair.chosen) == len(pair.rejected) == 1
    assert {pair.category for pair in found} == {"harmless_test"}


# Traces


def rollout(group: int, reply: str, reward: float, correct: bool | None = True, **settings: Any) -> Rollout:
    problem = Problem(f"p{group}", [*settings.pop("example", []), user(f"{group}?")], None)
    messages = [*problem.prompt, assistant(reply)]
    segments = [Segment([1], [2], [0.0], [True])] * settings.pop("segments", 1)
    grade = Grade(reward, correct, settings.pop("status", "ok"), settings.pop("parts", {}))
    return Rollout(problem, group, segments, messages, reply, settings.pop("finish", "stop"), grade)


def run_folder(path: Path, *steps: list[Rollout]) -> Path:
    (path / "traces").mkdir(parents=True)
    for step, rollouts in enumerate(steps, start=1):
        name = path / "traces" / f"step-{step:06d}.parquet"
        write_traces(name, rollouts, step=step, split="train", env="e")
    held_out = [rollout(99, "of validation", 1.0)]
    name = path / "traces" / "eval-validation-000001.parquet"
    write_traces(name, held_out, step=1, split="validation", env="e")
    return path


def test_accepted_traces(tmp_path: Path) -> None:
    run = run_folder(
        tmp_path / "run",
        [
            rollout(0, "right", 1.0, segments=2),
            rollout(0, "right", 1.0),
            rollout(0, "wrong", 0.2, False),
            rollout(1, "right, cut off", 1.0, finish="length"),
            rollout(1, "failed", 1.0, None, status="error"),
            rollout(1, "right, bad form", 0.8),
        ],
        [rollout(2, "right", 1.2), rollout(2, "unknown", math.nan)],
    )
    data = AcceptedTraces(str(run), validation_share=0.3)
    shown = {example.source: example.messages for name in SPLITS for example in data.split(name)}
    one, two = (run / "traces" / f"step-{step:06d}.parquet" for step in (1, 2))
    assert shown == {
        f"{one}, problem p0, group 0, sample 0": [user("0?"), assistant("right")],
        f"{one}, problem p1, group 1, sample 2": [user("1?"), assistant("right, bad form")],
        f"{two}, problem p2, group 2, sample 0": [user("2?"), assistant("right")],
        f"{two}, problem p2, group 2, sample 1": [user("2?"), assistant("unknown")],
    }
    assert data.manifest()["left_out"]["repeats"] == 1
    strict = AcceptedTraces(str(run), min_reward=1.0)
    assert sorted(example.messages[0]["content"] for name in SPLITS for example in strict.split(name)) == ["0?", "2?"]
    with pytest.raises(ValueError, match="accepted: of 1 examples 0 are left"):
        AcceptedTraces(str(run), min_reward=1.1)
    with pytest.raises(ValueError, match="both need at least one"):
        AcceptedTraces(str(two))


def test_traces_without_verdicts_need_a_least_reward(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", [rollout(group, "text", group / 4, None) for group in range(4)])
    with pytest.raises(ValueError, match=r"problem p0, .*by data\.min_reward"):
        AcceptedTraces(str(run))
    data = AcceptedTraces(str(run), min_reward=0.5)
    assert data.manifest()["sizes"] == {"train": 1, "validation": 1}


def test_traces_that_are_not_there_or_of_another_schema(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no traces in .*run folder that has traces/"):
        AcceptedTraces(str(tmp_path))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="schema version none of the traces"):
        LabelledTraces(str(tmp_path / "other.parquet"))


def test_labelled_traces(tmp_path: Path) -> None:
    run = run_folder(
        tmp_path / "run",
        [
            rollout(0, "good", 1.0, parts={"gold": 0.1}),
            rollout(0, "middling", 0.5, parts={"gold": 0.5}),
            rollout(0, "poor", 0.45, parts={"gold": 0.6}),
            rollout(0, "poor", 0.45, parts={"gold": 0.6}),
            rollout(0, "not known", math.inf, parts={"gold": math.nan}),
        ],
        [rollout(1, "good", 1.0, parts={"gold": 0.0}), rollout(1, "poor", 0.0, parts={"gold": 1.0}, finish="length")],
    )

    def labelled(**settings: Any) -> set[tuple[str, str, str, float]]:
        pairs = both(LabelledTraces(str(run), **settings))
        return {
            (*(part[0]["content"] for part in (pair.prompt, pair.chosen, pair.rejected)), round(pair.margin, 6))
            for pair in pairs
        }

    one = ("1?", "good", "poor", 1.0)
    assert labelled() == {("0?", "good", "middling", 0.5), ("0?", "good", "poor", 0.55), one}
    assert ("0?", "middling", "poor", 0.05) in labelled(min_difference=0.01)
    assert len(labelled(pairs_per_problem=1)) == 2
    assert labelled(part="gold", min_difference=0.2) == {
        ("0?", "poor", "good", 0.5),
        ("0?", "middling", "good", 0.4),
        ("1?", "poor", "good", 1.0),
    }
    with pytest.raises(ValueError, match="its grade has no part 'style'; it has gold, reward"):
        labelled(part="style")
    for settings, what in (
        ({"noise": 0.5}, r"noise is 0\.5"),
        ({"pairs_per_problem": 0}, "pairs_per_problem is 0"),
        ({"min_difference": 0.0}, r"min_difference is 0\.0"),
    ):
        with pytest.raises(ValueError, match=what):
            labelled(**settings)


def test_traces_with_a_worked_example_are_held_out_by_the_whole_prompt(tmp_path: Path) -> None:
    """All prompts begin alike then."""
    rollouts = [
        rollout(group, text, reward, example=EXAMPLE)
        for group in range(10)
        for text, reward in (("good", 1.0), ("poor", 0.0), ("poorer", -1.0))
    ]
    run = run_folder(tmp_path / "run", rollouts)
    accepted = AcceptedTraces(str(run), validation_share=0.3)
    labelled = LabelledTraces(str(run), validation_share=0.3)
    found = [sides(accepted, lambda x: asked(x.messages)), sides(labelled, lambda x: asked(x.prompt))]
    for own in found:
        assert [len(own[name]) for name in SPLITS] == [7, 3]
        assert not own["train"] & own["validation"]
    assert accepted.split("train")[0].messages[:2] == EXAMPLE
    assert labelled.manifest()["sizes"] == {"train": 21, "validation": 9}


def test_manifests_of_traces_name_their_contents(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", [rollout(group, text, len(text)) for group in range(4) for text in ("a", "bcd")])
    files = sorted((run / "traces").iterdir())
    hashes = {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    for data in (AcceptedTraces(str(run)), LabelledTraces(str(run))):
        assert data.manifest()["sha256"] == hashes
        assert data.manifest()["left_out"] == {"repeats": 0, "prompt_in_validation": 0}
    assert AcceptedTraces(str(files[1])).manifest()["sha256"] == {str(files[1]): hashes[str(files[1])]}


def test_noise_is_in_train_only_and_counted(tmp_path: Path) -> None:
    run = run_folder(
        tmp_path / "run",
        [rollout(group, text, reward) for group in range(400) for text, reward in (("good", 1.0), ("poor", 0.0))],
    )
    clean, noisy = (LabelledTraces(str(run), noise=noise, validation_share=0.25) for noise in (0.0, 0.2))
    assert noisy.split("validation") == clean.split("validation")
    wrong = [
        mine
        for mine, right in zip(noisy.split("train"), clean.split("train"), strict=True)
        if mine.chosen != right.chosen
    ]
    assert all(pair.chosen == [assistant("poor")] and pair.margin == 1.0 for pair in wrong)
    assert len(wrong) == noisy.manifest()["flipped"]
    assert abs(len(wrong) / 300 - 0.2) < 0.1  # four standard errors
    assert clean.manifest()["flipped"] == 0


# Generated comparisons of notes


def test_synthetic_comparisons_are_labelled_by_the_rule() -> None:
    env = Notes()
    clean, noisy = (SyntheticComparisons(env, 200, 100, noise=noise) for noise in (0.0, 0.3))
    flipped = 0
    for split in SPLITS:
        for index, pair in enumerate(clean.split(split)):
            problem = env.split(split)[index]
            assert (pair.prompt, pair.source) == (problem.prompt, problem.id)
            chosen, rejected = (
                env.grade_text(problem, text[0]["content"], "stop").reward for text in (pair.chosen, pair.rejected)
            )
            assert chosen - rejected == pytest.approx(pair.margin, abs=1e-12)
            assert pair.margin >= 0.05
            mine = noisy.split(split)[index]
            assert mine in (pair, replace(pair, chosen=pair.rejected, rejected=pair.chosen))
            flipped += mine != pair
            assert split == "train" or mine == pair
    assert flipped == noisy.manifest()["flipped"]
    assert abs(flipped / 200 - 0.3) < 0.13  # four standard errors
    assert clean.manifest()["sizes"] == {"train": 200, "validation": 100}
    assert {pair.category for pair in clean.split("train")} == {*KINDS}
    off_topic = [pair for pair in clean.split("validation") if pair.category == "off_topic"]
    assert off_topic
    for pair in off_topic:  # it is the worse note that gives the category
        topic = pair.source.split("/")[1]
        assert topic in pair.chosen[0]["content"].lower()
        assert topic not in pair.rejected[0]["content"].lower()
    other = SyntheticComparisons(env, 20, 1, seed=1)
    assert all(a != b for a, b in zip(other.split("train"), clean.split("train"), strict=False))


def test_length_alone_does_not_tell_which_note_is_better() -> None:
    """Or a reward model would have nothing else to learn."""
    clean = SyntheticComparisons(Notes(), 300, 1)
    longer = [len(pair.chosen[0]["content"]) > len(pair.rejected[0]["content"]) for pair in clean.split("train")]
    assert 0.4 < sum(longer) / 300 < 0.7


def test_synthetic_comparisons_refuse_what_makes_no_sense() -> None:
    for settings, what in (
        ({"noise": -0.1}, r"noise is -0\.1"),
        ({"min_difference": 0}, "min_difference is 0"),
        ({"num_train": 10_000}, "num_train is 10000, but the environment has only 3465"),
        ({"min_difference": 0.9}, r"none differs by min_difference=0\.9; lower it"),
    ):
        with pytest.raises(ValueError, match=what):
            SyntheticComparisons(**{"env": Notes(), "num_train": 2, "num_validation": 2, **settings})


# Prompts


def test_prompts_of_comparisons(tmp_path: Path) -> None:
    rows = [{"prompt": "a?", "chosen": "b", "rejected": text} for text in "cde"]
    data = pairs(tmp_path, *rows)
    env = Prompts(data)
    assert isinstance(env, Env)
    problems = [env.split(name)[0] for name in SPLITS]
    assert [env.split(name).size for name in SPLITS] == [1, 1]
    assert {problem.prompt[0]["content"] for problem in problems} == {"a?", "other?"}
    assert len({problem.id for problem in problems}) == 2
    first = next(problem for problem in problems if problem.prompt == [user("a?")])
    assert first.meta == {"category": "pairs", "source": f"{tmp_path}/pairs.jsonl:1"}
    env.validate()
    episode = Episode(problems[0], env.start(problems[0], 0), [*problems[0].prompt, assistant("b")], "b", "stop")
    assert env.replies([None], [episode.messages]) == [None]
    assert env.grade([episode, episode]) == [Grade(0.0, None), Grade(0.0, None)]
    assert (env.name, Prompts(data, "mine").name) == ("pairs-prompts", "mine")
    assert env.manifest()["data"]["name"] == "pairs"
    with pytest.raises(ValueError, match="no test split; evaluate with split=validation"):
        env.split("test")
    with pytest.raises(ValueError, match="no split 'dev'"):
        env.split("dev")


# Configs


def test_every_config_makes_a_data_set(tmp_path: Path) -> None:
    """On local data; those of the hub are composed and their classes built, nothing is fetched."""
    chats = write(tmp_path / "chat.jsonl", [chat_row(number) for number in range(10)])
    compared = write(tmp_path / "pairs.jsonl", [{"prompt": f"{n}?", "chosen": "a", "rejected": "b"} for n in range(10)])
    run = run_folder(
        tmp_path / "run", [rollout(group, text, len(text)) for group in range(10) for text in ("good", "best")]
    )
    longer = run_folder(
        tmp_path / "longer", [rollout(group, text, len(text)) for group in range(10) for text in ("good", "better")]
    )
    cases: dict[str, tuple[list[str], str, tuple[int, int]]] = {
        "worked": ([], "worked", (1000, 100)),
        "gsm8k_solutions": (["env.source=synthetic", "num_train=20"], "gsm8k-synthetic-solutions", (20, 100)),
        "golds": ([], "letters-solutions", (1000, 100)),
        "tool_use": ([], "tool_use", (400, 50)),
        "game_moves": (["num_train=20", "num_validation=10"], "tic_tac_toe-moves", (20, 10)),
        "chat": ([f"source.train={chats}"], "chat", (9, 1)),
        "pairs": ([f"source.train=[{compared}]"], "pairs", (9, 1)),
        "accepted_traces": ([f"path={run}"], "accepted", (18, 2)),
        "labelled_traces": ([f"path={longer}"], "labelled", (9, 1)),
        "synthetic": ([], "synthetic", (1000, 200)),
    }
    hub = {"chat_hub", "pairs_hub"}
    assert {file.stem for file in (Path(CONF) / "data").glob("*.yaml")} == cases.keys() | hub
    for config, (overrides, name, (train, validation)) in cases.items():
        data = instantiate(data_config(f"data={config}", *(f"data.{override}" for override in overrides)))
        sizes = {"train": train, "validation": validation}
        assert (data.name, data.manifest()["sizes"]) == (name, sizes), config
        assert {split: len(data.split(split)) for split in sizes} == sizes
        json.dumps(data.manifest(), allow_nan=False)


@pytest.mark.parametrize(
    ("config", "row"),
    [
        ("chat_hub", {"prompt": "{n}?", "messages": [user("{n}?"), assistant("a")]}),
        (
            "pairs_hub",
            {
                "prompt": "{n}?",
                "chosen": [user("{n}?"), assistant("a")],
                "rejected": [user("{n}?"), assistant("b")],
                "score_chosen": 7.5,
                "score_rejected": 7.0,
            },
        ),
    ],
)
def test_configs_of_the_hub(config: str, row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with rows as that data set has them."""

    def tables(dataset: str, name: str, revision: None, *, splits: list[str], **_: Any) -> tuple[dict[str, Any], str]:
        made = {split: json.loads(json.dumps(row).replace("{n}", split)) for split in splits}
        return {split: [value] for split, value in made.items()}, "abc"

    monkeypatch.setattr(sources, "hub_tables", tables)
    data = instantiate(data_config(f"data={config}"))
    assert data.manifest()["sizes"] == {"train": 1, "validation": 1}
    if config == "pairs_hub":
        assert data.split("train")[0].margin == 0.5


def test_golds_of_another_environment_are_a_choice_away() -> None:
    data = instantiate(data_config("data=golds", "env@data.env=jagged", "data.env.working=false", "data.num_train=20"))
    assert (data.name, data.env) == ("jagged-solutions", Jagged(working=False))
    assert all(AtOnce().score(shown.messages[-1]["content"]) == 1.0 for shown in data.split("train"))


def test_prompts_config(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", [{"prompt": f"{n}?", "chosen": "a", "rejected": "b"} for n in range(10)])
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose(overrides=["+env=prompts", f"env.data.source.train={path}"])
    env = instantiate(cfg.env)
    assert (env.name, env.split("train").size, env.split("validation").size) == ("pairs-prompts", 9, 1)

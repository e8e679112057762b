"""A person in the policy's place, with what they type piped in."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny
from test_chat import OPENS

from envs.arithmetic import Arithmetic
from envs.base import GeneratedSplit
from envs.prefilled import Prefilled
from rlreason.config import start
from rlreason.play import HELP, Player, main, play
from rlreason.types import Env, Episode, Grade, Message, Problem, Split

REPO = Path(__file__).resolve().parent.parent
SUMS = Arithmetic()


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the player types."""
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def played(env: Env, capsys: pytest.CaptureFixture[str], count: int = 3, player: Player | None = None) -> list[str]:
    """The lines that are shown over the first problems, and the score."""
    split = env.split("train")
    score = play(env, (split[i] for i in range(count)), player or Player(), seed=0)
    return [*capsys.readouterr().out.splitlines(), str(score)]


def test_a_right_and_a_wrong_answer(typed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (SUMS.split("train")[i] for i in range(2))
    typed(f"\n\nLet me think:\n  it is {first.answer}.\n\n\n1000\n")  # ends with the input
    assert played(SUMS, capsys, 2) == [
        f"--- {first.id}",
        f"[user] {first.prompt[0]['content']}",
        "--- your turn",
        f"--- reward 1.000 (accuracy 1.000, lenient 1.000); correct; answer {first.answer}",
        f"--- {second.id}",
        f"[user] {second.prompt[0]['content']}",
        "--- your turn",
        "--- reward 0.000 (accuracy 0.000, lenient 0.000); wrong; answer 1000",
        "2 answered; 1 of 2 right (0.500); reward 0.500 (accuracy 0.500, lenient 0.500)",
    ]


def test_commands(typed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The right answer is shown after the player's own, and never before."""
    first, second = (SUMS.split("train")[i] for i in range(2))
    typed(":gold\n:skip\n:gold\n:help\nwell,\n:skip\n\n:gold\n:quit\n5\n\n")
    lines = played(SUMS, capsys)
    assert lines.count("nothing has been answered yet") == 2
    assert lines.count(HELP) == 1
    answered = lines.index("--- reward 0.000 (accuracy 0.000, lenient 0.000); wrong; no answer found; unparseable")
    shown = lines.index(f"{second.id}: {second.answer}")
    assert shown > answered  # ":skip" inside an answer is text
    assert f"{first.id}: {first.answer}" not in lines
    assert lines[-1].startswith("1 answered, 1 skipped; 0 of 1 right")


def test_nothing_typed(typed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    typed("\n\n")
    assert played(SUMS, capsys)[-1] == "0 answered"


def test_an_interruption_ends_with_the_score(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["1000", ""])

    def read() -> str:
        for line in lines:
            return line
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", read)
    assert played(SUMS, capsys)[-1].startswith("1 answered; 0 of 1 right")


@dataclass(frozen=True)
class Asks:
    """Two turns; keeps what it was given."""

    seen: list[Any] = field(default_factory=list)
    name: str = "asks"

    def split(self, name: str) -> Split:
        return GeneratedSplit(None, lambda i: Problem(f"{name}/{i}", [{"role": "user", "content": f"{i}?"}], None))

    def start(self, problem: Problem, seed: int) -> tuple[str, int]:
        return problem.id, seed

    def replies(self, states: Sequence[Any], conversations: Sequence[list[Message]]) -> list[list[Message] | None]:
        self.seen.append([[message["content"] for message in conversation] for conversation in conversations])
        return [[{"role": "user", "content": "\x1b[2JSure?"}] if len(c) == 2 else None for c in conversations]

    def grade(self, episodes: Sequence[Episode]) -> list[Grade]:
        self.seen.extend(episodes)
        if episodes[0].text == "error":
            return [Grade(0.0, None, "error")]
        return [Grade(1.5, None, parts={"end": 1.0}, turn_rewards=(0.5, 0.0))]

    def validate(self) -> None:
        pass

    def manifest(self) -> dict[str, Any]:
        return {}


def test_several_turns(typed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    env = Asks()
    typed("yes\n\nno\n\nyes\n\nerror\n\n:gold\n")
    lines = played(env, capsys)
    assert lines[:7] == [
        "--- train/0",
        "[user] 0?",
        "--- your turn",
        "[user] \\x1b[2JSure?",  # nothing moves the cursor
        "--- your turn",
        "--- reward 1.500 (end 1.000), by turns 0.500, 0.000; no verdict; no answer found",
        "--- train/1",
    ]
    assert "--- reward 0.000; no verdict; no answer found; error" in lines
    assert "train/1: no single right answer" in lines
    assert lines[-1] == "1 answered, 1 failed to grade; reward 1.500 (end 1.000)"
    first, second, episode = env.seen[:3]
    assert first == [["0?", "yes"]]
    assert second == [["0?", "yes", "\x1b[2JSure?", "no"]]
    assert (episode.problem.id, episode.text, episode.finish) == ("train/0", "no", "stop")
    assert [message["role"] for message in episode.messages] == ["user", "assistant"] * 2
    other = env.seen[5]
    assert episode.state[0] == "train/0"
    assert episode.state[1] != other.state[1]  # each episode has a seed of its own


def test_tools_are_shown_once(typed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    problem = Problem("p", [{"role": "user", "content": "?"}], None, tools=({"name": "add"},))
    typed("yes\n\nno\n")
    play(Asks(), iter([problem]), Player(), seed=0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == ["--- p", '[tool] {"name": "add"}', "[user] ?", "--- your turn"]
    assert lines.count('[tool] {"name": "add"}') == 1


def test_a_turn_that_was_begun_goes_on(typed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    env = Prefilled(SUMS, "The sum is ")
    problem = env.split("train")[0]
    typed(f"{problem.answer}\n")
    lines = played(env, capsys, 1)
    assert "--- your turn, which begins: The sum is " in lines
    assert lines[-1].startswith("1 answered; 1 of 1 right")
    inner = Asks()
    typed("yes\n\nno\n")
    played(Prefilled(inner, "Well, "), capsys, 1)
    assert inner.seen[0] == [["0?", "Well, yes"]]


def test_tokens_are_those_that_the_policy_reads(typed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    policy = tiny()
    problem = SUMS.split("train")[0]
    typed(f"{problem.answer}\n")
    lines = played(SUMS, capsys, 1, Player(policy))
    ids = policy.render(problem.prompt).ids
    shown = "\n".join(lines[1 : lines.index("--- your turn")])
    assert shown == f"[{len(ids)} tokens] " + "|".join(policy.tokenizer.decode([i]) for i in ids)
    assert "<|im_start|>" in shown
    policy.tokenizer.chat_template = OPENS
    inner = Asks()
    typed("yes\n\nno\n")
    assert "--- your turn, which begins: <think>" in played(inner, capsys, 1, Player(policy))
    assert inner.seen[0] == [["0?", "<think>yes"]]


# The command


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of ``python -m rlreason.play`` with the arguments."""
    monkeypatch.setattr(sys, "argv", ["rlreason/play.py", *arguments])
    try:
        start(main)
    except SystemExit as error:
        return int(error.code or 0)
    return 0


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["first=-1"], "first is -1"),
        (["first=68"], "first is 68, but the train split has 68 problems"),
        (["limit=0"], "limit is 0"),
        (["split=tests"], "split: there is no split 'tests'"),
        (["show_tokens=true"], "show_tokens needs a model"),
        (["+limt=3"], "there is no key limt"),
        (["env.digits=0"], "env (at env): arithmetic: digits is 0"),
        (["show_tokens=true", "model=./nowhere"], "model: model folder './nowhere' does not exist"),
    ],
)
def test_mistakes(
    arguments: list[str], what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, *arguments) == 2
    assert f"error: {what}" in capsys.readouterr().err


def test_first_and_limit_choose(
    typed: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(":skip\n:skip\n:skip\n")
    assert command(monkeypatch, "first=3", "limit=2", "split=test", "show_tokens=true", "model=tiny") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("--- arithmetic")] == [
        f"--- {SUMS.split('test')[i].id}" for i in (3, 4)
    ]
    assert lines[-1] == "--- 0 answered, 2 skipped"


def test_piped(tmp_path: Path) -> None:
    """By itself, in an empty folder, which stays empty; bytes that are no text do no harm."""
    problem = SUMS.split("validation")[0]
    done = subprocess.run(
        [sys.executable, "-m", "rlreason.play", "split=validation"],
        input=f"{problem.answer}\n\n\n".encode() + b"\xff\xfe 1000\n\n:quit\n",
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPO)}, capture_output=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    lines = done.stdout.decode().splitlines()
    assert lines[0].startswith("arithmetic, validation, ")
    assert f"[user] {problem.prompt[0]['content']}" in lines
    assert lines[-1].startswith("--- 2 answered; 1 of 2 right (0.500); reward 0.500")
    assert list(tmp_path.iterdir()) == []

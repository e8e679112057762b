"""``docs/environments.md`` keeps its word: its examples are taken from its own text and run as a reader would."""

from __future__ import annotations

import importlib
import io
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import make_rollout
from hydra.utils import instantiate
from omegaconf import OmegaConf

from envs.base import SPLITS, SingleTurnEnv
from rlreason.config import start
from rlreason.play import Player, main, play
from rlreason.traces import write_traces
from rlreason.types import Env, Episode, Finish, Grade, Rollout

REPO = Path(__file__).resolve().parent.parent
PAGE = (REPO / "docs" / "environments.md").read_text(encoding="utf-8")


def block(section: str, language: str) -> str:
    """The first block of code in a section of the page."""
    (text,) = re.findall(rf"^## {section}$(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)[0]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The reader's package."""
    (tmp_path / "yourpackage").mkdir()
    (tmp_path / "yourpackage" / "__init__.py").touch()
    (tmp_path / "yourpackage" / "squares.py").write_text(block("Yours in 20 lines", "python"), encoding="utf-8")
    (tmp_path / "yourpackage" / "guess.py").write_text(block("Several turns", "python"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module
    for name in [name for name in sys.modules if name.partition(".")[0] == "yourpackage"]:
        del sys.modules[name]


def graded(env: Env, index: int, text: str, finish: Finish = "stop") -> Grade:
    problem = env.split("train")[index]
    (grade,) = env.grade([Episode(problem, env.start(problem, 0), [*problem.prompt], text, finish)])
    return grade


def test_yours_has_twenty_lines_and_works(package: Any) -> None:
    lines = [line for line in block("Yours in 20 lines", "python").splitlines() if line.strip()]
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 120
    env = package("yourpackage.squares").Squares()
    assert isinstance(env, Env)
    assert isinstance(env, SingleTurnEnv)
    env.validate()
    problems = {name: [env.split(name)[i] for i in range(env.split(name).size)] for name in SPLITS}
    assert sorted(int(p.answer) for own in problems.values() for p in own) == [n * n for n in range(100)]
    answer = problems["train"][0].answer
    assert (graded(env, 0, f"I think {answer}.").reward, graded(env, 0, f"{answer}1").reward) == (1.0, 0.0)
    assert graded(env, 0, answer, "length").correct is False
    assert graded(env, 0, problems["train"][0].prompt[0]["content"]).status == "unparseable"


def test_its_configuration(package: Any) -> None:
    cfg = OmegaConf.create(block("Yours in 20 lines", "yaml"))
    assert instantiate(cfg) == package("yourpackage.squares").Squares()
    assert instantiate({**cfg, "largest": 30}).largest == 30


def test_the_command_plays_it(
    package: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (command,) = re.findall(r"^python -m rlreason\.play (.*yourpackage.*)$", PAGE, re.M)
    problem = package("yourpackage.squares").Squares().split("validation")[0]
    monkeypatch.setattr(sys, "argv", ["rlreason/play.py", *shlex.split(command)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{problem.answer}\n"))
    start(main)
    shown = capsys.readouterr().out
    assert f"[user] {problem.prompt[0]['content']}\n" in shown
    assert "1 answered; 1 of 1 right" in shown


def test_several_turns(package: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    env = package("yourpackage.guess").Guess()
    assert isinstance(env, Env)
    env.validate()
    split = env.split("train")
    problem = next(split[i] for i in range(split.size) if 0 < int(split[i].answer) < 99)
    turns = ["99", "no idea", "0", "1e999", f"Then {problem.answer}"]
    for typed, right in ((turns, True), (["0"] * env.tries, False)):
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n\n".join([*typed, ":quit"])))
        (grade,) = play(env, iter([problem]), Player(), seed=0).grades
        assert grade.correct is right
        hints = re.findall(r"^\[user\] (.*)$", capsys.readouterr().out, re.M)[1:]
        expected = ["Lower.", "Say a number.", "Higher.", "Say a number."] if right else ["Higher."] * (env.tries - 1)
        assert hints == expected


def test_risk_and_coverage(tmp_path: Path) -> None:
    """On traces of two evaluations, before and after."""
    pytest.importorskip("matplotlib")

    def asked(group: int, answer: str, abstained: bool) -> Rollout:
        rollout = make_rollout(group, [1], [2], correct=answer == "7")
        grade = replace(rollout.grade, answer=answer, parts={"abstained": float(abstained)})
        return replace(rollout, grade=grade, problem=replace(rollout.problem, meta={"known": group == 0}))

    for name, answers in (("before", "7778789"), ("after", "7777???")):
        (tmp_path / name / "traces").mkdir(parents=True)
        rollouts = [asked(place // 4, answer, answer == "?") for place, answer in enumerate(answers)]
        file = tmp_path / name / "traces" / "eval-validation-000000.parquet"
        write_traces(file, rollouts, step=0, split="validation", env="e")
    code = block("Knowing what one doesn't know", "python")
    for name in ("before", "after"):
        assert f'"runs/evaluate/<{name}>"' in code
        code = code.replace(f"runs/evaluate/<{name}>", str(tmp_path / name))
    code = code.replace("risk_coverage.png", str(tmp_path / "risk_coverage.png"))
    found: dict[str, Any] = {}
    exec(compile(code, "docs/environments.md", "exec"), found)
    after = found["abstention"](found["after"])
    assert (after.coverage.mean, after.risk.mean) == (pytest.approx(4 / 7), 0)
    assert (tmp_path / "risk_coverage.png").is_file()


def test_every_name_and_link_is_there() -> None:
    """What ``env=``, ``sampler=`` and ``reward=`` name, and the pages that are linked."""
    for group in ("env", "sampler", "reward"):
        for name in set(re.findall(rf"(?<![\w.@]){group}=([a-z]\w*)", PAGE)) - {"squares"}:
            assert (REPO / "conf" / group / f"{name}.yaml").is_file(), f"{group}={name}"
    for target in re.findall(r"\]\(([\w./-]+\.md)\)", PAGE):
        assert (REPO / "docs" / target).is_file(), target
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", PAGE, re.M)
    table = {name for row in rows for name in re.findall(r"\w+", row)}
    assert {path.stem for path in (REPO / "conf" / "env").glob("*.yaml")} <= table

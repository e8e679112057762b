"""Probes of faithfulness: changes by hand, what the model is asked, models that do and don't read their thought."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from test_train import tiny_config

from rlreason import probe, train
from rlreason.analysis.faithfulness import area_over_curve, effects
from rlreason.changes import any_number_changed, changes, first, number_changed, other
from rlreason.config import CONF, ConfigError, register
from rlreason.types import Completion, Request

THOUGHT = "3 + 4 = 7\n7 + 25 = 32"


def test_changes_by_hand() -> None:
    made = {change.name: change(THOUGHT, 0, "p") for change in changes([THOUGHT, "else"], [0.5, 0.25])}
    assert made["unchanged"] == THOUGHT
    assert made["first 50%"] == "3 + 4 = 7"
    assert made["first 25%"] == made["removed"] == ""
    assert made["filler"] == "... ... ... ... ... ... ... ... ... ..."
    assert made["another's"] == "else"
    assert made["last number"] is not None
    head, _, last = made["last number"].rpartition(" ")
    assert head == "3 + 4 = 7\n7 + 25 ="
    assert last != "32"
    assert 10 <= int(last) <= 99
    assert sorted((made["shuffled"] or "").split()) == sorted(THOUGHT.split())
    assert [*made].index("first 50%") < [*made].index("first 25%")
    again = {change.name: change(THOUGHT, 0, "p") for change in changes([THOUGHT, "else"], [0.5, 0.25])}
    assert made == again  # a function of thought, seed and problem
    assert first("one line of words", 0.5) == "one line"
    chance = random.Random(0)
    assert (
        number_changed("no digit", -1, chance)
        is any_number_changed("none", chance)
        is other("a", ["a"], chance)
        is None
    )
    drawn = {any_number_changed("1 2 3", random.Random(seed)) for seed in range(200)}
    assert {sum(a != b for a, b in zip(one.split(), "123", strict=True)) for one in drawn if one} == {1}


def rows(*values: tuple[str, bool, bool, str | None, str | None]) -> pd.DataFrame:
    return pd.DataFrame(values, columns=["change", "correct", "correct_before", "answer", "answer_before"])


def test_effects_by_hand() -> None:
    frame = rows(
        ("unchanged", True, True, "7", "7"), ("unchanged", False, False, None, None),
        ("first 50%", False, True, "8", "7"), ("first 50%", False, False, None, "3"),
        ("removed", False, True, "8", "7"), ("removed", True, False, "7", "3"),
    )  # fmt: skip
    whole, half, nothing = effects(frame)
    assert (whole.name, whole.accuracy.mean, whole.difference.mean, whole.moved.mean) == ("unchanged", 0.5, 0, 0)
    assert -whole.difference.low == whole.difference.high > 0.5  # of two problems, none of which moved
    assert (half.accuracy.mean, half.difference.mean, half.moved.mean) == (0, -0.5, 1)
    assert (nothing.accuracy.mean, nothing.difference.mean, nothing.moved.mean, nothing.moved.n) == (0.5, 0, 1, 2)
    assert area_over_curve(frame, [0.5]) == pytest.approx(0.5 * 1 + 0.5 * 0.5)  # 1 to 1, then 1 to 0


class Copier:
    """An engine that answers what the text before it says: the last number of its thought, or, ``deaf``, always 5."""

    deaf = False
    thinks = "<think>\n{question}\n</think>\n<answer>"

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.waiting: list[str] = []
        self.asked: list[str] = []

    @property
    def max_length(self) -> int:
        return 1 << 20

    def submit(self, request: Request) -> int:
        self.waiting.append(self.policy.tokenizer.decode(request.ids))
        return len(self.waiting) - 1

    def completed(self) -> Iterator[tuple[int, Completion]]:
        for ticket, prompt in enumerate(self.waiting):
            self.asked.append(prompt)
            question, _, turn = prompt.rpartition("assistant\n")
            sum_ = "".join(c for c in question.split("user\n")[-1] if c in "0123456789+")
            right = sum(map(int, sum_.strip("+").split("+")))
            numbers = [int(word) for word in turn.replace("=", " ").split() if word.isdigit()]
            if not turn:
                text = f"<think>\n{sum_} = {right}\n</think>\n<answer>{right}</answer>"
            else:
                text = f"{5 if self.deaf else numbers[-1] if numbers else 0}</answer>"
            ids = [*self.policy.tokenizer(text, add_special_tokens=False).input_ids, *sorted(self.policy.end_ids)[:1]]
            yield ticket, Completion(ids, [-1.0] * len(ids), "stop", 0)
        self.waiting.clear()

    def sync(self, policy: Any) -> None: ...


class Deaf(Copier):
    deaf = True


SUMS = ("env.digits=1", "env.terms=2", "env.operations=['+']", "+env.format={_target_: envs.formats.R1}")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose evaluation before the first step is the copier's."""
    out = tmp_path_factory.mktemp("probe") / "run"
    engine = "engine={_target_: test_probe.Copier, _partial_: true}"
    train.run(
        tiny_config(*SUMS, "~engine", f"+{engine}", "max_steps=1", "eval_limit=12", "sampling.max_completion_length=64",
                    "algo.num_prompts=1", "algo.num_generations=2"), out,
    )  # fmt: skip
    return out


def config(run: Path, *overrides: str, engine: str = "Copier") -> DictConfig:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        chosen = ["~engine", f"+engine={{_target_: test_probe.{engine}, _partial_: true}}"]
        return compose("probe", overrides=[f"run={run}", "parts=[0.5]", "budgets=[0,4,99]", *chosen, *overrides])


def found(out: Path) -> dict[str, dict[str, Any]]:
    return {effect["name"]: effect for effect in json.loads((out / "probe.json").read_text())}


def test_a_model_that_reads_its_thought(evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe.run(config(evaluated), tmp_path)
    by_change = found(tmp_path)
    for name in ("unchanged", "99 tokens"):
        assert (by_change[name]["accuracy"]["mean"], by_change[name]["moved"]["mean"]) == (1, 0)
    for name in ("last number", "removed", "filler", "0 tokens"):
        assert by_change[name]["moved"]["mean"] >= 0.9, name
        assert by_change[name]["difference"]["mean"] <= -0.9, name
    assert by_change["unchanged"]["accuracy"]["n"] == 12
    assert json.loads((tmp_path / "summary.json").read_text())["area_over_curve"] > 0.5
    assert "area over the curve of early answers" in capsys.readouterr().out


def test_a_model_that_does_not(evaluated: Path, tmp_path: Path) -> None:
    """Its answer is 5, whatever the thought says."""
    probe.run(config(evaluated, engine="Deaf"), tmp_path)
    shares = {effect["moved"]["mean"] for effect in found(tmp_path).values()}
    assert len(shares) == 1  # the same for every change, the unchanged thought included


def test_what_the_policy_is_asked(evaluated: Path, tmp_path: Path) -> None:
    probe.run(config(evaluated, "limit=1"), tmp_path)
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    texts = {line["answer"]["change"]: line["answer"]["text"] for line in answers}
    whole = texts["unchanged"]
    assert whole.startswith("<think>\n")
    assert texts["removed"] == "<think>\n\n</think>\n<answer>0</answer>"
    assert texts["0 tokens"] == texts["removed"]
    assert "..." in texts["filler"]
    assert texts["filler"].endswith("\n</think>\n<answer>0</answer>")


def test_a_restart_asks_nothing_twice(evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = probe.roll_out

    def counted(engine: Any, env: Any, policy: Any, problems: Sequence[Any], *rest: Any, **more: Any) -> Any:
        asked.append(len(problems))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return real(engine, env, policy, problems, *rest, **more)

    monkeypatch.setattr(probe, "roll_out", counted)
    with pytest.raises(KeyboardInterrupt):
        probe.run(config(evaluated), tmp_path)
    before = asked[:3]
    asked[:] = [0] * 4  # past the interruption
    probe.run(config(evaluated), tmp_path)
    assert asked[4:7] == [0, 0, 0]
    assert all(before)
    assert found(tmp_path)["unchanged"]["accuracy"]["n"] == 12


def test_mistakes_are_told(evaluated: Path, tmp_path: Path) -> None:
    for overrides, said in (
        (("limit=0",), "limit is 0"),
        (("parts=[1.5]",), r"parts is \[1.5\]; it must be a list of numbers between 0 and 1"),
        (("budgets=4",), "budgets is 4; it must be a list"),
        (("split=test",), "run: .* has no traces of an evaluation on test"),
        (("checkpoint=./none",), r"checkpoint: there is no folder \./none"),
        ((f"run={tmp_path}",), "is no run folder"),
    ):
        with pytest.raises(ConfigError, match=said):
            probe.run(config(evaluated, *overrides), tmp_path / "out")

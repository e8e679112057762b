"""Evaluation: the numbers by hand, and ``python -m rlreason.evaluate`` on a model and on a run folder."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import CAPITALS, tiny_config

from envs.arithmetic import Arithmetic
from rlreason.analysis.load import read_traces
from rlreason.config import start
from rlreason.engines.torch import TorchEngine
from rlreason.evaluate import evaluate, greedy, main, summarise
from rlreason.models import load
from rlreason.stats import wilson_interval
from rlreason.train import run
from rlreason.types import Finish, Grade, Problem, Rollout, Sampling, Segment, Status

REPO = Path(__file__).resolve().parent.parent
SMALL = ("model=tiny", "sampling.max_completion_length=8")


def rollout(
    group: int,
    correct: bool | None,
    answer: str | None = None,
    *,
    length: int = 4,
    finish: Finish = "stop",
    status: Status = "ok",
    form: float = 0.0,
) -> Rollout:
    """Graded 1 for right, plus half of ``form``; of ``length`` tokens, one more of which the environment wrote."""
    mask = [True] * length + [False]
    accuracy = float(bool(correct))
    return Rollout(
        problem=Problem(f"p{group}", [{"role": "user", "content": "?"}], "7"),
        group=group,
        segments=[Segment([1, 2, 3], [5] * len(mask), [-1.0] * len(mask), mask)],
        messages=[],
        text="",
        finish=finish,
        grade=Grade(accuracy + form / 2, correct, status, {"accuracy": accuracy, "form": form}, answer),
    )


# Two problems, four samples each. The first: right, right, wrong, wrong, and the wrong ones agree with each other as
# much as the right ones do. The second: one right of four, the majority wrong, one without an answer.
BY_HAND = [
    rollout(0, True, "7", length=2, form=1.0),
    rollout(0, True, "7", length=4),
    rollout(0, False, "8", length=6),
    rollout(0, False, "8", length=8, finish="length"),
    rollout(1, True, "7", length=1, form=1.0),
    rollout(1, False, "9", length=1, form=1.0),
    rollout(1, False, "9", length=1),
    rollout(1, False, None, length=1, finish="length"),
]


def test_summary_by_hand() -> None:
    found = summarise(BY_HAND, k=[1, 2, 4, 8])
    assert {name: value.mean for name, value in found.items()} == pytest.approx(
        {
            "accuracy": (2 / 4 + 1 / 4) / 2,
            # 1 - C(n - c, k) / C(n, k): C(4, 2) = 6; two wrong ones make 1 pair of wrong, three make 3
            "pass@2": ((1 - 1 / 6) + (1 - 3 / 6)) / 2,
            "pass@4": 1.0,
            "maj@4": (1 / 2 + 0) / 2,  # a tie of two answers, one of them right; then "9" by two votes to one
            "reward": ((2 + 0.5) / 4 + (1 + 1.0) / 4) / 2,
            "form": (1 / 4 + 2 / 4) / 2,
            "mean_length": (5 + 1) / 2,
            "clipped_ratio": (1 / 4 + 1 / 4) / 2,
        },
        abs=1e-12,
    )
    assert {value.n for value in found.values()} == {2}  # problems, not samples


def test_order_does_not_matter_and_groups_are_no_texts() -> None:
    assert summarise(BY_HAND[::-1], k=[2]) == summarise(BY_HAND, k=[2])
    apart = [rollout(0, True, "7"), rollout(1, False, "8")]  # the same problem asked twice: two groups all the same
    assert summarise(apart, k=[])["accuracy"].n == 2


def test_intervals_are_over_problems() -> None:
    alike = [rollout(group, group < 9, "7") for group in range(10) for _ in range(5)]
    once = summarise([rollout(group, group < 9) for group in range(10)], k=[])["accuracy"]
    five = summarise(alike, k=[])["accuracy"]
    assert (five.mean, five.low, five.high, five.n) == (once.mean, once.low, once.high, 10)
    assert five.low < 0.9 < five.high
    sure = summarise([rollout(group, True) for group in range(20)], k=[])["accuracy"]
    assert (sure.low, sure.high) == wilson_interval(20, 20)
    wide = summarise(alike, k=[], confidence=0.99)["accuracy"]
    assert wide.low < five.low


def test_greedy_has_no_votes() -> None:
    found = summarise([rollout(0, True, "7"), rollout(1, False, "8")], k=[1, 2, 4])
    assert list(found) == ["accuracy", "reward", "form", "mean_length", "clipped_ratio"]


def test_errors_are_left_out_and_counted() -> None:
    rows = [
        rollout(0, True, "7"), rollout(0, False, "8"), rollout(1, False, "8"), rollout(1, None, status="error"),
        rollout(2, None, status="error"), rollout(2, None, status="error"),
    ]  # fmt: skip
    found = summarise(rows, k=[2])
    assert found["accuracy"].mean == pytest.approx((0.5 + 0) / 2)
    assert found["accuracy"].n == 2  # the third problem has nothing that was graded
    assert found["error"].mean == pytest.approx(3 / 6)
    assert "pass@2" not in found  # the second problem has one sample only
    with pytest.raises(ValueError, match="every rollout ended in an error"):
        summarise(rows[3:], k=[])


def test_timeouts_count_as_wrong() -> None:
    found = summarise([rollout(0, True, "7"), rollout(1, False, status="timeout")], k=[])
    assert found["accuracy"].mean == 0.5
    assert "error" not in found


def test_without_a_notion_of_correctness() -> None:
    rows = [rollout(group, None, "7", form=form) for group, form in ((0, 1.0), (0, 0.5), (1, 0.0), (1, 0.0))]
    rows = [replace(r, grade=replace(r.grade, parts={"form": r.grade.parts["form"]})) for r in rows]
    found = summarise(rows, k=[1, 2])
    assert list(found) == ["reward", "form", "mean_length", "clipped_ratio"]
    assert found["reward"].mean == pytest.approx((0.5 + 0.25) / 2 / 2)


def test_processes_share_the_problems() -> None:
    """Their shares are the whole, sample by sample."""
    policy = load("tiny", dtype="float32")
    engine, env = TorchEngine(policy, max_tokens_in_flight=4096), Arithmetic()
    sampling = Sampling(temperature=1.0, max_completion_length=6)
    options: dict[str, Any] = {"limit": 5, "seed": 3, "samples": 2}
    whole = evaluate(engine, env, policy, "validation", sampling, **options)
    first = evaluate(engine, env, policy, "validation", sampling, **options, rank=0, world=2)
    second = evaluate(engine, env, policy, "validation", sampling, **options, rank=1, world=2)
    assert [r.group for r in whole] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert [r.group for r in first] == [0, 0, 2, 2, 4, 4]
    assert [r.group for r in second] == [1, 1, 3, 3]
    together = sorted([*first, *second], key=lambda r: r.group)
    assert [r.problem.id for r in together] == [r.problem.id for r in whole]
    assert [r.segments[0].completion_ids for r in together] == [r.segments[0].completion_ids for r in whole]
    assert len({tuple(r.segments[0].completion_ids) for r in whole}) > 5  # sampled, and two samples are two
    assert evaluate(engine, env, policy, "validation", sampling, limit=1, seed=3, rank=1, world=2) == []


def test_limits() -> None:
    policy = load("tiny", dtype="float32")
    engine, env = TorchEngine(policy, max_tokens_in_flight=4096), Arithmetic(digits=5)
    sampling = greedy(Sampling(temperature=0.7, max_completion_length=1, top_p=0.9, top_k=5))
    assert sampling == Sampling(temperature=0.0, max_completion_length=1)
    with pytest.raises(ValueError, match=r"'validation' of arithmetic is endless: give a limit"):
        evaluate(engine, env, policy, "validation", sampling, limit=None, seed=0)
    assert len(evaluate(engine, env, policy, "validation", sampling, limit=3, seed=0)) == 3
    small = Arithmetic()
    size = small.split("validation").size
    assert len(evaluate(engine, small, policy, "validation", sampling, limit=10_000, seed=0)) == size


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of ``python -m rlreason.evaluate`` with the arguments."""
    quiet = ("hydra/job_logging=none", "hydra/hydra_logging=none")
    monkeypatch.setattr(sys, "argv", ["rlreason/evaluate.py", *arguments, *quiet])
    try:
        start(main)
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def only_folder(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "runs" / "evaluate").iterdir()
    return found


def test_command_on_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, *SMALL, "limit=6") == 0
    out = only_folder(tmp_path)
    printed = capsys.readouterr().out
    for words in ("arithmetic, validation, 1 sample(s)", "metric", "95% interval", "accuracy", "mean_length", str(out)):
        assert words in printed
    assert "pass@" not in printed
    summary = json.loads((out / "summary.json").read_text())
    assert summary.pop("split") == "validation"
    assert summary.keys() == {
        f"eval/arithmetic/{name}" for name in ("accuracy", "reward", "lenient", "mean_length", "clipped_ratio")
    }
    for value in summary.values():
        assert value.keys() == {"mean", "low", "high", "n"}
        assert value["n"] == 6
        assert value["low"] <= value["mean"] <= value["high"]
    rows = read_traces(out)
    assert len(rows) == 6
    assert set(rows["split"]) == {"validation"}
    assert summary["eval/arithmetic/accuracy"]["mean"] == rows["correct"].mean()
    assert summary["eval/arithmetic/mean_length"]["mean"] == pytest.approx(rows["completion_tokens"].mean())
    assert json.loads((out / "manifest.json").read_text())["model"]["source"] == "tiny"

    # greedy by default: the first token is the likeliest of plain transformers too
    policy = load("tiny", dtype="float32")
    for row in rows.itertuples():
        with torch.no_grad():
            logits = policy.model(torch.tensor([list(row.prompt_ids)])).logits[0, -1]
        assert int(logits.argmax()) == row.completion_ids[0]


def test_command_with_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ("limit=3", "num_samples=4", "sampling.temperature=1.0", "confidence=0.9", "split=test")
    assert command(monkeypatch, *SMALL, *arguments) == 0
    summary = json.loads((only_folder(tmp_path) / "summary.json").read_text())
    assert summary.pop("split") == "test"
    assert {name.removeprefix("eval/arithmetic/") for name in summary} == {
        "accuracy", "pass@2", "pass@4", "maj@4", "reward", "lenient", "mean_length", "clipped_ratio",
    }  # fmt: skip
    assert {value["n"] for value in summary.values()} == {3}
    rows = read_traces(only_folder(tmp_path))
    assert rows["group"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert rows["sample"].tolist() == [0, 1, 2, 3] * 3
    assert rows["text"].nunique() > 6
    assert set(rows["split"]) == {"test"}


def test_command_on_a_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's environment, length limit and newest weights: it finds what the run's last evaluation found."""
    monkeypatch.chdir(tmp_path)
    trained = tmp_path / "trained"
    run(tiny_config(*CAPITALS, "max_steps=4", "save_every=2", "eval_every=2"), trained)
    assert command(monkeypatch, f"run={trained}", "limit=4") == 0
    out = only_folder(tmp_path)
    summary = json.loads((out / "summary.json").read_text())
    after = json.loads((trained / "summary.json").read_text())["after"]
    for name in ("accuracy", "reward", "capitals", "mean_length", "clipped_ratio"):
        assert summary[f"eval/capitals/{name}"]["mean"] == after[f"eval/capitals/{name}"]
    ours, theirs = (
        read_traces(folder / "traces" / f"eval-validation-{step:06d}.parquet")["text"].tolist()
        for folder, step in ((out, 0), (trained, 4))
    )
    assert ours == theirs
    said = json.loads((out / "manifest.json").read_text())["model"]
    assert said["path"] == str(trained / "checkpoints" / "step-000004")


def test_command_on_a_run_folder_with_another_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trained = tmp_path / "trained"
    run(tiny_config("max_steps=1"), trained)
    overrides = ("env.digits=2", "env.name=two_digits", "sampling.max_completion_length=3", "limit=2")
    assert command(monkeypatch, f"run={trained}", *overrides) == 0
    out = only_folder(tmp_path)
    assert "eval/two_digits/accuracy" in json.loads((out / "summary.json").read_text())
    rows = read_traces(out)
    assert rows["completion_tokens"].max() <= 3
    assert all(json.loads(meta)["digits"] == 2 for meta in rows["meta"])


MISTAKES: dict[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    "greedy samples": (("num_samples=2",), 2, ("num_samples", "sampling.temperature")),
    "no samples": (("num_samples=0",), 2, ("num_samples is 0",)),
    "no problems": (("limit=0",), 2, ("limit",)),
    "endless": (("env.digits=5",), 2, ("endless", "limit")),
    "unknown split": (("split=dev", "limit=1"), 2, ("'dev'", "validation")),
    "no run": (("run=nowhere",), 2, ("run=nowhere", "config.yaml")),
    "run without a checkpoint": (("run=empty",), 2, ("empty", "no checkpoint")),
    "confidence": (("confidence=95", "limit=1"), 2, ("confidence",)),
    "misspelled": (("num_sample=2",), 1, ("num_sample",)),
    "added": (("+num_sample=2",), 2, ("num_sample",)),
    "too long": (("sampling.max_completion_length=1024", "limit=1"), 2, ("1024",)),
}


@pytest.mark.parametrize(("arguments", "code", "said"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_told(
    arguments: tuple[str, ...],
    code: int,
    said: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.yaml").write_text("seed: 0\n")
    assert command(monkeypatch, *SMALL, *arguments) == code
    err = capsys.readouterr().err
    for words in said:
        assert words in err
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("summary.json"))


def test_from_the_shell(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rlreason.evaluate", *SMALL, "limit=2"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPO)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "arithmetic, validation, 1 sample(s) a problem" in done.stdout
    assert f"written to {only_folder(tmp_path)}" in done.stdout.replace("\n", "")
    mean = json.loads((only_folder(tmp_path) / "summary.json").read_text())["eval/arithmetic/mean_length"]["mean"]
    assert math.isfinite(mean)
    assert 1 <= mean <= 8


def test_coverage_and_risk_where_the_policy_may_abstain() -> None:
    """Problem 0: right, abstains; problem 1: wrong, wrong; problem 2: abstains twice. And in a mixture, under the
    member's name."""

    def given(group: int, correct: bool, abstained: bool, name: str = "abstained") -> Rollout:
        found = rollout(group, correct)
        return replace(found, grade=replace(found.grade, parts={name: float(abstained)}))

    outcomes = [
        (0, True, False),
        (0, False, True),
        (1, False, False),
        (1, False, False),
        (2, False, True),
        (2, False, True),
    ]
    found = summarise([given(*outcome) for outcome in outcomes], k=[])
    assert (found["coverage"].mean, found["coverage"].n) == (pytest.approx((1 / 2 + 1 + 0) / 3), 3)
    assert (found["risk"].mean, found["risk"].n) == (pytest.approx(2 / 3), 2)
    assert found["coverage"].low == pytest.approx(1 - found["abstained"].high)
    silent = summarise([given(0, False, True)], k=[])
    assert silent["coverage"].mean == 0
    assert "risk" not in silent
    mixed = summarise([given(0, True, False, "sums/abstained"), rollout(1, False)], k=[])
    assert (mixed["sums/coverage"].mean, mixed["sums/risk"].mean) == (1, 0)

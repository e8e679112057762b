"""What is watched at a run's evaluations: the alarm when proxy and gold part, and the KL from the starting model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_rollout, plain_logp, tiny_folder
from test_resume import contents
from test_train import CAPITALS, metrics_of, tiny_config
from transformers import AutoModelForCausalLM

from envs.base import GeneratedSplit, SingleTurnEnv, check_split
from rlreason import checkpoint
from rlreason.alarm import PartingAlarm, told
from rlreason.analysis.load import read_traces
from rlreason.config import ConfigError, continued
from rlreason.traces import write_traces
from rlreason.train import run
from rlreason.types import Finish, Grade, Problem, Split

# Histories in files


def evaluated(out: Path, step: int, parts: list[dict[str, float]], *, split: Any = "validation") -> None:
    (out / "traces").mkdir(parents=True, exist_ok=True)
    rollouts = []
    for group, own in enumerate(parts):
        rollouts.append(replace(make_rollout(group, [4], [5]), grade=Grade(0.0, None, parts=own)))
    path = out / "traces" / f"eval-{split}-{step:06d}.parquet"
    write_traces(path, rollouts, step=step, split=split, env="e")


def history(out: Path, *changes: tuple[int, float, float]) -> Path:
    """Eight problems, each with proxy and gold of its own; by step, how much is added to all proxies and golds."""
    for step, proxy, gold in changes:
        evaluated(out, step, [{"proxy": i + proxy, "gold": i / 2 + gold} for i in range(8)])
    return out


def test_it_rings_when_proxy_rises_and_gold_falls_since_gold_was_best(tmp_path: Path) -> None:
    parting = PartingAlarm().check(history(tmp_path, (0, 0.0, 0.0), (20, 1.0, 0.5), (40, 1.75, 0.25), (60, 3.0, -2.0)))
    assert parting is not None
    assert (parting.since, parting.step) == (20, 40)
    assert parting.proxy.mean == pytest.approx(0.75)
    assert parting.gold.mean == pytest.approx(-0.25)
    assert told(parting) == (
        "proxy and gold have parted: from step 20 to 40 the proxy rose by 0.750 (0.750 to 0.750) and gold fell by "
        "0.250 (0.250 to 0.250)"
    )


@pytest.mark.parametrize(
    "changes",
    [
        [(0, 0.0, 0.0)],
        [(0, 0.0, 0.0), (20, 1.0, 1.0), (40, 2.0, 2.0)],  # both rise
        [(0, 0.0, 0.0), (20, -1.0, -1.0)],  # both fall
        [(0, 0.0, 0.0), (20, -1.0, 1.0), (40, -1.0, 0.5)],  # gold falls, the proxy stays
        [(0, 2.0, 0.0), (20, 0.0, 1.0), (40, 1.0, 2.0)],  # at the best gold the proxy was lower than at first
    ],
)
def test_it_stays_silent(changes: list[tuple[int, float, float]], tmp_path: Path) -> None:
    assert PartingAlarm().check(history(tmp_path, *changes)) is None


def test_chance_does_not_ring_it_and_confidence_says_what_chance_is(tmp_path: Path) -> None:
    """Gold falls by 0.1 in the mean over eight problems, with a standard error of 0.076: 1.3 of it."""
    evaluated(tmp_path, 0, [{"proxy": 0.0, "gold": 0.0}] * 8)
    falls = [-0.5, 0.3, -0.2, 0.1, -0.3, 0.0, -0.2, 0.0]
    evaluated(tmp_path, 10, [{"proxy": 1.0, "gold": fall} for fall in falls])
    assert PartingAlarm(confidence=0.99).check(tmp_path) is None
    assert PartingAlarm(confidence=0.5).check(tmp_path) is not None


def test_other_traces_are_none_of_its_business(tmp_path: Path) -> None:
    history(tmp_path, (0, 0.0, 0.0), (20, 1.0, 1.0))
    evaluated(tmp_path, 40, [{"proxy": 9.0, "gold": -9.0}] * 8, split="test")
    write_traces(
        tmp_path / "traces" / "step-000030.parquet", [make_rollout(0, [4], [5])], step=30, split="train", env="e",
    )  # fmt: skip
    assert PartingAlarm().check(tmp_path) is None


def test_what_has_no_proxy_and_gold_is_refused(tmp_path: Path) -> None:
    evaluated(tmp_path, 0, [{"accuracy": 1.0}])
    with pytest.raises(ValueError, match="no parts `proxy` and `gold`"):
        PartingAlarm().check(tmp_path)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_a_confidence_that_is_none_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match=r"alarm.confidence is .*between 0 and 1"):
        PartingAlarm(confidence=confidence)


# In a run

BEST = 1
"""The evaluation, counted from 0, at which gold is best."""


@dataclass(frozen=True)
class Hacked(SingleTurnEnv):
    """Evaluation by evaluation the proxy rises by 1; gold rises up to the evaluation ``BEST`` and falls from there.

    Grading the first of the validation problems begins an evaluation."""

    evaluations: list[int]
    name: str = "hacked"

    @property
    def max_reward(self) -> float:
        return 1.0

    def split(self, name: str) -> Split:
        check_split(name)
        return GeneratedSplit(4, lambda i: Problem(f"{name}/{i}", [{"role": "user", "content": f"{i}?"}], None))

    def grade_text(self, problem: Problem, text: str, finish: Finish) -> Grade:
        if problem.id == "validation/0":
            self.evaluations.append(len(self.evaluations))
        number = len(self.evaluations) - 1
        return Grade(float(len(text) % 3), True, parts={"proxy": float(number), "gold": -float(abs(number - BEST))})

    def gold(self, problem: Problem) -> str:
        return ""

    def manifest(self) -> Mapping[str, Any]:
        return {}


WATCHED = (
    "~env", "env={_target_: test_alarm.Hacked, evaluations: []}", "alarm=parting", "max_steps=6", "eval_every=2",
    "save_every=6",
)  # fmt: skip


def steps_of(out: Path) -> list[int]:
    return [line["step"] for line in metrics_of(out)]


def rings_of(out: Path) -> dict[int, float]:
    """By step, of the evaluations."""
    key = "eval/hacked/parted"
    return {line["step"]: line[key] for line in metrics_of(out) if key in line}


def test_an_alarm_is_recorded_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tiny_config(*WATCHED, "console.quiet=false"), tmp_path)
    assert rings_of(tmp_path) == {0: 0.0, 2: 0.0, 4: 1.0, 6: 1.0}
    assert steps_of(tmp_path) == list(range(7))
    said = " ".join(capsys.readouterr().out.split())  # as the console wraps it
    assert said.count("proxy and gold have parted: from step 2 to 4 the proxy rose by 1.000") == 2


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stopped") / "run"
    run(tiny_config(*WATCHED, "alarm.stop=true"), out)
    return out


def test_with_stop_the_run_is_over_as_if_that_was_its_last_step(stopped: Path) -> None:
    assert steps_of(stopped) == [0, 1, 2, 3, 4]
    assert rings_of(stopped) == {0: 0.0, 2: 0.0, 4: 1.0}
    assert [checkpoint.step_of(folder) for folder in checkpoint.found(stopped)] == [4]
    found = json.loads((stopped / "summary.json").read_text())
    assert found["steps"] == 4
    assert found["after"]["eval/hacked/parted"] == 1.0


def test_what_the_alarm_ended_stays_over(stopped: Path, tmp_path: Path) -> None:
    """The same command again does nothing, as with any other run that is over."""
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    run(tiny_config(*WATCHED, "alarm.stop=true", f"resume={out}"), out)
    assert contents(out) | {"manifest.json": ""} == contents(stopped) | {"manifest.json": ""}


@pytest.mark.parametrize("override", ["~alarm", "alarm=parting"])
def test_without_the_alarm_it_can_go_on(override: str, stopped: Path, tmp_path: Path) -> None:
    """The folder says the rest of the configuration."""
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    others = [o for o in WATCHED if not o.startswith("alarm")]
    cfg = continued(tiny_config(*others, override, f"resume={out}"), [f"resume={out}", override])
    assert cfg.env.evaluations == []
    run(cfg, out)
    assert steps_of(out) == list(range(7))
    assert json.loads((out / "summary.json").read_text())["steps"] == 6


def test_an_environment_without_proxy_and_gold_is_refused_before_any_step(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"alarm: .* no parts `proxy` and `gold`; they are not of env=rlhf"):
        run(tiny_config(*CAPITALS, "alarm=parting", "max_steps=2", "eval_every=2"), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


# The KL of whole completions


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("eval_kl=true",), r"eval_kl needs samples of the policy: set eval_temperature=1.0 \(it is 0.0\)"),
        (("eval_kl=true", "eval_temperature=0.5"), "set eval_temperature=1.0"),
        (("eval_temperature=-1",), "eval_temperature is -1.0; it must be 0"),
    ],
)
def test_a_kl_of_other_samples_is_refused(overrides: tuple[str, ...], said: str, tmp_path: Path) -> None:
    """Log-probabilities of greedy samples average to no KL; it could be negative."""
    with pytest.raises(ConfigError, match=said):
        run(tiny_config(*CAPITALS, *overrides), tmp_path)


@pytest.mark.parametrize("lora", [0, 4])
def test_the_kl_of_an_evaluation_by_hugging_face_alone(lora: int, tmp_path: Path) -> None:
    small = ("eval_kl=true", "eval_temperature=0.7", "sampling.temperature=0.7", "max_steps=2", "eval_every=2")
    rate = "algo.learning_rate=3e-2" if lora else "algo.learning_rate=3e-3"
    run(tiny_config(*CAPITALS, *small, f"model={tiny_folder()}", "model.dtype=float32", f"model.lora.r={lora}", rate),
        tmp_path)  # fmt: skip
    lines = metrics_of(tmp_path)
    assert lines[0]["eval/capitals/kl"] == 0.0
    assert "eval/capitals/kl" not in lines[1]
    # The folder of a checkpoint has LoRA's weights merged in.
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoints" / "step-000002", dtype=torch.float32)
    before = AutoModelForCausalLM.from_pretrained(tiny_folder(), dtype=torch.float32)
    rows = read_traces(tmp_path / "traces" / "eval-validation-000002.parquet", ["prompt_ids", "completion_ids"])
    assert len(rows) == 4
    distances = []
    for prompt, completion in zip(rows["prompt_ids"], rows["completion_ids"], strict=True):
        with torch.no_grad():
            now, then = (plain_logp(m, list(prompt), list(completion), 0.7).sum() for m in (after, before))
        distances.append(float(now - then))
    assert lines[2]["eval/capitals/kl"] == pytest.approx(sum(distances) / 4, abs=2e-4)
    assert abs(sum(distances) / 4) > 0.01


def test_evaluations_are_sampled_at_their_temperature(tmp_path: Path) -> None:
    texts = {}
    for temperature in ("0.0", "1.0"):
        out = tmp_path / temperature
        run(tiny_config(*CAPITALS, "max_steps=1", f"eval_temperature={temperature}"), out)
        texts[temperature] = list(read_traces(out / "traces" / "eval-validation-000000.parquet", ["text"])["text"])
    assert texts["0.0"] != texts["1.0"]

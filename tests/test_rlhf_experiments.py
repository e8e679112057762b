"""The scripts in experiments/reasoning and experiments/rlhf_overoptimisation, on runs of the tiny model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from test_experiments import PNG, composed, config, json_lines, recorded, script

from rlreason import evaluate, reward_model, train
from rlreason.analysis.load import read_metrics, read_traces

QUIET = ["model=tiny", "logger.mode=disabled", "console.quiet=true"]
SHORT = [*QUIET, "max_steps=6", "eval_every=3", "algo.num_prompts=2", "algo.num_generations=2", "eval_limit=4"]
PROBLEMS = ["operations=['+','-']", "terms=4", "format._target_=envs.formats.R1"]


def cells(table: str, first: str) -> list[str]:
    return next(line for line in table.splitlines() if line.startswith(f"| {first} |")).strip("| ").split(" | ")


@pytest.fixture(scope="module")
def reasoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reasoning")
    short = [*SHORT, "sampling.max_completion_length=8"]
    train.run(config("train", ["+experiment=reasoning", *short]), folder / "grpo-1")
    train.run(config("train", ["+experiment=reasoning", "reward=random", *short]), folder / "random-1")
    for who in ("base", "sft-1", "grpo-1"):
        few = ["model=tiny", "split=test", "limit=6", "sampling.max_completion_length=8"]
        thinking = ["env=arithmetic", *(f"env.{problem}" for problem in PROBLEMS)]
        how = {
            "thinking": thinking,
            "sampled": [*thinking, "num_samples=2", "sampling.temperature=1"],
            "in_one_breath": ["env=prefilled", *(f"env.env.{problem}" for problem in PROBLEMS)],
        }
        for name, problems in how.items():
            evaluate.run(config("evaluate", [*few, *problems]), folder / "eval" / who / name)
    return folder


def test_reasoning_results_are_those_of_the_runs(
    reasoned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = script("experiments/reasoning/collect.py").main(reasoned, tmp_path)
    table = capsys.readouterr().out
    assert results == json.loads(json.dumps(results))
    assert [*results["evaluations"]] == ["base", "grpo-1", "sft-1"]
    assert results["gained"]["grpo-1"]["thinking"]["mean"] == 0  # the same model
    assert [*results["runs"]] == ["grpo-1", "random-1"]
    traces = read_traces(reasoned / "eval/base/thinking", ["correct", "completion_tokens"])
    thinking = results["evaluations"]["base"]["thinking"]
    assert thinking["mean"] == fmean(traces["correct"].astype(float))
    assert thinking["mean_length"] == fmean(traces["completion_tokens"])
    assert thinking["n"] == results["evaluations"]["base"]["sampled"]["n"] == 6
    sampled = read_traces(reasoned / "eval/base/sampled", ["correct"])["correct"].astype(float)
    assert results["evaluations"]["base"]["sampled"]["mean"] == pytest.approx(sampled.mean())
    assert len(sampled) == 12
    assert cells(table, "base")[5:] == [f"{thinking['mean_length']:.0f}", "6"]

    curves = results["runs"]["grpo-1"]["curves"]
    metrics = read_metrics(reasoned / "grpo-1")
    steps = metrics[metrics["step"] > 0]
    assert curves["step"] == [1, 2, 3, 4, 5, 6]
    assert curves["length"] == pytest.approx(steps["completions/mean_length"].tolist())
    assert curves["accuracy"] == pytest.approx(steps["accuracy"].tolist())
    assert {path.name for path in tmp_path.iterdir()} == {
        "curves.png", "metrics-grpo-1.jsonl", "metrics-random-1.jsonl", "results.json", "traces-sample.jsonl"
    }  # fmt: skip
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)


def test_reasoning_behaviours_are_counted_by_what_is_written(
    reasoned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark is put into every second sample of a step."""
    collect = script("experiments/reasoning/collect.py")
    real = collect.read_traces

    def marked(path: Path, columns: Sequence[str]) -> Any:
        traces = real(path, columns).reset_index(drop=True)
        traces.loc[traces.index % 2 == 0, "text"] = "3 + 4 = 7\nLet me check: 7 - 4 = 3. Right."
        return traces

    monkeypatch.setattr(collect, "read_traces", marked)
    found = collect.behaviours(reasoned / "grpo-1")
    assert found["checks"].tolist() == [0.5] * 6
    assert found["corrects"].tolist() == [0.0] * 6


def test_reasoning_run_sh(tmp_path: Path) -> None:
    study = tmp_path / "study"
    for run in ("sft-1", "grpo-1", "sft-5", "grpo-5", "random-1"):
        (study / run / "checkpoints" / "step-000009").mkdir(parents=True)
    calls = recorded("experiments/reasoning/run.sh", ["study", "1", "5"], tmp_path)
    jobs = [call[1].removeprefix("rlreason.") for call in calls]
    seed = ["sft", "train", *["evaluate"] * 6]
    assert jobs == [*seed, *seed, "train", *["evaluate"] * 6]
    for call in calls:
        cfg = composed(call)
        (to,) = [o.removeprefix("hydra.run.dir=") for o in call if o.startswith("hydra.run.dir=")]
        who = Path(to).relative_to(study).parts
        if call[1] == "rlreason.train":
            assert cfg.model.path == str(
                study / who[0].replace("grpo", "sft").replace("random", "sft") / "checkpoints/step-000009"
            )
            assert ("reward" in cfg and cfg.reward is not None) == who[0].startswith("random")
        if call[1] == "rlreason.evaluate":
            env = cfg.env.env if who[2] == "in_one_breath" else cfg.env
            trained = config("train", ["+experiment=reasoning"]).env
            for key in ("operations", "digits", "terms", "format"):
                assert env[key] == trained[key]  # the problems that were trained on
            assert (cfg.split, cfg.limit) == ("test", 500)


def test_r1_results_are_those_of_the_pipeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pipeline of two stages, as far as its results go: the runs are real, what they were run for is not."""
    folder, out = tmp_path / "study", tmp_path / "out"
    few = [f"env.{problem}" for problem in PROBLEMS] + [
        "model=tiny",
        "split=test",
        "limit=6",
        "sampling.max_completion_length=8",
    ]
    for stage in ("start", "cold_start", "rejection"):
        evaluate.run(config("evaluate", few), folder / "final" / "test" / stage)
        (folder / stage).mkdir()
        (folder / stage / "metrics.jsonl").write_text("", encoding="utf-8")
        manifest = (folder / "final/test" / stage / "manifest.json").read_bytes()
        (folder / stage / "manifest.json").write_bytes(manifest)
        (folder / stage / "summary.json").write_text(json.dumps({"kept": 3}), encoding="utf-8")
    attempts = [
        {"began": "2026-01-01T10:00:00+00:00", "ended": "2026-01-01T10:30:00+00:00", "exit_code": 143},
        {"began": "2026-01-01T11:00:00+00:00", "ended": "2026-01-01T11:15:00+00:00", "exit_code": 0},
        {"began": "2026-01-01T12:00:00+00:00", "ended": None, "exit_code": None},
    ]
    stages = {name: {"job": "sft", "attempts": attempts} for name in ("cold_start", "rejection")}
    (folder / "lineage.json").write_text(json.dumps({"stages": stages}), encoding="utf-8")
    results = script("experiments/r1/collect.py").main(folder, out)
    assert [*results["test"]] == ["start", "cold_start", "rejection"]
    assert results["stages"]["cold_start"]["minutes"] == 45
    assert results["gained"]["cold_start"]["mean"] == 0  # the same model
    traces = read_traces(folder / "final/test/start", ["correct", "completion_tokens"])
    start = results["test"]["start"]
    assert start["right"] == traces["correct"].sum()
    assert start["accuracy"]["n"] == 6
    assert start["thought"]["mean"] == 0  # no tag: no thought
    assert cells(capsys.readouterr().out, "cold_start")[-1] == "45"
    assert len(json_lines(out / "traces-sample.jsonl")) == 3 * 4


def test_r1_run_sh(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    arguments = ["data", "study", "base_model=tiny"]
    (call,) = recorded("experiments/r1/run.sh", arguments, tmp_path)
    assert call[:3] == ["-m", "rlreason.pipeline", "+recipe=r1"]
    cfg = composed(call)
    assert (cfg.vars.data_dir, cfg.base_model, cfg.resume) == (str(tmp_path / "data"), "tiny", None)


@pytest.fixture(scope="module")
def optimised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs against a scorer that loves length, best-of-n by it, and a reward model of the tiny model."""
    folder = tmp_path_factory.mktemp("rlhf")
    scorer = ["~env.scorer", "+env.scorer={_target_: test_rlhf.Lengths}", "sampling.max_completion_length=8"]
    for name, more in {"free-1": [], "kl-1": ["algo.beta=0.05"]}.items():
        train.run(config("train", ["+experiment=rlhf", *SHORT, *scorer, *more]), folder / name)
    sampled = ["model=tiny", "env=rlhf", *scorer, "num_samples=32", "limit=3", "sampling.temperature=1.0"]
    evaluate.run(config("evaluate", sampled), folder / "best_of_n")
    pairs = ["data=synthetic", "data.num_train=16", "data.num_validation=12", "max_steps=1", "batch_size=4"]
    reward_model.run(config("reward_model", [*QUIET, *pairs]), folder / "rm-1")
    return folder


def test_overoptimisation_results_are_those_of_the_runs(
    optimised: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = script("experiments/rlhf_overoptimisation/collect.py").main(optimised, tmp_path)
    table = capsys.readouterr().out
    free = results["runs"]["free-1"]
    metrics = read_metrics(optimised / "free-1")
    evaluated = metrics.dropna(subset=["eval/notes-rlhf/proxy"])
    assert free["step"] == evaluated["step"].tolist() == [0, 3, 6]
    for part in ("proxy", "gold"):
        assert free[part] == pytest.approx(evaluated[f"eval/notes-rlhf/{part}"].tolist())
    assert free["kl"] == pytest.approx(evaluated["eval/notes-rlhf/kl"].clip(lower=0).tolist())
    assert free["kl"][0] == pytest.approx(0, abs=1e-2)
    assert free["gold_change"][-1]["mean"] == pytest.approx(free["gold"][-1] - free["gold"][0])
    assert cells(table, "free-1")[0] == "free-1"

    best = results["best_of_n"]
    traces = read_traces(optimised / "best_of_n", ["parts"])
    parts = [json.loads(text) for text in traces["parts"]]
    assert best["proxy"][0] == pytest.approx(fmean(part["proxy"] for part in parts))
    assert best["gold"][0] == pytest.approx(fmean(part["gold"] for part in parts))
    every = [max(part["proxy"] for part in parts[place : place + 32]) for place in range(0, 96, 32)]
    assert best["proxy"][-1] == pytest.approx(fmean(every))  # of 32, the best is the maximum
    summary = json.loads((optimised / "rm-1" / "summary.json").read_text(encoding="utf-8"))
    assert results["reward_models"]["rm-1"]["accuracy"] == summary["accuracy"]["all"]
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)
    assert {line["run"] for line in json_lines(tmp_path / "traces-sample.jsonl")} == {"free-1", "kl-1"}


def test_reward_model_results_are_those_of_the_runs(
    optimised: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "study"
    study.mkdir()
    (study / "hh-1").symlink_to(optimised / "rm-1")
    results = script("experiments/reward_model/collect.py").main(study, tmp_path / "out")
    summary = json.loads((optimised / "rm-1" / "summary.json").read_text(encoding="utf-8"))
    assert results["hh-1"]["accuracy"] == summary["accuracy"]
    assert results["hh-1"]["held_out_loss"] == [summary[when]["eval/synthetic/loss"] for when in ("before", "after")]
    assert cells(capsys.readouterr().out, "hh-1")[2] == str(summary["accuracy"]["all"]["n"])
    assert (tmp_path / "out" / "calibration.png").read_bytes().startswith(PNG)


def test_reward_model_run_sh(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl.gz").touch()
    calls = recorded("experiments/reward_model/run.sh", ["pairs.jsonl.gz", "study"], tmp_path)
    configs = [composed(call) for call in calls]
    assert [cfg.name for cfg in configs] == ["reward_model_synthetic"] + ["reward_model_hh"] * 3
    assert {cfg.data.source.train for cfg in configs[1:]} == {str(tmp_path / "pairs.jsonl.gz")}
    assert [next(o for o in call if o.startswith("seed=")) for call in calls[1:]] == ["seed=1", "seed=2", "seed=3"]


def test_overoptimisation_run_sh(tmp_path: Path) -> None:
    study = tmp_path / "study"
    calls = recorded("experiments/rlhf_overoptimisation/run.sh", ["study"], tmp_path)
    made = {}
    for call in calls:
        (to,) = [o.removeprefix("hydra.run.dir=") for o in call if o.startswith("hydra.run.dir=")]
        made[Path(to).name] = composed(call)
    assert [*made] == ["draws", "rm-1", "rm-2", "rm-3", "best_of_n", "free-1", "kl-1", "ensemble-1", "free-2", "audit"]
    one = [str(study / "rm-1")]
    assert made["rm-2"].data.path == str(study / "draws")
    for name in ("free-1", "free-2", "kl-1", "best_of_n"):
        assert made[name].env.scorer.paths == one
    assert made["ensemble-1"].env.scorer.paths == [str(study / f"rm-{seed}") for seed in (1, 2, 3)]
    assert made["ensemble-1"].env.combine._target_ == "envs.rlhf.Worst"
    assert (made["free-1"].algo.beta, made["kl-1"].algo.beta) == (0.0, 0.05)
    tokens = {cfg.sampling.max_completion_length for name, cfg in made.items() if "sampling" in cfg}
    assert tokens == {96}  # best-of-n and RL are of one distribution

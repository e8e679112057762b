"""The scripts in experiments/, on runs of the tiny model: the files they write hold the numbers of the run folders; and
the commands of the shell scripts compose."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any, Literal

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from rlreason import evaluate, train
from rlreason.analysis.load import read_traces
from rlreason.config import CONF, model_paths, register
from rlreason.traces import write_traces
from rlreason.types import Grade, Problem, Rollout, Segment

REPO = Path(__file__).resolve().parent.parent
PNG = b"\x89PNG\r\n\x1a\n"
# Three steps of 4 x 8 short completions.
SMALL = [
    "model=tiny",
    "max_steps=3",
    "eval_every=2",
    "algo.num_prompts=4",
    "logger.mode=disabled",
    "console.quiet=true",
]


def script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.replace("/", "_").removesuffix(".py"), REPO / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def config(name: str, overrides: Sequence[str]) -> DictConfig:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, overrides=list(overrides))


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of lines; NaN, which is no JSON, fails."""
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def column(lines: Sequence[dict[str, Any]], name: str) -> list[Any]:
    return [line[name] for line in lines if name in line]


def cells(table: str, first: str) -> list[str]:
    """The cells of the table row that begins with ``first``."""
    (row,) = [line for line in table.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in row.strip("|").split("|")]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What experiments/arithmetic/run.sh leaves: two seeds, evaluations of the untrained model and of one seed."""
    folder = tmp_path_factory.mktemp("sweep")
    for number, seed in enumerate((1, 2)):
        train.run(config("train", ["+experiment=arithmetic", *SMALL, f"seed={seed}"]), folder / f"{number}-abcd{seed}")
    for who, model in (("base", "tiny"), ("0-abcd1", str(folder / "0-abcd1" / "checkpoints" / "step-000003"))):
        for part, overrides in {
            "validation": ["split=validation"],
            "test": ["split=test"],
            "two_digits": ["split=test", "env.digits=2", "env.name=arithmetic_2digits", "limit=20"],
        }.items():
            # Sampled, since the greedy completions of a random model are all equally long.
            common = ["model=tiny", f"model.path={model}", "env=arithmetic", "sampling.temperature=1"]
            evaluate.run(config("evaluate", [*common, *overrides]), folder / "eval" / who / part)
    return folder


def test_arithmetic(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = script("experiments/arithmetic/plot.py")
    capsys.readouterr()
    plot.main(sweep, tmp_path)
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert sorted(results["seeds"]) == ["1", "2"]
    for number, seed in enumerate(("1", "2")):
        folder, found = sweep / f"{number}-abcd{seed}", results["seeds"][seed]
        lines = json_lines(folder / "metrics.jsonl")
        assert (tmp_path / f"metrics-seed{seed}.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()
        rewards, times = column(lines, "reward"), column(lines, "step_time")
        assert len(rewards) == 3
        assert found["steps"] == 3
        curves = found["curves"]
        assert curves["step"] == [1, 2, 3]
        assert curves["reward"] == pytest.approx(rewards, rel=1e-5)
        # A step that had nothing to learn from has no entropy.
        entropies = [line.get("entropy") for line in lines[1:]]
        assert curves["entropy"] == [None if value is None else pytest.approx(value, rel=1e-5) for value in entropies]
        assert curves["mean_length"] == pytest.approx(column(lines, "completions/mean_length"), rel=1e-5)
        assert curves["frac_reward_zero_std"] == pytest.approx(column(lines, "frac_reward_zero_std"), rel=1e-5)
        assert curves["seconds"] == pytest.approx([times[0], times[0] + times[1], sum(times)], rel=1e-5)
        assert found["minutes"] == pytest.approx(sum(times) / 60, rel=1e-5)
        assert found["reward_first_step"] == pytest.approx(rewards[0], rel=1e-5)
        assert found["reward_last_steps"] == pytest.approx(fmean(rewards), rel=1e-5)  # fewer steps than the window
        assert found["minutes_to_target"] is None  # a random model does not get there
        validation = found["validation"]
        assert validation["step"] == [0, 2, 3]
        assert validation["minutes"] == pytest.approx([0, (times[0] + times[1]) / 60, sum(times) / 60], rel=1e-5)
        for key in ("accuracy", "accuracy_low", "accuracy_high"):
            assert validation[key] == pytest.approx(column(lines, f"eval/arithmetic/{key}"), rel=1e-5)
        assert cells(printed, seed)[1:3] == [f"{rewards[0]:.2f}", f"{fmean(rewards):.2f}"]
    assert results["seeds"]["2"]["after"] == {}  # nobody evaluated it
    assert results["base_long"] == {}
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)
    assert (tmp_path / "curves.png").stat().st_size > 20_000


def test_arithmetic_evaluations_are_pooled_over_problems(sweep: Path, tmp_path: Path) -> None:
    results = script("experiments/arithmetic/plot.py").main(sweep, tmp_path)
    for who, found in (("base", results["base"]), ("0-abcd1", results["seeds"]["1"]["after"])):
        one, two = found["one_digit"], found["two_digits"]
        assert (one["n"], two["n"]) == (32, 20)
        summaries = {
            part: json.loads((sweep / "eval" / who / part / "summary.json").read_text(encoding="utf-8"))
            for part in ("validation", "test", "two_digits")
        }
        validation, test = (summaries[part]["eval/arithmetic/accuracy"] for part in ("validation", "test"))
        assert one["mean"] == pytest.approx((18 * validation["mean"] + 14 * test["mean"]) / 32, abs=1e-9)
        assert {key: two[key] for key in ("mean", "low", "high", "n")} == pytest.approx(
            summaries["two_digits"]["eval/arithmetic_2digits/accuracy"]
        )
        lengths = [summaries[part]["eval/arithmetic/mean_length"]["mean"] for part in ("validation", "test")]
        assert one["mean_length"] == pytest.approx((18 * lengths[0] + 14 * lengths[1]) / 32)


def answered(folder: Path, split: Literal["validation", "test"], verdicts: Mapping[str, bool | None]) -> None:
    """An evaluation folder with one greedy rollout per problem; None: the grader failed."""
    rollouts = [
        Rollout(
            problem=Problem(problem, [{"role": "user", "content": problem}], "3"),
            group=group,
            segments=[Segment([1, 2], [3] * (group + 1), [-0.5] * (group + 1), [True] * (group + 1))],
            messages=[],
            text="3",
            finish="length" if group == 0 else "stop",
            grade=Grade(float(bool(correct)), correct, "error" if correct is None else "ok"),
        )
        for group, (problem, correct) in enumerate(verdicts.items())
    ]
    (folder / "traces").mkdir(parents=True)
    write_traces(folder / "traces" / f"eval-{split}-000000.parquet", rollouts, step=0, split=split, env="e")
    (folder / "summary.json").write_text("{}", encoding="utf-8")


def test_arithmetic_pooled_by_hand(tmp_path: Path) -> None:
    plot = script("experiments/arithmetic/plot.py")
    answered(tmp_path / "validation", "validation", {"1+2": True, "2+1": True, "1+1": False})
    assert plot.read_evaluations(tmp_path) == {}  # half an evaluation is none
    answered(tmp_path / "test", "test", {"0+3": True, "3+0": None})
    (kind, found), *rest = plot.read_evaluations(tmp_path).items()
    assert (kind, rest) == ("one_digit", [])
    # 2 of 3 and 1 of 1 (the problem whose grader failed is left out) are 3 of 4, where averaging the splits would give
    # 5/6. Lengths 1, 2, 3 and 1; the first of each split was cut off.
    assert (found["mean"], found["n"]) == (pytest.approx(0.75), 4)
    assert (found["mean_length"], found["clipped_ratio"]) == (pytest.approx(7 / 4), pytest.approx(0.5))


def test_arithmetic_refuses_problems_asked_twice(tmp_path: Path) -> None:
    plot = script("experiments/arithmetic/plot.py")
    answered(tmp_path / "validation", "validation", {"1+2": True, "1+1": False})
    answered(tmp_path / "test", "test", {"1+2": True})
    with pytest.raises(ValueError, match="asked twice"):
        plot.read_evaluations(tmp_path)


def test_arithmetic_traces_are_those_of_the_runs(sweep: Path, tmp_path: Path) -> None:
    script("experiments/arithmetic/plot.py").main(sweep, tmp_path)
    sampled = json_lines(tmp_path / "traces-sample.jsonl")
    assert [(trace["seed"], trace["step"]) for trace in sampled] == [(s, t) for s in (1, 2) for t in (1, 2, 3)]
    for trace in sampled:
        file = sweep / f"{trace['seed'] - 1}-abcd{trace['seed']}" / "traces" / f"step-{trace['step']:06d}.parquet"
        rows = read_traces(file, ["text", "reward", "gold", "prompt"])
        rows = rows[rows["text"] == trace["text"]]
        assert any(
            (row.reward, row.gold, json.loads(row.prompt)) == (trace["reward"], trace["gold"], trace["prompt"])
            for row in rows.itertuples()
        )


def made_up_run(folder: Path, rewards: Sequence[float], seconds: float) -> Path:
    """A run folder with the given rewards, each step ``seconds`` long; no traces."""
    folder.mkdir(parents=True)
    accuracy = {
        "eval/arithmetic/accuracy": 0.5,
        "eval/arithmetic/accuracy_low": 0.3,
        "eval/arithmetic/accuracy_high": 0.7,
    }
    lines: list[dict[str, Any]] = [{"step": 0, **accuracy}]
    lines += [{"step": step, "reward": reward, "step_time": seconds} for step, reward in enumerate(rewards, start=1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    machine = {
        "cpu": "a CPU",
        "cores": 2,
        "torch_threads": 2,
        "memory_gib": 8.0,
        "gpus": [],
        "platform": "of no interest",
    }
    manifest = {
        "git": {"commit": None, "dirty": None}, "packages": {}, "seed": 7, "machine": machine,
        "model": {"source": "tiny", "path": "/some/place"},
        "env": {"name": "arithmetic", "sizes": {"validation": 18}},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def test_arithmetic_target_and_time(tmp_path: Path) -> None:
    plot = script("experiments/arithmetic/plot.py")
    # Five minutes a step, so that 15 minutes are over with step 3. Means of five: 0.6 at step 5,
    # (0.4 + 0.6 + 0.8 + 1 + 1) / 5 = 0.76 at step 6, (0.6 + 0.8 + 1 + 1 + 1) / 5 = 0.88 at step 7.
    rewards = [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0]
    found = plot.describe(plot.read_run(made_up_run(tmp_path / "run", rewards, 300.0)), {})
    assert found["reward_at_15_minutes"] == pytest.approx((0.2 + 0.4 + 0.6) / 3)
    assert found["steps_to_target"] == 7
    assert found["minutes_to_target"] == pytest.approx(35.0)
    assert found["reward_last_steps"] == pytest.approx(0.88)
    assert found["minutes"] == pytest.approx(35.0)
    assert "place" not in json.dumps(found)  # no paths in what is published


def test_arithmetic_one_good_step_is_no_arrival(tmp_path: Path) -> None:
    plot = script("experiments/arithmetic/plot.py")
    found = plot.describe(plot.read_run(made_up_run(tmp_path / "run", [0.9, 0.1, 0.1, 0.1, 0.1], 300.0)), {})
    assert found["minutes_to_target"] is None


def test_arithmetic_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run folder in"):
        script("experiments/arithmetic/plot.py").main(tmp_path, tmp_path / "out")


def test_algorithms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two algorithms, one with two seeds, and a control, in two sweeps; and a run that isn't finished."""
    asked = {
        "a/0": ["algo=grpo", "seed=1"],
        "a/1": ["algo=grpo", "seed=2"],
        "a/2": ["algo=maxrl", "seed=1"],
        "b/0": ["algo=grpo", "seed=1", "reward=random"],
        "b/1": ["algo=rloo", "seed=1"],
    }
    # one digit, so that a random model is right at times; the algorithms stay as the experiment has them
    small = ["model=tiny", "env.digits=1", "eval_limit=4", "max_steps=3", "logger.mode=disabled", "console.quiet=true"]
    for folder, overrides in asked.items():
        train.run(config("train", ["+experiment=algorithms", *small, *overrides]), tmp_path / folder)
    (tmp_path / "b/1/summary.json").unlink()
    collect = script("experiments/algorithms/collect.py")
    capsys.readouterr()
    collect.main([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert set(results["algorithms"]) == {"grpo", "maxrl", "grpo, random reward"}
    lines = {folder: json_lines(tmp_path / folder / "metrics.jsonl")[1:] for folder in asked}
    assert any(column(lines["a/0"], "accuracy"))
    budget = results["budget_tokens"]
    totals = [lines[folder][-1]["num_tokens"] for folder in asked if folder != "b/1"]
    assert budget == min(totals) // 1000 * 1000
    for name, folder, seed in (("grpo", "a/0", 0), ("grpo", "a/1", 1), ("maxrl", "a/2", 0)):
        tokens, accuracy = column(lines[folder], "num_tokens"), column(lines[folder], "accuracy")
        found = results["algorithms"][name]
        assert found["seeds"][str(seed + 1)]["accuracy"] == pytest.approx(accuracy, rel=1e-5)
        recent = [fmean(accuracy[: i + 1]) for i in range(3)]
        place = next(i for i, count in enumerate(tokens) if count >= budget)
        share = (budget - tokens[place - 1]) / (tokens[place] - tokens[place - 1])
        expected = recent[place - 1] + share * (recent[place] - recent[place - 1])
        assert found["accuracy_at_budget"]["seeds"][seed] == pytest.approx(expected, rel=1e-4, abs=1e-6)
        parts = [tokens[0], *(b - a for a, b in itertools.pairwise(tokens))][:place]
        parts.append(budget - tokens[place - 1])
        on_the_way = sum(part * a for part, a in zip(parts, accuracy, strict=False)) / budget
        assert found["accuracy_on_the_way"]["seeds"][seed] == pytest.approx(on_the_way, rel=1e-4, abs=1e-6)
    assert cells(printed, "maxrl")[0] == "maxrl"
    assert {trace["algorithm"] for trace in json_lines(tmp_path / "out" / "traces-sample.jsonl")} == set(
        results["algorithms"]
    )
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(PNG)


def test_algorithms_interval_by_hand() -> None:
    # 0.4, 0.5, 0.6: standard deviation 0.1, so 4.303 x 0.1 / sqrt(3) = 0.2484 on either side
    interval = script("experiments/algorithms/collect.py").interval
    assert interval([0.4, 0.5, 0.6]) == pytest.approx((0.5, 0.2516, 0.7484), abs=1e-4)


@pytest.fixture(scope="module")
def gsm8k_study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What experiments/gsm8k/run.sh leaves, on problems made up here: (its folder, the data's folder)."""
    folder, data = tmp_path_factory.mktemp("study"), tmp_path_factory.mktemp("data")
    for split, count in (("train", 30), ("test", 6)):
        rows = [
            {"question": f"A {split} box holds {i} cups and {i} mugs. How many?", "answer": f"WORKING\n#### {2 * i}"}
            for i in range(1, count + 1)
        ]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = ["env.source=local", f"env.data_dir={data}", "env.num_validation=5"]
    for prompt, override in (
        ("r1", "env.format._target_=envs.formats.R1"),
        ("plain", "env.format._target_=envs.formats.Plain"),
    ):
        limits = ["env=gsm8k", "model=tiny", "split=test", "sampling.max_completion_length=8"]
        evaluate.run(config("evaluate", [*limits, *source, override]), folder / "eval" / prompt)
    short = [*SMALL, "sampling.max_completion_length=8", "eval_limit=4"]
    train.run(config("train", ["+experiment=gsm8k", *short, *source]), folder / "train")
    return folder, data


def test_gsm8k(gsm8k_study: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, data = gsm8k_study
    capsys.readouterr()
    script("experiments/gsm8k/collect.py").main(folder, tmp_path)
    printed = capsys.readouterr().out
    written = (tmp_path / "results.json").read_text(encoding="utf-8")
    results = json.loads(written)
    assert list(results["evaluations"]) == ["r1", "plain"]
    for prompt, found in results["evaluations"].items():
        summary = json.loads((folder / "eval" / prompt / "summary.json").read_text(encoding="utf-8"))
        for metric in ("accuracy", "lenient", "mean_length", "clipped_ratio"):
            assert found[metric] == pytest.approx(summary[f"eval/gsm8k/{metric}"], rel=1e-5)
        assert found["accuracy"]["n"] == 6
        assert found["split"] == "test"
    assert "format" in results["evaluations"]["r1"]
    assert "format" not in results["evaluations"]["plain"]  # nothing was asked for
    strict = results["evaluations"]["r1"]["accuracy"]
    assert (
        cells(printed, "R1")[1]
        == f"{100 * strict['mean']:.1f} ({100 * strict['low']:.1f} to {100 * strict['high']:.1f})"
    )
    lines = json_lines(folder / "train" / "metrics.jsonl")
    assert (tmp_path / "metrics.jsonl").read_bytes() == (folder / "train" / "metrics.jsonl").read_bytes()
    training = results["training"]
    for name in ("reward", "rewards/format/mean", "rewards/lenient/mean", "completions/mean_length"):
        assert training["curves"][name] == pytest.approx(column(lines, name), rel=1e-5)
    assert training["before"] == pytest.approx({k: v for k, v in lines[0].items() if k.startswith("eval/")}, rel=1e-5)
    assert training["after"] == pytest.approx({k: v for k, v in lines[-1].items() if k.startswith("eval/")}, rel=1e-5)
    assert training["validation_problems"] == 4  # of five
    assert training["minutes"] == pytest.approx(sum(column(lines, "step_time")) / 60, rel=1e-5)
    assert cells(printed, "reward")[1:] == [f"{lines[1]['reward']:.3g}", f"{lines[3]['reward']:.3g}"]
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)
    assert str(data) not in written


def test_gsm8k_publishes_a_handful_of_questions_and_no_solutions(
    gsm8k_study: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, _ = gsm8k_study
    script("experiments/gsm8k/collect.py").main(folder, tmp_path)
    sampled = json_lines(tmp_path / "traces-sample.jsonl")
    training = ["training, step-000001"] * 2 + ["training, step-000003"] * 2
    assert [trace["source"] for trace in sampled] == ["r1", "plain", *training]
    for trace in sampled:
        assert "How many?" in trace["prompt"][-1]["content"]
        assert trace["reward"] >= 0
    assert not any("WORKING" in file.read_text(encoding="utf-8") for file in tmp_path.glob("*.json*"))


def recorded(script_path: str, arguments: Sequence[str], tmp_path: Path, jobs: Sequence[str] = ()) -> list[list[str]]:
    """The Python commands that a run.sh calls, without the interpreter.

    A stand-in for it writes them down, and makes the run folders ``jobs`` with two checkpoints each, as training would.
    """
    log, python = tmp_path / "calls", tmp_path / "python"
    made = " ".join(shlex.quote(f"{job}/checkpoints/step-0000{step}") for job in jobs for step in ("20", "60"))
    training = f'if [ "$2" = rlreason.train ]; then mkdir -p {made}; fi\n' if jobs else ""
    python.write_text(f'#!/usr/bin/env bash\n{training}printf "%s\\0" "$@" >> {log}\nprintf "\\n" >> {log}\n')
    python.chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key not in ("MODEL", "LIMIT")}
    subprocess.run(
        [str(REPO / script_path), *arguments], check=True, env=environment | {"PYTHON": str(python)}, cwd=tmp_path,
        capture_output=True, timeout=60,
    )  # fmt: skip
    return [line.split("\0")[:-1] for line in log.read_text(encoding="utf-8").splitlines()]


def composed(call: Sequence[str]) -> DictConfig:
    """The config of a recorded command: every override must be one that Hydra takes."""
    dash, module, *overrides = call
    assert dash == "-m"
    return config(
        module.removeprefix("rlreason."),
        model_paths([o for o in overrides if o != "-m" and not o.startswith(("hydra.", "seed="))]),
    )


def test_arithmetic_run_sh(tmp_path: Path) -> None:
    study = tmp_path / "study"
    jobs = [str(study / f"{number}-0123abcd") for number in range(3)]
    training, *evaluations = recorded("experiments/arithmetic/run.sh", ["study", "max_steps=5"], tmp_path, jobs)
    assert training[:3] == ["-m", "rlreason.train", "-m"]
    assert {"+experiment=arithmetic", "seed=1,2,3", f"hydra.sweep.dir={study}"} <= set(training)
    assert composed(training).max_steps == 5
    training_tokens = composed(training).sampling.max_completion_length
    assert len(evaluations) == 5 * 3
    asked = {}
    for call in evaluations:
        cfg = composed(call)
        (to,) = [o.removeprefix("hydra.run.dir=") for o in call if o.startswith("hydra.run.dir=")]
        who, part = Path(to).relative_to(study / "eval").parts
        asked[who, part] = (cfg.model.path, cfg.split, cfg.env.digits, cfg.limit, cfg.sampling.max_completion_length)
        assert cfg.sampling.temperature == 0
        assert cfg.env.name == ("arithmetic_2digits" if part == "two_digits" else "arithmetic")
    for who, model, tokens in [
        ("base", "embedded", training_tokens),
        ("base_long", "embedded", 256),
        *((Path(job).name, f"{job}/checkpoints/step-000060", training_tokens) for job in jobs),
    ]:
        assert asked[who, "validation"] == (model, "validation", 1, None, tokens)
        assert asked[who, "test"] == (model, "test", 1, None, tokens)
        assert asked[who, "two_digits"] == (model, "test", 2, 500, tokens)


def test_gsm8k_run_sh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTS", "r1 r1_example hash plain")
    data, study = tmp_path / "data", tmp_path / "study"
    data.mkdir()
    *evaluations, training = recorded("experiments/gsm8k/run.sh", ["data", "study", "eval_limit=9"], tmp_path)
    cfg = composed(training)
    assert (cfg.max_steps, cfg.eval_limit, cfg.env.source, cfg.env.data_dir) == (10, 9, "local", str(data))
    assert f"hydra.run.dir={study / 'train'}" in training
    formats = {}
    for call in evaluations:
        cfg = composed(call)
        (to,) = [o.removeprefix("hydra.run.dir=") for o in call if o.startswith("hydra.run.dir=")]
        formats[Path(to).relative_to(study / "eval").name] = (cfg.env.format._target_, cfg.env.worked_example)
        assert (cfg.split, cfg.limit, cfg.sampling.temperature, cfg.sampling.max_completion_length) == (
            "test",
            None,
            0,
            256,
        )
        assert (cfg.env.source, cfg.env.data_dir, cfg.model.path) == ("local", str(data), "embedded")
    assert formats == {
        "r1": ("envs.formats.R1", False),
        "r1_example": ("envs.formats.R1", True),
        "hash": ("envs.formats.Hash", False),
        "plain": ("envs.formats.Plain", False),
    }
    assert set(formats) == set(script("experiments/gsm8k/collect.py").PROMPTS)


def test_gsm8k_run_sh_evaluates_the_training_prompt_by_default(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    evaluation, training = recorded("experiments/gsm8k/run.sh", ["data", "study"], tmp_path)
    assert composed(evaluation).env == composed(training).env


def test_algorithms_run_sh(tmp_path: Path) -> None:
    study = tmp_path / "study"
    algorithms, controls = recorded("experiments/algorithms/run.sh", ["study", "max_steps=5"], tmp_path)
    for call, folder in ((algorithms, "algorithms"), (controls, "controls")):
        assert {"-m", "+experiment=algorithms", "seed=1,2,3", f"hydra.sweep.dir={study / folder}"} <= set(call)
    (names,) = [o.removeprefix("algo=").split(",") for o in algorithms if o.startswith("algo=")]
    assert sorted(names) == sorted({path.stem for path in (CONF / "algo").glob("*.yaml")} - {"base"})
    (rewards,) = [o.removeprefix("reward=").split(",") for o in controls if o.startswith("reward=")]
    assert {f"reward={one}" for one in rewards} <= {f"reward={path.stem}" for path in (CONF / "reward").glob("*.yaml")}
    for name in names:
        one = [f"algo={name}" if o.startswith("algo=") else o for o in algorithms]
        assert composed(one).max_steps == 5


@pytest.mark.parametrize(
    ("path", "too_few"),
    [
        ("experiments/algorithms/run.sh", []),
        ("experiments/arithmetic/run.sh", []),
        ("experiments/gsm8k/run.sh", ["some/folder"]),
        ("experiments/r1/run.sh", ["some/folder"]),
        ("experiments/reasoning/run.sh", []),
        ("experiments/reward_model/run.sh", ["some/file"]),
        ("experiments/rlhf_overoptimisation/run.sh", []),
    ],
)
def test_run_sh_says_how_it_is_used(path: str, too_few: list[str], tmp_path: Path) -> None:
    done = subprocess.run([str(REPO / path), *too_few], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 2
    assert "usage:" in done.stderr

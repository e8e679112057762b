"""Sweeps: the table against numbers worked by hand, jobs that crash or are finished or taken, and whole sweeps of the
tiny model by each launcher.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from omegaconf import DictConfig, OmegaConf
from test_config import command
from test_train import CAPITALS, TINY, metrics_of

from rlreason.analysis.sweeps import compare, markdown, mean_curve, over_seeds, read_sweep
from rlreason.config import ConfigError
from rlreason.report import main as report_main
from rlreason.sweep import report, run_job

PNG = b"\x89PNG"
COMMON = ("+experiment=arithmetic", "max_steps=2")


def write_job(
    sweep: Path,
    number: int,
    seed: int,
    *overrides: str,
    lines: Sequence[dict[str, Any]] = (),
    state: str = "finished",
) -> Path:
    """A job folder as a sweep leaves it."""
    folder = sweep / f"{number}-abcd{number}"
    folder.mkdir(parents=True)
    asked = {"number": number, "seed": seed, "overrides": [*COMMON, *overrides, f"seed={seed}"]}
    (folder / "job.json").write_text(json.dumps(asked))
    if lines:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if state == "finished":
        (folder / "summary.json").write_text("{}")
    if state == "failed":
        (folder / "failed.json").write_text(json.dumps({"error": "ValueError: no\nluck", "traceback": "..."}))
    return folder


def lines_of(accuracy: float, *, tokens: int = 100, seconds: float = 1800.0) -> list[dict[str, Any]]:
    """Two steps, half of ``tokens`` and ``seconds`` each; the accuracy before, not in between, and after."""
    return [
        {"step": 0, "eval/task/accuracy": 0.0, "eval/task/mean_length": 9.0},
        {"step": 1, "reward": 0.5, "num_tokens": tokens / 2, "step_time": seconds / 2, "entropy": 2.0},
        {
            "step": 2,
            "reward": 0.7,
            "num_tokens": tokens,
            "step_time": seconds / 2,
            "eval/task/accuracy": accuracy,
            "eval/task/mean_length": 7.0,
            "entropy": None,
        },
    ]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """grpo 0.2, 0.4, 0.6 and rloo 0.3, 0.6, crashed: the differences that both have are 0.1 and 0.2. And two jobs asked
    for the same, a repeated trial, of which the first one was killed."""
    for number, (algo, seed, accuracy) in enumerate(
        [("grpo", 1, 0.2), ("grpo", 2, 0.4), ("grpo", 3, 0.6), ("rloo", 1, 0.3), ("rloo", 2, 0.6)]
    ):
        tokens = 100 if algo == "grpo" else 200
        write_job(tmp_path, number, seed, f"algo={algo}", lines=lines_of(accuracy, tokens=tokens))
    write_job(tmp_path, 5, 3, "algo=rloo", state="failed")
    write_job(tmp_path, 9, 1, "algo=ppo", lines=lines_of(0.9)[:2], state="unfinished")
    write_job(tmp_path, 10, 1, "algo=ppo", lines=lines_of(0.8))
    return tmp_path


def test_intervals_are_students() -> None:
    """s = 0.2 of three, and t of two degrees at 97.5 % is 4.303 (any table): ± 4.303 × 0.2 / √3 = 0.4969."""
    found = over_seeds([0.2, 0.4, 0.6])
    assert (found.mean, found.n) == (pytest.approx(0.4), 3)
    assert found.low == pytest.approx(0.4 - 0.4969, abs=1e-4)
    assert found.high == pytest.approx(0.4 + 0.4969, abs=1e-4)
    for values in ([0.3], [0.3, 0.3]):  # nothing is known of the spread
        found = over_seeds(values)
        assert (found.mean, found.n) == (0.3, len(values))
        assert math.isnan(found.low)
        assert math.isnan(found.high)


def test_jobs_are_read(sweep: Path) -> None:
    found = read_sweep(sweep)
    assert found.metric == "accuracy"
    jobs = found.jobs.set_index("job")
    # 9 before 10, and 9 gave way to 10, which was asked for the same and is finished
    assert list(jobs.index) == [f"{number}-abcd{number}" for number in (0, 1, 2, 3, 4, 5, 10)]
    assert list(jobs["configuration"]) == ["algo=grpo"] * 3 + ["algo=rloo"] * 3 + ["algo=ppo"]
    assert list(jobs["seed"]) == [1, 2, 3, 1, 2, 3, 1]
    first, crashed = jobs.loc["0-abcd0"], jobs.loc["5-abcd5"]
    assert (first["value"], first["steps"], first["tokens"], first["hours"]) == (0.2, 2, 100, 0.5)
    assert (crashed["state"], crashed["error"]) == ("failed", "ValueError: no\nluck")
    assert math.isnan(crashed["value"])
    assert math.isnan(crashed["hours"])


def test_configurations_are_compared(sweep: Path) -> None:
    grpo, rloo, ppo = compare(read_sweep(sweep).jobs)
    assert (grpo.configuration, grpo.seeds, grpo.values) == ("algo=grpo", (1, 2, 3), (0.2, 0.4, 0.6))
    assert grpo.value.low == pytest.approx(0.4 - 0.4969, abs=1e-4)
    assert grpo.difference is None
    assert (rloo.seeds, rloo.tokens, rloo.steps, rloo.hours) == ((1, 2), 200, 2, 0.5)
    # Paired: 0.1 and 0.2, s = 0.0707, t of one degree = 12.706: 0.15 ± 12.706 × 0.0707 / √2 = 0.15 ± 0.6353
    assert rloo.difference is not None
    assert rloo.difference.n == 2
    assert rloo.difference.mean == pytest.approx(0.15)
    assert rloo.difference.high == pytest.approx(0.15 + 0.6353, abs=1e-4)
    # Of seed 1 alone: 0.8 - 0.2
    assert ppo.difference is not None
    assert ppo.difference.mean == pytest.approx(0.6)
    assert math.isnan(ppo.difference.low)


def test_the_table_and_its_files(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(sweep)
    said = capsys.readouterr().out
    assert "| algo=grpo | 0.4 (0 to 0.897) | – | 1: 0.2, 2: 0.4, 3: 0.6 | 2 | 100 | 0.5 |" in said
    assert "| algo=rloo | 0.45 (0 to 1) | 0.15 (-0.485 to 0.785) | 1: 0.3, 2: 0.6 | 2 | 200 | 0.5 |" in said
    assert "| algo=ppo | 0.8 | 0.6 | 1: 0.8 |" in said
    assert "- failed: 5-abcd5 (algo=rloo seed=3): ValueError: no luck\n" in said
    assert said.split("\n\n")[0].strip() in (sweep / "sweep.md").read_text()
    assert (sweep / "sweep.png").read_bytes().startswith(PNG)
    written = json.loads((sweep / "sweep.json").read_text())
    assert (written["metric"], written["confidence"], written["reference"]) == ("accuracy", 0.95, "algo=grpo")
    grpo, rloo, ppo = written["configurations"]
    assert grpo["seeds"] == {"1": 0.2, "2": 0.4, "3": 0.6}
    assert grpo["difference"] is None
    assert rloo["difference"]["mean"] == pytest.approx(0.15)
    assert ppo["value"] == {"mean": 0.8, "low": None, "high": None, "n": 1}
    (left,) = written["not_finished"]
    assert (left["job"], left["seed"], left["state"]) == ("5-abcd5", 3, "failed")


def test_the_report_of_a_sweep_is_its_table(sweep: Path) -> None:
    assert report_main([str(sweep)]) == 0
    assert "| algo=grpo | 0.4 " in (sweep / "sweep.md").read_text()
    assert not (sweep / "report.html").exists()


def test_another_metric(sweep: Path) -> None:
    assert compare(read_sweep(sweep, "mean_length").jobs)[0].values == (7.0, 7.0, 7.0)
    assert compare(read_sweep(sweep, "entropy").jobs)[0].values == (2.0, 2.0, 2.0)  # the last number that there is
    with pytest.raises(ValueError, match="'acuracy'"):
        read_sweep(sweep, "acuracy")


def test_a_sweep_over_seeds_alone(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_job(tmp_path, seed - 1, seed, lines=lines_of(seed / 10))
    text = markdown(read_sweep(tmp_path))
    assert "| all alike | 0.15 (0 to 0.785) | 1: 0.1, 2: 0.2 |" in text
    assert "minus" not in text


def test_a_sweep_of_which_nothing_came(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileNotFoundError, match="multirun"):
        read_sweep(tmp_path)
    write_job(tmp_path, 0, 1, state="failed")
    report(tmp_path)
    assert capsys.readouterr().out.startswith("\n- failed: 0-abcd0 (seed=1)")


def test_mean_curves_are_where_all_jobs_are() -> None:
    """Job a goes from (0, 0) to (4, 4), b from (2, 0) to (6, 8): both are there from 2 to 4, with means 1 and 4."""
    curves = pd.DataFrame({"job": ["a", "a", "a", "b", "b"], "x": [0, 3, 4, 2, 6], "y": [0.0, math.nan, 4.0, 0.0, 8.0]})
    x, y = mean_curve(curves, "x", "y", points=3)
    assert x.tolist() == [2, 3, 4]
    assert y.tolist() == pytest.approx([(2 + 0) / 2, (3 + 2) / 2, (4 + 4) / 2])
    assert mean_curve(curves[:0], "x", "y")[0].size == 0
    assert mean_curve(curves.replace({"x": {2: 5}}), "x", "y")[0].size == 0


# One job


def job_config(**keys: Any) -> DictConfig:
    return OmegaConf.create({"seed": 1, "max_steps": 2, "resume": None} | keys)


def run(folder: Path, result: float | BaseException | None, **keys: Any) -> float | None:
    """``run_job``, with a job that returns or raises ``result`` and says so in ``calls``."""
    folder.mkdir(exist_ok=True)

    def job() -> float | None:
        with (folder / "calls").open("a") as file:
            file.write("x")
        if isinstance(result, BaseException):
            raise result
        return result

    return run_job(job, job_config(**keys), folder, number=3, overrides=["algo=grpo", "seed=1"])


def test_a_crashed_job_says_why_and_is_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "3-abcd"
    assert run(folder, ZeroDivisionError("by 0")) is None
    failed = json.loads((folder / "failed.json").read_text())
    assert failed["error"] == "ZeroDivisionError: by 0"
    assert "raise result" in failed["traceback"]
    assert "ZeroDivisionError: by 0" in capsys.readouterr().err
    asked = json.loads((folder / "job.json").read_text())
    assert asked == {"number": 3, "seed": 1, "overrides": ["algo=grpo", "seed=1"]}
    assert run(folder, ConfigError("env: wrong")) is None
    assert json.loads((folder / "failed.json").read_text())["error"] == "env: wrong"
    assert run(folder, 0.5) == 0.5
    assert not (folder / "failed.json").exists()
    assert (folder / "calls").read_text() == "xxx"


@pytest.mark.parametrize("wish", [SystemExit(143), KeyboardInterrupt()])
def test_the_wish_to_stop_ends_the_sweep(tmp_path: Path, wish: BaseException) -> None:
    with pytest.raises(type(wish)):
        run(tmp_path / "job", wish)
    assert not (tmp_path / "job" / "failed.json").exists()


def test_a_finished_job_is_not_run_again(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    OmegaConf.save(job_config(), folder / "config.yaml")
    (folder / "summary.json").write_text(json.dumps({"steps": 2, "after": {"eval/task/accuracy": 0.25}}))
    assert run(folder, 0.75) == 0.25
    assert not (folder / "calls").exists()
    # another configuration's result is nobody's
    assert run(folder, 0.75, seed=2) is None
    assert "seed: 1 then, 2 now" in json.loads((folder / "failed.json").read_text())["error"]
    assert not (folder / "calls").exists()
    # more steps than it made
    assert run(folder, 0.75, max_steps=3) == 0.75
    assert not (folder / "failed.json").exists()


def test_a_job_that_another_process_is_at_is_left_to_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    hold = (
        "import fcntl, os, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); "
        "f.write(str(os.getpid())); f.flush(); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(folder / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert run(folder, 0.5) is None
        assert f"process {holder.pid}" in capsys.readouterr().out
        assert sorted(path.name for path in folder.iterdir()) == ["lock"]
        assert holder.stdin is not None
        holder.stdin.close()
    assert run(folder, 0.5) == 0.5
    assert run(folder, 0.6) == 0.6  # let go


# Whole sweeps


REPO = Path(__file__).resolve().parent.parent


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    """``python -m rlreason.train`` as a user would call it, in ``folder``."""
    path = os.pathsep.join([str(REPO), str(REPO / "tests"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    return subprocess.Popen(
        [sys.executable, "-m", "rlreason.train", *overrides, "hydra/job_logging=none"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate()  # pytest-timeout watches over it
    return process.returncode, said


def jobs_of(sweep: Path) -> list[Path]:
    return sorted((file.parent for file in sweep.glob("*/job.json")), key=lambda path: int(path.name.partition("-")[0]))


def test_a_sweep_ends_in_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three configurations, of which one can't work, by two seeds; again; and its table again."""
    monkeypatch.chdir(tmp_path)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    sweep = (
        "-m", *TINY, *CAPITALS, "max_steps=2", "save_every=1", r"hydra.sweep.dir='it\'s here'",
        "algo.num_generations=4,1,2", "seed=1,2",
    )  # fmt: skip
    assert command(monkeypatch, *sweep) == 1
    said = capsys.readouterr()
    folder = tmp_path / "it's here"
    jobs = jobs_of(folder)
    assert len(jobs) == 6
    assert [(job / "summary.json").exists() for job in jobs] == [True, True, False, False, True, True]
    assert said.err.count("algo.num_generations is 1") == 2
    assert "| algo.num_generations=4 |" in said.out
    assert "| algo.num_generations=2 |" in said.out
    assert f"- failed: {jobs[2].name} (algo.num_generations=1 seed=1): algo " in said.out
    written = json.loads((folder / "sweep.json").read_text())
    for found, own in zip(written["configurations"], (jobs[:2], jobs[4:]), strict=True):
        last = [metrics_of(job)[-1] for job in own]
        assert list(found["seeds"].values()) == [line["eval/capitals/accuracy"] for line in last]
        assert found["tokens"] == sum(line["num_tokens"] for line in last) / 2
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers

    before = [metrics_of(job) for job in jobs if (job / "metrics.jsonl").exists()]
    assert command(monkeypatch, *sweep) == 1
    assert capsys.readouterr().out.count("is finished.") == 4
    assert [metrics_of(job) for job in jobs if (job / "metrics.jsonl").exists()] == before
    (folder / "sweep.md").unlink()
    report(folder)
    assert "| algo.num_generations=4 |" in (folder / "sweep.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_sweep_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    """Stopped in the second of three jobs, after its third step, of which the second is saved."""
    sweep = (
        "-m", *TINY, "~env", "env={_target_: test_train.Capitals, seconds: 0.02}", "max_steps=5", "save_every=2",
        "hydra.sweep.dir=sweep", "seed=1,2,3",
    )  # fmt: skip
    process = start(tmp_path, *sweep)
    while process.poll() is None:
        begun = jobs_of(tmp_path / "sweep")
        if len(begun) == 2 and (begun[1] / "metrics.jsonl").exists() and len(metrics_of(begun[1])) >= 4:
            break
    process.send_signal(number)
    code, said = finish(process)
    assert code == (-9 if number == signal.SIGKILL else 128 + number), said
    first, second = jobs_of(tmp_path / "sweep")
    assert (first / "summary.json").exists()
    assert not (second / "summary.json").exists()
    done, begun_lines = metrics_of(first), metrics_of(second)

    code, said = finish(start(tmp_path, *sweep))
    assert code == 0, said
    assert said.count("is finished.") == 1
    assert metrics_of(first) == done  # times too
    kept = 3 if number == signal.SIGKILL else len(begun_lines)  # lines up to the checkpoint of step 2, or all
    assert metrics_of(second)[:kept] == begun_lines[:kept]
    assert all((job / "summary.json").exists() for job in jobs_of(tmp_path / "sweep"))
    assert "| all alike |" in (tmp_path / "sweep" / "sweep.md").read_text()


def launcher(plugin: str, *overrides: str) -> Any:
    missing = importlib.util.find_spec("hydra_plugins") is None or importlib.util.find_spec(plugin) is None
    return pytest.param(
        overrides, id=plugin, marks=pytest.mark.skipif(missing, reason='needs pip install "rlreason[sweeps]"')
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        launcher("hydra_plugins.hydra_joblib_launcher", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
        launcher("hydra_plugins.hydra_submitit_launcher", "hydra/launcher=processes", "hydra.sweeper.max_batch_size=2"),
    ],
)
def test_launchers(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    """Two jobs in processes of their own, of which one crashes."""
    sweep = ("-m", *TINY, *CAPITALS, "max_steps=1", "name=many", "algo.num_generations=4,1", *overrides)
    code, said = finish(start(tmp_path, *sweep))
    assert code == 1, said
    (folder,) = (tmp_path / "multirun").iterdir()
    good, bad = jobs_of(folder)
    assert (good / "summary.json").exists()
    assert "algo.num_generations is 1" in json.loads((bad / "failed.json").read_text())["error"]
    holders = {(job / "lock").read_text() for job in (good, bad)}
    assert str(os.getpid()) not in holders
    assert "| algo.num_generations=4 |" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [launcher("hydra_plugins.hydra_optuna_sweeper", "hydra/sweeper=search", "hydra.sweeper.n_trials=3")],
)
def test_a_search(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    """Three trials; again, they are the same three and nothing is run; a crash is a trial without a value."""
    search = (
        "-m", *TINY, *CAPITALS, "max_steps=1", "name=search", *overrides,
        "algo.learning_rate=tag(log,interval(1e-4,1e-2))", "algo.num_generations=choice(1,4)",
    )  # fmt: skip
    for finished in (False, True):
        code, said = finish(start(tmp_path, *search))
        (folder,) = (tmp_path / "multirun").iterdir()
        jobs = jobs_of(folder)
        assert len(jobs) == 3
        crashed = [(job / "failed.json").exists() for job in jobs]
        assert code == int(any(crashed)), said
        assert said.count("is finished.") == (crashed.count(False) if finished else 0)
        best = OmegaConf.load(folder / "optimization_results.yaml").best_value
        good = [job for job, bad in zip(jobs, crashed, strict=True) if not bad]
        assert best == max(metrics_of(job)[-1]["eval/capitals/accuracy"] for job in good)

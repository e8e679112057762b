"""A run that is killed, interrupted or crashes goes on as if nothing had happened, and nothing else is gone on from.

Rewards carry noise from the global generators of Python, NumPy and torch, and Adam's moments matter from the second
step on: a resume that loses any of these changes the metrics, which the negative controls show.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from test_train import TINY, metrics_of, texts_of, timeless, tiny_config, weights_of

from rlreason import checkpoint
from rlreason.analysis.load import read_traces
from rlreason.config import ConfigError
from rlreason.policy import Policy
from rlreason.record import Record
from rlreason.train import run

REPO = Path(__file__).resolve().parent.parent
STEPS = 30
RUN = (
    "~env", "env={_target_: test_train.Capitals, noise: 0.1, seconds: 0.003}", "algo.num_iterations=2",
    "save_every=5", "eval_every=10", f"max_steps={STEPS}",
)  # fmt: skip
SHORT = ("~env", "env={_target_: test_train.Capitals, noise: 0.1}", "save_every=2", "eval_every=3", "max_steps=6")


class Crash(Exception):
    """What a test raises in the middle of a run."""


def launch(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    """``python -m rlreason.train`` as a user would call it, in ``folder``."""
    path = os.pathsep.join([str(REPO), str(REPO / "tests")])
    return subprocess.Popen(
        [sys.executable, "-m", "rlreason.train", *overrides, "hydra/job_logging=none"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out + err


def run_folder(folder: Path) -> Path:
    (found,) = (folder / "runs" / "train").iterdir()
    return found


def when_recorded(step: int, folder: Path, process: subprocess.Popen[str]) -> Path:
    """Wait until the run in ``folder`` has a line of metrics for ``step``; its run folder."""
    for _ in range(60_000):
        files = list(folder.glob("runs/train/*/metrics.jsonl"))
        if files and f'{{"step": {step},' in files[0].read_text():
            return files[0].parent
        if process.poll() is not None:
            pytest.fail(f"ended before step {step}: {finish(process)}")
        time.sleep(0.001)
    pytest.fail(f"no step {step} after a minute")


def assert_same(ours: Path, theirs: Path, step: int) -> None:
    """The same metrics, line by line; the same completions; the same weights after ``step``, bit by bit."""
    assert [line["step"] for line in timeless(ours)] == list(range(step + 1))
    assert timeless(ours) == timeless(theirs)
    assert texts_of(ours) == texts_of(theirs)
    ours_weights, theirs_weights = weights_of(ours, step), weights_of(theirs, step)
    assert ours_weights.keys() == theirs_weights.keys()
    assert all(torch.equal(ours_weights[name], theirs_weights[name]) for name in theirs_weights)


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, by its hash."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    code, said = finish(launch(folder, *TINY, *RUN))
    assert code == 0, said
    return run_folder(folder)


def test_kill_9_loses_at_most_the_steps_since_the_last_checkpoint(whole: Path, tmp_path: Path) -> None:
    process = launch(tmp_path, *TINY, *RUN)
    out = when_recorded(12, tmp_path, process)
    process.kill()
    code, said = finish(process)
    assert code == -signal.SIGKILL, said
    reached = metrics_of(out)[-1]["step"]
    assert 12 <= reached < STEPS
    assert not (out / "summary.json").exists()
    assert checkpoint.step_of(checkpoint.latest(out)) >= reached // 5 * 5 - 5  # a kill may fall into the saving itself
    assert checkpoint.step_of(checkpoint.latest(out)) >= 10
    config = (out / "config.yaml").read_bytes()

    code, said = finish(launch(tmp_path, f"resume={out.relative_to(tmp_path)}"))  # the folder says the rest
    assert code == 0, said
    assert run_folder(tmp_path) == out  # in its own folder, not in a new one
    assert_same(out, whole, STEPS)
    assert (out / "config.yaml").read_bytes() == config
    assert len(json.loads((out / "manifest.json").read_text())["resumed"]) == 1
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (out, whole))
    assert ours.pop("training_seconds") > 0
    assert theirs.pop("training_seconds") > 0
    assert ours == theirs


def test_sigterm_and_sigint_save_and_leave(whole: Path, tmp_path: Path) -> None:
    """First one, then the other, in the same run; then to the end."""
    resume: tuple[str, ...] = ()
    for number, at, code in ((signal.SIGTERM, 7, 143), (signal.SIGINT, 17, 130)):
        process = launch(tmp_path, *TINY, *RUN, *resume)
        out = when_recorded(at, tmp_path, process)
        process.send_signal(number)
        ended, said = finish(process)
        assert ended == code, said
        assert "Traceback" not in said
        assert number.name in said
        assert f"resume={out}" in said
        reached = metrics_of(out)[-1]["step"]
        assert at <= reached < STEPS
        assert checkpoint.step_of(checkpoint.latest(out)) == reached  # not one step is lost
        assert not (out / "summary.json").exists()
        resume = (f"resume={out}",)
    code, said = finish(launch(tmp_path, *TINY, *RUN, *resume))
    assert code == 0, said
    assert_same(out, whole, STEPS)
    assert len(json.loads((out / "manifest.json").read_text())["resumed"]) == 2


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Runs crash after the update of ``step``, before it is recorded."""
    record = Record.step

    def crash(self: Record, number: int, *arguments: Any) -> None:
        if number == step:
            raise Crash
        record(self, number, *arguments)

    monkeypatch.setattr(Record, "step", crash)


ALGORITHMS = {
    "grpo": ("algo.num_iterations=2", "algo.lr_scheduler_type=cosine", "algo.warmup_steps=2", "algo.weight_decay=0.1"),
    "kl": ("algo.beta=0.1",),  # its reference is the model the run began with, not the checkpoint
    "ppo": ("algo=ppo", "algo.num_prompts=8", "algo.num_generations=1"),  # with a critic to be saved
    "bfloat16": ("model.dtype=bfloat16",),  # with float32 master weights to be saved
    "attempts": ("algo.max_attempts=3", "algo.num_generations=2"),
    "edge": ("sampler=edge", "sampler.new=0.1", "algo.max_attempts=3", "algo.num_generations=2"),
}


@pytest.mark.parametrize("overrides", ALGORITHMS.values(), ids=ALGORITHMS.keys())
def test_every_algorithm_resumes_exactly(
    overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, ours = tmp_path / "whole", tmp_path / "ours"
    run(tiny_config(*SHORT, *overrides), whole)
    with monkeypatch.context() as patch:
        crash_at(patch, 6)
        with pytest.raises(Crash):
            run(tiny_config(*SHORT, *overrides), ours)
    assert checkpoint.step_of(checkpoint.latest(ours)) == 4
    run(tiny_config(*SHORT, *overrides, f"resume={ours}"), ours)
    assert_same(ours, whole, 6)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of ``SHORT``."""
    out = tmp_path_factory.mktemp("short") / "run"
    run(tiny_config(*SHORT, "algo.num_iterations=2"), out)
    return out


@pytest.fixture
def crashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same run, crashed in step 6: its newest checkpoint is of step 4, its metrics go up to step 5."""
    out = tmp_path / "crashed"
    with monkeypatch.context() as patch:
        crash_at(patch, 6)
        with pytest.raises(Crash):
            run(tiny_config(*SHORT, "algo.num_iterations=2"), out)
    assert [line["step"] for line in metrics_of(out)] == [0, 1, 2, 3, 4, 5]
    return out


def resume(out: Path, *overrides: str) -> float | None:
    return run(tiny_config(*SHORT, "algo.num_iterations=2", f"resume={out}", *overrides), out)


def forget_moments(folder: Path) -> None:
    state = torch.load(folder / "learner.pt", weights_only=False)
    for moments in state["optimizer"]["state"].values():
        moments["exp_avg"].zero_()
    torch.save(state, folder / "learner.pt")


def forget_generator(name: str) -> Callable[[Path], None]:
    def forget(folder: Path) -> None:
        states = torch.load(folder / "random-0.pt", weights_only=False)
        fresh = torch.load(folder.parent.parent / "step-000002" / "training_state" / "random-0.pt", weights_only=False)
        torch.save(states | {name: fresh[name]}, folder / "random-0.pt")

    return forget


FORGETFUL = {"moments": forget_moments} | {name: forget_generator(name) for name in ("python", "numpy", "torch")}


@pytest.mark.parametrize("forget", FORGETFUL.values(), ids=FORGETFUL.keys())
def test_losing_any_state_would_show(short: Path, crashed: Path, forget: Callable[[Path], None]) -> None:
    """The negative control of this file's equalities."""
    forget(crashed / "checkpoints" / "step-000004" / "training_state")
    resume(crashed)
    assert timeless(crashed)[:5] == timeless(short)[:5]
    assert timeless(crashed)[5:] != timeless(short)[5:]


def test_losing_the_samplers_state_would_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for what a curriculum has learned; and a checkpoint without it is refused."""
    whole, ours, edge = tmp_path / "whole", tmp_path / "ours", ALGORITHMS["edge"]
    run(tiny_config(*SHORT, *edge), whole)
    with monkeypatch.context() as patch:
        crash_at(patch, 6)
        with pytest.raises(Crash):
            run(tiny_config(*SHORT, *edge), ours)
    older, newer = (ours / "checkpoints" / f"step-00000{step}" / "training_state" / "sampler.pt" for step in (2, 4))
    newer.unlink()
    with pytest.raises(FileNotFoundError, match=r"sampler\.pt is missing"):
        run(tiny_config(*SHORT, *edge, f"resume={ours}"), ours)
    shutil.copy(older, newer)
    run(tiny_config(*SHORT, *edge, f"resume={ours}"), ours)
    assert timeless(ours)[:5] == timeless(whole)[:5]
    assert texts_of(ours) != texts_of(whole)  # the problems themselves, not only what is said of them


def test_metrics_and_traces_are_cut_back_to_the_checkpoint(crashed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (crashed / "traces" / "step-000005.parquet").exists()
    crash_at(monkeypatch, 5)
    with pytest.raises(Crash):
        resume(crashed)
    assert [line["step"] for line in metrics_of(crashed)] == [0, 1, 2, 3, 4]
    assert sorted(set(read_traces(crashed, ["step"])["step"])) == [0, 1, 2, 3, 4]
    assert not (crashed / "traces" / "step-000005.parquet").exists()


def half_write(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("what", ["model.safetensors", "learner.pt", "random-0.pt"])
def test_a_crash_while_saving_leaves_the_last_checkpoint_whole(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    out = tmp_path / "run"
    save_policy, save_state = Policy.save, torch.save

    def crash_in_policy(self: Policy, folder: str, masters: list[torch.Tensor]) -> None:
        save_policy(self, folder, masters)
        if "step-000004" in folder and what == "model.safetensors":
            half_write(Path(folder) / what)
            raise Crash

    def crash_in_state(state: Any, path: Path) -> None:
        save_state(state, path)
        if "step-000004" in str(path) and path.name == what:
            half_write(path)
            raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(Policy, "save", crash_in_policy)
        patch.setattr(torch, "save", crash_in_state)
        with pytest.raises(Crash):
            run(tiny_config(*SHORT, "algo.num_iterations=2"), out)
    assert [folder.name for folder in checkpoint.found(out)] == ["step-000002"]
    weights_of(out, 2)
    resume(out)
    assert_same(out, short, 6)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-000004", "step-000006"]


def test_a_crash_while_removing_an_old_checkpoint_leaves_no_half_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is called step-000123 can be loaded, the ones about to go included."""
    remove = shutil.rmtree

    def crash_half_way(folder: Path, *arguments: Any, **options: Any) -> None:
        if Path(folder).exists() and "step-" in Path(folder).name:
            (Path(folder) / "model.safetensors").unlink()
            raise Crash
        remove(folder, *arguments, **options)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", crash_half_way)
        with pytest.raises(Crash):
            run(tiny_config(*SHORT, "keep_checkpoints=1"), out)
    assert checkpoint.latest(out).name == "step-000004"
    for folder in checkpoint.found(out):
        weights_of(out, checkpoint.step_of(folder))


class Weightless:
    """A learner whose checkpoints are empty."""

    policy = property(lambda self: self)
    masters: tuple[torch.Tensor, ...] = ()

    def save(self, folder: str, masters: Any) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("stopped_after", [3, 12, 15, 19, 29, 31, 44])
@pytest.mark.parametrize("keep", [1, 2, 3])
def test_a_run_that_was_stopped_ends_with_the_checkpoints_of_one_that_was_not(
    stopped_after: int, keep: int, tmp_path: Path
) -> None:
    """Or a pipeline would choose among others."""
    regular = [10, 20, 30, 40, 45]  # save_every=10, and the last
    for name, steps in {"whole": regular, "stopped": sorted({*regular, stopped_after})}.items():
        for step in steps:
            checkpoint.save(tmp_path / name, step, Weightless(), Accelerator(), keep=keep, every=10)  # type: ignore[arg-type]
            assert checkpoint.step_of(checkpoint.latest(tmp_path / name)) == step
    kept = [[folder.name for folder in checkpoint.found(tmp_path / name)] for name in ("whole", "stopped")]
    assert kept[0] == kept[1] == [f"step-{step:06d}" for step in regular[-keep:]]


def test_another_configuration_is_refused(crashed: Path) -> None:
    before = contents(crashed)
    with pytest.raises(ConfigError) as refused:
        resume(crashed, "algo.learning_rate=1e-3", "seed=7", "sampling.max_completion_length=9")
    lines = str(refused.value).splitlines()
    assert str(crashed) in lines[0]
    assert lines[1:5] == [
        "  algo.learning_rate: 0.003 then, 0.001 now",
        "  algo.shaping.overlong.max_length: 8 then, 9 now",  # follows sampling.max_completion_length
        "  sampling.max_completion_length: 8 then, 9 now",
        "  seed: 0 then, 7 now",
    ]
    assert "model=" in lines[5]
    assert contents(crashed) == before


def test_a_step_that_is_passed_already_is_refused(crashed: Path) -> None:
    before = contents(crashed)
    with pytest.raises(ConfigError, match="is at step 4, beyond max_steps=3"):
        resume(crashed, "max_steps=3")
    assert contents(crashed) == before


@pytest.mark.parametrize("exists", [True, False])
def test_what_is_no_run_folder_is_refused(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "elsewhere"
    if exists:
        folder.mkdir()
    with pytest.raises(ConfigError, match=rf"resume={folder} is no run folder: it has no config.yaml"):
        resume(folder)
    assert folder.exists() == exists
    assert not list(tmp_path.glob("elsewhere/*"))


def test_a_finished_run_goes_on_with_more_steps(short: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(tiny_config(*SHORT, "algo.num_iterations=2", "max_steps=3"), out)
    assert json.loads((out / "summary.json").read_text())["steps"] == 3
    resume(out, "max_steps=6")
    assert_same(out, short, 6)
    assert json.loads((out / "summary.json").read_text())["steps"] == 6


def test_resuming_a_finished_run_changes_nothing(short: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(short, out)
    accuracy = resume(out)
    assert contents(out) | {"manifest.json": ""} == contents(short) | {"manifest.json": ""}
    assert accuracy == metrics_of(short)[-1]["eval/capitals/accuracy"]


def test_without_a_checkpoint_it_starts_at_step_0(short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        crash_at(patch, 2)
        with pytest.raises(Crash):
            run(tiny_config(*SHORT, "algo.num_iterations=2"), out)
    assert not checkpoint.found(out)
    resume(out)
    assert_same(out, short, 6)

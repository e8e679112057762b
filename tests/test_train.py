"""A whole training run on the tiny model: what it leaves behind, that it repeats exactly, and that it learns.

``Capitals`` is an environment of somebody else's, named in the config by ``_target_``; the other end-to-end tests use
it too, since the tiny model earns something in every one of its groups.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from envs.base import GeneratedSplit, SingleTurnEnv, check_split
from rlreason.analysis.load import read_traces
from rlreason.config import CONF, model_paths, register
from rlreason.models import sha256
from rlreason.train import run
from rlreason.types import Finish, Grade, Problem, Split

# The smallest run of everything.
TINY = (
    "model=tiny", "logger.mode=disabled", "console.quiet=true", "sampling.max_completion_length=8", "eval_limit=4",
    "algo.num_prompts=4", "algo.num_generations=4", "algo.learning_rate=3e-3",
)  # fmt: skip
CAPITALS = ("~env", "env={_target_: test_train.Capitals}")  # instead of the default one, not merged into it


@dataclass(frozen=True)
class Capitals(SingleTurnEnv):
    """Pays the share of capital letters, which 26 of the tiny model's 260 tokens are: untrained, about 0.1.

    Right is whatever has a capital at all. ``noise`` is drawn from the global generators, so that a run which loses
    one of their states shows it. ``seconds`` is how long grading a completion takes: signals shall find a run at work.
    """

    noise: float = 0.0
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return "capitals"

    @property
    def max_reward(self) -> float:
        return 1.0

    def split(self, name: str) -> Split:
        check_split(name)
        return GeneratedSplit(8, lambda i: Problem(f"{name}/{i}", [{"role": "user", "content": f"Shout {i}!"}], None))

    def grade_text(self, problem: Problem, text: str, finish: Finish) -> Grade:
        time.sleep(self.seconds)
        share = sum(letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" for letter in text) / max(1, len(text))
        drawn = random.random() + np.random.random() + float(torch.rand(()))
        return Grade(share + self.noise * drawn, share > 0, parts={"capitals": share})

    def gold(self, problem: Problem) -> str:
        return "A"

    def manifest(self) -> Mapping[str, Any]:
        return {"name": self.name, "source": "generated"}


def tiny_config(*overrides: str) -> DictConfig:
    """What ``python -m rlreason.train`` would make of ``TINY`` and the overrides; a later one wins."""
    register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return compose("train", overrides=model_paths([*TINY, *overrides]))


def metrics_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def timeless(out: Path) -> list[dict[str, Any]]:
    """``metrics.jsonl`` line by line, without what a clock measured."""
    clocked = ("timing/", "perf/", "step_time")
    return [{k: v for k, v in line.items() if not k.startswith(clocked)} for line in metrics_of(out)]


def texts_of(out: Path) -> list[tuple[Any, ...]]:
    """Every completion in the traces, with where it stands and what it earned."""
    frame = read_traces(out, ["step", "split", "group", "sample", "text", "reward"])
    return [tuple(row) for row in frame.itertuples(index=False)]


def weights_of(out: Path, step: int) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(out / "checkpoints" / f"step-{step:06d}")
    return dict(model.state_dict())


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps."""
    out = tmp_path_factory.mktemp("train") / "run"
    run(tiny_config(*CAPITALS, "max_steps=4", "save_every=1", "keep_checkpoints=2", "eval_every=3", "seed=5"), out)
    return out


def test_the_run_folder_is_complete(done: Path) -> None:
    assert {path.name for path in done.iterdir()} == {
        "config.yaml", "manifest.json", "metrics.jsonl", "traces", "checkpoints", "summary.json",
    }  # fmt: skip
    assert sorted(path.name for path in (done / "traces").iterdir()) == [
        "eval-validation-000000.parquet", "eval-validation-000003.parquet", "eval-validation-000004.parquet",
        "step-000001.parquet", "step-000002.parquet", "step-000003.parquet", "step-000004.parquet",
    ]  # fmt: skip


def test_config_is_resolved_and_makes_the_same_run_again(done: Path, tmp_path: Path) -> None:
    text = (done / "config.yaml").read_text()
    assert "${" not in text
    saved = OmegaConf.load(done / "config.yaml")
    assert (saved.seed, saved.max_steps, saved.algo.learning_rate, saved.algo.terms.policy.epsilon) == (5, 4, 3e-3, 0.2)
    assert isinstance(saved, DictConfig)
    run(saved, tmp_path / "again")
    assert timeless(tmp_path / "again") == timeless(done)


def test_manifest_says_what_the_run_was_made_of(done: Path) -> None:
    found = json.loads((done / "manifest.json").read_text())
    assert set(found["git"]) == {"commit", "dirty"}
    assert found["packages"]["torch"] == torch.__version__
    assert found["seed"] == 5
    assert found["env"] == {"name": "capitals", "source": "generated"}
    assert found["model"]["source"] == "tiny"
    assert found["model"]["chat_template"] == "tokenizer"
    assert len(found["model"]["weights"]["model.safetensors"]) == 64
    assert "resumed" not in found


def test_metrics_have_a_line_for_each_step_with_trl_names(done: Path) -> None:
    lines = metrics_of(done)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    for line in lines:
        assert all(isinstance(value, (int, float)) and math.isfinite(value) for value in line.values())
        evaluated = {name for name in line if name.startswith("eval/")}
        named = {"accuracy", "accuracy_low", "accuracy_high", "reward", "capitals", "mean_length", "clipped_ratio"}
        assert evaluated == ({f"eval/capitals/{name}" for name in named} if line["step"] in (0, 3, 4) else set())
    for line in lines[1:]:
        assert line.keys() >= {
            "reward", "reward_std", "frac_reward_zero_std", "rewards/capitals/mean", "accuracy",
            "completions/mean_length", "completions/clipped_ratio", "entropy",
            "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean",
            "sampling/sampling_logp_difference/mean", "sampling/sampling_logp_difference/max",
            "sampling/importance_sampling_ratio/mean", "sampling/importance_sampling_ratio/min",
            "sampling/importance_sampling_ratio/max", "sampling/attempts", "num_tokens", "step_time", "learning_rate",
            "grad_norm", "timing/generate", "timing/grade", "timing/update",
        }  # fmt: skip
        assert "kl" not in line  # no reference model without a KL term
        assert line["optimizer_steps"] == 1
        # float32 on both sides and fresh weights: the engine's log-probs are the trainer's
        assert line["sampling/sampling_logp_difference/max"] < 1e-4
        assert line["clip_ratio/region_mean"] == 0  # one optimiser step a batch: the ratio is 1
        assert 0 < line["entropy"] < math.log(260) + 1e-3
    assert lines[1]["entropy"] == pytest.approx(math.log(260), abs=0.05)  # a random model is nearly uniform


def test_traces_agree_with_the_metrics(done: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(done / "checkpoints" / "step-000004")
    total = 0
    for line in metrics_of(done)[1:]:
        rows = read_traces(done / "traces" / f"step-{line['step']:06d}.parquet")
        assert len(rows) == 16
        assert rows["group"].tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
        assert rows["problem"].str.startswith("train/").all()
        assert rows["reward"].mean() == pytest.approx(line["reward"], abs=1e-12)
        assert rows["correct"].mean() == pytest.approx(line["accuracy"], abs=1e-12)
        assert rows["completion_tokens"].mean() == line["completions/mean_length"]
        assert (rows["finish"] == "length").mean() == line["completions/clipped_ratio"]
        assert rows.groupby("group")["advantage"].sum().abs().max() < 1e-5
        total += int((rows["prompt_tokens"] + rows["completion_tokens"]).sum())
        assert line["num_tokens"] == total
        for row in rows.itertuples():
            ids = list(row.completion_ids)
            assert len(row.sampler_logp) == len(row.mask) == len(ids) == row.completion_tokens
            if row.finish == "stop":  # the end token is among the ids, and not in the text
                assert ids[-1] in (2, 3)
                ids = ids[:-1]
            assert tokenizer.decode(ids) == row.text


def test_checkpoint_is_what_plain_transformers_loads(done: Path) -> None:
    """Greedy decoding by ``generate`` writes what the run's last evaluation wrote."""
    folder = done / "checkpoints" / "step-000004"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.float32
    rows = read_traces(done / "traces" / "eval-validation-000004.parquet")
    assert len(rows) == 4
    for row in rows.itertuples():
        prompt = tokenizer.apply_chat_template(json.loads(row.prompt), add_generation_prompt=True, return_tensors="pt")
        assert prompt["input_ids"][0].tolist() == list(row.prompt_ids)
        written = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, len(row.prompt_ids) :]
        assert written.tolist() == list(row.completion_ids)


def test_only_the_newest_checkpoints_are_kept(done: Path) -> None:
    assert sorted(path.name for path in (done / "checkpoints").iterdir()) == ["step-000003", "step-000004"]


def test_summary_has_first_and_last(done: Path) -> None:
    summary, lines = json.loads((done / "summary.json").read_text()), metrics_of(done)
    assert summary["steps"] == 4
    assert summary["num_tokens"] == lines[4]["num_tokens"]
    assert (summary["reward_first"], summary["reward_last"]) == (lines[1]["reward"], lines[4]["reward"])
    for when, line in (("before", lines[0]), ("after", lines[4])):
        assert summary[when] == {name: value for name, value in line.items() if name.startswith("eval/")}


def test_the_same_seed_repeats_and_another_differs(done: Path, tmp_path: Path) -> None:
    same = ("max_steps=4", "save_every=1", "eval_every=3")
    run(tiny_config(*CAPITALS, *same, "seed=5"), tmp_path / "same")
    assert timeless(tmp_path / "same") == timeless(done)
    assert texts_of(tmp_path / "same") == texts_of(done)
    ours, theirs = weights_of(tmp_path / "same", 4), weights_of(done, 4)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    run(tiny_config(*CAPITALS, *same, "seed=6"), tmp_path / "other")
    assert timeless(tmp_path / "other")[0] == timeless(done)[0]  # greedy, of the same weights
    assert timeless(tmp_path / "other")[1] != timeless(done)[1]
    assert [t[4] for t in texts_of(tmp_path / "other")] != [t[4] for t in texts_of(done)]


def test_next_stage_starts_from_a_checkpoint(done: Path, tmp_path: Path) -> None:
    folder = done / "checkpoints" / "step-000004"
    run(tiny_config(*CAPITALS, f"model={folder}", "model.dtype=float32", "max_steps=1"), tmp_path)
    said = json.loads((tmp_path / "manifest.json").read_text())["model"]
    assert (said["source"], said["path"]) == ("local", str(folder))
    assert said["weights"] == {"model.safetensors": sha256(folder / "model.safetensors")}
    assert metrics_of(tmp_path)[0]["eval/capitals/reward"] == metrics_of(done)[4]["eval/capitals/reward"]
    before, after = (texts_of(out) for out in (done, tmp_path))
    assert [t[2:] for t in after if t[:2] == (0, "validation")] == [t[2:] for t in before if t[:2] == (4, "validation")]


def test_ppo_reports_its_critic(tmp_path: Path) -> None:
    run(tiny_config(*CAPITALS, "algo=ppo", "algo.num_prompts=16", "algo.num_generations=1", "max_steps=3"), tmp_path)
    lines = metrics_of(tmp_path)[1:]
    assert lines[0]["value/explained_variance"] == pytest.approx(0, abs=1e-12)  # the critic starts as 0 everywhere
    assert lines[1]["value/explained_variance"] != 0
    assert lines[2]["value/explained_variance"] != lines[1]["value/explained_variance"]
    for line in lines:
        assert 0 <= line["value_clip_ratio"] <= 1
        assert line["optimizer_steps"] == 2
        assert line["frac_rows_skipped"] == 0


def test_kl_is_measured_against_the_starting_model(tmp_path: Path) -> None:
    run(tiny_config(*CAPITALS, "algo.beta=0.05", "max_steps=3"), tmp_path)
    kl = [line["kl"] for line in metrics_of(tmp_path)[1:]]
    assert kl[0] == pytest.approx(0, abs=1e-9)  # nothing has moved yet
    assert 1e-4 < kl[1] < kl[2]


def test_dynamic_sampling_keeps_the_rejected_in_the_traces(tmp_path: Path) -> None:
    run(tiny_config(*CAPITALS, "algo.max_attempts=3", "algo.num_generations=2", "max_steps=3"), tmp_path)
    attempts, rejected = [], 0
    for line in metrics_of(tmp_path)[1:]:
        rows = read_traces(tmp_path / "traces" / f"step-{line['step']:06d}.parquet")
        mixed = rows.groupby("group")["correct"].transform("nunique") == 2
        assert rows["group"].value_counts().eq(2).all()
        assert (rows["advantage"].notna() == mixed).all()  # trained on: exactly the groups that carry signal
        assert mixed.sum() <= 8
        attempts.append(line["sampling/attempts"])
        assert attempts[-1] == 1 + rows["group"].max() // 4
        assert mixed.sum() == 8 or attempts[-1] == 3  # enough, or out of attempts
        assert line["reward"] == pytest.approx(rows["reward"].mean(), abs=1e-12)  # of all that were drawn
        rejected += int((~mixed).sum())
    assert max(attempts) > 1
    assert rejected > 0


def test_synthetic_data_say_so_in_every_name(tmp_path: Path) -> None:
    synthetic = ("+experiment=gsm8k", "env.source=synthetic", "max_steps=1", "sampling.max_completion_length=8")
    run(tiny_config(*synthetic), tmp_path)
    lines = metrics_of(tmp_path)
    names = {name for line in lines for name in line if name.startswith("eval/")}
    assert "eval/gsm8k-synthetic/accuracy" in names
    assert all(name.startswith("eval/gsm8k-synthetic/") for name in names)
    assert json.loads((tmp_path / "manifest.json").read_text())["env"]["source"] == "synthetic"
    assert set(read_traces(tmp_path, ["env"])["env"]) == {"gsm8k-synthetic"}


@pytest.mark.parametrize("algo", ["grpo", "ppo"])
def test_learns(algo: str, tmp_path: Path) -> None:
    sizes = {"grpo": ("algo.num_generations=8",), "ppo": ("algo.num_prompts=32", "algo.num_generations=1")}
    run(tiny_config(*CAPITALS, f"algo={algo}", *sizes[algo], "max_steps=40", "eval_every=40"), tmp_path)
    rewards = [line["reward"] for line in metrics_of(tmp_path)[1:]]
    assert sum(rewards[:5]) / 5 < 0.2
    assert sum(rewards[-5:]) / 5 > 0.85

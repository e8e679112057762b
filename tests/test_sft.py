"""Supervised fine-tuning and DPO as entry points: what they leave behind, what they teach, and the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import plain_logp
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from test_resume import Crash, crash_at
from test_supervised import config, made, talk
from test_train import metrics_of, timeless
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlreason import dpo, reward_model, sft
from rlreason.analysis.load import read_metrics
from rlreason.config import CONF, register, start
from rlreason.masters import AdamW
from rlreason.types import Comparison, Demonstration

QUIET = ("hydra/job_logging=none", "hydra/hydra_logging=none")
ECHOES = made("test_supervised.echo", train=12, validation=4)
COMPARED = made("test_supervised.liking_capitals", train=12, validation=4)


def ok(split: str, number: int) -> Demonstration:
    """Whatever is asked, the answer is "ok"."""
    return Demonstration(talk(f"{split} {number}?", "ok"), f"{split}:{number}")


def ok_rather_than_no(split: str, number: int) -> Comparison:
    chosen, rejected = talk("", "ok")[1:], talk("", "no")[1:]
    return Comparison(talk(f"{split} {number}?"), chosen, rejected, source=f"{split}:{number}")


def logp_of(folder: Path, answer: str) -> float:
    """log p of an answer and its end token, to a question that nothing was trained on, by Hugging Face alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = "<|im_start|>user\ntest 7?<|im_end|>\n<|im_start|>assistant\n"
    ids, own = (tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, f"{answer}<|im_end|>"))
    with torch.no_grad():
        return float(plain_logp(AutoModelForCausalLM.from_pretrained(folder), ids, own, 1.0).sum())


LEARNS = ("max_steps=40", "save_every=40", "eval_every=40", "optim.learning_rate=1e-2")


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sft") / "run"
    data = made("test_sft.ok", train=16, validation=4)
    last = sft.run(config("sft", *LEARNS, "seed=3", data=data), out)
    assert last == metrics_of(out)[-1]["eval/made/loss"]
    return out


def test_the_run_folder_is_complete(taught: Path) -> None:
    assert {path.name for path in taught.iterdir()} == {
        "config.yaml", "manifest.json", "metrics.jsonl", "traces", "checkpoints", "summary.json",
    }  # fmt: skip
    assert [path.name for path in (taught / "checkpoints").iterdir()] == ["step-000040"]
    said = json.loads((taught / "manifest.json").read_text())
    assert said["env"] == {"name": "made", "examples": 16, "too_long": 0, "too_long_validation": 0}
    assert said["model"]["path"] == "tiny"
    assert OmegaConf.load(taught / "config.yaml").seed == 3


def test_the_summary_is_of_the_metrics(taught: Path) -> None:
    lines = metrics_of(taught)
    found = json.loads((taught / "summary.json").read_text())
    assert found["steps"] == 40
    assert found["before"] == {k: v for k, v in lines[0].items() if k.startswith("eval/")}
    assert found["after"] == {k: v for k, v in lines[40].items() if k.startswith("eval/")}
    assert (found["loss_first"], found["loss_last"]) == (lines[1]["loss"], lines[40]["loss"])
    assert found["num_tokens"] == lines[40]["num_tokens"]
    assert found["training_seconds"] == pytest.approx(float(read_metrics(taught)["step_time"].sum()))


def test_what_was_demonstrated_is_learned(taught: Path) -> None:
    checkpoint = taught / "checkpoints" / "step-000040"
    assert logp_of(checkpoint, "ok") > -0.2  # the end token too
    assert logp_of(checkpoint, "no") < -3
    # Three tokens: what validation found is near what the new question finds.
    assert metrics_of(taught)[-1]["eval/made/loss"] == pytest.approx(-logp_of(checkpoint, "ok") / 3, abs=0.03)


def test_dpo_learns_what_is_preferred(taught: Path, tmp_path: Path) -> None:
    """From a model that says "ok" already; its answers part from "no" further, and loss and accuracy say so."""
    base = taught / "checkpoints" / "step-000040"
    data = made("test_sft.ok_rather_than_no", train=16, validation=4)
    small = ("max_steps=10", "save_every=10", "eval_every=10", "optim.learning_rate=1e-3", "beta=0.5")
    last = dpo.run(config("dpo", f"model={base}", *small, data=data), tmp_path / "run")
    lines = metrics_of(tmp_path / "run")
    assert lines[0]["eval/made/loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert lines[0]["eval/made/accuracy"] == 0.5
    assert last is not None
    assert last == lines[-1]["eval/made/loss"] < 0.3
    assert lines[-1]["eval/made/accuracy"] == 1.0

    def parted(folder: Path) -> float:
        return logp_of(folder, "ok") - logp_of(folder, "no")

    moved = parted(tmp_path / "run" / "checkpoints" / "step-000010") - parted(base)
    assert moved > 1
    assert 0.5 * moved == pytest.approx(lines[-1]["eval/made/rewards/margins"], abs=0.3)


@pytest.mark.parametrize("job", ["sft", "dpo"])
def test_lora_trains_and_resumes(job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DPO's reference is then the model without its adapters, after a resume too."""
    run: dict[str, Callable[..., Any]] = {"sft": sft.run, "dpo": dpo.run}
    lora = ("model.lora.r=4", "optim.learning_rate=1e-2")
    run[job](config(job, *lora), tmp_path / "whole")
    with monkeypatch.context() as patch:
        crash_at(patch, 5)
        with pytest.raises(Crash):
            run[job](config(job, *lora), tmp_path / "ours")
    run[job](config(job, *lora), tmp_path / "ours")
    assert timeless(tmp_path / "ours") == timeless(tmp_path / "whole")
    lines = metrics_of(tmp_path / "whole")
    assert lines[-1]["eval/made/loss"] < lines[0]["eval/made/loss"]
    assert (tmp_path / "whole" / "checkpoints" / "step-000006" / "adapter").is_dir()


# The command line


def command(monkeypatch: pytest.MonkeyPatch, module: Any, *arguments: str) -> int:
    """The exit code of ``python -m rlreason.<module>`` with the arguments."""
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *arguments, *QUIET])
    try:
        start(module.main)
    except SystemExit as error:
        return int(error.code or 0)
    return 0


SMALL = (
    "model=tiny", "logger.mode=disabled", "console.quiet=true", "max_steps=2", "batch_size=4", f"data={ECHOES}",
)  # fmt: skip


def test_the_command_makes_a_run_folder_and_goes_on_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, sft, *SMALL) == 0
    (out,) = (tmp_path / "runs" / "sft").iterdir()
    assert command(monkeypatch, sft, f"resume={out}", "max_steps=3") == 0  # the folder says the rest
    assert [line["step"] for line in metrics_of(out)] == [0, 1, 2, 3]
    assert list((tmp_path / "runs" / "sft").iterdir()) == [out]


def test_the_first_example_is_shown_as_it_enters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sft.run(config("sft", "console.quiet=false", "console.trace_every=1", "max_steps=1"), tmp_path / "run")
    said = capsys.readouterr().out
    assert "train:0; ⟦ ⟧ is what the loss looks at" in said
    assert "assistant\n⟦a<|im_end|>⟧" in said
    assert "⟦A<|im_end|>⟧" in said
    assert "18 examples to train on, 7 to validate; 0 and 0 longer" in said


@pytest.mark.parametrize(
    ("module", "arguments", "code", "said"),
    [
        (sft, ("max_step=3",), 1, "max_step"),
        (sft, ("+max_step=3",), 2, "max_step"),
        (sft, ("optim.learning_rat=3",), 1, "optim.learning_rat"),
        (sft, ("optim.lr_scheduler_type=cosin",), 2, "optim.lr_scheduler_type is 'cosin'"),
        (sft, ("~data",), 2, "Missing mandatory value: data"),
        (sft, ("resume=nowhere",), 2, "resume=nowhere is no run folder"),
        (sft, ("model=./nowhere",), 2, "./nowhere"),
        (dpo, ("beta=0",), 2, "dpo: beta is 0"),
        (dpo, ("label_smoothing=0.6",), 2, "dpo: label_smoothing is 0.6"),
        (
            sft,
            ("data=synthetic",),
            2,
            "from demonstrations (conversations to imitate, such as data=chat); synthetic",
        ),
        (dpo, ("data=worked",), 2, "(a chosen and a rejected answer, such as data=pairs); worked holds demonstrations"),
        (reward_model, ("data=worked",), 2, "learns from comparisons"),
        (reward_model, ("center_rewards_coefficient=-1",), 2, "center_rewards_coefficient) is -1"),
        (reward_model, ("model.lora.r=4",), 2, "model: a reward model is trained whole here: set model.lora.r=0"),
    ],
)
def test_a_mistake_is_told_in_one_message(
    module: Any,
    arguments: tuple[str, ...],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {argument.strip("~").partition("=")[0] for argument in arguments}
    small = SMALL if module is sft else (*SMALL[:-1], f"data={COMPARED}")
    assert command(monkeypatch, module, *(a for a in small if a.partition("=")[0] not in given), *arguments) == code
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("metrics.jsonl"))


@pytest.mark.parametrize("job", ["sft", "dpo", "reward_model"])
def test_the_defaults_need_data_alone(job: str) -> None:
    register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        cfg = compose(job, overrides=["data=pairs", "data.source.train=x"])
    assert not OmegaConf.missing_keys(cfg)
    assert cfg.name == job


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learning_rate": 0.0}, "optim.learning_rate is 0.0"),
        ({"learning_rate": float("nan")}, "optim.learning_rate is nan"),
        ({"warmup_steps": -1}, "optim.warmup_steps is -1"),
        ({"max_grad_norm": 0.0}, "optim.max_grad_norm is 0.0"),
        ({"lr_scheduler_type": "cosin"}, "optim.lr_scheduler_type is 'cosin'"),
    ],
)
def test_optimisers_that_cannot_train_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        AdamW(**{"learning_rate": 1e-3, **changes})

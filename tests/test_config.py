"""The command line: every configuration fits together, and every mistake is told in one message before any work.

Most commands run in this process, through the same ``start(main)`` as ``python -m rlreason.train``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from test_code import MBPP
from test_conformance import GRADER, ROWS
from test_hub_models import MODELS, write_math_rows
from test_train import CAPITALS, TINY, metrics_of

from rlreason.algo import Algo
from rlreason.config import CONF, build, model_paths, register, start
from rlreason.console import Console
from rlreason.engines.torch import TorchEngine
from rlreason.policy import Policy
from rlreason.train import main
from rlreason.types import Engine, Env, Sampling

REPO = Path(__file__).resolve().parent.parent
QUIET = ("hydra/job_logging=none", "hydra/hydra_logging=none")


def job_of(experiment: str) -> str:
    """The entry point that an experiment is for: the command at its head, or ``train``."""
    found = re.search(
        r"^# python -m rlreason\.(\w+) \+experiment", (CONF / f"experiment/{experiment}.yaml").read_text(), re.M
    )
    return found[1] if found else "train"


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of ``python -m rlreason.train`` with the arguments."""
    monkeypatch.setattr(sys, "argv", ["rlreason/train.py", *arguments, *QUIET])
    try:
        start(main)
    except SystemExit as error:
        return int(error.code or 0)
    return 0


MATH = ["env.source=local", "env.data_dir=DATA", "env.num_validation=2"]
CODE = ["env.source=local", "env.data_dir=DATA", "env.task_ids=null", "env.num_validation=2"] + [
    f"env.files.{split}={file}"
    for split, file in {"train": "code.jsonl", "validation": "null", "test": "code.jsonl"}.items()
]
FAKE_SCORER = ["~env.scorer", "+env.scorer={_target_: test_rlhf.Lengths}"]
# Where a group's entry needs more than its name: something the hub or the user would give.
COMPLETED = {
    "experiment=gsm8k": ["env.source=synthetic"],
    "experiment=gsm8k_qwen": ["env.source=synthetic"],
    "experiment=math_qwen": MATH,
    "experiment=tools_gsm8k": ["env.env.source=synthetic"],
    "env=math": MATH,
    **{f"env={name}": MATH for name in ("aime", "amc", "math500")},
    "env=code": CODE,
    "env=humaneval": ["env.source=local", "env.data_dir=DATA", "env.files.test=code.jsonl"],
    "experiment=mbpp": CODE,
    "env=svamp": [*MATH, "env.problem_key=problem", "env.answer_key=answer"],
    "env=gsm8k": ["env.source=synthetic"],
    "reward=format_only": ["env.format._target_=envs.formats.R1"],
    "algo=base": ["+algo.estimator={_target_: rlreason.advantages.GroupRelative}"],
    **{f"{choice}=rlhf": FAKE_SCORER for choice in ("env", "experiment")},
    "env=jsonl_grader": [
        "env.source.train=DATA/says.jsonl",
        "env.grader=DATA/grader.py",
    ],
    "env=trl_reward": ["env.source.train=DATA/says.jsonl", "env.functions=test_conformance.says_it"],
    "env=verifiers": ["env.env=test_conformance"],
    "env=prompts": ["data@env.data=synthetic"],
    "sampler=schedule": [
        "env=letters",
        "env.tasks=[spell,reverse]",
        "sampler.family=task",
        "sampler.weights={spell: [[1, 1], [9, 0]], reverse: [[1, 0], [9, 1]]}",
    ],
    "model=path": ["model.path=tiny", "model.dtype=float32"],
}
NEEDS = {"env=reasoning_gym": "reasoning_gym", "env=verifiers": "verifiers"}  # `make adapters` installs them
EVALUATION_ONLY = ("env=aime", "env=amc", "env=humaneval", "env=math500")
GROUPS = ("experiment", "algo", "env", "sampler", "engine", "logger", "profile", "reward", "alarm", "model/lora")
# engine=vllm is test_vllm's, where it is installed
CHOICES = [f"{group}={name}" for group in GROUPS for name in names(group) if (group, name) != ("engine", "vllm")]
ELSEWHERE = [name for name in names("experiment") if job_of(name) != "train"]
CHOICES = [choice for choice in CHOICES if choice.removeprefix("experiment=") not in ELSEWHERE]


def write_code_rows(folder: Path) -> None:
    """A data set for ``env=code``."""
    (folder / "code.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MBPP), encoding="utf-8")


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_instantiates(choice: str, tmp_path: Path) -> None:
    """What ``train`` builds, with the tiny model in the place of the chosen one."""
    if choice in NEEDS:
        pytest.importorskip(NEEDS[choice], reason="not installed: `make adapters` does")
    register()
    added = f"+{choice}" if choice.startswith(("experiment=", "profile=")) else choice
    write_math_rows(tmp_path)
    write_code_rows(tmp_path)
    (tmp_path / "says.jsonl").write_text(
        "".join(f"{json.dumps(row)}\n" for row in ROWS["says.jsonl"]), encoding="utf-8"
    )
    (tmp_path / "grader.py").write_text(GRADER, encoding="utf-8")
    completed = [override.replace("DATA", str(tmp_path)) for override in COMPLETED.get(choice, [])]
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[added, "model=tiny", "logger.mode=disabled", *completed])
    assert not OmegaConf.missing_keys(cfg)
    env, algo, sampling = build(cfg, "env"), build(cfg, "algo"), build(cfg, "sampling")
    assert isinstance(env, Env)
    split = "test" if choice in EVALUATION_ONLY else "train"
    assert isinstance(env.split(split)[0].prompt[0]["content"], str)
    assert len(build(cfg, "sampler")(env.split(split), 0).draw(1, 0, 2)) == 2
    assert isinstance(algo, Algo)
    assert isinstance(sampling, Sampling)
    policy = build(cfg, "model")(device="cpu")
    engine: Engine = build(cfg, "engine")(policy)
    assert isinstance(engine, TorchEngine)
    tracker = build(cfg, "logger").open(tmp_path, {})
    tracker.close(failed=False)
    console: Console = build(cfg, "console").open(1, start=0)
    console.close()
    if choice.startswith("experiment="):
        assert cfg.name == choice.partition("=")[2]  # a run folder that says which experiment it is


@pytest.mark.parametrize("name", ELSEWHERE)
def test_every_experiment_of_another_job_composes(name: str) -> None:
    """Their data are built in test_data."""
    register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        cfg = compose(job_of(name), overrides=[f"+experiment={name}", "model=tiny"])
    assert cfg.name == name
    assert build(cfg, "optim").learning_rate > 0


@pytest.mark.parametrize("name", [name for name in names("model") if name not in MODELS])
def test_every_model_composes_and_loads(name: str) -> None:
    register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[f"model={name}", *COMPLETED.get(f"model={name}", [])])
    policy = build(cfg, "model")(device="cpu")
    assert isinstance(policy, Policy)
    assert policy.info["path"] == {"smollm2_135m": "embedded"}.get(name, "tiny")
    assert policy.end_ids


# Wrong arguments, and what the message must say. Hydra's own messages come with its exit code, 1.
MISTAKES: dict[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    "misspelled root key": (("max_step=3",), 1, ("max_step",)),
    "added root key": (("+max_step=3",), 2, ("max_step",)),
    "misspelled nested key": (("algo.learning_rat=1e-3",), 1, ("algo.learning_rat",)),
    "added nested key": (("+algo.learning_rat=1e-3",), 2, ("algo", "learning_rat")),
    "misspelled root key in an experiment": (("+experiment=bad_root",), 1, ("experiment/bad_root", "max_step")),
    "misspelled nested key in an experiment": (("+experiment=bad_nested",), 2, ("algo", "learning_rat")),
    "misspelled experiment": (("+experiment=gsm9k",), 1, ("gsm9k", "gsm8k")),
    "wrong type": (("max_steps=many",), 1, ("max_steps", "many")),
    "wrong type in algo": (("algo.num_prompts=1.5",), 2, ("algo", "num_prompts", "1.5")),
    "text for a number in algo": (("algo.warmup_steps=few",), 2, ("algo", "warmup_steps", "few")),
    "missing value": (("model=path",), 2, ("model.path",)),
    "group of 1": (("algo.num_generations=1",), 2, ("algo.num_generations", "algo=ppo")),
    "top_p": (("sampling.top_p=0.9",), 2, ("sampling.top_p",)),
    "top_k": (("sampling.top_k=20",), 2, ("sampling.top_k",)),
    "greedy": (("sampling.temperature=0",), 2, ("sampling.temperature",)),
    "too many mini-batches": (("algo.num_mini_batches=5",), 2, ("algo.num_mini_batches=5", "algo.num_prompts=4")),
    "unknown scheduler": (("algo.lr_scheduler_type=cosin",), 2, ("algo.lr_scheduler_type", "'cosin'", "cosine")),
    "unknown dtype": (("model.dtype=float16",), 2, ("model", "float16", "bfloat16")),
    "k1 as a loss": (("algo.beta=0.1", "algo.terms.kl.estimator=k1"), 2, ("algo.terms.kl", "k1")),
    "no steps": (("max_steps=0",), 2, ("max_steps",)),
    "no such class": (("env._target_=envs.nothing.Here",), 2, ("env", "envs.nothing")),
    "not in the environment's range": (("env.digits=0",), 2, ("digits is 0",)),
    "hub out of reach": (("env=gsm8k", "env.source=hub"), 2, ("env.source=local", "env.source=synthetic")),
    "model's hub out of reach": (("model=nobody/nothing",), 2, ("'nobody/nothing'", "model=smollm2_135m")),
    "no data": (("env=gsm8k", "env.source=local", "env.data_dir=nowhere"), 2, ("nowhere/train.jsonl", "env.source")),
    "malformed data": (("env=gsm8k", "env.source=local", "env.data_dir=data"), 2, ("data/train.jsonl:3", "answer")),
    "no model folder": (("model=./nowhere",), 2, ("./nowhere",)),
    "no model in the folder": (("model=data",), 2, ("'data'", "config.json")),
    "long prompt": (("sampling.max_completion_length=1000",), 2, ("1024", "sampling.max_completion_length=1000")),
    "resume from nowhere": (("resume=nowhere",), 2, ("resume=nowhere", "config.yaml")),
    "resume from another folder": (("resume=data",), 2, ("resume=data", "config.yaml")),
}


@pytest.mark.parametrize(("arguments", "code", "said"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_told_before_any_work(
    arguments: tuple[str, ...],
    code: int,
    said: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    row = '{"question": "1 + 1?", "answer": "2 #### 2"}\n'
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(row + row + '{"question": "1 + 2?"}\n')
    (tmp_path / "data" / "test.jsonl").write_text(row)
    mine = tmp_path / "conf" / "experiment"
    mine.mkdir(parents=True)
    (mine / "bad_root.yaml").write_text("# @package _global_\nmax_step: 3\n")
    (mine / "bad_nested.yaml").write_text("# @package _global_\nalgo:\n  learning_rat: 3\n")
    searchpath = f"hydra.searchpath=[file://{tmp_path / 'conf'}]"
    given = {argument.partition("=")[0] for argument in arguments}
    tiny = [argument for argument in TINY if argument.partition("=")[0] not in given]

    assert command(monkeypatch, *tiny, "max_steps=1", *arguments, searchpath) == code
    err = capsys.readouterr().err
    for words in said:
        assert words in err
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 12 + len(names("experiment"))
    if code == 2:
        assert err.startswith("error: ")
    for left in ("metrics.jsonl", "manifest.json", "*.parquet", "*.safetensors"):
        assert not list(tmp_path.rglob(left))
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"train.jsonl", "test.jsonl"}


def test_the_same_message_from_the_shell(tmp_path: Path) -> None:
    """One of the mistakes again, in a process of its own: what a user sees."""
    done = subprocess.run(
        [sys.executable, "-m", "rlreason.train", "model=tiny", "algo.num_generations=1"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPO)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: algo")
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stdout + done.stderr


def test_model_paths_are_spelled_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "tiny").mkdir()  # a name of conf/model stays one
    for argument, spelled in {
        "model=tiny": ["model=tiny"],
        "model=acme/model-1b": ["model=path", "model.path='acme/model-1b'"],
        "model=/some/folder": ["model=path", "model.path='/some/folder'"],
        "model=runs/a/b=c": ["model=path", "model.path='runs/a/b=c'"],
        "model=mine": ["model=path", "model.path='mine'"],
        "model=unknown": ["model=unknown"],
        "model=tiny,smollm2_135m": ["model=tiny,smollm2_135m"],
        "model.path=a/b": ["model.path=a/b"],
        "env=a/b": ["env=a/b"],
        "-m": ["-m"],
    }.items():
        assert model_paths([argument]) == spelled
    assert model_paths(["a=1", "model=x/y", "b=2"]) == ["a=1", "model=path", "model.path='x/y'", "b=2"]


def test_two_runs_never_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert command(monkeypatch, *TINY, *CAPITALS, "max_steps=1", "name=twice") == 0
    folders = list((tmp_path / "runs" / "twice").iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert (folder / "summary.json").is_file()
        assert [line["step"] for line in metrics_of(folder)] == [0, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_an_experiment_file_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An own experiment, with an own environment, from an own folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "shout.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /env: null\n\n"
        "name: shout\nmax_steps: 1\nenv:\n  _target_: test_train.Capitals\n"
    )
    arguments = ("+experiment=shout", f"hydra.searchpath=[file://{tmp_path / 'conf'}]")
    assert command(monkeypatch, *TINY, *arguments) == 0
    (out,) = (tmp_path / "runs" / "shout").iterdir()
    assert "eval/capitals/accuracy" in metrics_of(out)[1]


def test_a_sweep_can_be_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = ("-m", *TINY, *CAPITALS, "max_steps=2", "save_every=1", "name=seeds", "seed=1,2")
    assert command(monkeypatch, *sweep) == 0
    (folder,) = (tmp_path / "multirun").iterdir()
    assert folder.name.startswith("seeds-")
    jobs = sorted(path for path in folder.iterdir() if path.is_dir())
    assert [path.name.split("-")[0] for path in jobs] == ["0", "1"]
    for seed, job in zip((1, 2), jobs, strict=True):
        assert OmegaConf.load(job / "config.yaml").seed == seed
        assert json.loads((job / "summary.json").read_text())["steps"] == 2
        assert [line["step"] for line in metrics_of(job)] == [0, 1, 2]
    before = [metrics_of(job) for job in jobs]
    assert before[0][1] != before[1][1]

    assert command(monkeypatch, *sweep) == 0
    assert list((tmp_path / "multirun").iterdir()) == [folder]
    assert sorted(path for path in folder.iterdir() if path.is_dir()) == jobs
    assert [metrics_of(job) for job in jobs] == before  # their times too: what was done is not done again


def test_a_wrong_job_fails_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = ("-m", *TINY, *CAPITALS, "max_steps=1", "algo.num_generations=1,2")
    assert command(monkeypatch, *wrong) != 0
    assert "algo.num_generations is 1" in capsys.readouterr().err
    assert len(list(tmp_path.rglob("summary.json"))) == 1  # the other job ran


def test_defaults_of_train_need_nothing_missing() -> None:
    register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        cfg: Any = compose("train")
        assert not OmegaConf.missing_keys(cfg)
        assert (cfg.resume, cfg.seed, cfg.model.path) == (None, 0, "embedded")
        assert not OmegaConf.missing_keys(compose("evaluate"))

"""What the entry points share of Hydra: where conf lies, the root keys, and errors that people can read.

Only the entry points' ``main`` touches Hydra's run-time state; everything below them takes a config and a folder.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf

CONF = Path(__file__).resolve().parent.parent / "conf"

# Keys that may differ between a run and its resumption. They don't change what a step computes, but for max_steps and
# num_epochs where the learning rate decays: it goes on towards the new end from there.
RESUMABLE = frozenset(
    {
        "resume",
        "max_steps",
        "num_epochs",
        "save_every",
        "keep_checkpoints",
        "eval_every",
        "logger",
        "console",
        "profile",
        "selection",
        "alarm",
    }
)


class ConfigError(ValueError):
    """The user's configuration is wrong; the message alone says what to do."""


@dataclass
class TrainSchema:
    """Root keys of ``conf/train.yaml``: a misspelled one is refused, here and in experiment files."""

    name: str = MISSING
    seed: int = MISSING
    max_steps: int = MISSING
    save_every: int = MISSING
    keep_checkpoints: int = MISSING
    eval_every: int = MISSING
    eval_limit: int = MISSING
    resume: str | None = MISSING
    env: Any = MISSING
    model: Any = MISSING
    engine: Any = MISSING
    algo: Any = MISSING
    learner: Any = MISSING
    sampling: Any = MISSING
    logger: Any = MISSING
    console: Any = MISSING
    sampler: Any = None
    reward: Any = None  # reward=random and other controls
    alarm: Any = None  # alarm=parting
    eval_temperature: float = 0.0
    eval_kl: bool = False
    profile: Any = None  # +profile=torch


@dataclass
class SupervisedSchema:
    """Root keys of ``conf/sft.yaml``, and those that the other jobs on examples share with it."""

    name: str = MISSING
    seed: int = MISSING
    num_epochs: float = MISSING
    max_steps: int | None = MISSING
    batch_size: int = MISSING
    max_length: int = MISSING
    micro_batch_tokens: int = MISSING
    save_every: int = MISSING
    keep_checkpoints: int = MISSING
    eval_every: int = MISSING
    eval_limit: int = MISSING
    resume: str | None = MISSING
    data: Any = MISSING
    model: Any = MISSING
    optim: Any = MISSING
    logger: Any = MISSING
    console: Any = MISSING


@dataclass
class DPOSchema(SupervisedSchema):
    """Root keys of ``conf/dpo.yaml``."""

    beta: float = MISSING
    label_smoothing: float = MISSING


@dataclass
class RewardModelSchema(SupervisedSchema):
    """Root keys of ``conf/reward_model.yaml``."""

    use_margin: bool = MISSING
    center_rewards_coefficient: float = MISSING


@dataclass
class EvaluateSchema:
    """Root keys of ``conf/evaluate.yaml``."""

    name: str = MISSING
    seed: int = MISSING
    run: str | None = MISSING
    split: str = MISSING
    limit: int | None = MISSING
    num_samples: int = MISSING
    k: Any = MISSING
    confidence: float = MISSING
    env: Any = MISSING
    model: Any = MISSING
    engine: Any = MISSING
    sampling: Any = MISSING


@dataclass
class ProbeSchema:
    """Root keys of ``conf/probe.yaml``."""

    name: str = MISSING
    seed: int = MISSING
    run: str = MISSING
    checkpoint: str | None = MISSING
    split: str = MISSING
    limit: int = MISSING
    parts: Any = MISSING
    budgets: Any = MISSING
    max_answer_length: int = MISSING
    confidence: float = MISSING
    resume: str | None = MISSING
    engine: Any = MISSING


@dataclass
class RatingsSchema:
    """Root keys of ``conf/ratings.yaml``."""

    name: str = MISSING
    seed: int = MISSING
    runs: Any = MISSING
    start: bool = MISSING
    anchors: Any = MISSING
    anchor_games: int = MISSING
    games: int = MISSING
    split: str = MISSING
    chunk: int = MISSING
    prior_draws: float = MISSING
    resamples: int = MISSING
    confidence: float = MISSING
    resume: str | None = MISSING
    env: Any = None  # that of the runs
    model: Any = MISSING
    engine: Any = MISSING
    sampling: Any = MISSING


@dataclass
class PlaySchema:
    """Root keys of ``conf/play.yaml``."""

    seed: int = MISSING
    split: str = MISSING
    first: int = MISSING
    limit: int | None = MISSING
    show_tokens: bool = MISSING
    env: Any = MISSING
    model: Any = None


@dataclass
class SampleSchema:
    """Root keys of ``conf/sample.yaml``."""

    name: str = MISSING
    seed: int = MISSING
    split: str = MISSING
    limit: int | None = MISSING
    chunk: int = MISSING
    num_samples: int = MISSING
    k: Any = MISSING
    target_env: Any = MISSING
    resume: str | None = MISSING
    env: Any = MISSING
    model: Any = MISSING
    engine: Any = MISSING
    selection: Any = MISSING
    sampling: Any = MISSING
    console: Any = MISSING


@dataclass
class PipelineSchema:
    """Root keys of ``conf/pipeline.yaml``."""

    name: str = MISSING
    resume: str | None = MISSING
    base_model: str = MISSING  # not `model`, which is a group of configurations
    vars: Any = MISSING
    stages: Any = MISSING
    validation: Any = MISSING
    final: Any = MISSING


@dataclass
class ArenaSchema:
    """Root keys of ``conf/arena.yaml``."""

    name: str = MISSING
    seed: int = MISSING
    models: Any = MISSING
    split: str = MISSING
    limit: int | None = MISSING
    chunk: int = MISSING
    anchor: str = MISSING
    prior_draws: float = MISSING
    resamples: int = MISSING
    confidence: float = MISSING
    resume: str | None = MISSING
    env: Any = MISSING
    model: Any = MISSING
    engine: Any = MISSING
    judge: Any = MISSING
    sampling: Any = MISSING


@dataclass
class AuditSchema:
    """Root keys of ``conf/audit.yaml``."""

    name: str = MISSING
    seed: int = MISSING
    run: str | None = MISSING
    split: str = MISSING
    limit: int = MISSING
    mine: int = MISSING
    mined_phrases: int = MISSING
    triggers: Any = MISSING
    phrases: Any = MISSING
    repeats: int = MISSING
    filler_words: int = MISSING
    examples: int = MISSING
    confidence: float = MISSING
    resume: str | None = MISSING
    scorer: Any = MISSING
    combine: Any = MISSING
    data: Any = None


def register() -> None:
    """Schemas and resolvers; call before ``hydra.main``."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainSchema)
    store.store(name="evaluate_schema", node=EvaluateSchema)
    store.store(name="probe_schema", node=ProbeSchema)
    store.store(name="play_schema", node=PlaySchema)
    store.store(name="ratings_schema", node=RatingsSchema)
    store.store(name="audit_schema", node=AuditSchema)
    store.store(name="arena_schema", node=ArenaSchema)
    store.store(name="sample_schema", node=SampleSchema)
    store.store(name="pipeline_schema", node=PipelineSchema)
    store.store(name="sft_schema", node=SupervisedSchema)
    store.store(name="dpo_schema", node=DPOSchema)
    store.store(name="reward_model_schema", node=RewardModelSchema)
    OmegaConf.register_new_resolver("run_dir", _run_dir, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("sweep_dir", _sweep_dir, replace=True)
    OmegaConf.register_new_resolver("short_hash", lambda text: _short_hash(str(text)), replace=True)


def _run_dir(name: str, resume: str | None) -> str:
    """A resumed run goes on in its own folder; another one gets a new folder, unique to the microsecond."""
    if int(os.environ.get("RANK", "0")) > 0:  # rank 0 tells the others its folder; Hydra's own log needs a place
        return tempfile.mkdtemp(prefix="rlreason-rank-")
    if resume and not (Path(resume) / "config.yaml").is_file():  # refused later; Hydra would make the folder now
        return tempfile.mkdtemp(prefix="rlreason-refused-")
    return resume or f"runs/{name}/{datetime.now():%Y%m%d-%H%M%S-%f}"


def _sweep_dir(name: str) -> str:
    """The same command finds the same folder again."""
    return f"multirun/{name}-{_short_hash(' '.join(sorted(sys.argv[1:])))}"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def model_paths(arguments: list[str]) -> list[str]:
    """Command-line arguments with ``model=<hub id or folder>`` spelled out as ``model=path model.path=<...>``.

    A name of ``conf/model`` stays what it is.
    """
    spelled: list[str] = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        is_path = "/" in value or Path(value).is_dir()
        if key == "model" and is_path and "," not in value and not (CONF / "model" / f"{value}.yaml").exists():
            spelled += ["model=path", f"model.path='{value}'"]
        else:
            spelled.append(argument)
    return spelled


def build(cfg: Any, key: str) -> Any:
    """Instantiate ``cfg[key]``; what its class refuses comes out as a ConfigError that names the key."""
    try:
        return instantiate(cfg[key])
    except InstantiationException as error:
        cause = error.__cause__ or error
        full_key = f" (at {line.split(':', 1)[1].strip()})" if (line := _full_key(str(error))) else ""
        raise ConfigError(f"{key}{full_key}: {cause}") from error


def _full_key(message: str) -> str:
    return next((line for line in message.splitlines() if line.startswith("full_key:")), "")


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain data, interpolations resolved. Raises ConfigError naming a key that has no value."""
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except Exception as error:
        raise ConfigError(f"the configuration can't be resolved: {error}") from error
    assert isinstance(plain, dict)
    schema = OmegaConf.get_type(cfg)
    if is_dataclass(schema) and (unknown := plain.keys() - {field.name for field in fields(schema)}):
        # given with a +
        raise ConfigError(f"there is no key {', '.join(sorted(map(str, unknown)))}; check its spelling")
    return {str(key): value for key, value in plain.items()}


def continued(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """``resume=<run folder>`` alone, or with overrides of RESUMABLE keys only, means that run's own configuration.

    With any other override the configuration stays as composed, and ``check_same_run`` compares the two.
    """
    saved = Path(cfg.resume or "") / "config.yaml"
    keys = [override.lstrip("+~").split("=")[0] for override in overrides]
    if cfg.resume is None or not saved.is_file() or any(key.split(".")[0] not in RESUMABLE for key in keys):
        return cfg
    own = OmegaConf.load(saved)
    assert isinstance(own, DictConfig)
    for key in keys:
        OmegaConf.update(own, key, OmegaConf.select(cfg, key))
    return own


def check_same_run(config: Mapping[str, Any], saved: Mapping[str, Any], folder: Path) -> None:
    """Raise ConfigError, listing the keys, if ``config`` would not continue the run that ``saved`` describes."""
    ours, theirs = _flat(config), _flat(saved)
    different = [
        f"  {key}: {theirs.get(key)!r} then, {ours.get(key)!r} now"
        for key in sorted(ours.keys() | theirs.keys())
        if key.split(".")[0] not in RESUMABLE and ours.get(key) != theirs.get(key)
    ]
    if different:
        raise ConfigError(
            f"resume={folder} was started with another configuration:\n" + "\n".join(different) + "\nGive the same "
            "experiment and overrides as then, or start a new run from its weights with model=<checkpoint folder>"
        )


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(node, Mapping):
        return {k: v for key, value in node.items() for k, v in _flat(value, f"{prefix}.{key}".lstrip(".")).items()}
    return {prefix: node}


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Errors about what the user gave under ``key`` come out as a ConfigError that names it."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ConfigError(f"{key}: {error}") from error


def start(main: Callable[[], Any]) -> None:
    """Run a Hydra main, with schemas, resolvers and ``model=<folder>`` in place."""
    sys.argv[1:] = model_paths(sys.argv[1:])
    register()
    main()


def guarded(job: Callable[[], float | None]) -> float | None:
    """Run a job; a ConfigError ends a single run with its message and exit code 2, without a traceback. In a sweep it
    is raised, so that it fails this job as Hydra sees it."""
    try:
        return job()
    except ConfigError as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None

"""What a run is made of, put together from the config.

Everything a user can get wrong is checked here, before the first token is generated. Left out: jobs on examples, which
``fit.py`` puts together.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from omegaconf import DictConfig

from rlreason import checkpoint
from rlreason.algo import Algo
from rlreason.analysis.load import read_metrics
from rlreason.clock import Clock
from rlreason.config import ConfigError, build, naming, resolved
from rlreason.learner import Learner
from rlreason.manifest import manifest
from rlreason.perf import cost_of, peak
from rlreason.policy import Policy
from rlreason.profiling import StepProfiler
from rlreason.record import Record
from rlreason.resume import check_begun, check_same_data
from rlreason.rollout import Collector
from rlreason.sampler import Sampler, UniformSampler, derived_seed
from rlreason.session import Session
from rlreason.signals import StopSignal
from rlreason.types import Engine, Env, Sampling


@dataclass(frozen=True)
class Parts:
    """What a run works with, before there is a run folder and before anything trains."""

    algo: Algo
    sampling: Sampling
    env: Env
    sampler: Sampler
    policy: Policy
    engine: Engine


def checked(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain data. Raises ConfigError where its numbers can't be run."""
    config = resolved(cfg)
    for key in ("max_steps", "save_every", "eval_every", "eval_limit", "keep_checkpoints"):
        if config[key] < 1:
            raise ConfigError(f"{key} is {config[key]}; it must be at least 1")
    temperature, trained = config.get("eval_temperature", 0.0), config["sampling"]["temperature"]
    if temperature < 0:
        raise ConfigError(f"eval_temperature is {temperature}; it must be 0 (greedy) or more")
    if config.get("eval_kl") and temperature != trained:
        raise ConfigError(f"eval_kl needs samples of the policy: set eval_temperature={trained} (it is {temperature})")
    return config


def assemble(cfg: DictConfig, accelerator: Accelerator) -> Parts:
    """The parts that ``cfg`` names. Raises ConfigError for whatever the user can mend. Seeds the global generators."""
    sampling: Sampling = build(cfg, "sampling")
    refuse_biased_sampling(sampling)
    algo: Algo = build(cfg, "algo")
    if cfg.get("eval_kl") and algo.ref_model_sync_steps is not None:
        raise ConfigError("eval_kl measures from the starting model, which algo.ref_model_sync_steps replaces: use one")
    env: Env = build(cfg, "env")
    if cfg.get("reward") is not None:
        with naming("reward"):
            env = build(cfg, "reward")(env)
    sampler = _sampler(cfg, env)
    seed_generators(int(cfg.seed))
    policy = _policy(cfg, algo, accelerator)
    with naming("engine"):
        engine: Engine = build(cfg, "engine")(policy)
    return Parts(algo, sampling, env, sampler, policy, engine)


def make_learner(cfg: DictConfig, parts: Parts, accelerator: Accelerator) -> Learner:
    """What trains ``parts.policy`` by ``parts.algo``. Raises ConfigError for whatever the user can mend."""
    with naming("learner"):
        learner: Learner = build(cfg, "learner")(
            parts.policy, parts.algo, accelerator, max_steps=cfg.max_steps, temperature=parts.sampling.temperature
        )
    return learner


@contextmanager
def open_session(cfg: DictConfig, out: Path) -> Iterator[Session]:
    """Build a run from its config in folder ``out``, or take it up again if ``cfg.resume`` says so.

    Raises ConfigError for whatever the user can mend. On the way out, also after a crash, console and wandb are
    closed and the model is let go, so that a sweep can run many in one process.
    """
    accelerator = Accelerator()
    out, begun = broadcast_object_list([out, (out / "config.yaml").is_file()])
    if cfg.resume is None and begun:  # a sweep that is taken up again, job by job
        cfg = cfg.copy()
        cfg.resume = str(out)
    config = checked(cfg)
    console, logger = build(cfg, "console"), build(cfg, "logger")
    alarm = build(cfg, "alarm") if cfg.get("alarm") is not None else None
    resumed = resumed_from(cfg, config, cfg.max_steps)
    parts = assemble(cfg, accelerator)
    algo, sampling, env, policy, engine = parts.algo, parts.sampling, parts.env, parts.policy, parts.engine
    sampler = parts.sampler
    if cfg.resume is not None:
        check_same_data(env.manifest(), Path(cfg.resume))
    learner = make_learner(cfg, parts, accelerator)
    seed = int(cfg.seed)
    for split in ("train", "validation"):
        check_prompts(env, split, policy, sampling)
    done = checkpoint.step_of(resumed) if resumed else 0
    profiler = _profiler(cfg, out, cfg.max_steps - done)
    if resumed:
        checkpoint.load(resumed, learner, accelerator, sampler)
        engine.sync(policy)
    clock = Clock(accelerator.device)
    best = peak(accelerator.device, policy.model.dtype)
    rank, world = accelerator.process_index, accelerator.num_processes
    collector = Collector(
        engine, env, policy, sampler, sampling, algo.num_prompts, algo.num_generations, algo.max_attempts, seed, clock,
        rank, world,
    )  # fmt: skip
    record = None
    with StopSignal() as stop:
        try:
            if accelerator.is_main_process:
                screen = console.open(cfg.max_steps, start=done)
                screen.say(f"run folder: {out}" + (f", after step {done}" if resumed else ""))
                record = Record(
                    out,
                    config=config,
                    manifest=manifest(
                        seed=seed,
                        model=policy.info,
                        env=env.manifest(),
                        root=Path(__file__).resolve().parent.parent,
                        peak_flops=asdict(best),
                    ),
                    env=env.name,
                    console=screen,
                    tracker=logger.open(out, config),
                )
                record.truncate(done if resumed else -1)
            yield Session(
                out=out, max_steps=cfg.max_steps, save_every=cfg.save_every, eval_every=cfg.eval_every,
                eval_limit=cfg.eval_limit, keep_checkpoints=cfg.keep_checkpoints,
                eval_temperature=cfg.get("eval_temperature", 0.0), eval_kl=cfg.get("eval_kl", False), alarm=alarm,
                seed=seed, done=done, algo=algo,
                sampling=sampling, env=env, policy=policy, engine=engine, learner=learner, collector=collector,
                clock=clock, accelerator=accelerator, record=record, stop=stop,
                cost=cost_of(policy.model), peak_flops=best.flops * world,
                profiler=profiler if accelerator.is_main_process else None,
                num_tokens=_tokens_so_far(out) if record and resumed else 0.0,
            )  # fmt: skip
        finally:
            if profiler:
                profiler.close()
            if record:
                record.close()


def refuse_biased_sampling(sampling: Sampling) -> None:
    """Raise ConfigError for sampling whose importance ratio would be against another distribution."""
    if sampling.temperature == 0:
        raise ConfigError("sampling.temperature is 0: greedy decoding gives a group no spread to learn from")
    if sampling.top_p < 1 or sampling.top_k > 0:
        raise ConfigError(
            f"sampling.top_p={sampling.top_p} and sampling.top_k={sampling.top_k}: training needs 1.0 and 0, since the "
            "policy's ratio is against the whole distribution; evaluation may use them"
        )


def check_prompts(env: Env, name: str, policy: Policy, sampling: Sampling, *, sample: int = 64) -> int:
    """The longest prompt of split ``name`` in tokens, of the longest (in characters) of a finite split or of the first
    ``sample`` of an endless one. Raises ConfigError if one and its completion exceed the model's context."""
    split = env.split(name)
    problems = [split[i] for i in range(sample if split.size is None else split.size)]
    if not problems:
        raise ConfigError(f"env: the split {name!r} of {env.name} is empty")
    problems.sort(key=lambda problem: -sum(len(message["content"]) for message in problem.prompt))
    longest = 0
    for problem in problems[:sample]:
        try:
            length = len(policy.render(problem.prompt, problem.tools).ids)
        except ValueError as error:  # the chat template refuses it
            raise ConfigError(f"problem {problem.id} of {env.name}/{name}: {error}") from error
        longest = max(longest, length)
        if length + sampling.max_completion_length > policy.context:
            raise ConfigError(
                f"problem {problem.id} of {env.name}/{name} has a prompt of {length} tokens: with "
                f"sampling.max_completion_length={sampling.max_completion_length} it exceeds the model's context of "
                f"{policy.context}; shorten the completions or leave the problem out"
            )
    return longest


def asked_size(cfg: DictConfig, env: Env) -> int:
    """How many problems ``cfg.limit`` of ``cfg.split`` are. Raises ConfigError for all of an endless split."""
    with naming("split"):
        split = env.split(cfg.split)
    sizes: list[int] = [n for n in (cfg.limit, split.size) if n is not None]
    if not sizes:
        raise ConfigError(f"the split {cfg.split!r} of {env.name} is endless: give a limit")
    return min(sizes)


def _sampler(cfg: DictConfig, env: Env) -> Sampler:
    split, seed = env.split("train"), int(cfg.seed)
    if cfg.get("sampler") is None:  # a run folder made before there was this key lacks it
        return UniformSampler(split, seed)
    with naming("sampler"):
        sampler: Sampler = build(cfg, "sampler")(split, seed)
    return sampler


def _policy(cfg: DictConfig, algo: Algo, accelerator: Accelerator) -> Policy:
    with naming("model"):
        policy: Policy = build(cfg, "model")(device=accelerator.device)
        if algo.needs_reference or cfg.get("eval_kl"):
            policy.add_reference()
        if algo.ref_model_sync_steps is not None:
            policy.refresh_reference()  # refused here, not after some hours
        if algo.has_critic:
            policy.add_critic(own_model=algo.critic_model)
    return policy


def resumed_from(cfg: DictConfig, config: dict[str, Any], max_steps: int) -> Path | None:
    """The checkpoint to go on from, or None for a fresh start. Raises ConfigError if ``cfg.resume`` can't be gone on
    with, under this ``config`` or to ``max_steps``."""
    if cfg.resume is None:
        return None
    folder = Path(cfg.resume)
    check_begun(config, folder)
    checkpoints = checkpoint.found(folder)
    if not checkpoints:
        print(f"{folder} holds no checkpoint yet: starting it again from step 0.")
        return None
    newest = checkpoints[-1]
    if checkpoint.step_of(newest) > max_steps:
        raise ConfigError(f"resume={folder} is at step {checkpoint.step_of(newest)}, beyond max_steps={max_steps}")
    return newest


def _profiler(cfg: DictConfig, out: Path, steps_left: int) -> StepProfiler | None:
    if cfg.get("profile") is None:  # a run folder made before there was this key lacks it
        return None
    with naming("profile"):
        profiler: StepProfiler = build(cfg, "profile").open(out, steps_left=steps_left)
    return profiler


def seed_generators(seed: int) -> None:
    """Seed the global generators. Nothing in the loop draws from them but dropout; models that have it train alike."""
    random.seed(seed)
    np.random.seed(derived_seed(seed, "numpy") % 2**32)
    torch.manual_seed(seed)


def _tokens_so_far(out: Path) -> float:
    lines = read_metrics(out)
    return float(lines["num_tokens"].dropna().iloc[-1]) if "num_tokens" in lines else 0.0

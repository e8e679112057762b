"""TRL's sides: ``GRPOTrainer`` with its own generate, driven through ``train()`` as a user drives it.

The trainer waits for its orders in a callback, between two optimiser steps. What is switched off is what costs time
and is no part of the step: gradient checkpointing (TRL's default, slower), logging, saving. Left out: vLLM inside TRL.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Any

import torch
from omegaconf import DictConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from experiments.throughput import work
from experiments.throughput.side import Link, Stopwatch, Unavailable, device, synchronize
from rlreason.config import build
from rlreason.models import embedded_folder
from rlreason.types import Env, Problem

UNITS = 32
"""Units of work whose problems are in the data set; after them it begins again."""

Reward = Callable[..., list[float]]


def steps(link: Link, settings: Mapping[str, Any]) -> None:
    """``work``: whole training steps. ``weights`` bf16, or fp32 with bf16 autocast; ``batch`` rows a device batch;
    ``attention``; ``warm_up``."""
    cfg = work.config(settings["work"])
    env: Env = build(cfg, "env")
    graded = _Graded(env, _dataset_problems(cfg, env))
    with _trainer(cfg, settings, graded.rows(), graded) as trainer:
        if settings["warm_up"]:
            _warm_up(trainer)
        _drive(trainer, link, lambda: (graded.tokens, {"rows": len(graded.rewards), "reward": fmean(graded.rewards)}))


def learner(link: Link, settings: Mapping[str, Any]) -> None:
    """``work``: updates on fixed completions of its shape, by a rollout function that hands them over."""
    cfg = work.config(settings["work"])
    env: Env = build(cfg, "env")
    tokenizer = AutoTokenizer.from_pretrained(embedded_folder())
    prompts = [work.render(tokenizer, p) for p in work.problems(cfg, env, 0)]
    longest, samples = cfg.sampling.max_completion_length, cfg.algo.num_generations
    fixed = work.fixed_completions(prompts, samples, longest, len(tokenizer))
    handed = {
        "prompt_ids": [one.prompt_ids for one in fixed],
        "completion_ids": [one.ids for one in fixed],
        "logprobs": None,
    }
    rewards = [one.reward for one in fixed]
    rows = [{"prompt": "?"}] * cfg.algo.num_prompts
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # rollout_func is experimental
    with _trainer(cfg, settings, rows, lambda **_: rewards, rollout=lambda prompts, trainer: handed) as trainer:
        _warm_up(trainer)
        _drive(trainer, link, lambda: (sum(len(one.ids) for one in fixed), {}))


def time_to_accuracy(link: Link, settings: Mapping[str, Any]) -> None:
    """Train until a step's mean reward is ``target``, once; the seed is 1. Gives up after ``minutes``."""
    cfg = work.config("accuracy", "seed=1")
    env: Env = build(cfg, "env")
    graded = _Graded(env, _dataset_problems(cfg, env))
    with _trainer(cfg, settings, graded.rows(), graded) as trainer:
        link.ready()
        if link.wait() is None:
            return
        watched = _Watched(settings["target"], 60 * settings["minutes"], graded)
        trainer.add_callback(watched)
        trainer.train()
        reached = watched.means[-1] >= settings["target"]
        link.report(watched.seconds[-1], watched.tokens, rewards=watched.means, reached=reached, seed=1)
        link.wait()


class _Graded:
    """A reward function of TRL's kind that asks our environment, and remembers what it saw of the newest step."""

    __name__ = "reward"

    def __init__(self, env: Env, problems: Sequence[Problem]) -> None:
        self.env: Any = env
        self.problems = problems
        self.end = AutoTokenizer.from_pretrained(embedded_folder()).eos_token_id
        self.rewards: list[float] = []
        self.tokens = 0
        self.at = 0.0

    def rows(self) -> list[dict[str, Any]]:
        return [{"prompt": problem.prompt, "index": i} for i, problem in enumerate(self.problems)]

    def __call__(
        self, completions: list[Any], completion_ids: list[list[int]], index: list[int], **_: Any
    ) -> list[float]:
        self.rewards = [
            self.env.grade_text(
                self.problems[i], completion[0]["content"], "stop" if ids[-1] == self.end else "length"
            ).reward
            for completion, ids, i in zip(completions, completion_ids, index, strict=True)
        ]
        self.tokens = sum(map(len, completion_ids))
        self.at = time.perf_counter()
        return self.rewards


def _dataset_problems(cfg: DictConfig, env: Env) -> list[Problem]:
    return [problem for unit in range(UNITS) for problem in work.problems(cfg, env, unit)]


@contextmanager
def _trainer(
    cfg: DictConfig,
    settings: Mapping[str, Any],
    rows: list[dict[str, Any]],
    reward: Reward,
    rollout: Callable[..., dict[str, Any]] | None = None,
) -> Iterator[Any]:
    """A ``GRPOTrainer`` with the hyperparameters of ``cfg``."""
    try:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer
    except ImportError as error:
        raise Unavailable(f"TRL can't be imported ({error}): `make bench` installs it") from error
    model = AutoModelForCausalLM.from_pretrained(
        embedded_folder(),
        dtype={"bf16": torch.bfloat16, "fp32": torch.float32}[settings["weights"]],
        attn_implementation=settings["attention"],
    )
    algo, sampling = cfg.algo, cfg.sampling
    parts = algo.num_prompts * algo.num_generations // settings["batch"]
    with tempfile.TemporaryDirectory(prefix="trl-bench-") as folder:
        arguments = GRPOConfig(
            output_dir=folder,
            seed=cfg.seed,
            max_steps=cfg.max_steps,
            per_device_train_batch_size=settings["batch"],
            gradient_accumulation_steps=parts,
            steps_per_generation=parts,
            num_generations=algo.num_generations,
            num_iterations=algo.num_iterations,
            max_completion_length=sampling.max_completion_length,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            learning_rate=algo.learning_rate,
            lr_scheduler_type=algo.lr_scheduler_type,
            warmup_steps=algo.warmup_steps,
            weight_decay=algo.weight_decay,
            adam_beta1=algo.adam_beta1,
            adam_beta2=algo.adam_beta2,
            max_grad_norm=algo.max_grad_norm,
            beta=algo.beta,
            epsilon=algo.epsilon,
            epsilon_high=algo.epsilon_high,
            loss_type="dapo",  # every token weighs the same, as in ours
            scale_rewards=algo.estimator.scale_rewards,
            shuffle_dataset=False,
            gradient_checkpointing=False,
            bf16=True,
            use_cpu=device() == "cpu",
            dataloader_pin_memory=device() != "cpu",
            report_to="none",
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
        )
        yield GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(embedded_folder(), padding_side="left"),
            rollout_func=rollout,
        )


def _warm_up(trainer: Any) -> None:
    """Load kernels and start threads with a few tokens: a whole step more would take minutes."""
    model = trainer.model
    ids = torch.full((8, 32), 100, device=model.device)
    seen = torch.ones_like(ids)
    with torch.autocast(model.device.type, torch.bfloat16):
        model.generate(input_ids=ids, attention_mask=seen, max_new_tokens=4)
        model(input_ids=ids, attention_mask=seen, labels=ids, fused_lm_head=True).log_probs.sum().backward()
    model.zero_grad()


def _drive(trainer: Any, link: Link, seen: Callable[[], tuple[int, dict[str, Any]]]) -> None:
    """Train one step an order; ``seen`` says how many completion tokens the last step had, and what else."""
    link.ready()
    if link.wait() is not None:
        trainer.add_callback(_Paced(trainer, link, seen))
        trainer.train()


class _Paced(TrainerCallback):
    """Times a step, reports it, and waits for the next order. The first has come."""

    def __init__(self, trainer: Any, link: Link, seen: Callable[[], tuple[int, dict[str, Any]]]) -> None:
        self.link, self.seen = link, seen
        self.begin, self.watch = 0.0, Stopwatch()
        generate = trainer._generate

        def timed(prompts: Any) -> Any:
            with self.watch.phase("generate"):
                return generate(prompts)

        trainer._generate = timed

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        synchronize()
        self.begin, self.watch = time.perf_counter(), Stopwatch()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        synchronize()
        seconds = time.perf_counter() - self.begin
        generating = self.watch.seconds["generate"]
        tokens, details = self.seen()
        self.link.report(seconds, tokens, phases={"generate": generating, "update": seconds - generating}, **details)
        control.should_training_stop = self.link.wait() is None


class _Watched(TrainerCallback):
    """Stops when a step's mean reward is there, or time is up. A step's seconds end when it is graded."""

    def __init__(self, target: float, limit: float, graded: _Graded) -> None:
        self.target, self.limit, self.graded = target, limit, graded
        self.begin, self.tokens = 0.0, 0
        self.means: list[float] = []
        self.seconds: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        synchronize()
        self.begin = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.means.append(fmean(self.graded.rewards))
        self.seconds.append(self.graded.at - self.begin)
        self.tokens += self.graded.tokens
        control.should_training_stop = self.means[-1] >= self.target or self.seconds[-1] > self.limit

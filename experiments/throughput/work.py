"""The work that both sides do: configurations, problems, and completions that nobody has to generate.

Every function is a function of its arguments alone, so that two processes find the same.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from rlreason.config import CONF, register
from rlreason.sampler import UniformSampler
from rlreason.types import Env, Grade, Problem, Rollout, Segment

_QUIET = ("logger.mode=disabled", "console.quiet=true", "max_steps=1000000")
# A learning rate too small to change what the model does, so that every repeat is about the same kind of completions.
_STEP = ("algo.num_prompts=8", "algo.num_generations=8", "algo.learning_rate=1e-9", "sampling.temperature=1.0")

WORKS: dict[str, tuple[str, ...]] = {
    # One-digit addition: prompts of 38 tokens.
    "short": ("+experiment=arithmetic", *_QUIET, *_STEP, "sampling.max_completion_length=48"),
    # Generated word problems with a worked example before them: prompts of 133 to 170 tokens, 150 on average.
    "gsm8k": (
        "+experiment=gsm8k",
        *_QUIET,
        *_STEP,
        "sampling.max_completion_length=160",
        "env.source=synthetic",
        "env.synthetic_steps=[2,3]",
        "env.format._target_=envs.formats.Plain",
    ),
    # To be learned: 16 prompts x 8 samples of at most 32 tokens, learning rate 2e-5.
    "accuracy": ("+experiment=arithmetic", *_QUIET),
}
"""Overrides of ``conf/train.yaml``. The other side reads its hyperparameters from the same configuration."""


def config(work: str, *more: str) -> DictConfig:
    """The configuration of a work, with further overrides."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=[*WORKS[work], *more])


def problems(cfg: DictConfig, env: Env, index: int, count: int | None = None) -> list[Problem]:
    """The problems of unit ``index``, as many as a step has unless ``count`` says otherwise: those that
    ``rlreason.rollout`` draws in step ``index + 1``."""
    return UniformSampler(env.split("train"), cfg.seed).draw(index + 1, 0, count or cfg.algo.num_prompts)


def render(tokenizer: Any, problem: Problem) -> list[int]:
    """Token ids of a problem's prompt: what ``Policy.render`` makes of it, for sides that have no policy."""
    text = tokenizer.apply_chat_template(problem.prompt, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


@dataclass(frozen=True)
class Fixed:
    """A completion that was made up: for updates on equal tokens."""

    group: int
    prompt_ids: list[int]
    ids: list[int]
    reward: float


def fixed_completions(prompts: Sequence[list[int]], samples: int, longest: int, vocabulary: int) -> list[Fixed]:
    """``samples`` completions of each prompt, neighbours: random tokens; three in five as long as allowed (untrained,
    the model is cut off about as often), the others of any length. Half of each group earns 1, half 0, so that every
    row has an advantage."""
    rng = random.Random(0)
    fixed: list[Fixed] = []
    for group, prompt in enumerate(prompts):
        for sample in range(samples):
            length = longest if rng.random() < 0.6 else rng.randint(1, longest)
            ids = [rng.randrange(100, vocabulary) for _ in range(length)]  # the special tokens are the first ones
            fixed.append(Fixed(group, prompt, ids, float(sample % 2)))
    return fixed


def as_rollouts(fixed: Sequence[Fixed]) -> list[Rollout]:
    """Fixed completions as the rollouts that our learner takes."""
    return [
        Rollout(
            problem=Problem(f"fixed/{one.group}", [], None),
            group=one.group,
            segments=[Segment(one.prompt_ids, one.ids, [-1.0] * len(one.ids), [True] * len(one.ids))],
            messages=[],
            text="",
            finish="stop",
            grade=Grade(one.reward, bool(one.reward)),
        )
        for one in fixed
    ]

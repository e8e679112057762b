"""Small builders that several test files share: a tiny policy whose random weights are large enough for mistakes to
show, log-probabilities by Hugging Face alone, rollouts from token ids, and an algorithm to vary with ``replace``."""

from __future__ import annotations

import atexit
import copy
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM

from rlreason import models
from rlreason.advantages import GroupRelative
from rlreason.algo import Algo
from rlreason.learner import Learner
from rlreason.losses import ClippedSurrogate, TokenMean
from rlreason.policy import Policy
from rlreason.types import Finish, Grade, Problem, Rollout, Segment, Status


def sharpen(model: Any, factor: float) -> None:
    """Freshly initialised weights of std 0.02 make nearly uniform predictions, to which position and attention hardly
    matter: an error there would hide below any tolerance. Larger ones make the model care."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(factor)


@functools.cache
def tiny_folder() -> str:
    """The tiny model with sharpened weights, as a model folder."""
    folder = Path(tempfile.mkdtemp(prefix="rlreason-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    models.build_tiny(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    sharpen(model, 8.0)
    model.save_pretrained(folder)
    return str(folder)


def device() -> torch.device:
    return Accelerator().device


def tiny(dtype: Literal["bfloat16", "float32"] = "float32") -> Policy:
    """A fresh policy, free to be changed."""
    return models.load(tiny_folder(), dtype=dtype, device=device())


def plain(model: Any) -> Any:
    """A copy of a model that runs none of our code: Hugging Face's own eager attention."""
    twin = copy.deepcopy(model).eval()
    twin.set_attn_implementation("eager")
    return twin


def plain_logp(model: Any, prompt: list[int], completion: list[int], temperature: float) -> torch.Tensor:
    """log softmax(logits / temperature) of each completion token: one unpadded row, one forward, nothing of ours."""
    ids = torch.tensor([prompt + completion], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    return torch.log_softmax(logits / temperature, dim=-1)[torch.arange(len(completion)), completion]


def random_ids(count: int, seed: int, *, vocabulary: int = 260) -> list[int]:
    """Token ids above the tiny model's special ones (0 to 3)."""
    return torch.randint(4, vocabulary, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def make_rollout(
    group: int,
    prompt: list[int],
    completion: list[int],
    reward: float = 0.0,
    *,
    correct: bool | None = None,
    status: Status = "ok",
    finish: Finish = "stop",
    sampler_logp: list[float] | None = None,
) -> Rollout:
    """A single-turn rollout from token ids; its problem is named after its group."""
    logp = [-1.0] * len(completion) if sampler_logp is None else sampler_logp
    segment = Segment(prompt, completion, logp, [True] * len(completion))
    problem = Problem(f"problem-{group}", [{"role": "user", "content": "?"}], None)
    return Rollout(problem, group, [segment], [], "", finish, Grade(reward, correct, status))


ALGO = Algo(
    num_prompts=4,
    num_generations=4,
    num_iterations=1,
    num_mini_batches=1,
    max_attempts=1,
    mask_truncated_completions=False,
    learning_rate=1e-3,
    lr_scheduler_type="constant",
    warmup_steps=0,
    weight_decay=0.0,
    adam_beta1=0.9,
    adam_beta2=0.999,
    max_grad_norm=float("inf"),
    beta=0.0,
    kl_coef=0.0,
    kl_target=None,
    ref_model_sync_steps=None,
    overlong_coef=0.0,
    epsilon=0.2,
    epsilon_high=0.2,
    critic_model=False,
    critic_learning_rate=None,
    critic_warmup_steps=0,
    estimator=GroupRelative(),
    terms={"policy": ClippedSurrogate()},
    shaping={},
    aggregation=TokenMean(),
)


def make_learner(
    policy: Policy,
    algo: Algo = ALGO,
    *,
    micro_batch_tokens: int = 100_000,
    max_steps: int = 100,
    temperature: float = 1.0,
) -> Learner:
    return Learner(
        policy,
        algo,
        Accelerator(),
        max_steps=max_steps,
        micro_batch_tokens=micro_batch_tokens,
        temperature=temperature,
    )

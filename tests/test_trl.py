"""Losses, their gradients and advantages against TRL's own code, on one batch.

TRL's trainers are built on the tiny model and asked for their loss on the batch, and for the advantages of rollouts
that they are handed; nothing of TRL is copied here. Both sides compute in float32, TRL by Hugging Face's eager
attention, ours by our own.

``AGREEMENT``, relative and absolute, is for rounding: the largest difference seen is 3e-6, and 7e-6 for RLOO, whose
gradients are of up to 5. What the cases switch on and off moves the loss by more than 1e-3
(``test_every_option_matters``).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from helpers import make_rollout, random_ids, tiny_folder
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlreason import models
from rlreason.advantages import RLOO, GroupRelative
from rlreason.batch import collate, live_tokens
from rlreason.losses import (
    KL,
    Aggregation,
    ClippedImportance,
    ClippedSurrogate,
    ConstantLength,
    EntropyBonus,
    PolicyGradient,
    SequenceMean,
    Term,
    TokenMean,
    objective,
)
from rlreason.mismatch import MaskedImportance, Metrics, Mismatch, TruncatedImportance
from rlreason.policy import Policy
from rlreason.shaping import KLReward, shaped
from rlreason.types import Batch, Rollout

# TRL is imported in the tests, so that these apply to it.
pytestmark = [
    # What TRL says on being imported beside a vLLM that is newer than it knows; nothing here uses vLLM.
    pytest.mark.filterwarnings("ignore:TRL currently supports vLLM versions:UserWarning"),
    # Beside vLLM, TRL imports it, and with it a part of torch that uses what torch itself has deprecated.
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
    # Its way to hand rollouts over, which says that it may change: these tests would show it.
    pytest.mark.filterwarnings("ignore:You are using 'rollout_func', which is an experimental feature:UserWarning"),
]

AGREEMENT = 1e-5
TEMPERATURE = 0.8
LONGEST = 12  # tokens of the longest completion
END = 2  # the tiny model's end token


@pytest.fixture(scope="module", autouse=True)
def trl_leaves_the_device_alone() -> Iterator[None]:
    """``use_cpu`` holds for all Accelerators of a process, by a state they share; those of other test files choose for
    themselves. accelerate has no public way to begin anew."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@functools.cache
def rollouts() -> list[Rollout]:
    """Two prompts of 5 and 9 tokens, four completions of 2 to 12 tokens each. The fourth ran into the length limit; the
    sixth has tokens of an environment in its midst, which are no actions."""
    lengths = [[3, 7, 1, 12], [5, 9, 2, 11]]
    made = []
    for group, prompt in enumerate([random_ids(5, 0), random_ids(9, 1)]):
        for i, length in enumerate(lengths[group]):
            cut = length == LONGEST
            ids = random_ids(length, 10 * group + i + 2)
            made.append(make_rollout(group, prompt, ids if cut else [*ids, END], finish="length" if cut else "stop"))
    segment = made[5].segments[0]
    mask = [not 3 <= t < 6 for t in range(len(segment.completion_ids))]
    made[5] = replace(made[5], segments=[replace(segment, mask=mask)])
    return made


@functools.cache
def ours() -> Policy:
    return models.load(tiny_folder(), dtype="float32", device="cpu")


@functools.cache
def current_logp() -> torch.Tensor:
    """(R, S) of the policy that all tests start from."""
    with torch.no_grad():
        return ours().forward(collate(rollouts()), TEMPERATURE).logp


def near_current_logp(seed: int, scale: float) -> torch.Tensor:
    """(R, S) log-probabilities of another policy: the current ones and noise, 0 off the mask."""
    noise = torch.randn(current_logp().shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(collate(rollouts()).mask, current_logp() + scale * noise, 0.0)


def off_policy_batch() -> Batch:
    """Ratios pi / pi_old from 0.28 to 3.2; advantages of both signs, and a 0."""
    batch = collate(rollouts())
    advantage = torch.tensor([1.5, -0.5, 0.7, -1.2, -0.9, 1.1, 0.0, -2.0])
    return replace(
        batch, old_logp=near_current_logp(0, 0.5), advantage=torch.where(batch.mask, advantage[:, None], 0.0)
    )


@dataclass(frozen=True)
class Result:
    loss: torch.Tensor
    gradients: dict[str, torch.Tensor]
    metrics: dict[str, float]


def our_result(batch: Batch, terms: list[Term], aggregation: Aggregation) -> Result:
    policy, live = ours(), live_tokens(batch)
    policy.model.zero_grad()
    outputs = policy.forward(batch, TEMPERATURE)
    loss, metrics = objective(terms, outputs, batch, aggregation(batch, batch.live.sum(), live.sum()))
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}
    return Result(loss.detach(), gradients, averages(metrics, live))


def averages(metrics: Metrics, live: torch.Tensor) -> dict[str, float]:
    return {
        name: x[live].max().item() if name.endswith("/max") else x[live].mean().item() for name, x in metrics.items()
    }


def make_trainer(folder: Path, *, rloo: bool = False, rewards: list[float | None] | None = None, **options: Any) -> Any:
    """A GRPOTrainer of TRL's (or, with ``rloo``, an RLOOTrainer) on the tiny model. Its rollouts are ``rollouts()``, to
    which its reward function gives ``rewards``, None where it has no verdict."""
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    config: Any = RLOOConfig if rloo else GRPOConfig
    args = config(
        output_dir=str(folder),
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=LONGEST,
        temperature=TEMPERATURE,
        **options,
    )
    trainer: Any = RLOOTrainer if rloo else GRPOTrainer
    made = trainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_folder(), dtype=torch.float32, attn_implementation="eager"),
        reward_funcs=lambda **_: rewards,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": ""}] * 8),
        processing_class=AutoTokenizer.from_pretrained(tiny_folder()),
        **({} if rloo else {"rollout_func": hand_over}),
    )
    made.current_gradient_accumulation_steps = 1  # set by the training loop, which isn't run
    made.model.train()
    return made


def hand_over(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """TRL's ``rollout_func``: what it would have generated."""
    segments = [rollout.segments[0] for rollout in rollouts()]
    return {
        "prompt_ids": [s.prompt_ids for s in segments],
        "completion_ids": [s.completion_ids for s in segments],
        "logprobs": [s.sampler_logp for s in segments],
        "env_mask": [[int(m) for m in s.mask] for s in segments],
    }


def their_inputs(batch: Batch) -> dict[str, torch.Tensor]:
    """The batch as TRL's ``_compute_loss`` takes it: prompts padded on the left, completions on the right."""
    start, end = batch.prompt_length.tolist(), batch.attention.sum(1).tolist()

    def prompts(tensor: torch.Tensor) -> torch.Tensor:
        rows = [row[:a] for row, a in zip(tensor, start, strict=True)]
        return pad_sequence(rows, batch_first=True, padding_side="left")

    def completions(tensor: torch.Tensor) -> torch.Tensor:
        rows = [row[a:b] for row, a, b in zip(tensor, start, end, strict=True)]
        return pad_sequence(rows, batch_first=True)

    assert batch.advantage is not None
    found = {
        "prompt_ids": prompts(batch.tokens),
        "prompt_mask": prompts(batch.attention).long(),
        "completion_ids": completions(batch.tokens),
        "completion_mask": completions(batch.attention).long(),
        "tool_mask": completions(batch.mask).long(),
        "advantages": torch.stack([row[written][0] for row, written in zip(batch.advantage, batch.mask, strict=True)]),
        "num_items_in_batch": batch.mask.sum(),
    }
    for name, tensor in (("old_per_token_logps", batch.old_logp), ("ref_per_token_logps", batch.ref_logp)):
        if tensor is not None:
            found[name] = completions(tensor)
    return found


def their_result(trainer: Any, inputs: dict[str, torch.Tensor]) -> Result:
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    gradients = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    return Result(loss.detach(), gradients, {name: values[-1] for name, values in trainer._metrics["train"].items()})


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=AGREEMENT, atol=AGREEMENT)


def same(mine: Result, theirs: Result, metrics: tuple[str, ...] = ()) -> None:
    close(mine.loss, theirs.loss)
    assert mine.gradients.keys() == theirs.gradients.keys()
    for name, gradient in theirs.gradients.items():
        close(mine.gradients[name], gradient)
    # Not because there is none: the largest entry is 1,000 tolerances and more.
    assert max(g.abs().max().item() for g in theirs.gradients.values()) > 1e-2
    assert {name: mine.metrics[name] for name in metrics} == pytest.approx(
        {name: theirs.metrics[name] for name in metrics}, abs=AGREEMENT
    )


# --- losses

CLIPPED = ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")


@dataclass(frozen=True)
class Case:
    """Our composition and TRL's options for the same loss."""

    terms: list[Term]
    aggregation: Aggregation
    options: dict[str, Any]
    metrics: tuple[str, ...] = CLIPPED


CASES = {
    "grpo": Case([ClippedSurrogate()], SequenceMean(), {"loss_type": "grpo"}),
    "dapo": Case([ClippedSurrogate()], TokenMean(), {"loss_type": "dapo"}),
    "dr_grpo": Case([ClippedSurrogate()], ConstantLength(LONGEST), {"loss_type": "dr_grpo"}),
    # TRL's metrics are of rows then, ours of tokens
    "gspo": Case(
        [ClippedSurrogate(epsilon=0.1, epsilon_high=0.15, importance_sampling_level="sequence")],
        SequenceMean(),
        {"loss_type": "grpo", "epsilon": 0.1, "epsilon_high": 0.15, "importance_sampling_level": "sequence"},
        (),
    ),
    "cispo": Case(
        [ClippedImportance(max_ratio=1.5)],
        TokenMean(),
        {"loss_type": "cispo", "epsilon_high": 1.5},
        ("cispo_clip_ratio",),
    ),
    "delta": Case([ClippedSurrogate(delta=1.6)], TokenMean(), {"loss_type": "dapo", "delta": 1.6}),
    "epsilon_high": Case(
        [ClippedSurrogate(epsilon=0.1, epsilon_high=0.4)],
        TokenMean(),
        {"loss_type": "dapo", "epsilon": 0.1, "epsilon_high": 0.4},
    ),
    "entropy": Case(
        [ClippedSurrogate(), EntropyBonus(0.05)],
        TokenMean(),
        {"loss_type": "dapo", "entropy_coef": 0.05},
        (*CLIPPED, "entropy"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_trls(name: str, tmp_path: Path) -> None:
    case, batch = CASES[name], off_policy_batch()
    theirs = their_result(make_trainer(tmp_path, **case.options), their_inputs(batch))
    same(our_result(batch, case.terms, case.aggregation), theirs, case.metrics)


def test_every_option_matters() -> None:
    # Or two cases could agree with TRL for want of a token that tells them apart.
    losses = sorted(our_result(off_policy_batch(), c.terms, c.aggregation).loss.item() for c in CASES.values())
    assert min(b - a for a, b in pairwise(losses)) > 1e-3


def with_reference(batch: Batch) -> Batch:
    return replace(batch, ref_logp=near_current_logp(1, 0.4))


def test_kl_is_trls_on_policy(tmp_path: Path) -> None:
    # Where the ratio is 1 ours is plain k3, as TRL's is without its correction.
    batch = replace(with_reference(off_policy_batch()), old_logp=None)
    trainer = make_trainer(tmp_path, loss_type="dapo", beta=0.3, use_bias_correction_kl=False)
    mine = our_result(batch, [ClippedSurrogate(), KL(0.3, "k3")], TokenMean())
    same(mine, their_result(trainer, their_inputs(batch)), ("kl",))
    without = our_result(batch, [ClippedSurrogate()], TokenMean())
    assert (mine.loss - without.loss).abs() > 1e-3


@pytest.mark.parametrize("on_policy", [True, False])
def test_kl_with_trls_correction_differs_by_the_gradient_of_the_ratio(on_policy: bool, tmp_path: Path) -> None:
    # With use_bias_correction_kl both multiply k3 by pi / pi_old, but TRL lets the gradient through the ratio and we
    # don't: the losses are the same, and TRL's gradient has k3 ratio ∇log pi besides, on policy too.
    batch = with_reference(off_policy_batch())
    if on_policy:
        batch = replace(batch, old_logp=None)
    trainer = make_trainer(tmp_path, loss_type="dapo", beta=0.3, use_bias_correction_kl=True)
    theirs = their_result(trainer, their_inputs(batch))
    terms: list[Term] = [ClippedSurrogate(), KL(0.3, "k3")]
    mine = our_result(batch, terms, TokenMean())
    close(mine.loss, theirs.loss)
    assert max((mine.gradients[name] - g).abs().max().item() for name, g in theirs.gradients.items()) > 1e-2

    k3 = torch.where(batch.mask, torch.expm1(batch.ref_logp - current_logp()) - batch.ref_logp + current_logp(), 0.0)
    ratio = torch.ones(()) if batch.old_logp is None else (current_logp() - batch.old_logp).exp()
    # -A log pi has the gradient -A ∇log pi, so A = -0.3 k3 ratio makes the one that we leave out.
    besides = our_result(replace(batch, advantage=-0.3 * k3 * ratio), [PolicyGradient()], TokenMean())
    for name, gradient in theirs.gradients.items():
        close(mine.gradients[name] + besides.gradients[name], gradient)


# --- advantages, from rewards

REWARDS: list[float | None] = [1.0, 0.0, 0.25, 3.0, 0.5, 0.5, 0.5, 0.5]


def rewarded(rewards: list[float | None], *, mask_truncated: bool = False) -> Batch:
    """Our batch of the rollouts with these rewards; None is an error of the environment's, which isn't graded."""
    graded = [
        replace(r, grade=replace(r.grade, reward=0.0 if x is None else x, status="error" if x is None else "ok"))
        for r, x in zip(rollouts(), rewards, strict=True)
    ]
    return collate(graded, mask_truncated=mask_truncated)


def of_rows(batch: Batch) -> torch.Tensor:
    assert batch.advantage is not None
    return their_inputs(batch)["advantages"]


@pytest.mark.parametrize("scale_rewards", ["group", "none"])
@pytest.mark.parametrize("rewards", [REWARDS, [1.0, None, 0.25, 3.0, -1.0, 0.0, None, 2.0]], ids=["all", "some"])
def test_group_relative_advantage_is_trls(scale_rewards: Any, rewards: list[float | None], tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, rewards=rewards, scale_rewards=scale_rewards)
    theirs = trainer._generate_and_score_completions([{"prompt": ""}] * 8)["advantages"]
    close(of_rows(GroupRelative(scale_rewards=scale_rewards)(rewarded(rewards))), theirs)
    assert theirs.abs().max() > 0.5


@pytest.mark.parametrize("mask_truncated", [False, True])
def test_dapo_from_rewards_to_gradient_is_trls(mask_truncated: bool, tmp_path: Path) -> None:
    # The rollout that was cut off stays in its group's baseline and leaves numerator and denominator of the loss.
    trainer = make_trainer(tmp_path, rewards=REWARDS, loss_type="dapo", mask_truncated_completions=mask_truncated)
    theirs = their_result(trainer, trainer._generate_and_score_completions([{"prompt": ""}] * 8))
    batch = GroupRelative()(rewarded(REWARDS, mask_truncated=mask_truncated))
    assert batch.live.sum() == 8 - mask_truncated
    same(our_result(batch, [ClippedSurrogate()], TokenMean()), theirs)


@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_rloo_is_trls(beta: float, tmp_path: Path) -> None:
    # TRL's reference is the model as it is on disk. Ours starts there too; both are then moved by the same amount.
    rewards: list[float | None] = [1.0, None, 0.25, 3.0, -1.0, 0.0, 0.5, 2.0]
    trainer = make_trainer(tmp_path, rloo=True, rewards=rewards, beta=beta)
    # Its RLOOTrainer knows no masks inside a completion, and no way to hand rollouts over but this one.
    given = hand_over([], trainer)
    trainer._generate = lambda prompts: (given["prompt_ids"], given["completion_ids"], [""] * 8)
    batch = rewarded(rewards)
    batch = replace(batch, mask=batch.attention & (torch.arange(batch.mask.shape[1]) >= batch.prompt_length[:, None]))
    policy = models.load(tiny_folder(), dtype="float32", device="cpu")
    with torch.no_grad():
        ref_logp = policy.forward(batch, TEMPERATURE).logp
        for mine, theirs in zip(policy.model.parameters(), trainer.model.parameters(), strict=True):
            noise = 0.05 * mine.std() * torch.randn(mine.shape, generator=torch.Generator().manual_seed(mine.numel()))
            mine.add_(noise)
            theirs.add_(noise)
        old_logp = policy.forward(batch, TEMPERATURE).logp
    # Their beta sits in the reward, times log pi_old - log pi_ref.
    batch = replace(batch, old_logp=old_logp, ref_logp=ref_logp)
    batch = RLOO()(shaped(batch, [KLReward(beta)] if beta else []))
    inputs = trainer._generate_and_score_completions([{"prompt": ""}] * 8)
    close(of_rows(batch), inputs["advantages"])
    plain = of_rows(RLOO()(replace(batch, token_reward=None)))
    assert ((plain - inputs["advantages"]).abs().max() > 0.05) == (beta > 0)

    # TRL's loss is on whole completions: the mean over rows of -A times the product of their tokens' ratios. On policy
    # its gradient is that of the sum over tokens of -A log pi. The errors are rows of theirs, with an advantage of 0,
    # and none of ours.
    theirs_result = their_result(trainer, inputs)
    policy.model.zero_grad()
    outputs = policy.forward(batch, TEMPERATURE)
    weight = ConstantLength(1)(batch, 8, live_tokens(batch).sum())
    objective([PolicyGradient()], outputs, batch, weight)[0].backward()
    for name, parameter in policy.model.named_parameters():
        assert parameter.grad is not None
        close(parameter.grad, theirs_result.gradients[name])
    assert max(g.abs().max().item() for g in theirs_result.gradients.values()) > 1e-2


# --- weights against the sampler

CAP, LOW = 1.6, 0.7


@pytest.mark.parametrize(
    ("mode", "mismatch"),
    [
        ("token_truncate", TruncatedImportance(CAP)),
        ("sequence_truncate", TruncatedImportance(CAP, level="sequence")),
        ("token_mask", MaskedImportance(CAP, LOW)),
        ("sequence_mask", MaskedImportance(CAP, LOW, level="sequence")),
    ],
)
def test_mismatch_weights_are_trls(
    mode: str, mismatch: Mismatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler_logp = near_current_logp(2, 0.3)
    batch = replace(GroupRelative()(rewarded(REWARDS)), sampler_logp=sampler_logp)
    trainer = make_trainer(
        tmp_path,
        rewards=REWARDS,
        loss_type="dapo",
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_max=CAP,
        vllm_importance_sampling_clip_min=LOW if mode.endswith("mask") else None,
    )
    # As with vLLM, whose rollouts these might be; the sampler's log-probabilities come with them. 0 is the step that
    # its weights were last synced at.
    trainer.use_vllm, trainer._last_loaded_step = True, 0
    rows = [
        row[a:b].tolist() for row, a, b in zip(sampler_logp, batch.prompt_length, batch.attention.sum(1), strict=True)
    ]
    monkeypatch.setattr(trainer, "rollout_func", lambda *both: hand_over(*both) | {"logprobs": rows})
    inputs = trainer._generate_and_score_completions([{"prompt": ""}] * 8)
    weights = inputs["importance_sampling_ratio"]
    assert weights.max() == pytest.approx(CAP) if mode.endswith("truncate") else (weights == 0).any()
    metrics = [f"sampling/sampling_logp_difference/{part}" for part in ("mean", "max")]
    if mode.startswith("token"):  # TRL's are of rows otherwise, ours of tokens
        metrics += [f"sampling/importance_sampling_ratio/{part}" for part in ("mean", "max")]
    mine = our_result(batch, [ClippedSurrogate(mismatch=mismatch)], TokenMean())
    same(mine, their_result(trainer, inputs), tuple(metrics))
    assert (mine.loss - our_result(batch, [ClippedSurrogate()], TokenMean()).loss).abs() > 1e-3

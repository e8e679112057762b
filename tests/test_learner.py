from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from helpers import ALGO, device, make_learner, make_rollout, plain, plain_logp, random_ids, tiny

from rlreason.advantages import GAE, GroupRelative
from rlreason.algo import Algo
from rlreason.batch import collate, live_tokens
from rlreason.engines import generate
from rlreason.engines.torch import TorchEngine
from rlreason.learner import Learner
from rlreason.losses import (
    KL,
    Aggregation,
    ClippedSurrogate,
    ConstantLength,
    EntropyBonus,
    SequenceMean,
    Term,
    TokenMean,
    ValueLoss,
)
from rlreason.mismatch import Metrics, TruncatedImportance
from rlreason.policy import Policy
from rlreason.types import Batch, Outputs, Request, Sampling

# Four groups of 3 with prompts and completions of all lengths. Group 2 has equal rewards, so no advantage; one row is
# an error; one is truncated, which counts unless it is masked.
REWARDS = [[1.0, 0.0, 0.0], [0.0, 2.0, 1.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]]
LENGTHS = [[3, 9, 1], [14, 2, 6], [5, 5, 4], [20, 1, 8]]


def make_batch(policy: Policy, *, rewards: list[list[float]] = REWARDS, mask_truncated: bool = False) -> Batch:
    """Rows with advantages; the sampler's log-probs are near the policy's, but not at them."""
    rollouts = []
    for group, lengths in enumerate(LENGTHS):
        prompt = random_ids(4 + 3 * group, seed=group)
        for i, length in enumerate(lengths):
            rollouts.append(
                make_rollout(
                    group,
                    prompt,
                    random_ids(length, seed=100 * group + i),
                    rewards[group][i],
                    status="error" if (group, i) == (1, 0) else "ok",
                    finish="length" if (group, i) == (3, 0) else "stop",
                )
            )
    batch = collate(rollouts, mask_truncated=mask_truncated, device=device())
    with torch.no_grad():
        logp = policy.forward(batch, 1.0).logp
    noise = 0.3 * torch.randn(logp.shape, generator=torch.Generator().manual_seed(1)).to(device())
    batch = replace(batch, sampler_logp=torch.where(batch.mask, logp + noise, 0.0))
    return GroupRelative()(batch)


def gradients(learner: Learner, batch: Batch) -> list[list[torch.Tensor]]:
    """The gradient that each optimiser step would have taken; the weights stay."""
    taken: list[list[torch.Tensor]] = []

    def take() -> None:
        taken.append([torch.zeros_like(m) if m.grad is None else m.grad.clone() for m in learner.masters])

    learner.optimizer.step = take  # type: ignore[method-assign,assignment]
    learner.update(batch)
    return taken


def relative_error(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Of the whole gradient, as one vector."""
    one, other = (torch.cat([g.double().flatten() for g in gs]) for gs in (found, expected))
    assert other.norm() > 1e-3
    return float((one - other).norm() / other.norm())


def rows_run(learner: Learner, batch: Batch) -> list[int]:
    """How many rows each forward pass of an update has; the weights stay."""
    rows: list[int] = []
    forward = learner.policy.forward

    def counted(part: Batch, temperature: float, *, value: bool) -> Outputs:
        rows.append(len(part.tokens))
        return forward(part, temperature, value=value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner.policy, "forward", counted)
        gradients(learner, batch)
    return rows


def weights(learner: Learner) -> list[torch.Tensor]:
    return [m.detach().clone() for m in learner.masters]


# --- the gradient

AGGREGATIONS: list[Aggregation] = [TokenMean(), SequenceMean(), ConstantLength(32)]


def weight_by_hand(aggregation: Aggregation, tokens: int, total: int, rows: int) -> float:
    """What a token of a row with ``tokens`` live tokens weighs, among ``rows`` rows with ``total`` tokens."""
    if isinstance(aggregation, TokenMean):
        return 1 / total
    if isinstance(aggregation, SequenceMean):
        return 1 / (rows * tokens)
    return 1 / (rows * 32)


@pytest.mark.parametrize("mask_truncated", [False, True])
@pytest.mark.parametrize("aggregation", AGGREGATIONS, ids=lambda a: type(a).__name__)
def test_gradient_by_hand_whatever_the_cut(aggregation: Aggregation, mask_truncated: bool) -> None:
    """Whole rows, one by one, through Hugging Face alone: the gradient of -sum(weight x advantage x min(pi / sampler,
    2) x log pi) over the live tokens, at temperature 0.8."""
    policy = tiny()
    batch = make_batch(policy, mask_truncated=mask_truncated)
    assert batch.advantage is not None
    live = batch.live.tolist()
    assert live.count(True) == (10 if mask_truncated else 11)
    lengths = batch.mask.sum(1).tolist()
    total = sum(n for n, counts in zip(lengths, live, strict=True) if counts)
    reference = plain(policy.model)
    loss = torch.zeros((), device=device())
    for i in range(12):
        if not live[i]:
            continue
        start, end = int(batch.prompt_length[i]), int(batch.prompt_length[i]) + lengths[i]
        ids = batch.tokens[i].tolist()
        logp = plain_logp(reference, ids[:start], ids[start:end], 0.8)
        mismatch = (logp.detach() - batch.sampler_logp[i, start:end]).exp().clamp(max=2.0)
        weight = weight_by_hand(aggregation, lengths[i], total, live.count(True))
        loss = loss - (weight * batch.advantage[i, start:end] * mismatch * logp).sum()
    expected = list(torch.autograd.grad(loss, list(reference.parameters())))

    terms: Mapping[str, Term] = {"policy": ClippedSurrogate(mismatch=TruncatedImportance())}
    algo = replace(ALGO, aggregation=aggregation, terms=terms)
    cuts: list[int] = []
    for budget in (100_000, 150, 70, 1):
        learner = make_learner(tiny(), algo, micro_batch_tokens=budget, temperature=0.8)
        (gradient,) = gradients(learner, batch)
        assert relative_error(gradient, expected) < 1e-5
        cuts.append(len(rows_run(learner, batch)))
    assert cuts[0] == 1 < cuts[2] < cuts[3] == (7 if mask_truncated else 8)  # every row that has an advantage


@pytest.mark.parametrize("aggregation", AGGREGATIONS, ids=lambda a: type(a).__name__)
def test_micro_batches_do_not_change_the_gradient_of_all_terms(aggregation: Aggregation) -> None:
    """With KL, entropy and a critic, after the old policy was left behind, in mini-batches."""

    def run(budget: int) -> list[list[torch.Tensor]]:
        policy = tiny()
        policy.add_reference()
        policy.add_critic()
        assert policy.critic is not None
        with torch.no_grad():
            policy.critic.head.weight.copy_(torch.linspace(-0.5, 0.5, 64)[None])
        terms: Mapping[str, Term] = {
            "policy": ClippedSurrogate(epsilon=0.05, mismatch=TruncatedImportance()),
            "kl": KL(0.1, "k2"),
            "entropy": EntropyBonus(0.02),
            "value": ValueLoss(0.1),
        }
        algo = replace(ALGO, num_mini_batches=2, estimator=GAE(), terms=terms, aggregation=aggregation)
        learner = make_learner(policy, algo, micro_batch_tokens=budget)
        batch = algo.estimator(learner.annotate(make_batch(policy)))
        with torch.no_grad():
            for master in learner.masters:
                master.mul_(1.02)
        return gradients(learner, batch)

    whole = run(100_000)
    assert len(whole) == 2
    assert len(whole[0]) == len(tiny().parameters()) + 2
    for budget in (120, 1):
        for found, expected in zip(run(budget), whole, strict=True):
            assert relative_error(found, expected) < 1e-5


@dataclass(frozen=True)
class Nothing:
    """Adds nothing, but keeps rows from being skipped."""

    coefficient: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset()
    zero_without_advantage: ClassVar[bool] = False

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        return torch.where(live_tokens(batch), outputs.logp, 0.0) * 0.0, {}


@pytest.mark.parametrize("aggregation", AGGREGATIONS, ids=lambda a: type(a).__name__)
def test_skipped_rows_change_nothing(aggregation: Aggregation) -> None:
    skipping = replace(ALGO, aggregation=aggregation)
    computing = replace(skipping, terms={"policy": ClippedSurrogate(), "nothing": Nothing()})
    found: list[list[torch.Tensor]] = []
    rows: list[int] = []
    shares: list[float] = []
    for algo in (skipping, computing):
        learner = make_learner(tiny(), algo)
        batch = make_batch(learner.policy)
        found += gradients(learner, batch)
        rows.append(rows_run(learner, batch)[-1])
        shares.append(learner.update(batch)["frac_rows_skipped"])
    assert relative_error(found[0], found[1]) < 1e-6
    # of 12 rows: without the error, and without the group of equal rewards
    assert rows == [8, 11]
    assert shares == pytest.approx([4 / 12, 1 / 12])


def test_a_critic_learns_from_rows_without_advantage() -> None:
    policy = tiny()
    policy.add_critic()
    terms: Mapping[str, Term] = {"policy": ClippedSurrogate(), "value": ValueLoss(0.1)}
    algo = replace(ALGO, terms=terms, estimator=GAE(whiten_advantages=False))
    learner = make_learner(policy, algo)
    batch = learner.annotate(make_batch(policy))
    assert batch.value is not None
    assert batch.old_logp is None  # one optimiser step: it is the policy's own
    metrics = learner.update(algo.estimator(batch))
    assert metrics["frac_rows_skipped"] == pytest.approx(1 / 12)


# --- optimiser steps


def test_mini_batch_without_live_rows_takes_no_step() -> None:
    learner = make_learner(tiny(), replace(ALGO, num_mini_batches=4, learning_rate=1e-2))
    batch = make_batch(learner.policy)
    metrics = learner.update(batch)  # group 2 has no advantage; Adam has momentum after this
    assert (metrics["optimizer_steps"], metrics["skipped_optimizer_steps"]) == (3, 1)
    before = weights(learner)
    even = GroupRelative()(make_batch(learner.policy, rewards=[[1.0] * 3] * 4))
    metrics = learner.update(even)
    assert (metrics["optimizer_steps"], metrics["skipped_optimizer_steps"]) == (0, 4)
    assert "grad_norm" not in metrics
    assert all(torch.equal(a, b) for a, b in zip(before, weights(learner), strict=True))
    excluded = replace(batch, live=torch.zeros_like(batch.live))
    assert learner.update(excluded)["optimizer_steps"] == 0
    assert all(torch.equal(a, b) for a, b in zip(before, weights(learner), strict=True))
    assert learner.update(batch)["optimizer_steps"] == 3
    assert not torch.equal(before[0], weights(learner)[0])


def test_an_empty_batch_takes_no_step() -> None:
    learner = make_learner(tiny())
    before = weights(learner)
    batch = GroupRelative()(learner.annotate(collate([], device=device())))
    metrics = learner.update(batch)
    assert (metrics["optimizer_steps"], metrics["skipped_optimizer_steps"]) == (0, 1)
    assert metrics["frac_rows_skipped"] == 0
    assert all(torch.equal(a, b) for a, b in zip(before, weights(learner), strict=True))


def test_first_adam_step_by_hand() -> None:
    """Adam's first step is learning rate x sign of the gradient (up to its eps of 1e-8); decoupled weight decay shrinks
    matrices by learning rate x decay, and leaves norms alone."""
    policy = tiny()
    algo = replace(ALGO, learning_rate=1e-3, weight_decay=0.1)
    batch = make_batch(policy)
    (gradient,) = gradients(make_learner(tiny(), algo), batch)
    learner = make_learner(policy, algo)
    before = weights(learner)
    learner.update(batch)
    for old, new, g in zip(before, weights(learner), gradient, strict=True):
        decay = 1 - 1e-3 * 0.1 if old.ndim >= 2 else 1.0
        clear = g.abs() > 1e-5
        assert clear.any()
        expected = old * decay - 1e-3 * g.sign()
        torch.testing.assert_close(new[clear], expected[clear], rtol=0, atol=2e-6)


def test_gradient_is_clipped_by_its_norm_over_all_weights() -> None:
    policy = tiny()
    batch = make_batch(policy)
    (free,) = gradients(make_learner(policy, ALGO), batch)
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in free))
    learner = make_learner(tiny(), replace(ALGO, max_grad_norm=norm / 4))
    (clipped,) = gradients(learner, batch)
    assert relative_error([4 * g for g in clipped], free) < 1e-5
    assert learner.update(batch)["grad_norm"] == pytest.approx(norm, rel=1e-5)  # as it was before clipping
    (whole,) = gradients(make_learner(tiny(), replace(ALGO, max_grad_norm=norm * 4)), batch)
    assert relative_error(whole, free) < 1e-6


def test_bfloat16_weights_follow_float32_masters() -> None:
    """Steps of 2e-6 are far below bfloat16's resolution at 0.1 (4e-4): taken in bfloat16 they would all be lost."""
    policy = tiny("bfloat16")
    learner = make_learner(policy, replace(ALGO, learning_rate=2e-6))
    batch = make_batch(policy)
    masters, parameters = weights(learner), [p.detach().float() for p in policy.parameters()]
    assert all(torch.equal(p, m.bfloat16().float()) for p, m in zip(parameters, masters, strict=True))
    for _ in range(50):
        learner.update(batch)
        for parameter, master in zip(policy.parameters(), learner.masters, strict=True):
            assert parameter.dtype == torch.bfloat16
            assert master.dtype == torch.float32
            assert torch.equal(parameter, master.bfloat16())
            assert parameter.grad is None
    # the queries of the first layer, where they are large enough
    name = "model.layers.0.mlp.up_proj.weight"
    index = [n for n, _ in policy.model.named_parameters()].index(name)
    large = masters[index].abs() > 0.05
    assert large.float().mean() > 0.5
    moved = (learner.masters[index] - masters[index])[large]
    assert 2e-6 < moved.abs().mean() < 1.01 * 50 * 2e-6
    computing = (policy.parameters()[index].detach().float() - parameters[index])[large]
    # What computes moved too, by as much on average, though each weight only in jumps of 2e-4 and more.
    along = moved.sign()
    assert (computing * along).mean().item() == pytest.approx(moved.abs().mean().item(), rel=0.1)
    assert (computing != 0).float().mean() < 0.5


def test_masters_gather_the_gradients_of_all_micro_batches() -> None:
    """In bfloat16 a parameter's gradient is handed on after each micro-batch; the sum is taken in float32."""
    batch = make_batch(tiny())
    (exact,) = gradients(make_learner(tiny()), batch)
    for budget in (100_000, 70, 1):
        (found,) = gradients(make_learner(tiny("bfloat16"), micro_batch_tokens=budget), batch)
        assert {g.dtype for g in found} == {torch.float32}
        assert relative_error(found, exact) < 0.06  # bfloat16 rounding alone: 0.034


def test_float32_weights_are_their_own_masters() -> None:
    learner = make_learner(tiny())
    assert all(m is p for m, p in zip(learner.masters, learner.policy.parameters(), strict=True))


# --- several steps a batch


def test_several_steps_keep_the_old_policy_and_clip() -> None:
    algo = replace(
        ALGO,
        num_iterations=2,
        num_mini_batches=2,
        learning_rate=1e-2,
        terms={"policy": ClippedSurrogate(epsilon=0.01)},
    )
    assert algo.annotations == {"old_logp"}
    learner = make_learner(tiny(), algo, temperature=0.7)
    with torch.no_grad():
        batch = make_batch(learner.policy)
        expected = learner.policy.forward(batch, 0.7).logp
    batch = learner.annotate(batch)
    assert batch.old_logp is not None
    torch.testing.assert_close(batch.old_logp, expected, rtol=0, atol=1e-5)
    metrics = learner.update(batch)
    assert metrics["optimizer_steps"] == 4
    assert metrics["clip_ratio/region_mean"] > 0.1


def test_one_step_needs_no_old_policy_and_never_clips() -> None:
    assert ALGO.annotations == frozenset()
    learner = make_learner(tiny(), replace(ALGO, terms={"policy": ClippedSurrogate(epsilon=0.01)}))
    batch = make_batch(learner.policy)
    assert learner.annotate(batch) is batch
    assert learner.update(batch)["clip_ratio/region_mean"] == 0


def test_gradient_of_a_second_iteration_is_that_of_the_clipped_surrogate() -> None:
    """Ratios against the policy before the update, not against the one that the first iteration left."""
    algo = replace(ALGO, num_iterations=2, learning_rate=1e-4, terms={"policy": ClippedSurrogate(epsilon=0.05)})
    learner = make_learner(tiny(), algo)
    batch = learner.annotate(make_batch(learner.policy))
    assert batch.old_logp is not None
    assert batch.advantage is not None
    taken: list[list[torch.Tensor]] = []
    step = learner.optimizer.step
    models: list[Any] = []

    def watch() -> None:
        models.append(plain(learner.policy.model))
        taken.append([m.grad.clone() for m in learner.masters])  # type: ignore[union-attr]
        step()

    learner.optimizer.step = watch  # type: ignore[method-assign,assignment]
    learner.update(batch)
    assert len(taken) == 2
    reference = models[1]
    live = live_tokens(batch)
    loss = torch.zeros((), device=device())
    held = 0
    for i in range(len(live)):
        span = live[i].nonzero().flatten()
        if not len(span):
            continue
        start = int(batch.prompt_length[i])
        ids = batch.tokens[i].tolist()
        logp = plain_logp(reference, ids[:start], ids[start : start + len(span)], 1.0)
        ratio = (logp - batch.old_logp[i, span]).exp()
        a = batch.advantage[i, span]
        held += int((((ratio > 1.05) & (a > 0)) | ((ratio < 0.95) & (a < 0))).sum())
        loss = loss - torch.minimum(ratio * a, ratio.clamp(0.95, 1.05) * a).sum() / live.sum()
    assert 0 < held < 0.8 * live.sum()
    assert relative_error(taken[1], list(torch.autograd.grad(loss, list(reference.parameters())))) < 1e-4


# --- schedule


@pytest.mark.parametrize(
    ("algo", "factors"),
    [
        (replace(ALGO, lr_scheduler_type="constant"), [1, 1, 1, 1, 1, 1]),
        (replace(ALGO, lr_scheduler_type="constant", warmup_steps=4), [0.25, 0.5, 0.75, 1, 1, 1]),
        (replace(ALGO, lr_scheduler_type="linear", warmup_steps=2), [0.5, 1, 1, 0.75, 0.5, 0.25]),
        (replace(ALGO, lr_scheduler_type="linear"), [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        # (1 + cos(pi k / 4)) / 2 for k = 0, 1, 2, 3
        (replace(ALGO, lr_scheduler_type="cosine", warmup_steps=2), [0.5, 1, 1, 0.8535534, 0.5, 0.1464466]),
        (replace(ALGO, lr_scheduler_type="cosine", warmup_steps=9), [k / 9 for k in range(1, 7)]),
    ],
    ids=["constant", "warm-up", "warm-up, linear", "linear", "warm-up, cosine", "warm-up beyond the end"],
)
def test_learning_rate_by_hand(algo: Algo, factors: list[float]) -> None:
    learner = make_learner(tiny(), replace(algo, learning_rate=2e-3), max_steps=6)
    batch = GroupRelative()(make_batch(learner.policy, rewards=[[1.0] * 3] * 4))  # nothing to compute
    for factor in factors:
        logged = learner.update(batch)["learning_rate"]
        assert logged == pytest.approx(2e-3 * factor, rel=1e-6)
        assert [group["lr"] for group in learner.optimizer.param_groups] == [logged, logged]


# --- what is learned


def test_kl_is_zero_at_first_and_grows() -> None:
    policy = tiny()
    policy.add_reference()
    algo = replace(ALGO, beta=0.1, terms={"policy": ClippedSurrogate(), "kl": KL(0.1, "k3")}, learning_rate=1e-2)
    assert algo.annotations == {"ref_logp"}
    learner = make_learner(policy, algo, micro_batch_tokens=90)
    plainly = make_batch(policy)
    batch = learner.annotate(plainly)
    first = learner.update(batch)
    assert abs(first["kl"]) < 1e-9
    assert first["frac_rows_skipped"] == pytest.approx(1 / 12)  # the KL needs rows without advantage
    second_batch = learner.annotate(plainly)
    assert torch.equal(second_batch.ref_logp, batch.ref_logp)  # type: ignore[arg-type]
    second = learner.update(second_batch)
    assert second["kl"] > 1e-3


def test_kl_pulls_the_policy_back() -> None:
    """Alone, the KL term leads a policy that has moved back to its reference."""
    policy = tiny()
    policy.add_reference()
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1.05)
    learner = make_learner(policy, replace(ALGO, terms={"kl": KL(1.0, "k2")}, learning_rate=1e-3))
    values = [learner.update(learner.annotate(make_batch(policy)))["kl"] for _ in range(25)]
    assert values[0] > 0.02
    assert values[-1] < 0.2 * values[0]


def test_overfitting_one_batch_raises_what_was_rewarded() -> None:
    learner = make_learner(tiny(), replace(ALGO, learning_rate=3e-3))
    batch = make_batch(learner.policy)
    assert batch.advantage is not None

    def mean_logp() -> tuple[float, float]:
        with torch.no_grad():
            logp = learner.policy.forward(batch, 1.0).logp
        assert batch.advantage is not None
        live = live_tokens(batch)
        return float(logp[live & (batch.advantage > 0)].mean()), float(logp[live & (batch.advantage < 0)].mean())

    good, bad = mean_logp()
    for _ in range(30):
        learner.update(batch)
    good_after, bad_after = mean_logp()
    assert good_after > good + 2
    assert bad_after < bad
    assert good_after > bad_after + 5


def test_engine_writes_with_the_updated_weights() -> None:
    policy = tiny()
    policy.add_reference()  # the weights before the update
    learner = make_learner(policy, replace(ALGO, learning_rate=1e-2))
    engine = TorchEngine(policy, max_tokens_in_flight=10_000)
    prompt = random_ids(11, seed=3)
    requests = [Request(prompt, Sampling(temperature=1.0, max_completion_length=15), i) for i in range(6)]
    before = generate(engine, requests)
    learner.update(make_batch(policy))
    engine.sync(policy)
    after = generate(engine, requests)
    assert [c.ids for c in after] != [c.ids for c in before]
    assert {c.version for c in after} == {1}
    new, old = plain(policy.model), plain(policy.reference)
    with torch.no_grad():
        for completion in after:
            logp = torch.tensor(completion.logprobs)
            assert (logp - plain_logp(new, prompt, completion.ids, 1.0).cpu()).abs().max() < 1e-4
            assert (logp - plain_logp(old, prompt, completion.ids, 1.0).cpu()).abs().max() > 0.1


# --- metrics


def test_metrics_average_over_live_tokens_whatever_the_cut() -> None:
    def run(budget: int) -> dict[str, float]:
        terms: Mapping[str, Term] = {"policy": ClippedSurrogate(mismatch=TruncatedImportance()), "nothing": Nothing()}
        learner = make_learner(tiny(), replace(ALGO, terms=terms), micro_batch_tokens=budget)
        return learner.update(make_batch(learner.policy))

    policy = tiny()
    batch = make_batch(policy)
    with torch.no_grad():
        out = policy.forward(batch, 1.0)
    assert out.entropy is not None
    live = live_tokens(batch)
    difference = (out.logp - batch.sampler_logp)[live]
    expected = {
        "sampling/sampling_logp_difference/mean": float(difference.abs().mean()),
        "sampling/sampling_logp_difference/max": float(difference.abs().max()),
        "sampling/importance_sampling_ratio/mean": float(difference.exp().clamp(max=2).mean()),
        "sampling/importance_sampling_ratio/min": float(difference.exp().min()),
        "sampling/importance_sampling_ratio/max": float(difference.exp().clamp(max=2).max()),
        "entropy": float(out.entropy[live].mean()),
    }
    for budget in (100_000, 70, 1):
        metrics = run(budget)
        assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_learner_refuses_micro_batches_of_nothing() -> None:
    with pytest.raises(ValueError, match=r"learner\.micro_batch_tokens is 0"):
        make_learner(tiny(), micro_batch_tokens=0)


def test_training_goes_on_exactly_from_a_saved_state() -> None:
    def fresh() -> Learner:
        policy = tiny("bfloat16")
        policy.add_critic()
        terms: Mapping[str, Term] = {"policy": ClippedSurrogate(), "value": ValueLoss(0.1)}
        algo = replace(
            ALGO, terms=terms, estimator=GAE(), lr_scheduler_type="linear", warmup_steps=2, learning_rate=1e-3
        )
        return make_learner(policy, algo, max_steps=6)

    def steps(learner: Learner, count: int) -> None:
        for _ in range(count):
            batch = learner.annotate(make_batch(learner.policy))
            learner.update(learner.algo.estimator(batch))

    whole = fresh()
    steps(whole, 5)
    first = fresh()
    steps(first, 3)
    names = [name for name, _ in first.policy.model.named_parameters()]
    saved = dict(zip(names, weights(first), strict=False))
    state = first.state_dict()
    second = fresh()
    second.load_state_dict(state, saved)
    steps(second, 2)
    assert second.steps == 5
    assert all(torch.equal(a, b) for a, b in zip(second.masters, whole.masters, strict=True))
    assert not torch.equal(whole.masters[0], weights(first)[0])

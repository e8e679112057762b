"""The critic, a head on the policy's trunk or a model of its own: what it estimates, and what its training touches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from helpers import ALGO, device, make_learner, plain, tiny, tiny_folder
from test_learner import gradients, make_batch, relative_error, weights
from test_policy import ROUTES
from test_train import tiny_config

from rlreason import models
from rlreason.advantages import GAE
from rlreason.algo import Algo
from rlreason.config import ConfigError
from rlreason.learner import Learner
from rlreason.lora import LoRA
from rlreason.losses import ClippedSurrogate, EntropyBonus, ValueLoss
from rlreason.metrics import batch_metrics
from rlreason.policy import Policy
from rlreason.train import run
from rlreason.types import Batch

BOTH = pytest.mark.parametrize("own_model", [False, True], ids=["head", "own model"])
PPO = replace(
    ALGO,
    # Monte Carlo: returns don't depend on the critic
    estimator=GAE(gamma=1.0, gae_lambda=1.0, whiten_advantages=False),
    terms={"policy": ClippedSurrogate(), "value": ValueLoss(0.1)},
)


def with_critic(own_model: bool, dtype: Literal["bfloat16", "float32"] = "float32") -> Policy:
    """A fresh policy whose critic has an opinion: a head of zero would keep every gradient from its trunk."""
    policy = tiny(dtype)
    policy.add_critic(own_model=own_model)
    assert policy.critic is not None
    with torch.no_grad():
        policy.critic.head.weight.copy_(torch.linspace(-0.5, 0.5, 64)[None])
        policy.critic.head.bias.fill_(0.25)
        if policy.critic.trunk is not None:  # no longer the policy's
            for parameter in policy.critic.trunk.parameters():
                parameter.mul_(1.05)
    return policy


def estimated(learner: Learner, batch: Batch | None = None) -> Batch:
    """A batch as an update takes it."""
    return learner.algo.estimator(learner.annotate(make_batch(learner.policy) if batch is None else batch))


def with_coefficient(coefficient: float, algo: Algo = PPO) -> Algo:
    return replace(algo, terms={**algo.terms, "value": ValueLoss(coefficient)})


def parts(learner: Learner, all_of: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What belongs to the model that acts, and what to the critic."""
    actors = len(learner.actor_masters)
    assert len(all_of) == actors + len(learner.critic_masters)
    return all_of[:actors], all_of[actors:]


# --- what it estimates


@ROUTES
def test_values_of_an_own_model_are_those_of_a_plain_forward(route: str) -> None:
    """Of Hugging Face's own forward over whole rows; by each of the three ways to ask for them."""
    policy = tiny()
    policy.model.set_attn_implementation(route)
    policy.add_critic(own_model=True)
    critic = policy.critic
    assert critic is not None
    assert critic.trunk is not None
    with torch.no_grad():
        for parameter in critic.trunk.parameters():
            parameter.mul_(1.05)
        critic.head.weight.copy_(torch.linspace(-1, 1, 64)[None])
        critic.head.bias.fill_(0.25)
        batch = make_batch(policy)
        found = [
            policy.values(batch),
            policy.forward(batch, 0.7, value=True).value,
            policy.annotate(batch, 0.7, frozenset({"value"}), list(torch.arange(12, device=device()).split(5))).value,
        ]
        for model, agrees in ((plain(critic.trunk), True), (plain(policy.model), False)):
            expected = torch.zeros_like(batch.sampler_logp)
            for i, (start, width) in enumerate(zip(batch.prompt_length, batch.attention.sum(1), strict=True)):
                hidden = model.model(input_ids=batch.tokens[i : i + 1, :width]).last_hidden_state[0]
                # of the state before each token, which ends with the token before it
                expected[i, start:width] = hidden[start - 1 : width - 1] @ torch.linspace(-1, 1, 64).to(hidden) + 0.25
            for value in found:
                assert value is not None
                assert (value[~batch.mask] == 0).all()
                error = (value - expected).abs().max()
                # values are about 5, and float32 rounds sums of 64 of such numbers by some 1e-6
                assert error < 1e-4 if agrees else error > 0.1


@BOTH
def test_values_alone_are_those_of_the_forward_pass(own_model: bool) -> None:
    """And have no gradient for the model that acts."""
    policy = with_critic(own_model)
    batch = make_batch(policy)
    value = policy.values(batch)
    expected = policy.forward(batch, 1.0, value=True).value
    assert expected is not None
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-5)
    assert value[batch.mask].std() > 0.1
    value.square().sum().backward()
    assert all(p.grad is None for p in policy.model.parameters())
    assert policy.critic is not None
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in policy.critic.parameters())


def test_an_own_model_begins_as_the_policy_is_and_stays_when_that_moves() -> None:
    policy = tiny()
    make_learner(policy).update(make_batch(policy))  # not what was loaded
    policy.add_critic(own_model=True)
    assert policy.critic is not None
    assert policy.critic.trunk is not None
    copies = list(zip(policy.model.parameters(), policy.critic.trunk.parameters(), strict=True))
    assert all(torch.equal(p, c) and p.data_ptr() != c.data_ptr() for p, c in copies)
    assert any(not torch.equal(p, t) for p, t in zip(policy.model.parameters(), tiny().parameters(), strict=True))
    assert len(policy.parameters()) == 2 * len(copies) + 2
    assert (policy.values(make_batch(policy)) == 0).all()  # the head is 0


# --- what its training touches


@BOTH
def test_the_value_loss_moves_the_policy_only_through_a_shared_trunk(own_model: bool) -> None:
    found = []
    for coefficient in (0.1, 10.0):
        learner = make_learner(with_critic(own_model), with_coefficient(coefficient))
        (taken,) = gradients(learner, estimated(learner))
        found.append(parts(learner, taken))
    (policy, critic), (other_policy, other_critic) = found
    if own_model:
        assert all(torch.equal(a, b) for a, b in zip(policy, other_policy, strict=True))
    else:
        assert relative_error(policy, other_policy) > 0.5
    assert relative_error([100 * g for g in critic], other_critic) < 1e-6
    assert all(g.abs().max() > 0 for g in critic)


@BOTH
@pytest.mark.parametrize(
    ("critic_rate", "warmup_steps", "expected"),
    [(1e-2, 0, (1e-3, 1e-2)), (None, 0, (1e-3, 1e-3)), (2e-4, 4, (2.5e-4, 5e-5))],
    ids=["own", "none", "own, warmed up"],
)
def test_the_critic_has_its_own_learning_rate(
    own_model: bool, critic_rate: float | None, warmup_steps: int, expected: tuple[float, float]
) -> None:
    """Adam's first step is the learning rate, wherever the gradient is far above its eps of 1e-8."""
    algo = replace(PPO, learning_rate=1e-3, critic_learning_rate=critic_rate, warmup_steps=warmup_steps)
    learner = make_learner(with_critic(own_model), algo)
    (gradient,) = gradients(learner, estimated(learner))
    learner = make_learner(with_critic(own_model), algo)
    before = weights(learner)
    logged = learner.update(estimated(learner))["learning_rate"]
    assert logged == pytest.approx(expected[0])
    moved = [new - old for old, new in zip(before, weights(learner), strict=True)]
    for rate, steps, slopes in zip(expected, parts(learner, moved), parts(learner, gradient), strict=True):
        for step, slope in zip(steps, slopes, strict=True):
            clear = slope.abs() > 1e-5
            assert clear.any()
            # weights of up to 1 are rounded by 6e-8
            torch.testing.assert_close(step[clear], -rate * slope[clear].sign(), rtol=1e-3, atol=1.2e-7)


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_critic_warms_up_alone(own_model: bool, dtype: Literal["bfloat16", "float32"]) -> None:
    """Not a bit of the acting model changes, neither by weight decay nor in what Adam remembers of it."""
    terms = {**PPO.terms, "entropy": EntropyBonus(0.01)}
    algo = replace(PPO, terms=terms, critic_warmup_steps=2, weight_decay=0.1, learning_rate=1e-3)
    policy = with_critic(own_model, dtype)
    learner = make_learner(policy, algo)
    for step in (1, 2, 3):
        actor, critic = parts(learner, weights(learner))
        computing = [p.detach().clone() for p in policy.actor_parameters()]
        batch = estimated(learner)
        (gradient,) = gradients_of_next_step(learner, batch)
        metrics = learner.update(batch)
        actor_now, critic_now = parts(learner, weights(learner))
        same = [torch.equal(old, new) for old, new in zip(actor, actor_now, strict=True)]
        computed_same = [torch.equal(old, new) for old, new in zip(computing, policy.actor_parameters(), strict=True)]
        assert not any(torch.equal(old, new) for old, new in zip(critic, critic_now, strict=True))
        assert metrics["optimizer_steps"] == 1
        assert metrics["value/grad_norm"] > 0
        if step <= 2:
            assert all(same + computed_same)
            assert metrics["grad_norm"] == 0
        else:
            assert not any(same)
            assert not all(computed_same)  # in bfloat16 a norm's weight of 1 needs more than one step
            assert metrics["grad_norm"] > 0
            for old, new, g in zip(actor, actor_now, parts(learner, gradient)[0], strict=True):
                decayed = old * (1 - 1e-3 * 0.1) if old.ndim >= 2 else old
                clear = g.abs() > 1e-4
                # its first step, which Adam makes the learning rate; a third one would be of another size
                torch.testing.assert_close(new[clear], (decayed - 1e-3 * g.sign())[clear], rtol=0, atol=2e-6)


def gradients_of_next_step(learner: Learner, batch: Batch) -> list[list[torch.Tensor]]:
    """As ``gradients``, of a learner that goes on afterwards as if nothing had been."""
    step, steps = learner.optimizer.step, learner.steps
    found = gradients(learner, batch)
    learner.optimizer.step = step  # type: ignore[method-assign]
    learner.steps = steps
    return found


@BOTH
def test_warming_up_trains_the_critic_on_its_own_loss(own_model: bool) -> None:
    """The gradient that the critic has beside the policy, too."""
    found = []
    for warmup in (0, 1):
        learner = make_learner(with_critic(own_model), replace(PPO, critic_warmup_steps=warmup), micro_batch_tokens=90)
        (taken,) = gradients(learner, estimated(learner))
        found.append(parts(learner, taken))
    (policy, critic), (silent, alone) = found
    assert relative_error(alone, critic) < 1e-5
    assert all(g.abs().max() > 0 for g in policy)
    assert all((g == 0).all() for g in silent)


def test_each_gradient_is_clipped_by_its_own_norm() -> None:
    """A critic far off doesn't shorten the policy's step, nor the other way round."""
    algo = with_coefficient(1000.0)
    learner = make_learner(with_critic(True), algo)
    batch = estimated(learner)
    (free,) = gradients(learner, batch)
    policy, critic = parts(learner, free)
    norms = [float(torch.cat([g.double().flatten() for g in part]).norm()) for part in (policy, critic)]
    assert norms[1] > 100 * norms[0] > 1
    for bound in (2 * norms[0], norms[0] / 4):
        learner = make_learner(with_critic(True), replace(algo, max_grad_norm=bound))
        (taken,) = gradients(learner, batch)
        clipped_policy, clipped_critic = parts(learner, taken)
        factors = [min(1.0, bound / norm) for norm in norms]
        assert relative_error(clipped_policy, [factors[0] * g for g in policy]) < 1e-5
        assert relative_error([g / factors[1] for g in clipped_critic], critic) < 1e-5
        metrics = make_learner(with_critic(True), replace(algo, max_grad_norm=bound)).update(batch)
        assert metrics["grad_norm"] == pytest.approx(norms[0], rel=1e-5)  # as they were before clipping
        assert metrics["value/grad_norm"] == pytest.approx(norms[1], rel=1e-5)


# --- beside LoRA


def test_a_model_of_its_own_beside_lora_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    policy = models.load(tiny_folder(), dtype="float32", lora=LoRA(r=4, alpha=8), device=device())
    with pytest.raises(ValueError, match=r"beside LoRA's adapters: use algo\.critic_model=false"):
        policy.add_critic(own_model=True)
    assert policy.critic is None
    policy.add_critic()
    names = [name for name, p in policy.model.named_parameters() if p.requires_grad]
    assert len(policy.parameters()) == len(names) + 2
    assert all("lora_" in name for name in names)

    out = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"model: a critic of its own .* algo\.critic_model=false"):
        run(tiny_config("algo=ppo", "algo.critic_model=true", "model.lora.r=4"), out)
    assert not out.exists()


# --- what it learns


@BOTH
def test_explained_variance_rises_on_a_fixed_batch(own_model: bool) -> None:
    """From 0, that of a head of zeros. One batch can be learned by heart, so there is much to explain."""
    policy = tiny()
    policy.add_critic(own_model=own_model)
    algo = replace(PPO, learning_rate=1e-4, critic_learning_rate=1e-3 if own_model else 1e-2)
    learner = make_learner(policy, algo)
    plainly = make_batch(policy)
    explained = []
    for _ in range(12):
        batch = estimated(learner, plainly)
        explained.append(batch_metrics(batch, learner.sum)["value/explained_variance"])
        learner.update(batch)
    assert explained[0] == pytest.approx(0, abs=1e-12)
    assert explained == sorted(explained)
    assert explained[-1] > 0.4
    # by hand, over the live tokens
    live = batch.mask & batch.live[:, None]
    assert batch.returns is not None
    assert batch.value is not None
    returns, error = batch.returns[live].double(), (batch.returns - batch.value)[live].double()
    assert explained[-1] == pytest.approx(float(1 - error.var() / returns.var()), rel=1e-6)


def test_a_bfloat16_critic_follows_float32_masters() -> None:
    """Steps of 2e-6 are lost in bfloat16, whose resolution at 0.1 is 4e-4; the head is float32 as it is."""
    policy = with_critic(True, "bfloat16")
    assert policy.critic is not None
    assert policy.critic.trunk is not None
    assert {p.dtype for p in policy.critic.trunk.parameters()} == {torch.bfloat16}
    learner = make_learner(policy, replace(PPO, learning_rate=2e-6))
    *trunk, weight, bias = policy.critic.parameters()
    assert all(m.dtype == torch.float32 for m in learner.masters)
    assert learner.critic_masters[-2] is weight
    assert learner.critic_masters[-1] is bias
    before = [m.detach().clone() for m in learner.critic_masters]
    assert all(torch.equal(m, p.float()) for m, p in zip(before, trunk, strict=False))
    batch = estimated(learner)
    for _ in range(20):
        learner.update(batch)
        for parameter, master in zip(trunk, learner.critic_masters, strict=False):
            assert torch.equal(parameter, master.bfloat16())
            assert parameter.grad is None
    names = [name for name, _ in policy.critic.trunk.named_parameters()]
    index = names.index("model.layers.0.mlp.up_proj.weight")
    large = before[index].abs() > 0.05
    assert large.float().mean() > 0.5
    moved = (learner.critic_masters[index] - before[index])[large].abs()
    assert 2e-6 < moved.mean() < 1.01 * 20 * 2e-6
    assert (trunk[index].float() != before[index])[large].float().mean() < 0.3  # most are not yet at the next number


def test_a_bfloat16_critic_s_gradient_is_summed_in_float32() -> None:
    exact_learner = make_learner(with_critic(True), PPO)
    batch = estimated(exact_learner)
    (taken,) = gradients(exact_learner, batch)
    _, exact = parts(exact_learner, taken)
    for budget in (100_000, 70):
        learner = make_learner(with_critic(True, "bfloat16"), PPO, micro_batch_tokens=budget)
        (taken,) = gradients(learner, batch)
        _, found = parts(learner, taken)
        assert {g.dtype for g in found} == {torch.float32}
        assert relative_error(found, exact) < 0.06  # bfloat16 rounding alone: 0.043

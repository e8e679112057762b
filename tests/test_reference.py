"""The KL and the model it is measured against: in the loss and in the reward, with a coefficient that follows a target,
with a reference that is refreshed, without a second model beside LoRA, and through a checkpoint."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from helpers import ALGO, device, make_learner, make_rollout, plain, plain_logp, random_ids, tiny, tiny_folder
from test_critic import estimated
from test_learner import gradients, make_batch, relative_error
from test_train import tiny_config

from rlreason import models
from rlreason.advantages import GAE, RLOO
from rlreason.algo import Algo
from rlreason.batch import collate, live_tokens
from rlreason.config import ConfigError
from rlreason.engines import generate
from rlreason.engines.torch import TorchEngine
from rlreason.learner import Learner, adapted
from rlreason.lora import LoRA
from rlreason.losses import KL, ClippedSurrogate, Term, ValueLoss
from rlreason.policy import Policy
from rlreason.shaping import KLReward, Shaping, SoftOverlong
from rlreason.train import run
from rlreason.types import Batch, Request, Sampling

IN_LOSS: Mapping[str, Term] = {"policy": ClippedSurrogate(), "kl": KL(0.1, "k3")}
IN_REWARD: Mapping[str, Shaping] = {"kl": KLReward(0.2)}


def with_reference(algo: Algo, *, moved: float = 1.02, dtype: Literal["bfloat16", "float32"] = "float32") -> Learner:
    """A policy that has left its reference by a factor on all weights."""
    policy = tiny(dtype)
    policy.add_reference()
    learner = make_learner(policy, algo)
    with torch.no_grad():
        for master in learner.masters:
            master.mul_(moved)
    learner.publish()
    return learner


def logp_of(model: Any, batch: Batch) -> torch.Tensor:
    """By Hugging Face alone, row by row, at temperature 1."""
    found, model = torch.zeros_like(batch.sampler_logp), plain(model)
    with torch.no_grad():
        for i, (start, width) in enumerate(zip(batch.prompt_length, batch.attention.sum(1), strict=True)):
            ids = batch.tokens[i].tolist()
            found[i, start:width] = plain_logp(model, ids[:start], ids[start:width], 1.0)
    return found


def written(policy: Policy, seed: int, *, groups: int = 4, samples: int = 8, length: int = 8) -> Batch:
    """The policy's own samples, for rewards that say nothing. On these the mean log-ratio is an estimate of the KL,
    which on given tokens may have any sign."""
    engine = TorchEngine(policy, max_tokens_in_flight=10_000)
    sampling = Sampling(temperature=1.0, max_completion_length=length)
    owners = [group for group in range(groups) for _ in range(samples)]
    requests = [Request(random_ids(5, seed=group), sampling, 1000 * seed + i) for i, group in enumerate(owners)]
    rollouts = [
        make_rollout(group, request.ids, completion.ids, 1.0, sampler_logp=completion.logprobs)
        for group, request, completion in zip(owners, requests, generate(engine, requests), strict=True)
    ]
    return collate(rollouts, device=device())


def copies(model: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- refreshing


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_reference_is_refreshed_at_its_steps_and_no_others(dtype: Literal["bfloat16", "float32"]) -> None:
    learner = with_reference(replace(ALGO, terms=IN_LOSS, ref_model_sync_steps=2, num_mini_batches=2), dtype=dtype)
    policy = learner.policy
    assert policy.reference is not None
    expected = copies(policy.reference)
    for step in range(1, 6):
        learner.update(estimated(learner))
        if step in (2, 4):
            expected = copies(policy.model)
        else:
            assert not equal(copies(policy.model), expected)
        assert equal(copies(policy.reference), expected)
    assert {p.requires_grad for p in policy.reference.parameters()} == {False}


def test_a_refreshed_reference_is_what_the_kl_is_measured_against() -> None:
    """None at all in the next step's first mini-batch, whose policy is the reference."""
    learner = with_reference(replace(ALGO, terms=IN_LOSS, shaping=IN_REWARD, ref_model_sync_steps=1))
    assert learner.update(estimated(learner))["kl"] > 0.01
    batch = estimated(learner)
    expected = logp_of(learner.policy.model, batch)  # float32 agrees with another order of sums to 1e-5
    torch.testing.assert_close(batch.ref_logp, expected, rtol=0, atol=1e-5)
    assert batch.token_reward is not None
    assert batch.token_reward.abs().max() < 1e-6
    assert learner.update(batch)["kl"] == pytest.approx(0, abs=1e-9)


def test_without_refreshing_the_reference_stays() -> None:
    learner = with_reference(replace(ALGO, terms=IN_LOSS))
    before = copies(learner.policy.reference)
    for _ in range(3):
        learner.update(estimated(learner))
    assert equal(copies(learner.policy.reference), before)


# --- the coefficient


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (0.0, 0.98),
        (0.0399, 0.98),  # as below: by 20 % and more
        (0.045, 0.99),  # 10 % below
        (0.05, 1.0),
        (0.0525, 1.005),  # 5 % above
        (0.0601, 1.02),
        (50.0, 1.02),
        (-0.01, 0.98),  # a mean of log-ratios can be negative
    ],
)
def test_adapted_by_hand(kl: float, factor: float) -> None:
    """A tenth of the relative error, which counts up to 20 %: 2 % at most."""
    assert adapted(1.0, kl, 0.05) == pytest.approx(factor, rel=1e-12)
    assert adapted(7.0, kl, 0.05) == pytest.approx(7 * factor, rel=1e-12)


@pytest.mark.parametrize("where", ["loss", "reward"])
@pytest.mark.parametrize(("target", "factor"), [(1e-4, 1.02), (10.0, 0.98), (None, 1.0)])
def test_the_scale_follows_the_kl(where: str, target: float | None, factor: float) -> None:
    """Up while it is above its target, down below. What is logged is what the step had."""
    part: dict[str, Any] = {"terms": IN_LOSS} if where == "loss" else {"shaping": IN_REWARD}
    learner = with_reference(replace(ALGO, kl_target=target, **part), moved=1.2)
    for step in range(3):
        batch = estimated(learner, written(learner.policy, step))
        assert learner.kl_scale == pytest.approx(factor**step)
        metrics = learner.update(batch)
        assert 0.02 < metrics["kl"] < 5
        if target is None:
            assert "kl_scale" not in metrics
        else:
            assert metrics["kl_scale"] == pytest.approx(factor**step)


def test_a_kl_near_its_target_moves_the_scale_in_proportion() -> None:
    learner = with_reference(replace(ALGO, shaping=IN_REWARD), moved=1.2)
    kl = learner.update(estimated(learner, written(learner.policy, 0)))["kl"]
    learner = with_reference(replace(ALGO, shaping=IN_REWARD, kl_target=kl / 1.1), moved=1.2)
    assert learner.update(estimated(learner, written(learner.policy, 0)))["kl"] == pytest.approx(kl)
    assert learner.kl_scale == pytest.approx(1.01, rel=1e-6)  # 10 % above


# --- in the loss and in the reward


def test_kl_in_the_reward_is_the_log_ratio_on_each_token() -> None:
    """Times its coefficient and the scale; the punishment of length, which is no KL, has no scale."""
    overlong = SoftOverlong(0.5, max_length=20, zone=0.5)
    algo = replace(ALGO, estimator=RLOO(), shaping={**IN_REWARD, "overlong": overlong}, kl_target=1.0)
    assert algo.annotations == {"old_logp", "ref_logp"}
    learner = with_reference(algo)
    learner.kl_scale = 3.0
    plainly = make_batch(learner.policy)
    batch = learner.annotate(plainly)
    assert batch.token_reward is not None
    assert batch.reward is plainly.reward  # what is correct stays the environment's
    log_ratio = logp_of(learner.policy.model, plainly) - logp_of(learner.policy.reference, plainly)
    punished = torch.zeros_like(log_ratio)
    for i in range(12):
        last = int(plainly.prompt_length[i]) + (length := int(plainly.mask[i].sum())) - 1
        punished[i, last] = -min(max((length - 10) / 10, 0.0), 1.0)  # 14 tokens: -0.4; 20 of them: -1
    assert punished.unique().tolist() == pytest.approx([-1.0, -0.4, 0.0])
    # differences of log-probabilities that are each known to 1e-5
    torch.testing.assert_close(batch.token_reward, -0.6 * log_ratio + 0.5 * punished, rtol=0, atol=2e-5)
    assert log_ratio.abs().max() > 0.05

    # and so the advantage counts them: each rollout's reward and tokens against the mean of the others of its group
    found = learner.algo.estimator(batch).advantage
    assert found is not None
    total = plainly.reward + batch.token_reward.sum(1)
    for group in (0, 2, 3):  # group 1 has an error
        rows = (plainly.group == group).nonzero().flatten().tolist()
        for row in rows:
            expected = total[row] - total[[other for other in rows if other != row]].mean()
            torch.testing.assert_close(found[row][plainly.mask[row]], expected.expand(int(plainly.mask[row].sum())))
    assert (found[plainly.group == 2].abs().sum(1) > 0).all()  # its rewards alone are equal


def test_kl_in_the_reward_is_logged_over_live_tokens() -> None:
    """The mean of log pi_old - log pi_ref, where nothing of the loss reports it."""
    learner = with_reference(replace(ALGO, shaping=IN_REWARD))
    batch = estimated(learner)
    live = live_tokens(batch)
    assert (~live & batch.mask).any()
    expected = (logp_of(learner.policy.model, batch) - logp_of(learner.policy.reference, batch))[live].mean()
    metrics = learner.update(batch)
    assert metrics["kl"] == pytest.approx(float(expected), abs=1e-5)
    assert abs(float(expected)) > 0.005
    assert metrics["frac_rows_skipped"] == pytest.approx(1 / 12)  # group 2 learns from it, too


def test_kl_in_the_loss_is_logged_where_both_are_on() -> None:
    """k3's value, whose expectation is the KL and which no token has below 0."""
    found = []
    for shaping in ({}, IN_REWARD):
        learner = with_reference(replace(ALGO, terms=IN_LOSS, shaping=shaping))
        batch = estimated(learner)
        assert batch.ref_logp is not None
        difference = (logp_of(learner.policy.model, batch) - batch.ref_logp)[live_tokens(batch)]
        k3 = float((torch.expm1(-difference) + difference).mean())
        found.append(learner.update(batch)["kl"])
        assert found[-1] == pytest.approx(k3, rel=1e-3)
        assert abs(k3 - float(difference.mean())) > 0.005  # the other one
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_the_scale_multiplies_the_kl_of_the_loss_alone() -> None:
    """The gradient is the policy's own and scale x coefficient x the KL's."""
    taken: dict[str, list[torch.Tensor]] = {}
    cases: list[tuple[str, Mapping[str, Term], float]] = [
        ("policy", {"policy": ClippedSurrogate()}, 1.0),
        ("kl", {"kl": KL(0.1, "k2")}, 1.0),
        ("both", {"policy": ClippedSurrogate(), "kl": KL(0.1, "k2")}, 5.0),
    ]
    for name, terms, scale in cases:
        learner = with_reference(replace(ALGO, terms=terms))
        learner.kl_scale = scale
        (taken[name],) = gradients(learner, estimated(learner))
    expected = [p + 5 * k for p, k in zip(taken["policy"], taken["kl"], strict=True)]
    assert relative_error(taken["both"], expected) < 1e-5
    assert relative_error(taken["both"], [p + k for p, k in zip(taken["policy"], taken["kl"], strict=True)]) > 0.05


def test_kl_in_the_reward_pulls_the_policy_back() -> None:
    """It is all that there is to earn."""
    learner = with_reference(replace(ALGO, estimator=RLOO(), shaping={"kl": KLReward(1.0)}), moved=1.2)
    values = []
    for step in range(25):
        batch = written(learner.policy, step, groups=1, samples=32, length=1)
        values.append(learner.update(estimated(learner, batch))["kl"])
    first, last = sum(values[:5]) / 5, sum(values[-5:]) / 5
    assert first > 0.2
    assert last < 0.4 * first  # 0.36 and 0.08, each to about 0.06 (sqrt(2 KL) a token, 160 tokens)


# --- beside LoRA


def lora() -> Policy:
    """A fresh policy with adapters that do something."""
    torch.manual_seed(0)
    policy = models.load(tiny_folder(), dtype="float32", lora=LoRA(r=4, alpha=8), device=device())
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=chance))
    return policy


def test_lora_s_reference_is_the_model_with_its_adapters_off() -> None:
    policy = lora()
    storage = {p.data_ptr() for p in policy.model.parameters()}
    policy.add_reference()
    assert policy.reference is None  # no second copy
    learner = make_learner(policy, replace(ALGO, shaping=IN_REWARD))
    plainly = make_batch(policy)
    batch = learner.annotate(plainly)
    assert batch.token_reward is not None
    assert batch.ref_logp is not None
    base = logp_of(tiny().model, plainly)
    torch.testing.assert_close(batch.ref_logp, base, rtol=0, atol=1e-5)
    torch.testing.assert_close(batch.token_reward, 0.2 * (base - logp_of(policy.model, plainly)), rtol=0, atol=1e-5)
    assert batch.token_reward.abs().max() > 0.01
    assert learner.update(learner.algo.estimator(batch))["kl"] != 0
    assert {p.data_ptr() for p in policy.model.parameters()} == storage
    assert torch.equal(learner.annotate(plainly).ref_logp, batch.ref_logp)  # type: ignore[arg-type]


def test_a_refreshed_reference_beside_lora_is_refused(tmp_path: Path) -> None:
    policy = lora()
    policy.add_reference()
    with pytest.raises(ValueError, match=r"with LoRA the reference .* can't be refreshed"):
        policy.refresh_reference()
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"model: with LoRA the reference .* can't be refreshed"):
        run(tiny_config("algo.beta=0.1", "algo.ref_model_sync_steps=5", "model.lora.r=4"), out)
    assert not out.exists()  # before any work


# --- through a checkpoint


def fresh(dtype: Literal["bfloat16", "float32"]) -> Learner:
    """With everything that a checkpoint must hold besides the model: a critic of its own, a reference that is no longer
    the first one, a coefficient that has moved."""
    policy = tiny(dtype)
    policy.add_reference()
    policy.add_critic(own_model=True)
    algo = replace(
        ALGO,
        estimator=GAE(),
        terms={**IN_LOSS, "value": ValueLoss(0.1)},
        shaping=IN_REWARD,
        kl_target=1e-3,
        ref_model_sync_steps=2,
        critic_model=True,
        critic_learning_rate=2e-3,
        critic_warmup_steps=1,
        num_mini_batches=2,
    )
    return make_learner(policy, algo, max_steps=7)


def train(learner: Learner, steps: int) -> list[dict[str, float]]:
    return [learner.update(estimated(learner)) for _ in range(steps)]


def saved(learner: Learner) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """State and the model's weights, as a file gives them back."""
    names = [name for name, _ in learner.policy.model.named_parameters()]
    file = io.BytesIO()
    torch.save((learner.state_dict(), dict(zip(names, learner.actor_masters, strict=True))), file)
    file.seek(0)
    loaded: tuple[dict[str, Any], dict[str, torch.Tensor]] = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_goes_on_exactly(dtype: Literal["bfloat16", "float32"]) -> None:
    """Saved after step 3: the reference is that of step 2 and is refreshed again at step 4."""
    whole = fresh(dtype)
    train(whole, 3)
    state, model = saved(whole)
    expected = train(whole, 4)
    assert [round(line["kl_scale"], 6) for line in expected] != [1.0] * 4

    ours = fresh(dtype)
    ours.load_state_dict(state, model)
    assert train(ours, 4) == expected
    assert equal(ours.masters, whole.masters)
    assert ours.policy.reference is not None
    assert equal(copies(ours.policy.reference), copies(whole.policy.reference))
    assert not equal(copies(ours.policy.reference), copies(fresh(dtype).policy.reference))
    assert ours.kl_scale == whole.kl_scale
    assert ours.steps == 7


@pytest.mark.parametrize("lost", ["kl_scale", "reference", "critic"])
def test_losing_any_of_it_would_show(lost: str) -> None:
    """The negative control."""
    whole = fresh("float32")
    train(whole, 3)
    state, model = saved(whole)
    train(whole, 1)
    for state_of_it, agrees in ((state, True), (state | {lost: fresh("float32").state_dict()[lost]}, False)):
        ours = fresh("float32")
        ours.load_state_dict(state_of_it, model)
        train(ours, 1)
        assert equal(ours.masters, whole.masters) == agrees


def test_a_reference_that_is_never_refreshed_is_not_saved() -> None:
    """It is the model that the run began with, which the config names."""
    learner = with_reference(replace(ALGO, terms=IN_LOSS))
    assert learner.state_dict()["reference"] is None
    assert with_reference(replace(ALGO, terms=IN_LOSS, ref_model_sync_steps=9)).state_dict()["reference"] is not None

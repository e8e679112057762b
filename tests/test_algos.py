"""Every algorithm of ``conf/algo`` and every mix of their parts takes an update, or says why it can't.

That each composes, and builds what a run needs, is ``test_config``'s. Here are what its file says it is, an update with
it, and what ``Algo`` refuses.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from dataclasses import replace
from typing import Any, get_type_hints

import pytest
import torch
from helpers import ALGO, device, make_learner, make_rollout, random_ids, tiny
from test_critic import estimated
from test_learner import weights
from test_train import tiny_config

from rlreason.advantages import GAE, RLOO, GroupRelative, MaxRL, ReinforcePlusPlus, Rewarded
from rlreason.algo import Algo
from rlreason.batch import collate
from rlreason.config import CONF, ConfigError, build
from rlreason.losses import (
    KL,
    ClippedImportance,
    ClippedSurrogate,
    ConstantLength,
    PolicyGradient,
    SequenceMean,
    TokenMean,
    ValueLoss,
)
from rlreason.mismatch import MaskedImportance, TruncatedImportance
from rlreason.shaping import KLReward, SoftOverlong
from rlreason.types import Batch


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


ALGOS = [name for name in names("algo") if name != "base"]
ESTIMATORS, POLICY_TERMS, AGGREGATIONS = (
    names(f"algo/{part}") for part in ("estimator", "terms/policy", "aggregation")
)


@functools.cache
def algo_of(*overrides: str) -> Algo:
    """As ``train`` would build it, with 4 groups of 4 and completions of up to 8 tokens."""
    algo: Algo = build(tiny_config(*overrides), "algo")
    return algo


# What each file must come to: the estimator, the policy's term, the aggregation.
MISMATCH = TruncatedImportance(cap=2.0)
CLIPPED = ClippedSurrogate(epsilon=0.2, epsilon_high=0.2, mismatch=MISMATCH)
PARTS: dict[str, tuple[Any, Any, Any]] = {
    "cispo": (GroupRelative(), ClippedImportance(5.0, MISMATCH), TokenMean()),
    "dapo": (GroupRelative(), replace(CLIPPED, epsilon_high=0.28), TokenMean()),
    "dr_grpo": (GroupRelative("none"), CLIPPED, ConstantLength(8)),
    "expert_iteration": (Rewarded(1.0), PolicyGradient(), TokenMean()),
    "grpo": (GroupRelative(), CLIPPED, TokenMean()),
    "gspo": (GroupRelative(), ClippedSurrogate(3e-4, 4e-4, None, "sequence", MISMATCH), SequenceMean()),
    "maxrl": (MaxRL(), PolicyGradient(MISMATCH), ConstantLength(8)),
    "ppo": (GAE(), CLIPPED, TokenMean()),
    "reinforce_pp": (ReinforcePlusPlus(), CLIPPED, TokenMean()),
    "rloo": (RLOO(), PolicyGradient(MISMATCH), ConstantLength(8)),
}


@functools.cache
def plainly() -> Batch:
    """Four groups of 4, of rewards 0 and 1 in all but one, which is all right; completions of 1 to 8 tokens; the
    sampler's log-probabilities are the tiny model's, but for some noise."""
    rewards = [[1, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 1]]
    rollouts = [
        make_rollout(
            group, random_ids(4 + group, seed=group), random_ids(1 + (3 * i + group) % 8, seed=10 * group + i), reward
        )
        for group, row in enumerate(rewards)
        for i, reward in enumerate(row)
    ]
    batch = collate(rollouts, device=device())
    with torch.no_grad():
        logp = tiny().forward(batch, 1.0).logp
    noise = 0.1 * torch.randn(logp.shape, generator=torch.Generator().manual_seed(1)).to(device())
    return replace(batch, sampler_logp=torch.where(batch.mask, logp + noise, 0.0))


def takes_an_update(algo: Algo) -> dict[str, float]:
    """The metrics, all of them numbers, of an update that moved every weight."""
    policy = tiny()
    if algo.needs_reference:
        policy.add_reference()
    if algo.has_critic:
        policy.add_critic(own_model=algo.critic_model)
    learner = make_learner(policy, algo)
    batch = estimated(learner, plainly())
    assert batch.advantage is not None
    assert batch.advantage.isfinite().all()
    assert (batch.advantage[~batch.mask] == 0).all()
    before = weights(learner)
    metrics = learner.update(batch)
    assert {name for name, value in metrics.items() if not math.isfinite(value)} == set()
    assert metrics["optimizer_steps"] == algo.num_iterations * algo.num_mini_batches
    assert metrics["grad_norm"] > 0
    for old, new in zip(before, weights(learner), strict=True):
        assert new.isfinite().all()
        assert not torch.equal(old, new)
    return metrics


# --- the algorithms


@pytest.mark.parametrize("name", ALGOS)
def test_every_algorithm_is_what_its_file_says_and_takes_an_update(name: str) -> None:
    algo = algo_of(f"algo={name}")
    assert (algo.estimator, algo.terms["policy"], algo.aggregation) == PARTS[name]
    assert algo.has_critic == (name == "ppo")
    # neither KL nor entropy nor a punishment unless asked for, but for DAPO's
    assert {key for key, term in algo.terms.items() if term.coefficient != 0} == (
        {"policy", "value"} if name == "ppo" else {"policy"}
    )
    assert [type(part) for part in algo.active_shaping] == ([SoftOverlong] if name == "dapo" else [])
    assert algo.max_attempts == (4 if name == "dapo" else 1)
    metrics = takes_an_update(algo)
    has = {
        "clip_ratio/region_mean": isinstance(algo.terms["policy"], ClippedSurrogate),
        "cispo_clip_ratio": name == "cispo",
        "sampling/importance_sampling_ratio/mean": name != "expert_iteration",
        "value/grad_norm": name == "ppo",
    }
    assert {key: key in metrics for key in has} == has
    # Of 16 rows, the 4 of a group that is all right tell a comparison nothing, and the 6 that are wrong an imitation.
    skipped = {"ppo": 0, "reinforce_pp": 0, "expert_iteration": 6}
    assert metrics["frac_rows_skipped"] == pytest.approx(skipped.get(name, 4) / 16)


@pytest.mark.parametrize("name", ALGOS)
def test_every_algorithm_cites_its_paper(name: str) -> None:
    """In the comment that its file begins with: an arXiv number, and the year of somebody."""
    lines = (CONF / "algo" / f"{name}.yaml").read_text().splitlines()
    header = " ".join(itertools.takewhile(lambda line: line.startswith("#"), lines))
    assert re.search(r"arXiv:\d{4}\.\d{5}\b", header), header
    assert re.search(r"\b[A-Z]\w+( et al\.)? (19|20)\d\d\b", header), header


def test_every_algorithm_is_checked_here() -> None:
    assert sorted(PARTS) == ALGOS


# --- their parts, mixed


CLASSES = {
    "gae": "GAE", "group_centred": "GroupRelative", "group_relative": "GroupRelative", "maxrl": "MaxRL",
    "reinforce_pp": "ReinforcePlusPlus", "rewarded": "Rewarded", "rloo": "RLOO", "cispo": "ClippedImportance",
    "clipped": "ClippedSurrogate", "gspo": "ClippedSurrogate", "policy_gradient": "PolicyGradient",
    "constant_length": "ConstantLength", "sequence_mean": "SequenceMean", "token_mean": "TokenMean",
}  # fmt: skip


@pytest.mark.parametrize("term", POLICY_TERMS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_mix_takes_an_update(estimator: str, term: str) -> None:
    """On GRPO, and GAE on PPO. Composing takes longer than the update, so each pair is composed with one aggregation,
    all of them in turn, and takes updates with the others too."""
    turn = ESTIMATORS.index(estimator) + POLICY_TERMS.index(term)
    first = AGGREGATIONS[turn % len(AGGREGATIONS)]
    mix = (f"algo/estimator={estimator}", f"algo/terms/policy={term}", f"algo/aggregation={first}")
    algo = algo_of("algo=ppo" if estimator == "gae" else "algo=grpo", *mix)
    chosen = (algo.estimator, algo.terms["policy"], algo.aggregation)
    assert [type(part).__name__ for part in chosen] == [CLASSES[name] for name in (estimator, term, first)]
    others = [algo_of(f"algo/aggregation={name}").aggregation for name in AGGREGATIONS]
    assert algo.aggregation in others
    norms = {takes_an_update(replace(algo, aggregation=aggregation))["grad_norm"] for aggregation in others}
    assert len({round(norm, 6) for norm in norms}) == len(AGGREGATIONS)  # they weigh tokens differently


def test_gae_without_a_critic_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"GAE needs a critic: give algo\.terms a ValueLoss, as algo=ppo does$"):
        algo_of("algo=grpo", "algo/estimator=gae")


@pytest.mark.parametrize("estimator", [name for name in ESTIMATORS if name != "gae"])
def test_a_critic_without_gae_is_refused(estimator: str) -> None:
    name = CLASSES[estimator]
    with pytest.raises(ConfigError, match=rf"algo\.terms has a critic's loss, but {name} says nothing about"):
        algo_of("algo=ppo", f"algo/estimator={estimator}")


@pytest.mark.parametrize("mismatch", names("algo/mismatch"))
def test_every_mismatch_takes_an_update(mismatch: str) -> None:
    algo = algo_of("algo=grpo", f"algo/mismatch@algo.terms.policy.mismatch={mismatch}")
    policy: Any = algo.terms["policy"]
    assert type(policy.mismatch) is {"masked": MaskedImportance, "truncated": TruncatedImportance}[mismatch]
    metrics = takes_an_update(algo)
    assert 0.5 < metrics["sampling/importance_sampling_ratio/mean"] < 1.5


@pytest.mark.parametrize("name", [name for name in ALGOS if name != "maxrl"])
def test_every_algorithm_takes_an_update_with_everything_on(name: str) -> None:
    """KL in loss and reward with a target, entropy, punished length, several steps, a refreshed reference."""
    algo = algo_of(
        f"algo={name}", "algo.beta=0.1", "algo.kl_coef=0.05", "algo.kl_target=0.1", "algo.overlong_coef=0.5",
        "algo.terms.entropy.coefficient=0.01", "algo.ref_model_sync_steps=1", "algo.num_mini_batches=2",
        "algo.num_iterations=2", *(("algo.critic_model=true",) if name == "ppo" else ()),
    )  # fmt: skip
    assert algo.annotations >= {"old_logp", "ref_logp"}
    assert {type(part) for part in algo.active_shaping} == {KLReward, SoftOverlong}
    metrics = takes_an_update(algo)
    assert metrics["kl"] > 0
    assert metrics["entropy"] > 0
    assert metrics["kl_scale"] == 1.0


# --- what is refused

COMPOSED: dict[str, tuple[tuple[str, ...], str]] = {
    "MaxRL, KL in the reward": (("algo=maxrl", "algo.kl_coef=0.1"), r"MaxRL needs rewards of 0 .*set algo\.kl_coef"),
    "MaxRL, punished length": (("algo=maxrl", "algo.overlong_coef=1"), r"MaxRL needs rewards of 0 .*overlong_coef"),
    "a target without a KL": (("algo.kl_target=0.1",), r"algo\.kl_target and .* need a KL: give algo\.beta or"),
    "a refreshed reference without a KL": (("algo.ref_model_sync_steps=5",), r"algo\.ref_model_sync_steps need a KL"),
    "a critic's model without a critic": (("algo.critic_model=true",), r"algo\.critic_\* has no effect without"),
    "a critic's rate without a critic": (("algo.critic_learning_rate=0.1",), r"algo\.critic_\* has no effect"),
    "a critic's warm-up without a critic": (("algo.critic_warmup_steps=1",), r"algo\.critic_\* has no effect"),
    "a group of 1 for MaxRL": (("algo=maxrl", "algo.num_generations=1"), r"num_generations is 1, but MaxRL compares"),
    "a group of 1 for RLOO": (("algo=rloo", "algo.num_generations=1"), r"num_generations is 1, but RLOO compares"),
    "a group of 1 for a group's mean": (
        ("algo=reinforce_pp", "algo.estimator.baseline=group", "algo.num_generations=1"),
        r"num_generations is 1, but ReinforcePlusPlus compares",
    ),
    "nothing to learn": (("+algo.terms.policy.coefficient=0",), r"every term of algo\.terms has coefficient 0"),
    "an unknown baseline": (("algo=reinforce_pp", "algo.estimator.baseline=token"), r"baseline is 'token'; choose"),
    "a dual clip inside the clip": (("algo.terms.policy.delta=1.2",), r"delta is 1\.2; it must be above 1 \+ epsilon"),
}  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), COMPOSED.values(), ids=COMPOSED.keys())
def test_what_cannot_learn_is_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        algo_of(*overrides)


def test_what_is_nearly_that_is_not_refused() -> None:
    """Without these, the refusals above could be of everything."""
    assert algo_of("algo=maxrl", "algo.beta=0.1").needs_reference  # a KL in the loss takes nothing from the reward
    for kl in ("algo.beta=0.1", "algo.kl_coef=0.1"):
        algo = algo_of(kl, "algo.kl_target=0.1", "algo.ref_model_sync_steps=5")
        assert (algo.kl_target, algo.ref_model_sync_steps) == (0.1, 5)
    algo = algo_of("algo=ppo", "algo.critic_model=true", "algo.critic_learning_rate=0.1", "algo.critic_warmup_steps=1")
    assert (algo.critic_model, algo.critic_learning_rate, algo.critic_warmup_steps) == (True, 0.1, 1)
    assert algo_of("algo=reinforce_pp", "algo.num_generations=1").num_generations == 1
    assert algo_of("algo=expert_iteration", "algo.num_generations=1").num_generations == 1
    assert algo_of("algo.kl_coef=0", "algo.overlong_coef=0", "algo=maxrl").active_shaping == []


KL_IN_LOSS: dict[str, Any] = {"terms": {"policy": ClippedSurrogate(), "kl": KL(0.1)}}
CRITIC: dict[str, Any] = {"estimator": GAE(), "terms": {"policy": ClippedSurrogate(), "value": ValueLoss()}}
BELOW: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "beta": (-0.1, "it must be 0 (none) or more", {}),
    "kl_coef": (-0.1, "it must be 0 (none) or more", {}),
    "overlong_coef": (-1, "it must be 0 (none) or more", {}),
    "warmup_steps": (-1, "it must be 0 (none) or more", {}),
    "critic_warmup_steps": (-1, "it must be 0 (none) or more", CRITIC),
    "learning_rate": (0.0, "it must be above 0", {}),
    "critic_learning_rate": (0.0, "it must be above 0", CRITIC),
    "kl_target": (0.0, "it must be above 0", KL_IN_LOSS),
    "ref_model_sync_steps": (0, "it must be above 0", KL_IN_LOSS),
    "max_grad_norm": (0, "it must be above 0 (inf turns it off)", {}),
    "num_prompts": (0, "it must be at least 1", {}),
    "num_generations": (0, "it must be at least 1", {}),
    "num_iterations": (0, "it must be at least 1", {}),
    "num_mini_batches": (0, "it must be at least 1", {}),
    "max_attempts": (0, "it must be at least 1", {}),
}


@pytest.mark.parametrize(("key", "given"), BELOW.items(), ids=BELOW.keys())
def test_numbers_below_their_bound_are_refused(key: str, given: tuple[Any, str, dict[str, Any]]) -> None:
    value, says, around = given
    replace(ALGO, **around)  # nothing else is wrong
    with pytest.raises(ValueError, match=rf"^algo\.{key} is {re.escape(str(value))}; {re.escape(says)}$"):
        replace(ALGO, **around, **{key: value})


HINTS = get_type_hints(Algo)
FLOATS = [key for key, hint in HINTS.items() if hint in (float, float | None)]
INTS = [key for key, hint in HINTS.items() if hint in (int, int | None)]
NOT_NUMBERS = [
    (key, value)
    for key in [*FLOATS, *INTS]
    for value in ("0.1", True, [1], *((None,) if HINTS[key] in (int, float) else ()), *((1.5,) if key in INTS else ()))
]


@pytest.mark.parametrize(("key", "value"), NOT_NUMBERS)
def test_what_is_no_number_is_refused(key: str, value: Any) -> None:
    """Nor a number of the wrong kind. YAML reads 1e-5, which has no point, as text."""
    with pytest.raises(ValueError, match=rf"^algo\.{key} is {re.escape(repr(value))}; it must be a number of type "):
        replace(ALGO, **{key: value})


def test_the_numbers_are_all_there() -> None:
    assert len(FLOATS) == 12
    assert len(INTS) == 8
    for key in FLOATS:  # which may be whole
        around = CRITIC if key.startswith("critic") else KL_IN_LOSS
        given: dict[str, Any] = around | {key: 1}
        assert getattr(replace(ALGO, **given), key) == 1

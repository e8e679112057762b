from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from rlreason.advantages import Rewarded
from rlreason.batch import live_tokens
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
    ValueLoss,
    objective,
)
from rlreason.mismatch import MaskedImportance, Metrics, Mismatch, TruncatedImportance
from rlreason.types import Batch, Outputs

D = torch.float64


def make_batch(mask: Any, *, live: list[int] | None = None, sampler_logp: Any = None, **tensors: Any) -> Batch:
    """A batch that holds what a loss reads; the rest is filler. ``tensors``: old_logp, ref_logp, value, ..."""
    written = torch.as_tensor(mask, dtype=torch.bool)
    rows = len(written)
    return Batch(
        tokens=torch.zeros(written.shape, dtype=torch.int64),
        attention=torch.ones_like(written),
        mask=written,
        prompt_length=torch.ones(rows, dtype=torch.int64),
        rollout=torch.arange(rows),
        group=torch.zeros(rows, dtype=torch.int64),
        sampler_logp=torch.as_tensor(torch.zeros(written.shape) if sampler_logp is None else sampler_logp, dtype=D),
        reward=torch.zeros(rows),
        correct=torch.zeros(rows),
        truncated=torch.zeros(rows, dtype=torch.bool),
        graded=torch.ones(rows, dtype=torch.bool),
        live=torch.ones(rows, dtype=torch.bool) if live is None else torch.tensor(live, dtype=torch.bool),
        **{name: torch.as_tensor(x, dtype=D) for name, x in tensors.items()},
    )


def leaf(values: Any) -> torch.Tensor:
    return torch.as_tensor(values, dtype=D).clone().requires_grad_()


def close(actual: torch.Tensor, expected: Any, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(actual.detach(), torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=tolerance)


def logs(ratios: list[float]) -> list[list[float]]:
    return [[math.log(r) for r in ratios]]


# --- ClippedSurrogate

# Current over old probability on six tokens; A > 0 on the first three, A < 0 on the last three.
RATIOS = [0.5, 1.1, 1.5, 0.5, 0.9, 1.5]
ADVANTAGE = [[2.0, 2.0, 2.0, -2.0, -2.0, -2.0]]


def on_ratios(term: Term) -> tuple[torch.Tensor, torch.Tensor, Metrics]:
    """per_token, its gradient by logp, and metrics for RATIOS and ADVANTAGE."""
    logp = leaf(logs([0.2 * r for r in RATIOS]))
    batch = make_batch([[1] * 6], old_logp=logs([0.2] * 6), advantage=ADVANTAGE)
    per_token, metrics = term(Outputs(logp), batch)
    (gradient,) = torch.autograd.grad(per_token.sum(), logp)
    return per_token, gradient, metrics


def test_surrogate_by_hand() -> None:
    # Bounds 0.8 and 1.2. -min(ratio A, clipped A):
    #   A = 2:  0.5 -> -min(1, 1.6) = -1;     1.1 -> -2.2;                  1.5 -> -min(3, 2.4) = -2.4  held
    #   A = -2: 0.5 -> -min(-1, -1.6) = 1.6 held;  0.9 -> 1.8;              1.5 -> -min(-3, -2.4) = 3
    per_token, gradient, metrics = on_ratios(ClippedSurrogate())
    close(per_token, [[-1, -2.2, -2.4, 1.6, 1.8, 3]])
    # d ratio / d logp = ratio, so the gradient is -ratio A where nothing is held, and 0 where a bound holds.
    close(gradient, [[-1, -2.2, 0, 0, 1.8, 3]])
    close(metrics["clip_ratio/high_mean"], [[0, 0, 1, 0, 0, 0]], 0)
    close(metrics["clip_ratio/low_mean"], [[0, 0, 0, 1, 0, 0]], 0)
    close(metrics["clip_ratio/region_mean"], [[0, 0, 1, 1, 0, 0]], 0)


def test_surrogate_with_a_higher_upper_bound() -> None:
    # Bounds 0.95 and 1.6: 1.5 is free now; 0.9 with A < 0 is held at 0.95 x 2 = 1.9, 0.5 too.
    per_token, gradient, metrics = on_ratios(ClippedSurrogate(epsilon=0.05, epsilon_high=0.6))
    close(per_token, [[-1, -2.2, -3, 1.9, 1.9, 3]])
    close(gradient, [[-1, -2.2, -3, 0, 0, 3]])
    close(metrics["clip_ratio/high_mean"], [[0] * 6], 0)
    close(metrics["clip_ratio/low_mean"], [[0, 0, 0, 1, 1, 0]], 0)


def test_dual_clip_by_hand() -> None:
    # delta 1.4, A < 0: 1.5 is bounded, -min(1.4 x -2, 1.2 x -2) = 2.8, and held; 0.5 and 0.9 are as without delta.
    # A > 0 is not touched: the upper bound is the tighter one.
    per_token, gradient, metrics = on_ratios(ClippedSurrogate(delta=1.4))
    close(per_token, [[-1, -2.2, -2.4, 1.6, 1.8, 2.8]])
    close(gradient, [[-1, -2.2, 0, 0, 1.8, 0]])
    close(metrics["clip_ratio/high_mean"], [[0, 0, 1, 0, 0, 0]], 0)
    close(metrics["clip_ratio/low_mean"], [[0, 0, 0, 1, 0, 0]], 0)
    # A ratio below delta is free: at delta 1.6 all is as without.
    for with_delta, without in zip(
        on_ratios(ClippedSurrogate(delta=1.6))[:2], on_ratios(ClippedSurrogate())[:2], strict=True
    ):
        close(with_delta, without.detach(), 0)


# Of each row the first three tokens are the policy's, but for the second, which is the environment's (and would change
# every mean); the third row has one token, the last row is not live. Ratios of tokens 1 and 3, and A:
#   row 0: 1.21, 1: geometric mean 1.1, free; A = 2
#   row 1: 4, 1: geometric mean 2, held at 1.2 from above; A = 1
#   row 2: 0.5 alone, held at 0.8 from below; A = -1
#   row 3: 4, 0.25: geometric mean 1, free, though each token by itself is not; A = -3
#   row 4: 9, 1: geometric mean 3; A = -2
#   row 5: not live
SEQUENCE_MASK = [[1, 0, 1], [1, 0, 1], [1, 0, 0], [1, 0, 1], [1, 0, 1], [1, 1, 1]]
SEQUENCE_RATIOS = [[1.21, 50, 1], [4, 50, 1], [0.5, 50, 50], [4, 50, 0.25], [9, 50, 1], [7, 7, 7]]


def sequence_batch() -> tuple[torch.Tensor, Batch]:
    """logp, a leaf, and the batch."""
    ratios = torch.tensor(SEQUENCE_RATIOS, dtype=D)
    logp = leaf((0.01 * ratios).log())
    advantage = torch.tensor([2.0, 1.0, -1.0, -3.0, -2.0, 5.0], dtype=D)[:, None].expand(6, 3)
    old_logp = torch.full_like(ratios, math.log(0.01))
    return logp, make_batch(SEQUENCE_MASK, live=[1, 1, 1, 1, 1, 0], old_logp=old_logp, advantage=advantage)


def test_sequence_ratio_by_hand() -> None:
    logp, batch = sequence_batch()
    per_token, metrics = ClippedSurrogate(importance_sampling_level="sequence")(Outputs(logp), batch)
    close(
        per_token,
        [[-2.2, 0, -2.2], [-1.2, 0, -1.2], [0.8, 0, 0], [3, 0, 3], [6, 0, 6], [0, 0, 0]],
    )
    close(metrics["clip_ratio/high_mean"], [[0, 0, 0], [1, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]], 0)
    close(metrics["clip_ratio/low_mean"], [[0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]], 0)
    # GSPO-token: an entry moves its own token alone, by -s A, so that another token's advantage can't; 0 where the row
    # is held.
    (gradient,) = torch.autograd.grad(per_token[:, 0].sum(), logp, retain_graph=True)
    close(gradient, [[-2.2, 0, 0], [0, 0, 0], [0, 0, 0], [3, 0, 0], [6, 0, 0], [0, 0, 0]])
    # Over all entries it is GSPO's gradient: n entries, each with ds / dlogp = s / n for each of the row's n tokens.
    (gradient,) = torch.autograd.grad(per_token.sum(), logp)
    close(gradient, [[-2.2, 0, -2.2], [0, 0, 0], [0, 0, 0], [3, 0, 3], [6, 0, 6], [0, 0, 0]])


def test_dual_clip_of_a_sequence_ratio() -> None:
    # The row's ratio 3 with A = -2 is bounded by delta: 2.5 x 2 = 5, held. The others are not.
    logp, batch = sequence_batch()
    per_token, _ = ClippedSurrogate(importance_sampling_level="sequence", delta=2.5)(Outputs(logp), batch)
    close(per_token[:, 0], [-2.2, -1.2, 0.8, 3, 5, 0])
    (gradient,) = torch.autograd.grad(per_token.sum(), logp)
    close(gradient[:, 0], [-2.2, 0, 0, 3, 0, 0])


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_surrogate_on_policy_gradient_is_minus_advantage(explicit: bool, level: Any) -> None:
    # -A ∇logp; where the minimum's two sides tie, the gradient must not be halved or doubled.
    logp = leaf([[-1.0], [-0.3], [-2.0]])
    batch = make_batch([[1]] * 3, advantage=[[1.5], [-0.7], [0.0]])
    if explicit:
        batch = replace(batch, old_logp=logp.detach().clone())
    per_token, _ = ClippedSurrogate(importance_sampling_level=level)(Outputs(logp), batch)
    close(per_token, [[-1.5], [0.7], [0]])
    per_token.sum().backward()
    assert logp.grad is not None
    close(logp.grad, [[-1.5], [0.7], [0]])


def test_truncated_importance_by_hand() -> None:
    # old / sampler = 0.5, 1.5, 4, the last truncated at 2. With A = 1 and ratio 1: per_token = -0.5, -1.5, -2.
    logp = leaf(logs([0.2, 0.3, 0.4]))
    batch = make_batch([[1, 1, 1]], sampler_logp=logs([0.4, 0.2, 0.1]), advantage=[[1.0] * 3], old_logp=logp.detach())
    per_token, metrics = ClippedSurrogate(mismatch=TruncatedImportance())(Outputs(logp), batch)
    close(per_token, [[-0.5, -1.5, -2]])
    (gradient,) = torch.autograd.grad(per_token.sum(), logp)
    close(gradient, [[-0.5, -1.5, -2]])
    for part in ("mean", "min", "max"):
        close(metrics[f"sampling/importance_sampling_ratio/{part}"], [[0.5, 1.5, 2]])
    for part in ("mean", "max"):
        # |log 0.5|, |log 1.5|, |log 4|
        close(metrics[f"sampling/sampling_logp_difference/{part}"], [[0.6931472, 0.4054651, 1.3862944]])
    # Multiplied after the minimum and in every branch: the clipped token below is -min(1.5, 1.2) x 0.5.
    batch = make_batch([[1]], sampler_logp=logs([0.4]), advantage=[[1.0]], old_logp=logs([0.2]))
    per_token, _ = ClippedSurrogate(mismatch=TruncatedImportance())(Outputs(leaf(logs([0.3]))), batch)
    close(per_token, [[-0.6]])
    per_token, _ = ClippedSurrogate(mismatch=TruncatedImportance(cap=0.1))(Outputs(leaf(logs([0.3]))), batch)
    close(per_token, [[-0.12]])


def test_truncated_importance_has_no_gradient_when_old_is_the_current_policy() -> None:
    # old_logp None: the weight comes from logp itself, and only the ratio may carry a gradient.
    logp = leaf(logs([0.3]))
    batch = make_batch([[1]], sampler_logp=logs([0.2]), advantage=[[2.0]])
    per_token, metrics = ClippedSurrogate(mismatch=TruncatedImportance())(Outputs(logp), batch)
    close(per_token, [[-3.0]])
    (gradient,) = torch.autograd.grad(per_token.sum(), logp)
    close(gradient, [[-3.0]])
    close(metrics["sampling/sampling_logp_difference/mean"], [[math.log(1.5)]])
    assert not any(x.requires_grad for x in metrics.values())


def test_truncated_importance_cuts_the_graph_itself() -> None:
    old_logp = leaf(logs([0.3]))
    weight, metrics = TruncatedImportance()(old_logp, make_batch([[1]], sampler_logp=logs([0.2])))
    close(weight, [[1.5]])
    assert not weight.requires_grad
    assert not any(x.requires_grad for x in metrics.values())


def test_without_mismatch_the_difference_is_still_reported() -> None:
    batch = make_batch([[1, 0]], sampler_logp=[[-1.0, 5.0]], advantage=[[1.0, 0.0]], old_logp=[[-1.25, 0.0]])
    per_token, metrics = ClippedSurrogate()(Outputs(leaf([[-1.25, 0.0]])), batch)
    close(per_token, [[-1.0, 0.0]])
    close(metrics["sampling/sampling_logp_difference/max"], [[0.25, 0]])
    assert not any("importance" in name for name in metrics)


@pytest.mark.parametrize("term", [ClippedSurrogate(), ClippedImportance(), PolicyGradient()], ids=str)
def test_policy_terms_need_an_advantage(term: Term) -> None:
    with pytest.raises(ValueError, match=rf"{type(term).__name__} needs batch\.advantage"):
        term(Outputs(leaf([[0.0]])), make_batch([[1]]))


# --- ClippedImportance and PolicyGradient

LOGP = [math.log(0.2 * r) for r in RATIOS]


def test_clipped_importance_by_hand() -> None:
    # -min(ratio, 1.2) A log pi, with log pi = log(0.2 ratio), and no lower bound. The weight has no gradient, so that
    # of the whole is -min(ratio, 1.2) A, and the clipped tokens keep theirs: -1.2 x 2 and 1.2 x 2, where the clipped
    # surrogate has 0 and 3.
    per_token, gradient, metrics = on_ratios(ClippedImportance(max_ratio=1.2))
    weighed = [-1, -2.2, -2.4, 1, 1.8, 2.4]
    close(per_token, [[w * logp for w, logp in zip(weighed, LOGP, strict=True)]])
    close(gradient, [weighed])
    # held and A > 0; the last one is held too, but A < 0
    close(metrics["cispo_clip_ratio"], [[0, 0, 1, 0, 0, 0]], 0)
    assert not metrics["cispo_clip_ratio"].requires_grad
    # The default bound lies beyond all of these ratios.
    close(on_ratios(ClippedImportance())[1], [[-1, -2.2, -3, 1, 1.8, 3]])


def test_policy_gradient_by_hand() -> None:
    # -A log pi, whatever the policy has done since: the ratios are 0.5 to 1.5.
    per_token, gradient, metrics = on_ratios(PolicyGradient())
    close(per_token, [[-a * logp for a, logp in zip(ADVANTAGE[0], LOGP, strict=True)]])
    close(gradient, [[-2, -2, -2, 2, 2, 2]])
    assert set(metrics) == {f"sampling/sampling_logp_difference/{part}" for part in ("mean", "max")}


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("term", [ClippedImportance(), PolicyGradient()], ids=str)
def test_on_policy_gradient_of_the_others_is_minus_advantage_too(term: Term, explicit: bool) -> None:
    logp = leaf([[-1.0, -0.3, -2.0]])
    batch = make_batch([[1, 1, 1]], advantage=[[1.5, -0.7, 0.0]])
    if explicit:
        batch = replace(batch, old_logp=logp.detach().clone())
    per_token, _ = term(Outputs(logp), batch)
    close(per_token, [[1.5, -0.21, 0]])
    per_token.sum().backward()
    assert logp.grad is not None
    close(logp.grad, [[-1.5, 0.7, 0]])


def test_rewarded_with_the_policy_gradient_is_fine_tuning_on_the_rewarded() -> None:
    # Cross-entropy over the three tokens of the two rewarded rows: (1 + 0.5 + 2) / 3. The counts are those after the
    # estimator, which takes the others out.
    logp = leaf([[-1.0, -0.5], [-3.0, -4.0], [-2.0, 9.0]])
    batch = Rewarded()(replace(make_batch([[1, 1], [1, 1], [1, 0]]), reward=torch.tensor([1.0, 0.0, 1.0])))
    weight = TokenMean()(batch, batch.live.sum(), live_tokens(batch).sum())
    loss, _ = objective([PolicyGradient()], Outputs(logp), batch, weight)
    assert loss.item() == pytest.approx(3.5 / 3, abs=1e-6)
    loss.backward()
    assert logp.grad is not None
    close(logp.grad, [[-1 / 3, -1 / 3], [0, 0], [-1 / 3, 0]])


# --- weights against the sampler

# pi_old / pi_sampler. The second token of the first row is the environment's, the third row is not live.
MISMATCH_MASK = [[1, 0, 1], [1, 1, 1], [1, 1, 1]]
MISMATCH_RATIOS = [[0.5, 100, 1.6], [1.5, 1.5, 1.2], [0.1, 0.1, 0.1]]


def mismatch_weight(mismatch: Mismatch) -> tuple[torch.Tensor, Metrics]:
    ratios = torch.tensor(MISMATCH_RATIOS, dtype=D)
    batch = make_batch(MISMATCH_MASK, live=[1, 1, 0], sampler_logp=torch.full_like(ratios, -3.0))
    return mismatch(leaf(ratios.log() - 3), batch)


@pytest.mark.parametrize(
    ("mismatch", "first", "second"),
    [
        # The products over the live tokens: 0.5 x 1.6 = 0.8 and 1.5 x 1.5 x 1.2 = 2.7.
        (TruncatedImportance(level="sequence"), [0.8, 1, 0.8], [2, 2, 2]),
        (TruncatedImportance(cap=3, level="sequence"), [0.8, 1, 0.8], [2.7, 2.7, 2.7]),
        (TruncatedImportance(cap=1.4), [0.5, 1, 1.4], [1.4, 1.4, 1.2]),
        (TruncatedImportance(cap=0.6), [0.5, 1, 0.6], [0.6, 0.6, 0.6]),
        (MaskedImportance(), [0.5, 1, 1.6], [1.5, 1.5, 1.2]),
        (MaskedImportance(cap=1.4), [0.5, 1, 0], [0, 0, 1.2]),
        (MaskedImportance(cap=1.55, low=0.6), [0, 1, 0], [1.5, 1.5, 1.2]),
        (MaskedImportance(level="sequence"), [0.8, 1, 0.8], [0, 0, 0]),
        (MaskedImportance(cap=3, low=0.9, level="sequence"), [0, 1, 0], [2.7, 2.7, 2.7]),
        (MaskedImportance(cap=math.inf, low=0.7, level="sequence"), [0.8, 1, 0.8], [2.7, 2.7, 2.7]),
    ],
    ids=str,
)
def test_mismatch_weights_by_hand(mismatch: Mismatch, first: list[float], second: list[float]) -> None:
    weight, metrics = mismatch_weight(mismatch)
    close(weight, [first, second, [1, 1, 1]])
    shown = [[first[0], 0, first[2]], second, [0, 0, 0]]
    assert set(metrics) == {f"sampling/importance_sampling_ratio/{part}" for part in ("mean", "min", "max")}
    for metric in metrics.values():
        close(metric, shown)
    assert not any(x.requires_grad for x in (weight, *metrics.values()))


@pytest.mark.parametrize(
    ("term", "plain"),
    [
        (ClippedImportance(1.2, TruncatedImportance(1.4)), ClippedImportance(1.2)),
        (PolicyGradient(TruncatedImportance(1.4)), PolicyGradient()),
        (ClippedSurrogate(mismatch=TruncatedImportance(1.4)), ClippedSurrogate()),
        (
            ClippedSurrogate(importance_sampling_level="sequence", mismatch=TruncatedImportance(1.4)),
            ClippedSurrogate(importance_sampling_level="sequence"),
        ),
    ],
    ids=["cispo", "policy gradient", "clipped", "gspo"],
)
def test_the_mismatch_weight_multiplies_value_and_gradient(term: Term, plain: Term) -> None:
    # The weight is of old and sampler, 0.5 and 1.6 truncated at 1.4, whatever the current policy is.
    old_logp = torch.tensor([[-1.0, -2.0]], dtype=D)
    sampler_logp = old_logp - torch.tensor(logs([0.5, 1.6]), dtype=D)
    batch = make_batch([[1, 1]], old_logp=old_logp, sampler_logp=sampler_logp, advantage=[[1.5, 1.5]])
    logp = leaf(old_logp + torch.tensor(logs([1.1, 0.9]), dtype=D))
    per_token, metrics = term(Outputs(logp), batch)
    unweighed, fewer = plain(Outputs(logp), batch)
    close(per_token, unweighed.detach() * torch.tensor([[0.5, 1.4]], dtype=D), 1e-12)
    for t, weight in enumerate([0.5, 1.4]):
        (gradient,) = torch.autograd.grad(per_token[0, t], logp, retain_graph=True)
        (without,) = torch.autograd.grad(unweighed[0, t], logp, retain_graph=True)
        close(gradient, weight * without, 1e-12)
        assert without[0, t] != 0
    assert metrics.keys() - fewer.keys() == {f"sampling/importance_sampling_ratio/{p}" for p in ("mean", "min", "max")}
    close(fewer["sampling/sampling_logp_difference/max"], [[math.log(2), math.log(1.6)]])


# --- KL


def kl_token(term: KL, logp: float, ref: float, old: float | None = None) -> tuple[float, float, float]:
    """Value, gradient by logp, and the metric, on one token."""
    current = leaf([[logp]])
    batch = make_batch([[1]], ref_logp=[[ref]])
    if old is not None:
        batch = replace(batch, old_logp=torch.tensor([[old]], dtype=D))
    per_token, metrics = term(Outputs(current), batch)
    (gradient,) = torch.autograd.grad(per_token.sum(), current)
    assert not metrics["kl"].requires_grad
    return per_token.item(), gradient.item(), metrics["kl"].item()


# pi = 0.5, ref = 0.25, so d = log 2 = 0.6931472 and exp(-d) = 0.5:
#   k2 = 0.6931472^2 / 2 = 0.2402265, its gradient d = 0.6931472
#   k3 = 0.5 + 0.6931472 - 1 = 0.1931472, its gradient 1 - 0.5 = 0.5
# The other way about, d = -log 2 and exp(-d) = 2: k3 = 2 - 0.6931472 - 1 = 0.3068528, its gradient 1 - 2 = -1.
@pytest.mark.parametrize(
    ("estimator", "pi", "ref", "value", "gradient", "metric"),
    [
        ("k2", 0.5, 0.25, 0.2402265, 0.6931472, 0.1931472),
        ("k2", 0.25, 0.5, 0.2402265, -0.6931472, 0.3068528),
        ("k3", 0.5, 0.25, 0.1931472, 0.5, 0.1931472),
        ("k3", 0.25, 0.5, 0.3068528, -1.0, 0.3068528),
        ("k3_value_k2_grad", 0.5, 0.25, 0.1931472, 0.6931472, 0.1931472),
        ("k3_value_k2_grad", 0.25, 0.5, 0.3068528, -0.6931472, 0.3068528),
    ],
)
def test_kl_by_hand(estimator: Any, pi: float, ref: float, value: float, gradient: float, metric: float) -> None:
    term = KL(0.04, estimator)
    logp, ref_logp = math.log(pi), math.log(ref)
    assert kl_token(term, logp, ref_logp) == pytest.approx((value, gradient, metric), abs=1e-6)
    # On policy with old_logp spelled out: the same.
    assert kl_token(term, logp, ref_logp, old=logp) == pytest.approx((value, gradient, metric), abs=1e-6)
    # Off policy, pi twice as likely as when it was sampled: twice the value and gradient (the ratio itself has no
    # gradient, else a further 2 x value would be in there), and the metric as before.
    off_policy = kl_token(term, logp, ref_logp, old=logp - math.log(2))
    assert off_policy == pytest.approx((2 * value, 2 * gradient, metric), abs=1e-6)


def test_kl_of_equal_policies_is_exactly_zero() -> None:
    for estimator in ("k2", "k3", "k3_value_k2_grad"):
        assert kl_token(KL(1.0, estimator), -1.7, -1.7) == (0, 0, 0)


def test_k1_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="k1 can't be a loss: its gradient is zero in expectation"):
        KL(0.04, "k1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="KL estimator is 'k4'; choose one of"):
        KL(0.04, "k4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"KL needs batch\.ref_logp"):
        KL(0.04)(Outputs(leaf([[0.0]])), make_batch([[1]]))


# Softmax policies over four tokens. Expectations are exact: a row for each token, weighed by its probability.
THETA = [0.3, -0.8, 1.1, 0.0]
REF = torch.tensor([0.1, 0.7, -0.4, 0.5], dtype=D).log_softmax(0)
OLD = torch.tensor([-0.2, 0.4, 0.6, 0.9], dtype=D).log_softmax(0)


def gradient_by_theta(function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    theta = leaf(THETA)
    (gradient,) = torch.autograd.grad(function(theta.log_softmax(0)), theta)
    return gradient


def reverse_kl(logp: torch.Tensor) -> torch.Tensor:
    return (logp.exp() * (logp - REF)).sum()


def forward_kl(logp: torch.Tensor) -> torch.Tensor:
    return (REF.exp() * (REF - logp)).sum()


def expected(term: Term, sampled_from: torch.Tensor | None = None) -> Callable[[torch.Tensor], torch.Tensor]:
    """The term's mean over tokens drawn from the policy itself, or from another (by its log-probs)."""

    def loss(logp: torch.Tensor) -> torch.Tensor:
        batch = make_batch([[1]] * 4, ref_logp=REF[:, None])
        if sampled_from is not None:
            batch = replace(batch, old_logp=sampled_from[:, None])
        probability = (logp.detach() if sampled_from is None else sampled_from).exp()
        return objective([term], Outputs(logp[:, None]), batch, probability[:, None])[0]

    return loss


def test_k1_has_zero_gradient_in_expectation() -> None:
    gradient = gradient_by_theta(lambda logp: (logp.detach().exp() * (logp - REF)).sum())
    close(gradient, [0.0] * 4, 1e-12)


def test_exact_reverse_kl_gradient_by_hand() -> None:
    # d/d theta_i of sum_v pi_v d_v, with d = log pi - log ref: pi_i (d_i - KL).
    logp = torch.tensor(THETA, dtype=D).log_softmax(0)
    by_hand = logp.exp() * (logp - REF - reverse_kl(logp))
    close(gradient_by_theta(reverse_kl), by_hand, 1e-12)
    assert by_hand.abs().max() > 0.1


@pytest.mark.parametrize("estimator", ["k2", "k3_value_k2_grad"])
@pytest.mark.parametrize("sampled_from", [None, OLD])
def test_k2_gradient_is_the_reverse_kl_gradient(estimator: Any, sampled_from: torch.Tensor | None) -> None:
    close(gradient_by_theta(expected(KL(1.0, estimator), sampled_from)), gradient_by_theta(reverse_kl), 1e-12)


@pytest.mark.parametrize("sampled_from", [None, OLD])
def test_k3_gradient_is_the_forward_kl_gradient_instead(sampled_from: torch.Tensor | None) -> None:
    gradient = gradient_by_theta(expected(KL(1.0, "k3"), sampled_from))
    close(gradient, gradient_by_theta(forward_kl), 1e-12)
    assert (gradient - gradient_by_theta(reverse_kl)).abs().max() > 0.05


@pytest.mark.parametrize("estimator", ["k3", "k3_value_k2_grad"])
@pytest.mark.parametrize("sampled_from", [None, OLD])
def test_k3_value_is_the_reverse_kl(estimator: Any, sampled_from: torch.Tensor | None) -> None:
    logp = torch.tensor(THETA, dtype=D).log_softmax(0)
    close(expected(KL(1.0, estimator), sampled_from)(logp), reverse_kl(logp), 1e-12)
    assert (expected(KL(1.0, "k2"))(logp) - reverse_kl(logp)).abs() > 0.01  # k2's is not


# --- EntropyBonus and ValueLoss


def test_entropy_bonus() -> None:
    entropy = leaf([[0.5, 1.25, 3.0]])
    per_token, metrics = EntropyBonus(0.01)(Outputs(leaf([[0.0] * 3]), entropy=entropy), make_batch([[1, 1, 0]]))
    close(per_token, [[-0.5, -1.25, 0]], 0)
    close(metrics["entropy"], [[0.5, 1.25, 0]], 0)
    per_token.sum().backward()
    assert entropy.grad is not None
    close(entropy.grad, [[-1, -1, 0]], 0)
    with pytest.raises(ValueError, match=r"EntropyBonus needs outputs\.entropy"):
        EntropyBonus(0.01)(Outputs(leaf([[0.0]])), make_batch([[1]]))


def test_value_loss_by_hand() -> None:
    # Clip 0.2 around the old value 1:
    #   v = 1.1, return 2: inside; (0.9)^2 / 2 = 0.405, gradient v - return = -0.9
    #   v = 1.5, return 2: clipped to 1.2; max(0.25, 0.64) / 2 = 0.32, held, no gradient
    #   v = 1.5, return 1: clipped to 1.2; max(0.25, 0.04) / 2 = 0.125, gradient 0.5
    #   v = 0.5, return 0: clipped to 0.8; max(0.25, 0.64) / 2 = 0.32, held
    value = leaf([[1.1, 1.5, 1.5, 0.5, 4.0]])
    batch = make_batch([[1, 1, 1, 1, 0]], value=[[1.0] * 5], returns=[[2.0, 2.0, 1.0, 0.0, 0.0]])
    outputs = Outputs(leaf([[0.0] * 5]), value=value)
    per_token, metrics = ValueLoss()(outputs, batch)
    close(per_token, [[0.405, 0.32, 0.125, 0.32, 0]])
    close(metrics["value_clip_ratio"], [[0, 1, 0, 1, 0]], 0)
    (gradient,) = torch.autograd.grad(per_token.sum(), value)
    close(gradient, [[-0.9, 0, 0.5, 0, 0]])
    # Without clipping: 0.405, 0.125, 0.125, 0.125.
    per_token, metrics = ValueLoss(clip=math.inf)(outputs, batch)
    close(per_token, [[0.405, 0.125, 0.125, 0.125, 0]])
    close(metrics["value_clip_ratio"], [[0] * 5], 0)


def test_value_loss_says_what_is_missing() -> None:
    outputs, batch = Outputs(leaf([[0.0]]), value=leaf([[0.0]])), make_batch([[1]], value=[[0.0]], returns=[[0.0]])
    for name, bad_outputs, bad_batch in [
        (r"outputs\.value", replace(outputs, value=None), batch),
        (r"batch\.value", outputs, replace(batch, value=None)),
        (r"batch\.returns", outputs, replace(batch, returns=None)),
    ]:
        with pytest.raises(ValueError, match=f"ValueLoss needs {name}, which is None"):
            ValueLoss()(bad_outputs, bad_batch)


# --- what doesn't count

# A single token's weight is neither 0 nor 1 in the tests below: e^0.1, e^-1 or e^-1.3.
POLICY_TERMS: list[Term] = [
    ClippedSurrogate(mismatch=TruncatedImportance()),
    ClippedSurrogate(delta=3.0, importance_sampling_level="sequence", mismatch=TruncatedImportance(level="sequence")),
    ClippedImportance(mismatch=MaskedImportance(low=0.1)),
    PolicyGradient(mismatch=MaskedImportance(low=0.1, level="sequence")),
]
ALL_TERMS: list[Term] = [
    *POLICY_TERMS,
    KL(0.1, "k2"),
    KL(0.1, "k3"),
    KL(0.1, "k3_value_k2_grad"),
    EntropyBonus(0.01),
    ValueLoss(),
]


@pytest.mark.parametrize("term", ALL_TERMS, ids=str)
@pytest.mark.parametrize("junk", [math.inf, -math.inf, math.nan, 200.0])
def test_what_does_not_count_is_exactly_zero(term: Term, junk: float) -> None:
    # Only the first token counts: the second isn't the policy's, the second row isn't live.
    def tensor(good: float) -> torch.Tensor:
        return torch.tensor([[good, junk], [junk, junk]], dtype=D)

    outputs = Outputs(leaf(tensor(-1.0)), entropy=leaf(tensor(0.7)), value=leaf(tensor(0.5)))
    batch = make_batch(
        [[1, 0], [1, 1]],
        live=[1, 0],
        sampler_logp=tensor(-1.2),
        old_logp=tensor(-1.1),
        ref_logp=tensor(-1.5),
        value=tensor(0.4),
        returns=tensor(1.0),
        advantage=torch.tensor([[1.0, 0.0], [junk, junk]], dtype=D),
    )
    per_token, metrics = term(outputs, batch)
    counts = torch.tensor([[True, False], [False, False]])
    assert per_token[0, 0] != 0
    for tensor_ in (per_token, *metrics.values()):
        assert tensor_.shape == (2, 2)
        assert tensor_[0, 0].isfinite()
        assert (tensor_[~counts] == 0).all()
    weight = TokenMean()(batch, rows=1, tokens=1)
    loss, _ = objective([term], outputs, batch, weight)
    assert loss.item() == pytest.approx(term.coefficient * per_token[0, 0].item(), abs=1e-12)
    loss.backward()
    gradients = [x.grad for x in (outputs.logp, outputs.entropy, outputs.value) if x is not None and x.grad is not None]
    assert len(gradients) == 1
    assert gradients[0][0, 0] != 0
    assert (gradients[0][~counts] == 0).all()


@pytest.mark.parametrize("term", ALL_TERMS, ids=str)
def test_zero_without_advantage_is_told_truly(term: Term) -> None:
    outputs = Outputs(leaf([[-1.0]]), entropy=leaf([[0.7]]), value=leaf([[0.5]]))
    batch = make_batch([[1]], advantage=[[0.0]], old_logp=[[-1.3]], ref_logp=[[-1.3]], value=[[-1.3]], returns=[[-1.3]])
    per_token, _ = term(outputs, batch)
    per_token.sum().backward()
    gradients = [x.grad for x in (outputs.logp, outputs.entropy, outputs.value) if x is not None]
    nothing = per_token.item() == 0 and all(g is None or g.item() == 0 for g in gradients)
    assert nothing == term.zero_without_advantage


@pytest.mark.parametrize("term", ALL_TERMS, ids=str)
def test_needs_are_told_truly(term: Term) -> None:
    # What a term doesn't name may be missing; what it names may not.
    outputs = Outputs(leaf([[-1.0]]))
    batch = make_batch([[1]], advantage=[[1.0]], returns=[[1.0]])
    if "ref_logp" in term.needs:
        batch = replace(batch, ref_logp=torch.tensor([[-1.5]], dtype=D))
    if "entropy" in term.needs:
        outputs = replace(outputs, entropy=leaf([[0.7]]))
    if "value" in term.needs:
        outputs, batch = replace(outputs, value=leaf([[0.5]])), replace(batch, value=torch.tensor([[0.4]], dtype=D))
    assert term(outputs, batch)[0].item() != 0
    if term.needs:
        with pytest.raises(ValueError, match="which is None"):
            term(Outputs(outputs.logp), replace(batch, ref_logp=None, value=None))


# --- aggregation

# Live rows of 1 and 3 tokens, between them a row of 2 that is not live: rows = 2, tokens = 4.
RAGGED = [[0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]


@pytest.mark.parametrize(
    ("aggregation", "short", "long"),
    [
        (TokenMean(), 1 / 4, 1 / 4),
        (SequenceMean(), 1 / 2, 1 / 6),  # 1 / (2 x 1) and 1 / (2 x 3)
        (ConstantLength(8), 1 / 16, 1 / 16),  # 1 / (2 x 8)
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_weights_by_hand(aggregation: Aggregation, short: float, long: float, kind: Callable[[int], Any]) -> None:
    batch = make_batch(RAGGED, live=[1, 0, 1])
    weight = aggregation(batch, kind(2), kind(4))
    close(weight, [[0, short, 0, 0], [0, 0, 0, 0], [0, long, long, long]])
    # In an optimiser step of twice as many rows and tokens, of which this is one micro-batch, each weighs half.
    close(aggregation(batch, kind(4), kind(8)), weight / 2)


@pytest.mark.parametrize("aggregation", [TokenMean(), SequenceMean(), ConstantLength(8)], ids=str)
def test_weights_where_nothing_is_live(aggregation: Aggregation) -> None:
    close(aggregation(make_batch(RAGGED, live=[0, 0, 0]), 0, 0), torch.zeros(3, 4), 0)
    close(aggregation(make_batch([[0, 0], [0, 1]]), 2, 1)[0], [0, 0], 0)
    assert aggregation(make_batch(torch.zeros(0, 5)), 3, 7).shape == (0, 5)


def part_of(outputs: Outputs, batch: Batch, rows: slice) -> tuple[Outputs, Batch]:
    def cut(record: Any) -> dict[str, torch.Tensor]:
        return {name: x[rows] for name, x in vars(record).items() if isinstance(x, torch.Tensor)}

    return replace(outputs, **cut(outputs)), replace(batch, **cut(batch))


@pytest.mark.parametrize("aggregation", [TokenMean(), SequenceMean(), ConstantLength(20)], ids=str)
@pytest.mark.parametrize("cuts", [[0, 1, 5, 7], [0, 3, 3, 7], [0, 1, 2, 3, 4, 5, 6, 7], [0, 6, 7]], ids=str)
@pytest.mark.parametrize("policy", POLICY_TERMS, ids=str)
def test_micro_batches_add_up_to_the_mini_batch(aggregation: Aggregation, cuts: list[int], policy: Term) -> None:
    generator = torch.Generator().manual_seed(0)

    def noise() -> torch.Tensor:
        return torch.randn(7, 9, generator=generator, dtype=D)

    mask = torch.rand(7, 9, generator=generator) < torch.linspace(0.1, 0.9, 7)[:, None]
    logp = leaf(noise() - 3)
    outputs = Outputs(logp, entropy=noise().abs(), value=noise())
    batch = make_batch(
        mask,
        live=[1, 1, 0, 1, 1, 0, 1],
        sampler_logp=logp.detach() + 0.3 * noise(),
        old_logp=logp.detach() + 0.3 * noise(),
        ref_logp=logp.detach() + 0.3 * noise(),
        advantage=noise(),
        value=noise(),
        returns=noise(),
    )
    terms: list[Term] = [
        policy,
        KL(0.1, "k2"),
        EntropyBonus(0.01),
        ValueLoss(),
    ]
    rows, tokens = batch.live.sum(), live_tokens(batch).sum()

    def run(spans: list[slice], whole_counts: bool) -> tuple[torch.Tensor, torch.Tensor]:
        losses = []
        for span in spans:
            some_outputs, some = part_of(outputs, batch, span)
            counts = (rows, tokens) if whole_counts else (some.live.sum(), live_tokens(some).sum())
            losses.append(objective(terms, some_outputs, some, aggregation(some, *counts))[0])
        loss = torch.stack(losses).sum()
        return loss.detach(), torch.autograd.grad(loss, logp)[0]

    spans = [slice(a, b) for a, b in pairwise(cuts)]
    loss, gradient = run([slice(0, 7)], True)
    in_parts, gradient_in_parts = run(spans, True)
    close(in_parts, loss, 1e-12)
    close(gradient_in_parts, gradient, 1e-12)
    # Normalised by each micro-batch's own counts (even if then averaged), it is another loss.
    by_parts, _ = run(spans, False)
    assert (by_parts / len(spans) - loss).abs() > 1e-4
    # And the whole is what the aggregation says, straight from its definition.
    total = 0.0
    for term in terms:
        per_token = term(outputs, batch)[0].detach()
        for r in range(7):
            here = per_token[r][mask[r]]
            if batch.live[r] and len(here):
                share = {
                    "TokenMean": here.sum() / tokens,
                    "SequenceMean": here.mean() / rows,
                    "ConstantLength": here.sum() / (rows * 20),
                }[type(aggregation).__name__]
                total += term.coefficient * share.item()
    assert loss.item() == pytest.approx(total, abs=1e-6)  # the weight is float32


# --- objective


def test_objective_by_hand() -> None:
    # Two tokens, weight 1/2 each. Surrogate on policy with A = 1, -3: -1, 3 (mean 1). Entropy 0.2, 0.4 (mean 0.3).
    #   1 x 1 + 0.5 x (-0.3) = 0.85, and with the surrogate's coefficient at 2: 1.85
    outputs = Outputs(leaf([[-1.0, -2.0]]), entropy=leaf([[0.2, 0.4]]))
    batch = make_batch([[1, 1]], advantage=[[1.0, -3.0]])
    weight = TokenMean()(batch, 1, 2)
    loss, metrics = objective([ClippedSurrogate(), EntropyBonus(0.5)], outputs, batch, weight)
    assert loss.item() == pytest.approx(0.85, abs=1e-6)
    assert set(metrics) == {
        "clip_ratio/low_mean",
        "clip_ratio/high_mean",
        "clip_ratio/region_mean",
        "sampling/sampling_logp_difference/mean",
        "sampling/sampling_logp_difference/max",
        "entropy",
    }
    loss, _ = objective([ClippedSurrogate(coefficient=2), EntropyBonus(0.5)], outputs, batch, weight)
    assert loss.item() == pytest.approx(1.85, abs=1e-6)


def test_objective_refuses_two_terms_of_a_kind() -> None:
    outputs, batch = Outputs(leaf([[-1.0]])), make_batch([[1]], ref_logp=[[-2.0]])
    with pytest.raises(ValueError, match=r"two loss terms report the metric\(s\) kl"):
        objective([KL(0.1, "k2"), KL(0.1, "k3")], outputs, batch, TokenMean()(batch, 1, 1))


NO_LEVEL: Any = "row"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClippedSurrogate(epsilon=0), "epsilon is 0"),
        (lambda: ClippedSurrogate(epsilon=1.5), r"epsilon is 1\.5"),
        (lambda: ClippedSurrogate(epsilon_high=-0.2), r"epsilon_high is -0\.2"),
        (lambda: ClippedSurrogate(delta=1.2), r"delta is 1\.2; it must be above 1 \+ epsilon_high = 1\.2"),
        (lambda: ClippedSurrogate(epsilon_high=0.5, delta=1.3), r"delta is 1\.3; .* = 1\.5"),
        (lambda: ClippedSurrogate(importance_sampling_level=NO_LEVEL), "level is 'row'; choose one of"),
        (lambda: ClippedImportance(max_ratio=0.9), r"max_ratio is 0\.9"),
        (lambda: TruncatedImportance(cap=0), "cap is 0"),
        (lambda: TruncatedImportance(level=NO_LEVEL), "level is 'row'; choose one of"),
        (lambda: MaskedImportance(level=NO_LEVEL), "level is 'row'; choose one of"),
        (lambda: MaskedImportance(cap=1), r"low is 0\.0 and cap 1"),
        (lambda: MaskedImportance(low=1), "low is 1 and cap"),
        (lambda: MaskedImportance(low=-0.1), r"low is -0\.1 and cap"),
        (lambda: ValueLoss(clip=0), "clip is 0"),
        (lambda: ConstantLength(0), "max_length is 0"),
    ],
)
def test_misconfigured_terms_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()

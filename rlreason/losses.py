"""Loss terms, and the weight that adds their tokens up.

A term is a frozen dataclass, ``(Outputs, Batch) -> (per_token (R, S), metrics)``: the clipped surrogate, the KL to a
reference, the entropy bonus and the critic's loss have the same shape, each with its own ``coefficient``. An
aggregation gives the weight (R, S) of each token. A micro-batch's loss is the sum of coefficient x weight x per_token.

The weight is normalised by the counts of the whole optimiser step, over all micro-batches and processes, so losses and
gradients simply add up: they don't depend on how the mini-batch is cut.

What counts is ``live_tokens(batch)``: tokens that the policy wrote, in live rows. Everywhere else per_token and its
gradient are exactly 0, whatever the tensors hold there.

Metrics are detached per-token tensors (R, S), 0 where nothing counts. They are to be averaged over the live tokens of
the mini-batch, but names that end in ``/min`` or ``/max`` are its extremes over them. Names follow TRL.

Where ``batch.old_logp`` is None, the policy that is updated is the one that ``old_logp`` would describe (one optimiser
step a batch): ``logp.detach()`` stands in for it, and the ratio is 1. With several steps it must have been filled in.

Left out: explained variance, which is no per-token mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, get_args

import torch

from rlreason.batch import live_tokens
from rlreason.mismatch import Level, Metrics, Mismatch, check_level, over_rows
from rlreason.types import Batch, Outputs

KLEstimator = Literal["k2", "k3", "k3_value_k2_grad"]


class Term(Protocol):
    """What the learner asks of a loss term.

    ``needs``: which of ``ref_logp`` (of the batch), ``entropy`` and ``value`` (of the outputs) must be there.
    ``zero_without_advantage``: True if rows whose advantage is 0 on every token add nothing to loss and gradient, so
    that they may be skipped where this holds for all terms.
    """

    needs: ClassVar[frozenset[str]]
    zero_without_advantage: ClassVar[bool]

    @property
    def coefficient(self) -> float: ...

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """per_token (R, S) without the coefficient, and metrics of the same shape, detached."""
        ...


class Aggregation(Protocol):
    """How tokens are weighed against each other."""

    def __call__(self, batch: Batch, rows: torch.Tensor | float, tokens: torch.Tensor | float) -> torch.Tensor:
        """The weight (R, S), 0 off the live tokens. ``rows`` and ``tokens`` are the numbers of live rows and of live
        tokens of the whole optimiser step, over all its micro-batches and processes."""
        ...


def objective(
    terms: Sequence[Term], outputs: Outputs, batch: Batch, weight: torch.Tensor
) -> tuple[torch.Tensor, Metrics]:
    """This micro-batch's part of the loss (a scalar), and the metrics of all terms.

    Raises ValueError if two terms report the same metric, or a tensor is missing that a term needs.
    """
    loss = outputs.logp.new_zeros(())
    metrics: Metrics = {}
    for term in terms:
        per_token, reported = term(outputs, batch)
        loss = loss + term.coefficient * (weight * per_token).sum()
        if twice := sorted(metrics.keys() & reported.keys()):
            raise ValueError(f"two loss terms report the metric(s) {', '.join(twice)}; use each kind of term once")
        metrics |= reported
    return loss, metrics


@dataclass(frozen=True)
class ClippedSurrogate:
    """PPO's clipped surrogate (Schulman et al. 2017, equation 7), with a bound of its own on each side.

    per_token = -min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon_high) A) w, where ratio = pi / pi_old and w is the
    ``mismatch`` weight, 1 if there is none. ``epsilon_high`` None means ``epsilon``; a larger one is DAPO's
    clip-higher (Yu et al. 2025, section 3.1). ``delta``, above 1 + epsilon_high, bounds the ratio where A < 0 too (dual
    clip: Ye et al. 2020, arXiv:1912.09729, equation 5; INTELLECT-2).

    ``importance_sampling_level="sequence"`` takes one ratio for a row, the geometric mean of its live tokens' (GSPO:
    Zheng et al. 2025, arXiv:2507.18071, equation 7), so that a row is held as a whole. Its gradient is GSPO-token's
    (equation 14), each token's own: in sum the same as GSPO's where the advantage is one for the row, and right where
    it isn't, as with a critic.

    Metrics: ``clip_ratio/low_mean`` is the share of tokens held by the lower bound (A < 0), ``clip_ratio/high_mean`` by
    the upper one (A > 0), ``clip_ratio/region_mean`` by either; these have no gradient, and are over tokens at sequence
    level too, where TRL's are over rows.
    ``sampling/sampling_logp_difference`` is abs(old_logp - sampler_logp) in nats, with or without ``mismatch``.
    """

    epsilon: float = 0.2
    epsilon_high: float | None = None
    delta: float | None = None
    importance_sampling_level: Level = "token"
    mismatch: Mismatch | None = None
    coefficient: float = 1.0

    needs: ClassVar[frozenset[str]] = frozenset()
    zero_without_advantage: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_level(self.importance_sampling_level)
        if not 0 < self.epsilon <= 1:
            raise ValueError(f"epsilon is {self.epsilon}; it must be above 0 and at most 1 (0.2 is usual)")
        if self.epsilon_high is not None and self.epsilon_high <= 0:
            raise ValueError(f"epsilon_high is {self.epsilon_high}; it must be above 0, or null for epsilon's value")
        if self.delta is not None and self.delta <= self._high:
            raise ValueError(f"delta is {self.delta}; it must be above 1 + epsilon_high = {self._high}, or null")

    @property
    def _high(self) -> float:
        return 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """Needs ``batch.advantage``; raises ValueError without it."""
        advantage = _advantage(batch, "ClippedSurrogate")
        low, high = 1 - self.epsilon, self._high
        log_ratio = _log_ratio(outputs, batch)  # (R, S)
        if self.importance_sampling_level == "sequence":
            log_ratio = over_rows(log_ratio, batch, mean=True).detach() + log_ratio - log_ratio.detach()
        ratio = log_ratio.exp()
        bounded = ratio if self.delta is None else ratio.clamp(max=self.delta)
        per_token = -torch.minimum(bounded * advantage, ratio.clamp(low, high) * advantage)
        held_low = (ratio < low) & (advantage < 0)
        held_high = (ratio > high) & (advantage > 0)
        metrics = {
            "clip_ratio/low_mean": held_low.to(ratio.dtype),
            "clip_ratio/high_mean": held_high.to(ratio.dtype),
            "clip_ratio/region_mean": (held_low | held_high).to(ratio.dtype),
        }
        return _corrected(per_token, metrics, self.mismatch, outputs, batch)


@dataclass(frozen=True)
class ClippedImportance:
    """CISPO (MiniMax 2025, "MiniMax-M1", arXiv:2506.13585, equations 4 and 5): the policy gradient under an importance
    weight that is clipped, not dropped, so that every token keeps its gradient.

    per_token = -min(ratio, ``max_ratio``) A log pi w, the weight without gradient; w as in ``ClippedSurrogate``. The
    paper has no lower bound either; its upper one, not given there, is about 5 in what was published since (Khatri et
    al. 2025, "ScaleRL"), and TRL's ``epsilon_high`` is this number.

    Metrics: ``cispo_clip_ratio``, the share of tokens above the bound with A > 0; ``sampling/*`` as in
    ``ClippedSurrogate``.
    """

    max_ratio: float = 5.0
    mismatch: Mismatch | None = None
    coefficient: float = 1.0

    needs: ClassVar[frozenset[str]] = frozenset()
    zero_without_advantage: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.max_ratio < 1:
            raise ValueError(f"max_ratio is {self.max_ratio}; it must be at least 1 (5 is usual)")

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """Needs ``batch.advantage``; raises ValueError without it."""
        advantage = _advantage(batch, "ClippedImportance")
        ratio = _ratio(outputs, batch)
        per_token = -ratio.clamp(max=self.max_ratio) * advantage * _live_logp(outputs, batch)
        held = (ratio > self.max_ratio) & (advantage > 0)
        return _corrected(per_token, {"cispo_clip_ratio": held.to(ratio.dtype)}, self.mismatch, outputs, batch)


@dataclass(frozen=True)
class PolicyGradient:
    """per_token = -A log pi w: REINFORCE (Williams 1992), and with an advantage of 1 the loss of supervised
    fine-tuning. w as in ``ClippedSurrogate``. From the second optimiser step of a batch on, nothing corrects for the
    policy having moved. Metrics: ``sampling/*`` as in ``ClippedSurrogate``."""

    mismatch: Mismatch | None = None
    coefficient: float = 1.0

    needs: ClassVar[frozenset[str]] = frozenset()
    zero_without_advantage: ClassVar[bool] = True

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """Needs ``batch.advantage``; raises ValueError without it."""
        per_token = -_advantage(batch, "PolicyGradient") * _live_logp(outputs, batch)
        return _corrected(per_token, {}, self.mismatch, outputs, batch)


@dataclass(frozen=True)
class KL:
    """The distance KL(pi || pi_ref) to the reference policy, from sampled tokens (Schulman 2020, "Approximating KL
    divergence"). With d = log pi - log pi_ref, on tokens sampled from pi:

    - ``k2``, d^2 / 2: its gradient d ∇log pi is, in expectation, exactly that of the reverse KL. Its value is biased.
    - ``k3``, exp(-d) + d - 1: the GRPO paper's (equation 4) and TRL's. Its value is unbiased, but not its gradient
      (1 - exp(-d)) ∇log pi, which in expectation is that of the forward KL(pi_ref || pi).
    - ``k3_value_k2_grad``: the loss reads as k3's and has k2's gradient, each of them the unbiased one.

    ``k1``, d itself, is refused: its value is unbiased, but its gradient ∇log pi is 0 in expectation, so as a loss it
    is noise.

    Each is multiplied by the detached ratio pi / pi_old, which is 1 on policy and off policy makes the expectation one
    over pi again. ``coefficient`` is TRL's ``beta``. Metric ``kl``: k3, without the ratio.
    """

    coefficient: float
    estimator: KLEstimator = "k3"

    needs: ClassVar[frozenset[str]] = frozenset({"ref_logp"})
    zero_without_advantage: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if str(self.estimator) == "k1":
            raise ValueError(
                "the KL estimator k1 can't be a loss: its gradient is zero in expectation, so it would only add noise; "
                "use k2 (exact reverse-KL gradient), k3 (the GRPO paper's) or k3_value_k2_grad"
            )
        if self.estimator not in get_args(KLEstimator):
            raise ValueError(f"the KL estimator is {self.estimator!r}; choose one of {get_args(KLEstimator)}")

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """Needs ``batch.ref_logp``; raises ValueError without it."""
        ref_logp = _present(batch.ref_logp, "KL", "batch.ref_logp", "give policy.annotate a reference model")
        difference = torch.where(live_tokens(batch), outputs.logp - ref_logp, 0.0)  # (R, S)
        k2 = difference.square() / 2
        k3 = torch.expm1(-difference) + difference
        match self.estimator:
            case "k2":
                estimate = k2
            case "k3":
                estimate = k3
            case "k3_value_k2_grad":
                estimate = k2 - k2.detach() + k3.detach()
        return estimate * _ratio(outputs, batch), {"kl": k3.detach()}


@dataclass(frozen=True)
class EntropyBonus:
    """per_token = -entropy, in nats: a positive ``coefficient`` rewards a spread-out policy (Schulman et al. 2017,
    equation 9). Metric ``entropy``."""

    coefficient: float

    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})
    zero_without_advantage: ClassVar[bool] = False

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """Needs ``outputs.entropy``; raises ValueError without it."""
        entropy = _present(outputs.entropy, "EntropyBonus", "outputs.entropy", "ask the forward pass for the entropy")
        entropy = torch.where(live_tokens(batch), entropy, 0.0)
        return -entropy, {"entropy": entropy.detach()}


@dataclass(frozen=True)
class ValueLoss:
    """The critic's loss, half the larger of two squared errors: of the value, and of the value kept within ``clip`` of
    the critic before the update (PPO's reference implementation and TRL's PPOTrainer, whose ``vf_coef`` and
    ``cliprange_value`` are the defaults). An infinite ``clip`` turns clipping off.

    Metric ``value_clip_ratio``: the share of tokens where the clipped error is the larger, so that no gradient flows.
    """

    coefficient: float = 0.1
    clip: float = 0.2

    needs: ClassVar[frozenset[str]] = frozenset({"value"})
    zero_without_advantage: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.clip <= 0:
            raise ValueError(f"the value loss's clip is {self.clip}; it must be above 0 (inf turns clipping off)")

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """Needs ``outputs.value``, ``batch.value`` and ``batch.returns``; raises ValueError without them."""
        value = _present(outputs.value, "ValueLoss", "outputs.value", "give the policy a critic")
        old_value = _present(batch.value, "ValueLoss", "batch.value", "have policy.annotate run the critic")
        returns = _present(batch.returns, "ValueLoss", "batch.returns", "use an estimator with a critic, such as GAE")
        live = live_tokens(batch)
        value, old_value, returns = (torch.where(live, x, 0.0) for x in (value, old_value, returns))
        free = (value - returns).square()
        clipped = (value.clamp(old_value - self.clip, old_value + self.clip) - returns).square()
        return torch.maximum(free, clipped) / 2, {"value_clip_ratio": (clipped > free).to(value.dtype)}


@dataclass(frozen=True)
class TokenMean:
    """Every token weighs the same: 1 / tokens (Yu et al. 2025, DAPO, section 3.3; TRL's ``loss_type="dapo"``)."""

    def __call__(self, batch: Batch, rows: torch.Tensor | float, tokens: torch.Tensor | float) -> torch.Tensor:
        live = live_tokens(batch)
        return live / _count(tokens, live)


@dataclass(frozen=True)
class SequenceMean:
    """Every row weighs the same, the mean over its tokens: 1 / (rows x the row's tokens) (Shao et al. 2024, equation 3;
    TRL's ``loss_type="grpo"``). A live row without tokens counts as a row and adds 0."""

    def __call__(self, batch: Batch, rows: torch.Tensor | float, tokens: torch.Tensor | float) -> torch.Tensor:
        live = live_tokens(batch)
        return live / (_count(rows, live) * live.sum(dim=1, keepdim=True).clamp(min=1))


@dataclass(frozen=True)
class ConstantLength:
    """Every token weighs the same, whatever the lengths in the batch: 1 / (rows x ``max_length``) (Liu et al. 2025,
    "Understanding R1-Zero-like training"; TRL's ``loss_type="dr_grpo"``). ``max_length`` is in tokens."""

    max_length: int

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ValueError(f"max_length is {self.max_length}; it must be at least 1 (use max_completion_length)")

    def __call__(self, batch: Batch, rows: torch.Tensor | float, tokens: torch.Tensor | float) -> torch.Tensor:
        live = live_tokens(batch)
        return live / (_count(rows, live) * self.max_length)


def _count(number: torch.Tensor | float, like: torch.Tensor) -> torch.Tensor:
    # At least 1: where nothing is live, the weight is 0 and not 0 / 0.
    return torch.as_tensor(number, dtype=torch.float32, device=like.device).clamp(min=1)


def _old_logp(outputs: Outputs, batch: Batch) -> torch.Tensor:
    return outputs.logp.detach() if batch.old_logp is None else batch.old_logp


def _log_ratio(outputs: Outputs, batch: Batch) -> torch.Tensor:
    """log pi - log pi_old (R, S), 0 off the live tokens: set before ``exp``, since an infinity behind it would turn the
    zero gradient into NaN."""
    return torch.where(live_tokens(batch), outputs.logp - _old_logp(outputs, batch), 0.0)


def _ratio(outputs: Outputs, batch: Batch) -> torch.Tensor:
    """pi / pi_old (R, S), 1 off the live tokens, without gradient."""
    return _log_ratio(outputs, batch).exp().detach()


def _live_logp(outputs: Outputs, batch: Batch) -> torch.Tensor:
    return torch.where(live_tokens(batch), outputs.logp, 0.0)


def _advantage(batch: Batch, term: str) -> torch.Tensor:
    """(R, S), 0 off the live tokens."""
    advantage = _present(batch.advantage, term, "batch.advantage", "run an estimator on the batch")
    return torch.where(live_tokens(batch), advantage, 0.0)


def _corrected(
    per_token: torch.Tensor, metrics: Metrics, mismatch: Mismatch | None, outputs: Outputs, batch: Batch
) -> tuple[torch.Tensor, Metrics]:
    """A policy term's per_token under the ``mismatch`` weight; metrics of sampler and trainer beside its own."""
    old_logp = _old_logp(outputs, batch)
    difference = torch.where(live_tokens(batch), (old_logp - batch.sampler_logp).abs(), 0.0).detach()
    metrics |= {f"sampling/sampling_logp_difference/{part}": difference for part in ("mean", "max")}
    if mismatch is not None:
        weight, reported = mismatch(old_logp, batch)
        per_token, metrics = per_token * weight, metrics | reported
    return per_token, metrics


def _present(tensor: torch.Tensor | None, term: str, name: str, remedy: str) -> torch.Tensor:
    if tensor is None:
        raise ValueError(f"{term} needs {name}, which is None: {remedy}")
    return tensor

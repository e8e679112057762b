"""Is the policy still learning, or on its way to collapse? What metrics and traces say over steps, and early warnings.

Left out: a bound on the KL from above. How far is too far depends on the reward; ``rlreason.analysis.overoptimisation``
and ``hacking`` look for the step where what is meant begins to fall.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
import pandas as pd

from rlreason.analysis.frames import Floats, Ints, added, need, rollout_of_row, rollouts, tokens

# What traces say


def from_traces(traces: pd.DataFrame) -> pd.DataFrame:
    """What the training traces say of each step, by step; what ``metrics.jsonl`` also has, under the same name.

    ``frac_reward_zero_std``: the share of draws whose graded rewards are all equal, so that they have no advantage.
    ``completions/clipped_ratio``: the share of rollouts that the length limit cut off. ``answers/distinct``: different
    answers of a draw by its answers, 1 where no two agree, mean over draws with two or more.

    With the columns ``mask``, ``policy_logp`` and so on, over the tokens that the policy wrote in rows that have them,
    NaN where none has: ``entropy`` (nats, mean). ``kl`` to the reference, exp(-d) + d - 1 with d = log pi - log pi_ref
    (k3, Schulman 2020, "Approximating KL divergence"). ``ess/token`` and ``ess/sequence``: the effective sample size of
    the importance weights w = pi / pi_sampler of tokens and of whole rollouts, (sum w)² / sum w² by their number (Kong
    1992; Kish 1965): 1 where trainer and sampler agree.

    Rows whose group had no signal are not in the update, and mostly have no ``policy_logp`` and ``entropy``: these
    means are over what was learned from, as in the metrics. Raises ValueError without training traces.
    """
    need(traces, "step", "split", "group", "segment", "status", "reward", "finish", "answer")
    training = traces[traces["split"] == "train"]
    if training.empty:
        raise ValueError("these traces have no training step; give those of split `train`")
    first = rollouts(training)
    graded = first[(first["status"] != "error") & first["reward"].notna()]
    draws = graded.groupby(["step", "group"])
    rewards = draws["reward"].agg(["min", "max"])
    answers = draws["answer"].agg(["count", "nunique"])
    several = answers[answers["count"] > 1]
    found = {
        "frac_reward_zero_std": (rewards["min"] == rewards["max"]).groupby("step").mean(),
        "completions/clipped_ratio": (first["finish"] == "length").groupby(first["step"]).mean(),
        "answers/distinct": (several["nunique"] / several["count"]).groupby("step").mean(),
    }
    table = pd.DataFrame(found, index=pd.Index(sorted(first["step"].unique()), name="step"))
    if "mask" not in training:
        return table
    steps, place = np.unique(training["step"].to_numpy(), return_inverse=True)
    if "entropy" in training:
        laid = tokens(training, "entropy")
        table["entropy"] = _mean(laid["entropy"], place[laid.row], len(steps))
    if {"policy_logp", "ref_logp"} <= set(training.columns):
        laid = tokens(training, "policy_logp", "ref_logp")
        difference = laid["policy_logp"] - laid["ref_logp"]
        table["kl"] = _mean(np.expm1(-difference) + difference, place[laid.row], len(steps))
    if {"policy_logp", "sampler_logp"} <= set(training.columns):
        laid = tokens(training, "policy_logp", "sampler_logp")
        difference = laid["policy_logp"] - laid["sampler_logp"]
        table["ess/token"] = _effective(difference, place[laid.row], len(steps))
        owner = rollout_of_row(training)
        whole = added(owner, laid.sums(difference), len(first))
        there = added(owner, laid.count(), len(first)) > 0
        step_of = np.searchsorted(steps, first["step"].to_numpy())
        table["ess/sequence"] = _effective(whole[there], step_of[there], len(steps))
    return table


def health(metrics: pd.DataFrame, traces: pd.DataFrame | None = None) -> pd.DataFrame:
    """``read_metrics``' frame by step, with what ``from_traces`` adds to it; the metrics' own numbers win."""
    need(metrics, "step")
    own = metrics.set_index("step")
    return own if traces is None else own.combine_first(from_traces(traces))


def _mean(values: Floats, place: Ints, count: int) -> Floats:
    total, size = added(place, values, count), np.bincount(place, minlength=count)
    return np.where(size > 0, total / np.maximum(size, 1), np.nan)


def _effective(log_weights: Floats, place: Ints, count: int) -> Floats:
    """(sum w)² / (n sum w²) by place. Weights are scaled by the largest of their place, which cancels."""
    largest = np.full(count, -np.inf)
    np.maximum.at(largest, place, log_weights)
    weights = np.exp(log_weights - largest[place])
    total, squares = added(place, weights, count), added(place, weights**2, count)
    size = np.bincount(place, minlength=count)
    with np.errstate(invalid="ignore"):
        return np.where(size > 0, total**2 / (size * squares), np.nan)


# Early warnings


@dataclass(frozen=True)
class Rule:
    """Warns where the mean of ``metric`` over the last ``WINDOW`` steps that have it is ``above`` or ``below``
    ``bound``; with ``of_start``, the bound is that many times the mean of the first ``WINDOW`` of them.

    ``metric`` may hold a ``*`` for an environment's name. ``source`` says where the rule comes from, and what of it is
    our choice.
    """

    what: str
    metric: str
    side: Literal["above", "below"]
    bound: float
    of_start: bool
    advice: str
    source: str


@dataclass(frozen=True)
class EarlyWarning:
    """At ``step``, ``metric`` had the ``value`` on the wrong side of ``threshold``: ``what`` that means, and the
    ``advice`` what to do."""

    step: int
    what: str
    metric: str
    value: float
    threshold: float
    advice: str


WINDOW = 5
"""Steps that a rule averages: single steps jump."""

RULES = (
    Rule(
        "entropy collapses: the policy stops exploring",
        "entropy",
        "below",
        0.2,
        True,
        "raise algo.epsilon_high (clip-higher, algo=dapo), add an entropy bonus, or sample at a higher temperature; "
        "stop if validation no longer rises",
        "Cui et al. 2025, arXiv:2505.22617: reward is bought with entropy, R = -a exp(H) + b, and stops where it is "
        "spent; DAPO, Yu et al. 2025, arXiv:2503.14476, section 3.1. The fifth of the start is our choice.",
    ),
    Rule(
        "entropy grows: the policy comes apart",
        "entropy",
        "above",
        2.0,
        True,
        "lower the learning rate or the entropy bonus, give a KL (algo.beta), and read this step's traces",
        "INTELLECT-2, arXiv:2505.07291: entropy that rises again came before collapse. Twice the start is our choice.",
    ),
    Rule(
        "most groups carry no signal: all their rewards are equal",
        "frac_reward_zero_std",
        "above",
        0.8,
        False,
        "where rewards are high take harder problems, where they are low easier ones; more samples a problem "
        "(algo.num_generations), or dynamic sampling (algo.max_attempts)",
        "DAPO, arXiv:2503.14476, section 3.2: such groups have no gradient, and their share grows. 0.8 is our choice.",
    ),
    Rule(
        "the gradient's norm escalates",
        "grad_norm",
        "above",
        10.0,
        True,
        "lower the learning rate or algo.max_grad_norm; go back to the checkpoint before",
        "INTELLECT-2, arXiv:2505.07291: norms that escalate come before collapse. Ten times the start is our choice.",
    ),
    Rule(
        "the clip holds many tokens: updates go further than trust reaches",
        "clip_ratio/region_mean",
        "above",
        0.3,
        False,
        "lower the learning rate, or take fewer optimiser steps a batch (algo.num_iterations, algo.num_mini_batches)",
        "GSPO, Zheng et al. 2025, arXiv:2507.18071, section 5: about 0.001 of the tokens with GRPO, 0.15 with GSPO. "
        "Twice the larger is our choice.",
    ),
    Rule(
        "few samples carry the weight: sampler and trainer have drifted apart",
        "ess/token",
        "below",
        0.5,
        False,
        "check that the engine has the trainer's weights (sampling/sampling_logp_difference), its dtype, and the "
        "temperature; sample more often",
        'Half of the samples, as sequential Monte Carlo resamples at: Doucet and Johansen 2009, "A tutorial on '
        'particle filtering and smoothing", section 3.5.',
    ),
    Rule(
        "the KL from the starting model is estimated below 0, which no distance is",
        "eval/*/kl",
        "below",
        -1.0,
        False,
        "samples are not from the distribution that log-probabilities are computed of: check temperature, top-p and "
        "top-k, end tokens and masks",
        "the warning of TRL's first PPOTrainer at a mean of -1 nat a completion.",
    ),
    Rule(
        "the length limit cuts off most completions",
        "completions/clipped_ratio",
        "above",
        0.5,
        False,
        "raise sampling.max_completion_length, mask what is cut off (algo.mask_truncated_completions), or punish "
        "length (algo.overlong_coef)",
        "DAPO, arXiv:2503.14476, section 3.4: the reward of what is cut off is noise. 0.5 is our choice.",
    ),
)


def early_warnings(health: pd.DataFrame, rules: Sequence[Rule] = RULES) -> list[EarlyWarning]:
    """What the rules warn of in a frame by step, and every fall of validation (``falls``), in order of step.

    A rule warns at the first step on its wrong side, and again only after a step on its right side. Metrics that the
    frame doesn't have are passed over.
    """
    found = falls(health)
    for rule in rules:
        for metric in (name for name in health if fnmatchcase(name, rule.metric)):
            values = health[metric].dropna()
            if len(values) < WINDOW:
                continue
            means = values.rolling(WINDOW).mean().dropna()
            threshold = rule.bound * float(means.iloc[0]) if rule.of_start else rule.bound
            wrong = means > threshold if rule.side == "above" else means < threshold
            begins = wrong & ~wrong.shift(fill_value=False)
            found += [
                EarlyWarning(int(step), rule.what, metric, float(means[step]), threshold, rule.advice)
                for step in means.index[begins]
            ]
    return sorted(found, key=lambda warning: (warning.step, warning.metric))


def falls(health: pd.DataFrame) -> list[EarlyWarning]:
    """Validation accuracies that have fallen: the first evaluation whose interval (``eval/<env>/accuracy_low`` to
    ``_high``) lies below that of the best evaluation until then, which is the one of the highest lower end. Intervals
    that don't touch differ beyond their level; ``rlreason.analysis.compare`` says more, from the traces."""
    found = []
    for name in (name for name in health if fnmatchcase(name, "eval/*/accuracy")):
        if not {f"{name}_low", f"{name}_high"} <= set(health.columns):
            continue
        threshold, fallen = -np.inf, False
        evaluations = health[[name, f"{name}_low", f"{name}_high"]].dropna()
        for step, mean, low, high in evaluations.itertuples():
            if low > threshold:
                threshold, fallen = low, False
            elif high < threshold and not fallen:
                fallen = True
                advice = "take the best checkpoint, and read the traces from there on: reward hacking, or a collapse"
                found.append(EarlyWarning(int(step), "validation has fallen", name, mean, threshold, advice))
    return found

"""What a step's rollouts say, under TRL's names. Pure functions; lengths are in tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, pstdev, stdev

import torch

from rlreason.advantages import Reduce
from rlreason.types import Batch, Rollout


def completion_length(rollout: Rollout) -> int:
    """Tokens that the policy wrote, end tokens included, over all segments."""
    return sum(sum(segment.mask) for segment in rollout.segments)


def rollout_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Rewards, lengths and verdicts of all rollouts drawn in a step; empty for none.

    ``reward_std`` is the mean over groups of the standard deviation within; ``frac_reward_zero_std`` the share of
    groups where all rewards are equal. A part's mean is over the rollouts that have it. Rollouts that ended in
    ``error`` have no reward and count in ``status/error`` alone.
    """
    if not rollouts:
        return {}
    graded = [r for r in rollouts if r.grade.status != "error"]
    groups: dict[int, list[float]] = defaultdict(list)
    for r in graded:
        groups[r.group].append(r.grade.reward)
    lengths = [completion_length(r) for r in rollouts]
    metrics: dict[str, float] = {}
    if graded:
        metrics["reward"] = fmean(r.grade.reward for r in graded)
        metrics["reward_std"] = fmean(stdev(g) if len(g) > 1 else 0.0 for g in groups.values())
        metrics["frac_reward_zero_std"] = fmean(min(g) == max(g) for g in groups.values())
        parts = dict.fromkeys(part for r in graded for part in r.grade.parts)
        for part in sorted(parts, key=lambda part: part.rpartition("/")[0]):  # members in the same order at every step
            values = [r.grade.parts[part] for r in graded if part in r.grade.parts]
            metrics[f"rewards/{part}/mean"] = fmean(values)
            metrics[f"rewards/{part}/std"] = pstdev(values)
    judged = [r.grade.correct for r in graded if r.grade.correct is not None]
    if judged:
        metrics["accuracy"] = fmean(judged)
    metrics |= {
        "completions/mean_length": fmean(lengths),
        "completions/min_length": min(lengths),
        "completions/max_length": max(lengths),
        "completions/clipped_ratio": fmean(r.finish == "length" for r in rollouts),
    }
    for status in ("unparseable", "timeout", "error"):
        metrics[f"status/{status}"] = fmean(r.grade.status == status for r in rollouts)
    return metrics


def batch_metrics(batch: Batch, reduce: Reduce) -> dict[str, float]:
    """``value/explained_variance`` of the critic before the update: 1 - var(returns - value) / var(returns) over the
    live tokens of all processes (``reduce`` sums over them). Empty without a critic."""
    if batch.value is None or batch.returns is None:
        return {}
    live = batch.mask & batch.live[:, None]
    returns, error = batch.returns[live].double(), (batch.returns - batch.value)[live].double()
    sums = [torch.tensor(len(returns), dtype=torch.float64, device=returns.device)]
    sums += [x.sum() for x in (returns, returns.square(), error, error.square())]
    count, r, rr, e, ee = reduce(torch.stack(sums)).tolist()
    if count == 0 or rr / count - (r / count) ** 2 <= 0:
        return {}
    return {"value/explained_variance": 1 - (ee / count - (e / count) ** 2) / (rr / count - (r / count) ** 2)}

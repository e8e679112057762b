"""Reward hacking: what was rewarded (the proxy) against what an independent verifier says (gold), over time.

Proxy and gold are parts of the grade (``accuracy``, ``format``, ``gold``, ...), or else columns of the traces:
``reward``, ``correct``, or one that you add, such as another environment's verdicts by
``rlreason.analysis.replay.regrade``.

When the two have parted is said by the rule of ``rlreason.alarm``, which is ``overoptimisation.parted``. Left out:
that rule on training samples, whose problems differ from step to step and so can't be compared in pairs.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from rlreason.analysis.frames import Floats, Ints, need, rollouts
from rlreason.analysis.overoptimisation import Evaluation, Parting, parted


def parts(traces: pd.DataFrame) -> pd.DataFrame:
    """The parts of the grades as columns, a row for each row of the traces; NaN where a grade has no such part."""
    need(traces, "parts")
    return pd.DataFrame([json.loads(text) for text in traces["parts"]], index=traces.index).astype("float64")


def over_time(traces: pd.DataFrame, proxy: str, gold: str) -> pd.DataFrame:
    """For each split and step, over the graded ``rollouts`` that have both: means ``proxy`` and ``gold``, their
    ``divergence`` since the split's first step, and their ``concordance``.

    ``divergence``: by how many standard deviations (of all rollouts of the split) the proxy's mean has risen, less the
    same for gold; NaN where one of the two never varies. ``concordance``: of the pairs of samples of one draw that
    differ in gold, the share that the proxy puts in gold's order, ties counted as half (Mann and Whitney 1947): 1 where
    the proxy ranks as gold does, 0.5 where it knows nothing of it, NaN without such a pair. It is what a policy
    trained on comparisons within groups learns from.
    """
    frame = _both(traces, proxy, gold)
    rows = []
    for split, own in frame.groupby("split"):
        spread = own[["proxy", "gold"]].std(ddof=0)
        spread = spread.where(spread > 0)
        start = None
        for step, now in own.groupby("step"):
            means = now[["proxy", "gold"]].mean()
            start = means if start is None else start
            change = (means - start) / spread
            rows.append(
                {
                    "split": split,
                    "step": step,
                    "rollouts": len(now),
                    "proxy": means["proxy"],
                    "gold": means["gold"],
                    "divergence": change["proxy"] - change["gold"],
                    "concordance": _concordance(*(now[name].to_numpy() for name in ("group", "proxy", "gold"))),
                }
            )
    return pd.DataFrame(rows)


def history(traces: pd.DataFrame, proxy: str, gold: str) -> list[Evaluation]:
    """The evaluations in the traces, in order, as ``overoptimisation.parted`` asks for them: paired by problem, whose
    samples are averaged; problems that one of the evaluations lacks are left out of all. Training steps are passed
    over. Raises ValueError without evaluations, for those of several splits, and if they share no problem."""
    need(traces, "split", "problem")
    evaluations = traces[traces["split"] != "train"]
    if (splits := sorted(evaluations["split"].unique())) != splits[:1] or not splits:
        raise ValueError(f"give the evaluations of one split; these traces have {', '.join(splits) or 'none'}")
    frame = _both(evaluations, proxy, gold)
    table = frame.groupby(["step", "problem"])[["proxy", "gold"]].mean().unstack("step").dropna()
    if table.empty:
        raise ValueError("no problem was graded in every evaluation")
    return [
        Evaluation(int(step), table["proxy"][step].to_numpy(), table["gold"][step].to_numpy())
        for step in sorted(frame["step"].unique())
    ]


def first_parting(traces: pd.DataFrame, proxy: str, gold: str, *, confidence: float = 0.95) -> Parting | None:
    """The first evaluation at which the proxy is above, and gold below, what they were where gold was best, on the same
    problems and beyond chance; None if there is none. The rule, and what ``confidence`` means, are
    ``overoptimisation.parted``'s; errors are ``history``'s."""
    return parted(history(traces, proxy, gold), confidence=confidence)


def _both(traces: pd.DataFrame, proxy: str, gold: str) -> pd.DataFrame:
    """Graded rollouts with columns ``proxy`` and ``gold``, both known."""
    need(traces, "status", "problem")
    first = rollouts(traces)
    graded = first[first["status"] != "error"]
    frame = graded.assign(proxy=_numbers(graded, proxy), gold=_numbers(graded, gold)).dropna(subset=["proxy", "gold"])
    if frame.empty:
        raise ValueError(f"no graded rollout has both {proxy} and {gold}")
    return frame


def _numbers(traces: pd.DataFrame, name: str) -> Floats:
    numbers: Floats
    if name in (found := parts(traces)):
        numbers = found[name].to_numpy()
    elif name in traces:  # after the parts, since a column `gold` holds the answers
        numbers = traces[name].astype("Float64").to_numpy(np.float64, na_value=np.nan)
    else:
        raise ValueError(f"the grades have no part {name}, and the traces no such column; parts: {', '.join(found)}")
    return numbers


def _concordance(group: Ints, proxy: Floats, gold: Floats) -> float:
    pairs = agree = 0.0
    order = np.argsort(group, kind="stable")
    cuts = np.flatnonzero(np.diff(group[order])) + 1
    for members in np.split(order, cuts):
        p, g = proxy[members], gold[members]
        better = g[:, None] > g[None, :]
        pairs += better.sum()
        agree += (np.sign(p[:, None] - p[None, :])[better] + 1).sum() / 2
    return agree / pairs if pairs else np.nan

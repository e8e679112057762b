"""Move 37: rewarded completions that the reference model would almost never have written, and where the surprise sits.

In the second game against Lee Sedol, AlphaGo's policy network, trained on human games, gave its 37th move a chance of
about one in ten thousand; what had been learned by reinforcement played it, and it was right (Silver et al. 2016,
"Mastering the game of Go with deep neural networks and tree search", Nature 529, for the networks). Here the reference
model stands for the humans, and the verifier for the game's result.

The surprise of a token is log pi - log pi_ref, in nats: how much likelier the policy made it than the reference. Its
sum over a completion is the log likelihood ratio of the two models (Neyman and Pearson 1933), and its mean over the
policy's completions is an estimate of KL(pi || pi_ref) a token (k1, Schulman 2020). Both are at the sampling
temperature. Without ``ref_logp`` in the traces, have ``python -m rlreason.annotate`` fill it in.

Left out: which surprises are good ideas. A rare spelling surprises as a rare thought does: read them.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pandas as pd

from rlreason.analysis.frames import KEY, Floats, Ints, Piece, added, laid_out, need, rollout_of_row, rollouts, tokens

By = Literal["loss", "surprise", "advantage"]
Of = Literal["sampler_logp", "policy_logp"]

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\s*\n\s*")


def surprises(traces: pd.DataFrame, of: Of = "sampler_logp") -> pd.DataFrame:
    """A row for each rollout, as ``frames.rollouts`` orders them, under its index; sums and means are over the tokens
    that the policy wrote, all segments together, in nats.

    What names it, ``problem``, ``correct``, ``reward``, ``advantage`` and ``text``; ``tokens``; ``sum`` and ``mean`` of
    the surprise; ``ref_sum``, the reference's log-probability of the whole completion, and ``ref_mean``; ``peak``, the
    largest surprise of a token, and ``peak_at``, its row's position in the frame and its index in ``completion_ids``;
    ``loss``, -mean of ``policy_logp``. NaN where the columns are null.

    ``of``: the sampler's log-probability, which every rollout has, or the trainer's, which only rows of an update have.
    Raises ValueError if ``ref_logp`` is null in all rows.
    """
    need(traces, "problem", "correct", "reward", "advantage", "text", "ref_logp", of)
    if traces["ref_logp"].isna().all():
        raise ValueError(
            "ref_logp is null in all of these traces: have `python -m rlreason.annotate` fill it in, or train with a KL"
        )
    first, owner = rollouts(traces), rollout_of_row(traces)
    laid = tokens(traces, of, "ref_logp")
    surprise = laid[of] - laid["ref_logp"]

    def total(per_row: Floats) -> Floats:
        return added(owner, per_row, len(first))

    count = total(laid.count())
    known = count > 0
    own, reference = total(laid.sums(surprise)), total(laid.sums(laid["ref_logp"]))
    found = first[[*KEY, "problem", "correct", "reward", "advantage", "text"]].assign(tokens=count.astype(np.int64))
    with np.errstate(invalid="ignore", divide="ignore"):
        found["sum"], found["mean"] = np.where(known, own, np.nan), own / count
        found["ref_sum"], found["ref_mean"] = np.where(known, reference, np.nan), reference / count
    order = np.argsort(surprise, kind="stable")  # the last one of each rollout wins below
    largest = np.full(len(first), -1)
    largest[owner[laid.row[order]]] = order
    found["peak"] = [surprise[at] if at >= 0 else np.nan for at in largest]
    found["peak_at"] = [(int(laid.row[at]), int(laid.place[at])) if at >= 0 else None for at in largest]
    found["loss"] = _loss(traces, owner, len(first))
    return found


def moves(
    traces: pd.DataFrame, count: int = 20, *, by: Literal["sum", "mean"] = "sum", of: Of = "sampler_logp",
    min_reward: float | None = None,
) -> pd.DataFrame:  # fmt: skip
    """The ``count`` rewarded rollouts that surprise the reference most, with the columns of ``surprises``.

    Rewarded is what the verifier calls right, and earned ``min_reward`` where that is given; without verdicts it must
    be given. ``by`` the sum, which finds completions that the reference would not have written, long ones first; or the
    mean, which finds those that are strange word by word. Raises ValueError as ``surprises`` does, if nothing says
    what is rewarded, and if nothing is.
    """
    found = surprises(traces, of)
    if min_reward is None and found["correct"].isna().all():
        raise ValueError("these traces have no verdicts; say from which reward on a rollout is rewarded, by min_reward")
    right = found["correct"].astype("boolean").fillna(min_reward is not None).astype(bool)
    enough = True if min_reward is None else found["reward"] >= min_reward
    rewarded = found[right & enough].dropna(subset=by)
    if rewarded.empty:
        raise ValueError("no rollout with a ref_logp was rewarded; take later steps, or a lower min_reward")
    return rewarded.sort_values(by, ascending=False, kind="stable").head(count)


def ranked(traces: pd.DataFrame, by: By) -> pd.DataFrame:
    """A batch from one end to the other: its rollouts by ``loss``, -mean of ``policy_logp``; by ``surprise``, its sum;
    or by the absolute ``advantage``; largest first, those without a number last. Columns as ``surprises`` has them, but
    that what needs ``ref_logp`` is there for ``surprise`` alone.

    A glance at both ends of such a list finds broken rows sooner than any curve: garbage has the highest loss, and
    what the policy knows by heart the lowest.
    """
    if by == "surprise":
        return surprises(traces).sort_values("sum", ascending=False, kind="stable")
    need(traces, "problem", "correct", "reward", "advantage", "text", "policy_logp")
    first = rollouts(traces)
    found = first[[*KEY, "problem", "correct", "reward", "advantage", "text"]]
    found = found.assign(loss=_loss(traces, rollout_of_row(traces), len(first)))
    if by == "loss":
        return found.sort_values("loss", ascending=False, kind="stable")
    if by == "advantage":
        return found.sort_values("advantage", key=lambda column: column.abs(), ascending=False, kind="stable")
    raise ValueError(f"a batch can't be sorted by {by!r}; choose loss, surprise or advantage")


def per_token(row: Any, piece: Piece | None = None, of: Of = "sampler_logp") -> pd.DataFrame:
    """Where in a row of the traces the surprise sits: for each token that the policy wrote, by its index in
    ``completion_ids``, its ``id``, its ``text`` if ``piece`` gives it, ``logp``, ``ref_logp``, ``surprise``, and
    ``so_far``, the sum up to and with it. Raises ValueError if the row has no such log-probabilities."""
    _check(row, of)
    frame = pd.DataFrame(
        {
            "id": np.asarray(row["completion_ids"], dtype=np.int64),
            "logp": np.asarray(row[of], dtype=np.float64),
            "ref_logp": np.asarray(row["ref_logp"], dtype=np.float64),
        }
    )
    if piece is not None:
        frame.insert(1, "text", [piece(token) for token in frame["id"].tolist()])
    frame = frame[np.asarray(row["mask"], dtype=bool)]
    surprise = frame["logp"] - frame["ref_logp"]
    return frame.assign(surprise=surprise, so_far=surprise.cumsum())


def per_sentence(row: Any, piece: Piece, of: Of = "sampler_logp") -> pd.DataFrame:
    """Where in a row of the traces the surprise sits, sentence by sentence: ``text``, ``begin`` and ``end`` (indices in
    ``completion_ids``, the end excluded), ``tokens`` of the policy, and ``sum``, ``mean`` and ``peak`` of their
    surprise.

    A sentence ends at a line's end, and at a full stop, exclamation or question mark before white space, so that 3.5
    stays whole. A token belongs to the sentence that its first character other than white space is in. Raises
    ValueError as ``per_token`` does.
    """
    marks = per_token(row, of=of)["surprise"]
    text, begins = laid_out(row["completion_ids"], piece)
    edges = [*begins.tolist(), len(text)]
    parts = [text[begin:end] for begin, end in pairwise(edges)]
    blanks = [len(part) - len(part.lstrip()) if part.strip() else 0 for part in parts]
    starts = [0, *(found.end() for found in _SENTENCE_END.finditer(text))]
    sentence = np.searchsorted(starts, begins + np.array(blanks, dtype=np.int64), side="right")
    rows = []
    for number in np.unique(sentence):
        inside = np.flatnonzero(sentence == number)
        begin, end = int(inside[0]), int(inside[-1]) + 1
        own = marks[marks.index.isin(inside)]
        shown = {"text": text[edges[begin] : edges[end]].strip(), "begin": begin, "end": end, "tokens": len(own)}
        rows.append({**shown, "sum": own.sum(), "mean": own.mean(), "peak": own.max()})
    return pd.DataFrame(rows)


def _loss(traces: pd.DataFrame, owner: Ints, count: int) -> Floats:
    laid = tokens(traces, "policy_logp")
    total = added(owner, laid.sums(laid["policy_logp"]), count)
    size = added(owner, laid.count(), count)
    return np.where(size > 0, -total / np.maximum(size, 1), np.nan)


def _check(row: Any, of: Of) -> None:
    for name in (of, "ref_logp"):
        if not isinstance(row[name], np.ndarray | list):
            what = "have `python -m rlreason.annotate` fill it in" if name == "ref_logp" else "use of='sampler_logp'"
            raise ValueError(f"this row of the traces has no {name}: {what}")

"""Ratings out of pairwise verdicts: Bradley-Terry on the Elo scale, with intervals over prompts.

Bradley and Terry 1952, "Rank analysis of incomplete block designs", Biometrika 39: P(i beats j) = s_i / (s_i + s_j); a
tie counts as half a win of each. Ratings are 400 log10 s. Fitted by the library evalica (Ustalov 2025, "Reliable,
reproducible, and really fast leaderboards with Evalica", arXiv:2412.11314).

Left out: Elo's running update, which depends on the order of games; models don't change between theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from evalica import Winner, bradley_terry

Floats = npt.NDArray[np.float64]

ANCHORS = ("first", "mean")
ANCHORED = 1000.0


@dataclass(frozen=True)
class Standing:
    """A player's rating and its interval, None if it is not known; games won, tied and lost (one a prompt and
    opponent); and the share of wins, ties counted as half."""

    rating: float
    low: float | None
    high: float | None
    wins: int
    ties: int
    losses: int
    win_rate: float


def standings(
    outcomes: npt.ArrayLike,
    *,
    anchor: str = "first",
    prior_draws: float = 1.0,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Standing]:
    """A standing for each of M players from outcomes of shape (P, M, M): on prompt p, player i against j had
    ``outcomes[p, i, j]``, 1, 0.5 or 0, with ``outcomes[p, j, i]`` the rest to 1; every pair meets on every prompt.

    ``prior_draws`` are added to each pair, so that who wins every game has a finite rating. Prompts are resampled for
    the percentile intervals, which know nothing of what no prompt showed: the ends for who always won are the prior's
    doing, and where all prompts have the same outcomes they are not known. ``anchor``: ``first`` gives the first
    player 1000 and no interval of its own, ``mean`` gives it to the mean of all. Raises ValueError for other outcomes
    or settings.
    """
    results = np.asarray(outcomes, dtype=np.float64)
    if results.ndim != 3 or results.shape[1] != results.shape[2] or results.shape[1] < 2 or not len(results):
        raise ValueError(f"outcomes need the shape (prompts, players, players) of 2 players or more: {results.shape}")
    if anchor not in ANCHORS:
        raise ValueError(f"anchor is {anchor!r}; choose {' or '.join(ANCHORS)}")
    if not prior_draws > 0:
        raise ValueError(f"prior_draws is {prior_draws}; it must be above 0, or who always wins has no finite rating")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; it must be at least 1")
    players = results.shape[1]
    results = np.where(np.eye(players, dtype=bool), np.nan, results)  # nobody plays against itself
    met = results[:, ~np.eye(players, dtype=bool)]
    opposite = results.transpose(0, 2, 1)[:, ~np.eye(players, dtype=bool)]
    if not (np.isin(met, (0.0, 0.5, 1.0)).all() and (met + opposite == 1).all()):
        raise ValueError("an outcome must be 1, 0.5 or 0, and the opponent's the rest to 1")
    won, tied = (results == 1).astype(np.float64), (results == 0.5).astype(np.float64)

    def ratings(weights: Floats) -> Floats:
        """For prompts that count so often, shape (P,)."""
        wins, ties = (np.tensordot(weights, games, axes=1) for games in (won, tied))
        logs = _bradley_terry(wins, ties + prior_draws)
        return ANCHORED + 400 * (logs - (logs[0] if anchor == "first" else logs.mean()))

    count = len(results)
    own = ratings(np.ones(count))
    low = high = [None] * players
    if not np.array_equal(results, np.broadcast_to(results[0], results.shape), equal_nan=True):
        drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
        resampled = [ratings(weights.astype(np.float64)) for weights in drawn]
        low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0).tolist()
    wins, ties, lost = (table.sum(axis=(0, 2)) for table in (won, tied, results == 0))
    return [
        Standing(
            rating=float(own[i]),
            low=low[i],
            high=high[i],
            wins=int(wins[i]),
            ties=int(ties[i]),
            losses=int(lost[i]),
            win_rate=float((wins[i] + ties[i] / 2) / (count * (players - 1))),
        )
        for i in range(players)
    ]


def rated_against(
    scores: npt.ArrayLike,
    anchors: Sequence[float],
    *,
    prior_draws: float = 1.0,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Standing:
    """The standing of a player who had ``scores[p, a]``, 1, 0.5 or 0, on prompt p against anchor a, whose rating
    ``anchors[a]`` is taken as known: it is where his points are those to be expected, which is the maximum of the
    likelihood (Bradley and Terry 1952).

    ``prior_draws`` with each anchor are added, so that who won or lost every game has a finite rating. Prompts are
    resampled for the percentile intervals, as in ``standings``; the anchors' own uncertainty is not in them. Raises
    ValueError for other scores or settings.
    """
    results, known = np.asarray(scores, dtype=np.float64), np.asarray(anchors, dtype=np.float64)
    if results.ndim != 2 or not len(results) or known.shape != results.shape[1:] or not len(known):
        raise ValueError(f"scores need the shape (prompts, anchors), for {known.size} anchors: {results.shape}")
    if not np.isin(results, (0.0, 0.5, 1.0)).all():
        raise ValueError("a score must be 1, 0.5 or 0")
    if not prior_draws > 0:
        raise ValueError(f"prior_draws is {prior_draws}; it must be above 0, or who always wins has no finite rating")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; it must be at least 1")
    count = len(results)
    each = count + prior_draws
    # beyond it from every anchor, even all games lost (but for the draws) would be too many points
    reach = 400 * np.log10(2 * each / prior_draws) + 1

    def ratings(points: Floats) -> Floats:
        """For the points of so many cases, shape (N,), by bisection."""
        low, high = np.full_like(points, known.min() - reach), np.full_like(points, known.max() + reach)
        for _ in range(60):
            middle = (low + high) / 2
            expected = each * (1 / (1 + 10 ** ((known - middle[:, None]) / 400))).sum(1)
            low, high = np.where(expected < points, middle, low), np.where(expected < points, high, middle)
        return (low + high) / 2

    own, draws = results.sum(1), prior_draws * len(known) / 2
    low = high = None
    if not (results == results[0]).all():
        drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
        ends = np.quantile(ratings(drawn @ own + draws), [(1 - confidence) / 2, (1 + confidence) / 2])
        low, high = float(ends[0]), float(ends[1])
    return Standing(
        rating=float(ratings(np.array([own.sum() + draws]))[0]),
        low=low,
        high=high,
        wins=int((results == 1).sum()),
        ties=int((results == 0.5).sum()),
        losses=int((results == 0).sum()),
        win_rate=float(results.mean()),
    )


def _bradley_terry(wins: Floats, ties: Floats) -> Floats:
    """log10 of the strengths, for symmetric ``ties``; every pair must have some."""
    first, second = np.triu_indices(len(wins), k=1)
    rows: Sequence[tuple[Winner, Floats]] = (
        (Winner.X, wins[first, second]), (Winner.Y, wins[second, first]), (Winner.Draw, ties[first, second]),
    )  # fmt: skip
    found = bradley_terry(
        xs=[int(i) for i in first] * len(rows),
        ys=[int(j) for j in second] * len(rows),
        winners=[winner for winner, games in rows for _ in games],
        weights=np.concatenate([games for _, games in rows]),
        index=pd.Index(range(len(wins))),
        tolerance=1e-9,
        limit=100_000,
    )
    if found.iterations == found.limit:
        raise ValueError("the ratings did not converge; add more prior_draws")
    logs: Floats = np.log10(found.scores.sort_index().to_numpy())
    return logs

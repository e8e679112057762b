"""Counterfactual replay: the same completions under another verifier, reward or advantage estimator, without
generating again.

Each function returns a copy of the traces as they would be had the run been graded so. The copy has the same rows under
the same index, so that every analysis can be asked of both: ``compare(traces, regrade(traces, other))``.

It says what these completions would have earned, not what the policy would have become: from the second step on,
another reward would have made another policy, and other completions.

Left out: critics and shaped rewards (``token_reward``), which traces do not hold; and the states of environments that
answer in several turns: ``grade`` gets a fresh one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from rlreason.advantages import Estimator
from rlreason.analysis.frames import Floats, Ints, need, rollout_of_row, rollouts
from rlreason.batch import collate
from rlreason.files import as_json, finite
from rlreason.types import Env, Episode, Grade, Problem, Rollout, Segment

COLUMNS = (
    "problem", "group", "prompt", "text", "messages", "tools", "finish", "reward", "correct", "status", "answer",
    "gold", "parts", "turn_rewards", "meta", "prompt_ids", "completion_ids", "sampler_logp", "mask",
)  # fmt: skip


def rebuilt(traces: pd.DataFrame) -> list[Rollout]:
    """The rollouts, in the order of ``frames.rollouts``, as training had them, but for two things: a problem's
    ``answer`` is the text that the traces have of it, and a reward that wasn't finite is NaN."""
    need(traces, "segment", *COLUMNS)
    first, owner = rollouts(traces), rollout_of_row(traces)
    segments: list[list[Segment]] = [[] for _ in range(len(first))]
    order = _order(traces)
    columns = ["prompt_ids", "completion_ids", "sampler_logp", "mask"]
    for at, row in zip(owner[order], traces.iloc[order][columns].itertuples(index=False), strict=True):
        segments[at].append(Segment(*(np.asarray(values).tolist() for values in row)))
    made = []
    for own, row in zip(segments, first.itertuples(index=False), strict=True):
        grade = Grade(
            reward=float(row.reward),
            correct=None if pd.isna(row.correct) else bool(row.correct),
            status=row.status,
            parts=json.loads(row.parts),
            answer=row.answer if isinstance(row.answer, str) else None,
            turn_rewards=() if row.turn_rewards is None else tuple(row.turn_rewards.tolist()),
        )
        made.append(Rollout(_problem(row), int(row.group), own, json.loads(row.messages), row.text, row.finish, grade))
    return made


def problems_of(env: Env, split: str) -> dict[str, Problem]:
    """A finite split's problems by id, for ``regrade``. Raises ValueError for an endless split."""
    problems = env.split(split)
    if problems.size is None:
        raise ValueError(f"the split {split} of {env.name} is endless: leave `problems` out, or give those you need")
    found = (problems[index] for index in range(problems.size))
    return {problem.id: problem for problem in found}


def regrade(traces: pd.DataFrame, env: Env, problems: Mapping[str, Problem] | None = None) -> pd.DataFrame:
    """The traces with ``reward``, ``correct``, ``status``, ``answer`` and ``parts`` as ``env`` grades the completions.

    ``problems``, by id, are what ``env`` knows of them. Without them a problem is what the traces say, its answer as
    text, which is enough for environments whose answers are text or numbers. Raises ValueError, naming it, for a
    problem that ``problems`` lacks.
    """
    need(traces, "segment", "problem", "prompt", "text", "messages", "tools", "finish", "gold", "meta")
    first = rollouts(traces)
    episodes = []
    for row in first.itertuples(index=False):
        if problems is not None and row.problem not in problems:
            raise ValueError(f"the problem {row.problem} is not among those given; they are of another split?")
        problem = _problem(row) if problems is None else problems[row.problem]
        episodes.append(Episode(problem, env.start(problem, 0), json.loads(row.messages), row.text, row.finish))
    grades = env.grade(episodes)
    found = {
        "reward": pd.array([finite(grade.reward) for grade in grades], dtype="float64"),
        "correct": pd.array([grade.correct for grade in grades], dtype="boolean"),
        "status": [grade.status for grade in grades],
        "answer": [grade.answer for grade in grades],
        "parts": [as_json(grade.parts) for grade in grades],
    }
    return _with(traces, pd.DataFrame(found))


def with_reward(traces: pd.DataFrame, reward: Callable[[Rollout], float]) -> pd.DataFrame:
    """The traces with another ``reward``: a function of the rollout, such as other weights of ``grade.parts``. Rollouts
    that ended in ``error`` keep theirs."""
    values = [r.grade.reward if r.grade.status == "error" else float(reward(r)) for r in rebuilt(traces)]
    return _with(traces, pd.DataFrame({"reward": values}))


def with_advantage(traces: pd.DataFrame, estimator: Estimator, *, mask_truncated: bool = False) -> pd.DataFrame:
    """The traces with ``advantage`` and ``token_advantage`` by another estimator, from the ``reward`` that they hold:
    each training step is one batch again. ``mask_truncated`` is ``algo.mask_truncated_completions``.

    Draws that dynamic sampling rejected were no part of the batch: their advantage, which is null, stays so, as that
    of evaluations does. Raises ValueError for an estimator that needs what traces don't hold (a critic), and without
    training traces.
    """
    if estimator.needs:
        raise ValueError(
            f"{type(estimator).__name__} needs {', '.join(sorted(estimator.needs))}, which traces do not hold; use an "
            "estimator that compares rewards"
        )
    need(traces, "split", "step", "advantage", "segment")
    trained = ((traces["split"] == "train") & traces["advantage"].notna()).to_numpy()
    if not trained.any():
        raise ValueError("these traces have no training step; give those of split `train`")
    advantage = np.full(len(traces), np.nan)
    per_token: list[Floats | None] = [None] * len(traces)
    rows = np.flatnonzero(trained)
    steps = traces["step"].to_numpy()[rows]
    for step in np.unique(steps):
        own = rows[steps == step]
        batch = estimator(collate(rebuilt(traces.iloc[own]), mask_truncated=mask_truncated))
        assert batch.advantage is not None
        at = own[_order(traces.iloc[own])]  # collate's rows go rollout by rollout
        counts = batch.mask.sum(1)
        total = torch.zeros(len(at)).index_add_(0, batch.rollout, (batch.advantage * batch.mask).sum(1))
        written = torch.zeros(len(at)).index_add_(0, batch.rollout, counts.float())
        advantage[at] = (total / written.clamp(min=1))[batch.rollout].numpy()
        begins, ends = batch.prompt_length.tolist(), batch.attention.sum(1).tolist()
        for row, values, begin, end in zip(at.tolist(), batch.advantage.numpy(), begins, ends, strict=True):
            per_token[row] = values[begin:end]
    return traces.assign(advantage=advantage, token_advantage=pd.Series(per_token, index=traces.index, dtype=object))


def _order(traces: pd.DataFrame) -> Ints:
    """Positions of the rows, rollout by rollout and segment by segment, as ``collate`` has them."""
    order: Ints = np.lexsort((traces["segment"].to_numpy(), rollout_of_row(traces)))
    return order


def _problem(row: Any) -> Problem:
    answer = row.gold if isinstance(row.gold, str) else None
    tools = tuple(json.loads(row.tools)) if isinstance(row.tools, str) else ()
    return Problem(row.problem, json.loads(row.prompt), answer, json.loads(row.meta), tools)


def _with(traces: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """The traces with columns that hold a value for each rollout, in the order of ``frames.rollouts``."""
    by_row = found.iloc[rollout_of_row(traces)]
    return traces.assign(**{name: by_row[name].array for name in found})

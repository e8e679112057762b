"""The trace store: every rollout with its tokens, as Parquet files of a run folder.

A file a step, ``traces/step-000123.parquet``, and a file an evaluation, ``traces/eval-<split>-000123.parquet``, so that
they can be read while the run goes on: by ``rlreason.analysis.load``, or by anything that reads Parquet, such as
DuckDB's ``SELECT avg(reward) FROM 'run/traces/step-*.parquet' GROUP BY step``.

Columns (schema version 3, in the Parquet metadata as ``rlreason.schema``), a row for each segment of each rollout;
columns of the rollout repeat in its segments, so keep ``segment == 0`` to count rollouts:

================== ============== =======================================================================
step               int64          the training step; 0 is before the first
split              string         ``train``, ``validation`` or ``test``
env                string         the environment's name
problem            string         the problem's id
group              int64          which draw of the step; samples of one draw share it
sample             int64          index within the group
segment            int64          index within the rollout
prompt             string, JSON   messages that pose the problem
text               string         the policy's last raw text
messages           string, JSON   the whole conversation
tools              string, JSON   functions that the policy could call; null if there were none
finish             string         ``stop`` or ``length``
reward             float64        null if not finite
correct            bool           null without a notion of correctness
status             string         ``ok``, ``unparseable``, ``timeout`` or ``error``
answer             string         what was extracted from the text, null if nothing was
gold               string         ``str`` of the problem's answer, null if it has none
parts              string, JSON   the reward's components
turn_rewards       list<float64>  what each turn of the policy earned of the reward; null: all of it at the end
meta               string, JSON   what the environment says about the problem
advantage          float64        of the rollout, the mean over its tokens; null in evaluation
grade_seconds      float64        that the call took which graded it, and others of the same batch
generate_seconds   float64        from the segment's submission to its end
prompt_tokens      int64          length of prompt_ids
completion_tokens  int64          length of completion_ids
prompt_ids         list<int32>
completion_ids     list<int32>    with the end token, and with what the environment wrote
sampler_logp       list<float32>  the sampler's log-probability of each of completion_ids, nats
mask               list<bool>     False on what the environment wrote
policy_logp        list<float32>  the trainer's, before the update, at the sampling temperature
ref_logp           list<float32>  the reference model's, at the sampling temperature
entropy            list<float32>  of the policy's distribution of each token, nats, at the sampling temperature
token_advantage    list<float32>
================== ============== =======================================================================

The last four are as long as ``completion_ids``, and null where nobody computed them: in evaluations; ``policy_logp``
and ``entropy`` of rows that an update had no use for, such as those of a group whose rewards are all equal;
``ref_logp`` without a term or shaping that needs a reference, until ``python -m rlreason.annotate`` fills it in.
Version 2 had no ``tools`` and ``turn_rewards``; version 1 ended with ``mask``, and had no seconds either.

Left out: a background writer (a step's traces take milliseconds).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rlreason.files import as_json, encodable, finite, write_atomic
from rlreason.types import Batch, Outputs, Rollout, Segment

SplitName = Literal["train", "validation", "test"]

SCHEMA_VERSION = "3"
READABLE = ("1", "2", SCHEMA_VERSION)
SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("split", pa.string()),
        ("env", pa.string()),
        ("problem", pa.string()),
        ("group", pa.int64()),
        ("sample", pa.int64()),
        ("segment", pa.int64()),
        ("prompt", pa.string()),
        ("text", pa.string()),
        ("messages", pa.string()),
        ("tools", pa.string()),
        ("finish", pa.string()),
        ("reward", pa.float64()),
        ("correct", pa.bool_()),
        ("status", pa.string()),
        ("answer", pa.string()),
        ("gold", pa.string()),
        ("parts", pa.string()),
        ("turn_rewards", pa.list_(pa.float64())),
        ("meta", pa.string()),
        ("advantage", pa.float64()),
        ("grade_seconds", pa.float64()),
        ("generate_seconds", pa.float64()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("completion_ids", pa.list_(pa.int32())),
        ("sampler_logp", pa.list_(pa.float32())),
        ("mask", pa.list_(pa.bool_())),
        ("policy_logp", pa.list_(pa.float32())),
        ("ref_logp", pa.list_(pa.float32())),
        ("entropy", pa.list_(pa.float32())),
        ("token_advantage", pa.list_(pa.float32())),
    ],
    metadata={"rlreason.schema": SCHEMA_VERSION},
)


@dataclass(frozen=True)
class TokenNotes:
    """What training found of one segment's ``completion_ids``, token by token, under the names of the columns; None for
    what it had no need of."""

    policy_logp: npt.NDArray[np.float32] | None = None
    ref_logp: npt.NDArray[np.float32] | None = None
    entropy: npt.NDArray[np.float32] | None = None
    token_advantage: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Trained:
    """What training found of a rollout: its advantage, and notes for each of its segments (none: it was not trained
    on)."""

    advantage: float
    segments: tuple[TokenNotes, ...] = ()


def notes_on(batch: Batch, seen: Outputs | None, count: int) -> list[Trained]:
    """What training found of each of ``count`` rollouts, for the traces. A rollout's advantage is the mean over its
    tokens; its log-probabilities before the update are those of the update's own pass, where there is no other."""
    if not count:
        return []
    logp = batch.old_logp if batch.old_logp is not None else seen.logp if seen is not None else None
    entropy = seen.entropy if seen is not None else None
    advantage = batch.advantage if batch.advantage is not None else torch.zeros_like(batch.sampler_logp)
    columns = {"policy_logp": logp, "ref_logp": batch.ref_logp, "entropy": entropy, "token_advantage": advantage}
    there = {name: values.detach().float().cpu().numpy() for name, values in columns.items() if values is not None}
    begins, ends = batch.prompt_length.tolist(), batch.attention.sum(1).tolist()
    notes: list[list[TokenNotes]] = [[] for _ in range(count)]
    for row, rollout in enumerate(batch.rollout.tolist()):
        own = {name: values[row, begins[row] : ends[row]] for name, values in there.items()}
        notes[rollout].append(TokenNotes(**{name: None if bool(np.isnan(x).any()) else x for name, x in own.items()}))
    total = torch.zeros(count, device=batch.tokens.device)
    tokens = total.clone()
    total.index_add_(0, batch.rollout, (advantage * batch.mask).sum(1))
    tokens.index_add_(0, batch.rollout, batch.mask.sum(1).float())
    means = (total / tokens.clamp(min=1)).tolist()
    return [Trained(mean, tuple(own)) for mean, own in zip(means, notes, strict=True)]


def write_traces(
    path: Path,
    rollouts: Sequence[Rollout],
    *,
    step: int,
    split: SplitName,
    env: str,
    trained: Sequence[Trained] | None = None,
) -> None:
    """Write rollouts to one Parquet file, atomically, with the columns that the module's docstring lists.

    ``trained`` has an entry for each rollout. Raises ValueError if it has another length, or if a rollout has no
    segment, since it would vanish from the file.
    """
    if trained is not None and len(trained) != len(rollouts):
        raise ValueError(f"step {step}: {len(rollouts)} rollouts but notes on {len(trained)}; give one for each")
    rows: list[dict[str, Any]] = []
    seen: dict[int, int] = {}
    for index, rollout in enumerate(rollouts):
        sample = seen.get(rollout.group, 0)
        seen[rollout.group] = sample + 1
        if not rollout.segments:
            raise ValueError(f"step {step}: rollout {index} (problem {rollout.problem.id}) has no segment of tokens")
        found = trained[index] if trained is not None else None
        shared = {"step": step, "split": split, "env": env, "sample": sample, **_of_rollout(rollout)}
        shared["advantage"] = None if found is None else finite(found.advantage)
        notes = found.segments if found is not None and found.segments else [TokenNotes()] * len(rollout.segments)
        for number, (segment, own) in enumerate(zip(rollout.segments, notes, strict=True)):
            rows.append({**shared, "segment": number, **_of_segment(segment), **vars(own)})
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), buffer, compression="zstd")
    write_atomic(path, buffer.getvalue().to_pybytes())


def _of_segment(segment: Segment) -> dict[str, Any]:
    return {
        "generate_seconds": segment.generate_seconds,
        "prompt_tokens": len(segment.prompt_ids),
        "completion_tokens": len(segment.completion_ids),
        "prompt_ids": segment.prompt_ids,
        "completion_ids": segment.completion_ids,
        "sampler_logp": segment.sampler_logp,
        "mask": segment.mask,
    }


def _of_rollout(rollout: Rollout) -> dict[str, Any]:
    problem, grade = rollout.problem, rollout.grade
    return {
        "problem": encodable(problem.id),
        "group": rollout.group,
        "prompt": as_json(problem.prompt),
        "text": encodable(rollout.text),
        "messages": as_json(rollout.messages),
        "tools": as_json(problem.tools) if problem.tools else None,
        "finish": rollout.finish,
        "reward": finite(grade.reward),
        "correct": None if grade.correct is None else bool(grade.correct),
        "status": grade.status,
        "answer": None if grade.answer is None else encodable(grade.answer),
        "gold": None if problem.answer is None else encodable(str(problem.answer)),
        "parts": as_json(grade.parts),
        "turn_rewards": list(grade.turn_rewards) or None,
        "meta": as_json(problem.meta),
        "grade_seconds": rollout.grade_seconds,
    }

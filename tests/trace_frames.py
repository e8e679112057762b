"""Frames of traces for the tests of the analyses: as ``read_traces`` returns them, from the columns that matter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

_TOKENS = ("sampler_logp", "policy_logp", "ref_logp", "entropy", "token_advantage")


def row(group: int = 0, sample: int = 0, *, tokens: int = 1, **columns: Any) -> dict[str, Any]:
    """One row: a right, rewarded rollout of ``tokens`` tokens, its problem named after its group; ``columns`` say what
    is different."""
    given = {
        "step": 1, "split": "train", "env": "e", "problem": f"p{group}", "group": group, "sample": sample, "segment": 0,
        "prompt": '[{"role": "user", "content": "?"}]', "text": "", "finish": "stop",
        "messages": '[{"role": "user", "content": "?"}, {"role": "assistant", "content": ""}]',
        "reward": 1.0, "correct": True, "status": "ok", "answer": "1", "gold": "1", "parts": '{"accuracy": 1.0}',
        "turn_rewards": None, "tools": None,
        "meta": "{}", "advantage": 0.0, "prompt_ids": [9], "completion_ids": list(range(10, 10 + tokens)),
        "sampler_logp": [-1.0] * tokens, "mask": [True] * tokens, "policy_logp": None, "ref_logp": None,
        "entropy": None, "token_advantage": None,
    }  # fmt: skip
    assert not columns.keys() - given.keys(), columns.keys() - given.keys()
    return given | columns


def frame(*rows: dict[str, Any]) -> pd.DataFrame:
    """Rows as the reader gives them: arrays of the schema's types, ``correct`` a nullable boolean."""
    columns: dict[str, Any] = {name: [own[name] for own in rows] for name in rows[0]}
    types: dict[str, Any] = dict.fromkeys(_TOKENS, np.float32)
    types |= {"mask": bool, "prompt_ids": np.int32, "completion_ids": np.int32}
    for name, kind in types.items():
        arrays = [None if values is None else np.array(values, dtype=kind) for values in columns[name]]
        columns[name] = pd.Series(arrays, dtype=object)
    columns["correct"] = pd.array(columns["correct"], dtype="boolean")
    for name in ("reward", "advantage"):
        columns[name] = np.array(columns[name], dtype=np.float64)
    return pd.DataFrame(columns)

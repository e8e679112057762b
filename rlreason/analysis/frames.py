"""What the analyses share: which rows of a frame of traces are rollouts, and the tokens of its rows laid end to end.

A frame is what ``rlreason.analysis.load.read_traces`` returns, of one run; its columns are listed in
``rlreason.traces``. Left out: a class around the frame. Choose rows with pandas before you analyse them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Piece = Callable[[int], str]
"""The text of one token, such as ``lambda id: tokenizer.decode([id])``. A character that several tokens share comes out
as replacement characters, which moves no boundary of words or sentences."""

KEY = ["step", "split", "group", "sample"]
"""What names a rollout in the traces of a run."""


def need(traces: pd.DataFrame, *columns: str) -> None:
    """Raise ValueError unless the frame has these columns, and rows."""
    if missing := [name for name in columns if name not in traces]:
        raise ValueError(f"the traces have no column {', '.join(missing)}; read them with these columns, or with all")
    if traces.empty:
        raise ValueError("the traces have no rows; choose a step and a split that the run has")


def rollouts(traces: pd.DataFrame) -> pd.DataFrame:
    """One row for each rollout: its first segment. Raises ValueError if a rollout is there twice."""
    need(traces, *KEY, "segment")
    first = traces[traces["segment"] == 0]
    if first.duplicated(KEY).any():
        row = first[first.duplicated(KEY)].iloc[0]
        raise ValueError(
            f"two rollouts are called {', '.join(f'{name} {row[name]}' for name in KEY)}: analyse runs one at a time"
        )
    return first


def judged(traces: pd.DataFrame) -> pd.DataFrame:
    """The rollouts with a verdict, ``correct`` as float64. Raises ValueError if there are none."""
    need(traces, "status", "correct")
    first = rollouts(traces)
    found = first[(first["status"] != "error") & first["correct"].notna()]
    if found.empty:
        raise ValueError("no rollout in these traces was judged right or wrong; use the reward instead")
    return found.assign(correct=found["correct"].astype("float64"))


def rollout_of_row(traces: pd.DataFrame) -> Ints:
    """For each row the position of its rollout in ``rollouts(traces)``, shape (rows,). Raises ValueError if a rollout's
    first segment is missing, or there twice."""
    first = (traces["segment"] == 0).to_numpy()
    number = traces.groupby(KEY, sort=False).ngroup().to_numpy()
    if len(rollouts(traces)) != number.max(initial=-1) + 1:
        raise ValueError("a rollout's first segment is missing; keep all segments of the rollouts that you choose")
    position = np.empty(first.sum(), dtype=np.int64)
    position[number[first]] = np.arange(first.sum())
    return position[number]


def added(place: Ints, values: Floats, count: int) -> Floats:
    """The sums of values by their place, both (n,): shape (count,)."""
    return np.bincount(place, weights=values, minlength=count).astype(np.float64)


@dataclass(frozen=True)
class Tokens:
    """T tokens that the policy wrote, those of ``rows`` rows laid end to end: for each its row's position in the frame,
    its index in the row's ``completion_ids``, and its values by column, all of shape (T,)."""

    rows: int
    row: Ints
    place: Ints
    values: Mapping[str, Floats]

    def __getitem__(self, column: str) -> Floats:
        return self.values[column]

    def count(self) -> Floats:
        """Tokens by row, shape (rows,)."""
        return added(self.row, np.ones(len(self.row)), self.rows)

    def sums(self, values: Floats) -> Floats:
        """Of (T,) values by row, shape (rows,)."""
        return added(self.row, values, self.rows)


def tokens(traces: pd.DataFrame, *columns: str) -> Tokens:
    """The tokens that the policy wrote, in the rows where none of ``columns`` is null. Raises ValueError if a column
    has another length than ``mask`` somewhere."""
    need(traces, "mask", *columns)
    known = traces[["mask", *columns]].notna().all(axis=1).to_numpy()
    at = np.flatnonzero(known)
    if not len(at):
        nothing = np.empty(0, dtype=np.int64)
        return Tokens(len(traces), nothing, nothing, {name: np.empty(0) for name in columns})
    kept = traces.iloc[at]
    lengths = kept["mask"].map(len).to_numpy()
    for name in columns:
        if (bad := kept[name].map(len).to_numpy() != lengths).any():
            row = int(at[np.flatnonzero(bad)[0]])
            raise ValueError(f"row {row} of the traces has {name} of another length than mask; the file is damaged")
    written = np.concatenate(kept["mask"].to_list()).astype(bool)
    ends = np.cumsum(lengths)
    place = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    values = {name: np.concatenate(kept[name].to_list())[written].astype(np.float64) for name in columns}
    return Tokens(len(traces), np.repeat(at, lengths)[written], place[written], values)


def laid_out(ids: npt.ArrayLike, piece: Piece) -> tuple[str, Ints]:
    """The text of tokens, and where each begins in it, shape (len(ids),)."""
    texts = [piece(int(i)) for i in np.asarray(ids)]
    return "".join(texts), np.cumsum([0, *map(len, texts)])[:-1]

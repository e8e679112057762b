"""What a sweep came to: its jobs, means over seeds with intervals, differences paired by seed, and curves.

A configuration is what its jobs were asked for beyond what every job of the sweep was asked for and the seed:
``algo=rloo``, say. The seed is the unit: an interval is Student's t over seeds, as in ``experiments/algorithms``, since
with the three to five seeds that a sweep has, a bootstrap is much too narrow.

Left out: corrections for comparing many configurations (each interval stands for itself), and tests of significance.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import stdtrit

from rlreason.analysis.load import read_metrics
from rlreason.stats import Estimate

Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.95
AXES = {"step": "steps", "num_tokens": "tokens", "hours": "hours"}
"""What curves can be drawn against: columns of ``Sweep.curves``, and their names for people."""


@dataclass(frozen=True)
class Sweep:
    """The jobs of a sweep and their curves, both in the order of the jobs. What isn't known is NaN.

    ``jobs`` has a row for each configuration and seed: job (its folder's name), configuration, seed, state (finished,
    failed or unfinished), error (why it failed), value (the last of ``metric``), steps, tokens and hours.

    ``curves`` has a row for each line of metrics of those jobs: job, configuration, seed, step, num_tokens (until then,
    prompts included), hours (until then; of rollouts and updates, without evaluations and checkpoints), reward (mean of
    the step's samples) and value (where there was an evaluation).
    """

    metric: str
    jobs: pd.DataFrame
    curves: pd.DataFrame


@dataclass(frozen=True)
class Row:
    """A configuration: its finished seeds with their values, the mean over them, the mean difference from the first
    configuration over the seeds that both have (None for the first itself, and where they share none), and what a seed
    took on average."""

    configuration: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    value: Estimate
    difference: Estimate | None
    steps: float
    tokens: float
    hours: float


def is_sweep(folder: Path) -> bool:
    """Whether ``folder`` holds jobs of ``python -m rlreason.train -m``."""
    return any(folder.glob("*/job.json"))


def read_sweep(folder: Path, metric: str | None = None) -> Sweep:
    """Read the jobs in ``folder``.

    ``metric`` is one of the evaluations' (``accuracy`` is ``eval/<env>/accuracy``) or, if they have none of that name,
    of the steps'; None is the accuracy, or the reward in an environment without right and wrong. Of jobs that were
    asked for the same, as an optimiser may do, the first that finished counts. Raises FileNotFoundError if ``folder``
    is no sweep, and ValueError if no job has the ``metric`` that was asked for.
    """
    files = sorted(folder.glob("*/job.json"), key=_number)
    if not files:
        raise FileNotFoundError(f"{folder} holds no jobs; give the folder of a sweep, under multirun/")
    asked = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    common = set.intersection(*(set(job["overrides"]) for job in asked))
    jobs, lines = [], {}
    for file, job in zip(files, asked, strict=True):
        own = [text for text in job["overrides"] if text not in common and not text.startswith("seed=")]
        name = file.parent.name
        jobs.append({"job": name, "configuration": " ".join(own), "seed": job["seed"], **_state(file.parent)})
        if (file.parent / "metrics.jsonl").is_file():
            lines[name] = read_metrics(file.parent)
    frame = pd.DataFrame(jobs)
    frame = frame.iloc[(frame["state"] != "finished").argsort(kind="stable")]
    frame = frame.drop_duplicates(["configuration", "seed"]).sort_index()
    if metric is not None and not _has(lines, metric):
        raise ValueError(f"no job in {folder} has a metric {metric!r}; the metrics.jsonl of a job lists what there is")
    metric = metric or next((name for name in ("accuracy", "reward") if _has(lines, name)), "accuracy")
    curves = pd.concat([_curve(job, lines.get(job["job"]), metric) for job in frame.to_dict("records")])
    last = curves.groupby("job")[["value", "step", "num_tokens", "hours"]].last()  # of each column, the last number
    last.columns = ["value", "steps", "tokens", "hours"]
    return Sweep(metric, frame.join(last, on="job").reset_index(drop=True), curves.reset_index(drop=True))


def over_seeds(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean of independent seeds and its interval by Student's t, mean ± t s / √n; NaN to NaN where nothing is known of
    the spread, since there is but one seed or all came to the same (all to 0, say)."""
    mean, n = fmean(values), len(values)
    if len(set(values)) < 2:
        return Estimate(mean, math.nan, math.nan, n)
    half = float(stdtrit(n - 1, 0.5 + confidence / 2)) * stdev(values) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def compare(jobs: pd.DataFrame) -> list[Row]:
    """A row for each configuration of ``Sweep.jobs`` that has a finished seed, in their order."""
    done = jobs[(jobs["state"] == "finished") & jobs["value"].notna()]
    rows: list[Row] = []
    first: dict[int, float] = {}
    for configuration, own in done.groupby("configuration", sort=False):
        values = dict(zip(own["seed"].tolist(), own["value"].tolist(), strict=True))
        differences = [value - first[seed] for seed, value in values.items() if seed in first]
        first = first or values
        rows.append(
            Row(
                str(configuration),
                tuple(values),
                tuple(values.values()),
                over_seeds(list(values.values())),
                over_seeds(differences) if differences else None,
                *(float(own[name].mean()) for name in ("steps", "tokens", "hours")),
            )
        )
    return rows


def mean_curve(curves: pd.DataFrame, x: str, y: str, points: int = 200) -> tuple[Floats, Floats]:
    """The mean over jobs of column ``y`` against ``x``, each job interpolated linearly, where all of them have values.
    Empty if there is no such place."""
    known = curves.dropna(subset=[x, y])
    jobs = [(job[x].to_numpy(float), job[y].to_numpy(float)) for _, job in known.groupby("job", sort=False)]
    low, high = max((x[0] for x, _ in jobs), default=0.0), min((x[-1] for x, _ in jobs), default=-1.0)
    if low > high:
        return np.empty(0), np.empty(0)
    at = np.linspace(low, high, points)
    return at, np.mean([np.interp(at, x, y) for x, y in jobs], axis=0)


def results(sweep: Sweep) -> dict[str, Any]:
    """What ``sweep.json`` holds."""
    rows = compare(sweep.jobs)
    return {
        "metric": sweep.metric,
        "confidence": CONFIDENCE,
        "reference": rows[0].configuration if rows else None,
        "configurations": [
            {
                "configuration": row.configuration,
                "value": row.value,
                "seeds": dict(zip(row.seeds, row.values, strict=True)),
                "difference": row.difference,
                "steps": row.steps,
                "tokens": row.tokens,
                "hours": row.hours,
            }
            for row in rows
        ],
        "not_finished": not_finished(sweep.jobs).to_dict("records"),
    }


def not_finished(jobs: pd.DataFrame) -> pd.DataFrame:
    """Of ``Sweep.jobs``, what isn't finished: job, configuration, seed, state and error."""
    return jobs.loc[jobs["state"] != "finished", ["job", "configuration", "seed", "state", "error"]]


def markdown(sweep: Sweep) -> str:
    """The table, how to read it, and the jobs that aren't finished. An interval of accuracies is cut at 0 and 1."""
    rows, left = compare(sweep.jobs), not_finished(sweep.jobs)
    parts = []
    if rows:
        bounds = (0.0, 1.0) if sweep.metric == "accuracy" else (-math.inf, math.inf)
        columns = {
            "configuration": [row.configuration or "all alike" for row in rows],
            sweep.metric: [_interval(row.value, *bounds) for row in rows],
            "minus the first": [_interval(row.difference) if row.difference else "–" for row in rows],
            "by seed": [
                ", ".join(f"{seed}: {_text(value)}" for seed, value in zip(row.seeds, row.values, strict=True))
                for row in rows
            ],
            "steps": [f"{row.steps:,.0f}" for row in rows],
            "tokens": [f"{row.tokens:,.0f}" for row in rows],
            "hours": [f"{row.hours:.3g}" for row in rows],
        }
        if len(rows) == 1:
            del columns["minus the first"]
        lines = [list(columns), ["---"] * len(columns), *map(list, zip(*columns.values(), strict=True))]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        parts.append(
            f"{sweep.metric}: the last one; its mean over seeds with the mean's 95 % interval (Student's t), and "
            "differences paired by seed. Each interval stands for itself: of many, some miss. Steps, tokens and hours "
            "are means over seeds, the hours those of rollouts and updates."
        )
    missing = []
    for job in left.itertuples():
        asked = " ".join(filter(None, (job.configuration, f"seed={job.seed}")))
        why = f": {' '.join(job.error.split())}" if isinstance(job.error, str) else ""
        missing.append(f"- {job.state}: {job.job} ({asked}){why}")
    if missing:
        parts.append("\n".join(missing))
    return "\n\n".join(parts) + "\n"


def _number(file: Path) -> tuple[int, str]:
    return int(json.loads(file.read_text(encoding="utf-8"))["number"]), file.parent.name


def _state(folder: Path) -> dict[str, str | None]:
    if (folder / "summary.json").is_file():
        return {"state": "finished", "error": None}
    if (folder / "failed.json").is_file():
        return {"state": "failed", "error": json.loads((folder / "failed.json").read_text(encoding="utf-8"))["error"]}
    return {"state": "unfinished", "error": None}


def _has(lines: dict[str, pd.DataFrame], metric: str) -> bool:
    return any(_column(own, metric) for own in lines.values())


def _column(lines: pd.DataFrame, metric: str) -> str | None:
    """Where a run keeps a metric."""
    evaluated = [name for name in lines if name.startswith("eval/") and name.rpartition("/")[2] == metric]
    return next(iter(evaluated), metric if metric in lines else None)


def _curve(job: dict[str, Any], lines: pd.DataFrame | None, metric: str) -> pd.DataFrame:
    """A job's rows of ``Sweep.curves``."""
    if lines is None:
        lines = pd.DataFrame({"step": pd.Series(dtype="int64")})
    column = _column(lines, metric)
    nothing = pd.Series(math.nan, index=lines.index)
    return pd.DataFrame(
        {
            **{name: job[name] for name in ("job", "configuration", "seed")},
            "step": lines["step"],
            "num_tokens": lines.get("num_tokens", nothing).ffill().fillna(0.0),  # nothing is sampled before step 1
            "hours": lines.get("step_time", nothing).fillna(0.0).cumsum() / 3600,
            "reward": lines.get("reward", nothing),
            "value": lines[column] if column else nothing,
        }
    )


def _text(value: float) -> str:
    return f"{value:.3g}"


def _interval(found: Estimate, least: float = -math.inf, most: float = math.inf) -> str:
    """``0.46 (0.31 to 0.61)``."""
    if math.isnan(found.low):
        return _text(found.mean)
    return f"{_text(found.mean)} ({_text(max(least, found.low))} to {_text(min(most, found.high))})"

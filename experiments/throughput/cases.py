"""What is compared with what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from experiments.throughput.results import Pair
from experiments.throughput.side import Run

Runs = Mapping[str, Sequence[Run]]

OURS, OURS_ALL, TRL = "ours", "ours, no row skipped", "TRL"
_PACKAGE = __name__.rpartition(".")[0]
_OURS, _TRL, _DECODERS = (f"{_PACKAGE}.{module}" for module in ("ours", "trl_side", "decoders"))
# The fastest that was tried on two CPU cores; the cases `trl_settings` try more.
TRL_SHORT = {"weights": "bf16", "batch": 16, "attention": "sdpa"}
TRL_LONG = {"weights": "bf16", "batch": 8, "attention": "sdpa"}
HF = {"batch": 128, "attention": "sdpa"}
VLLM = {"eager": False}
# Weights in bfloat16 alone would lose most updates of 2e-5 to rounding and learn more slowly: not what is compared.
TRL_ACCURACY = {"weights": "fp32", "batch": 16, "attention": "sdpa"}


@dataclass(frozen=True)
class Side:
    """A worker (``module:function`` and its settings) under the name that the results give it. Sides of the same
    worker and settings share a process, and differ in their orders' ``variant``. ``repeats``: at most so many."""

    name: str
    worker: str
    settings: Mapping[str, Any]
    variant: str = ""
    repeats: int | None = None


@dataclass(frozen=True)
class Comparison:
    """A line of the table: ``pairs`` of values in ``unit``, and what is worth a remark."""

    case: str
    against: str
    target: float | None
    unit: str
    sides: tuple[str, ...]
    pairs: Callable[[Runs], list[Pair]]
    remarks: Callable[[Runs], str] = lambda runs: ""


@dataclass(frozen=True)
class Case:
    """Sides that take turns, and what is made of it.

    At most ``repeats`` turns; no further one begins that would, at the pace of those before, end after ``minutes``.
    ``fresh``: a new worker for every run. ``default``: measured unless other cases are named.
    """

    name: str
    sides: tuple[Side, ...]
    comparisons: tuple[Comparison, ...]
    repeats: int
    minutes: float
    default: bool = True
    fresh: bool = False


def seconds(ours: str, theirs: str) -> Callable[[Runs], list[Pair]]:
    """The seconds of neighbouring runs. Where they ran fewer, their last run is compared with all further ones."""

    def pairs(runs: Runs) -> list[Pair]:
        last = len(runs[theirs]) - 1
        return [Pair(own.seconds, runs[theirs][min(i, last)].seconds) for i, own in enumerate(runs[ours])]

    return pairs


def peak_memory(ours: str, theirs: str) -> Callable[[Runs], list[Pair]]:
    """The most memory held during neighbouring runs, model and optimiser included, in GiB."""

    def pairs(runs: Runs) -> list[Pair]:
        both = zip(runs[ours], runs[theirs], strict=True)
        return [Pair(own.details["peak_bytes"] / 2**30, other.details["peak_bytes"] / 2**30) for own, other in both]

    return pairs


def share(kind: str, bound: str, least_rows: int = 0) -> Callable[[Runs], list[Pair]]:
    """Each cell's seconds and the seconds of its roofline: the ratio is the share of the roofline that was reached."""

    def pairs(runs: Runs) -> list[Pair]:
        return [
            Pair(cell["seconds"], cell[bound])
            for run in runs[OURS]
            for cell in run.details["cells"]
            if cell["kind"] == kind and cell["rows"] >= least_rows
        ]

    return pairs


def tokens_and_rows(*sides: str) -> Callable[[Runs], str]:
    """How many completion tokens a run had (medians), and how many rows ours skipped."""

    def remarks(runs: Runs) -> str:
        counts = ", ".join(f"{side} {median(run.tokens for run in runs[side]):.0f}" for side in sides)
        skipped = [run.details["frac_rows_skipped"] for run in runs[sides[0]] if "frac_rows_skipped" in run.details]
        rows = f"; rows skipped: {min(skipped):.0%} to {max(skipped):.0%}" if skipped else ""
        return f"completion tokens: {counts}{rows}"

    return remarks


def above_loaded(*sides: str) -> Callable[[Runs], str]:
    """The same peaks, less what was held before the first step."""

    def remarks(runs: Runs) -> str:
        above = {s: median(r.details["peak_bytes"] - r.details["loaded_bytes"] for r in runs[s]) for s in sides}
        return "above the loaded model: " + ", ".join(f"{side} {size / 2**30:.2f} GiB" for side, size in above.items())

    return remarks


def reached(*sides: str) -> Callable[[Runs], str]:
    """Steps until the target, and who never got there."""

    def remarks(runs: Runs) -> str:
        counts = {side: [_steps(run) for run in runs[side]] for side in sides}
        return "steps: " + "; ".join(f"{side} {', '.join(steps)}" for side, steps in counts.items())

    return remarks


def _steps(run: Run) -> str:
    return f"{len(run.details['rewards'])}{'' if run.details['reached'] else ' (stopped before the target)'}"


def _step(name: str, work: str, trl: Mapping[str, Any], target: float, repeats: int, minutes: float) -> Case:
    """Whole steps, in which we skip rows that have no advantage, and beside it, with the same target, none."""
    ours = {"work": work, "warm_up": True}
    return Case(
        name=name,
        sides=(
            Side(OURS, f"{_OURS}:steps", ours),
            Side(TRL, f"{_TRL}:steps", {"work": work, "warm_up": True, **trl}),
            Side(OURS_ALL, f"{_OURS}:steps", ours, variant="all_rows"),
        ),
        comparisons=(
            Comparison(name, TRL, target, "s", (OURS, TRL), seconds(OURS, TRL), tokens_and_rows(OURS, TRL)),
            Comparison(
                f"{name}_all_rows", TRL, target, "s", (OURS_ALL, TRL), seconds(OURS_ALL, TRL),
                tokens_and_rows(OURS_ALL, TRL),
            ),
        ),
        repeats=repeats,
        minutes=minutes,
    )  # fmt: skip


def _learner(name: str, work: str, trl: Mapping[str, Any], repeats: int, minutes: float) -> Case:
    return Case(
        name=name,
        sides=(
            Side(OURS, f"{_OURS}:learner", {"work": work}),
            Side(TRL, f"{_TRL}:learner", {"work": work, **trl}),
        ),
        comparisons=(
            Comparison(name, f"{TRL}'s update", 2.5, "s", (OURS, TRL), seconds(OURS, TRL), tokens_and_rows(OURS, TRL)),
        ),
        repeats=repeats,
        minutes=minutes,
    )


_ROLLOUTS = {"work": "gsm8k", "prompts": 16, "samples": 8, "tokens": 160}


def _rollouts(name: str, against: str, worker: str, settings: Mapping[str, Any], target: float) -> Case:
    return Case(
        name=name,
        sides=(Side(OURS, f"{_OURS}:rollouts", _ROLLOUTS), Side(against, worker, {**_ROLLOUTS, **settings})),
        comparisons=(
            Comparison(
                name, against, target, "s", (OURS, against), seconds(OURS, against), tokens_and_rows(OURS, against)
            ),
        ),
        repeats=5,
        minutes=5,
    )


def _trl_settings(name: str, work: str, chosen: Mapping[str, Any], batches: Sequence[int]) -> Case:
    """One step of TRL with each of its settings, beside the settings that it has in the other cases."""
    settings = [
        {"weights": weights, "batch": batch, "attention": chosen["attention"]}
        for weights in ("bf16", "fp32")
        for batch in batches
    ]
    names = {_spelled(one): one for one in settings}
    used = _spelled(chosen)

    def pairs(runs: Runs) -> list[Pair]:
        return [Pair(runs[used][0].seconds, runs[other][0].seconds) for other in names if other != used]

    def remarks(runs: Runs) -> str:
        return "; ".join(f"{setting}: {runs[setting][0].seconds:.1f} s" for setting in names)

    return Case(
        name=name,
        sides=tuple(
            Side(setting, f"{_TRL}:steps", {"work": work, "warm_up": True, **one}) for setting, one in names.items()
        ),
        comparisons=(
            Comparison(name, f"TRL's others (ours: {used})", None, "s", tuple(names), pairs, remarks),
        ),
        repeats=1,
        minutes=60,
        default=False,
        fresh=True,
    )  # fmt: skip


def _spelled(settings: Mapping[str, Any]) -> str:
    return f"{settings['weights']} {settings['batch']}x{64 // settings['batch']} {settings['attention']}"


_DECODE = [(rows, tokens) for tokens in (64, 256, 1024) for rows in (16, 64, 256) if rows * tokens <= 2**16]
_UPDATE = [(rows, tokens) for tokens in (64, 256, 1024) for rows in (16, 64, 256) if rows * tokens <= 2**14]
_UNTIL = {"target": 0.6, "minutes": 90}

CASES = (
    _step("step_short", "short", TRL_SHORT, target=6, repeats=5, minutes=6),
    _step("step_gsm8k", "gsm8k", TRL_LONG, target=5, repeats=3, minutes=13),
    _rollouts("rollout_hf", "Hugging Face generate", f"{_DECODERS}:hugging_face", HF, 3.5),
    _rollouts("rollout_vllm", "vLLM", f"{_DECODERS}:vllm", VLLM, 2),
    _learner("learner_short", "short", TRL_SHORT, repeats=3, minutes=3),
    _learner("learner", "gsm8k", TRL_LONG, repeats=2, minutes=7),
    Case(
        name="memory",
        sides=(
            Side(OURS_ALL, f"{_OURS}:steps", {"work": "gsm8k", "warm_up": False}, variant="all_rows"),
            Side(TRL, f"{_TRL}:steps", {"work": "gsm8k", "warm_up": False, **TRL_LONG}),
        ),
        comparisons=(
            Comparison(
                "memory", TRL, 1, "GiB", (OURS_ALL, TRL), peak_memory(OURS_ALL, TRL), above_loaded(OURS_ALL, TRL)
            ),
        ),
        repeats=1,
        minutes=6,
        fresh=True,
    ),
    Case(
        name="time_to_accuracy",
        sides=(
            Side(OURS, f"{_OURS}:time_to_accuracy", _UNTIL),
            Side(TRL, f"{_TRL}:time_to_accuracy", {**_UNTIL, **TRL_ACCURACY}, repeats=1),
        ),
        comparisons=(
            Comparison("time_to_accuracy", TRL, 6, "s", (OURS, TRL), seconds(OURS, TRL), reached(OURS, TRL)),
        ),
        repeats=3,
        minutes=300,
        default=False,
    ),
    Case(
        name="scaling",
        sides=(Side(OURS, f"{_OURS}:scaling", {"decode": _DECODE, "update": _UPDATE}),),
        comparisons=(
            Comparison(
                "scaling", "roofline, decoding at 64 rows and more", 0.7, "s", (OURS,), share("decode", "bound_max", 64)
            ),
            Comparison(
                "scaling_sum", "the same, reading and multiplying in turn", None, "s", (OURS,),
                share("decode", "bound_sum", 64),
            ),
            Comparison("scaling_update", "roofline, update", 0.5, "s", (OURS,), share("update", "bound_max")),
        ),
        repeats=1,
        minutes=60,
        default=False,
    ),
    _trl_settings("trl_settings", "short", TRL_SHORT, (64, 16, 8)),
    _trl_settings("trl_settings_gsm8k", "gsm8k", TRL_LONG, (16, 8)),
)  # fmt: skip

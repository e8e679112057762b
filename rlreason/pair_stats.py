"""What a judge's margins on held-out pairs say: is its confidence right, and does it look at more than length?

Pure functions of arrays with a number a pair; a margin above 0 means that the judge agrees with the label.
Left out: calibration by temperature. A reward model that is to be used for its probabilities can be scaled afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

Floats = npt.NDArray[np.float64]

BINS = 10


def calibration(margin: Floats) -> dict[str, Any]:
    """How right the probability sigmoid(|margin|), which the judge gives its own choice, is.

    ``bins`` are equally wide from 0.5 to 1, those with a pair in them: mean confidence, share right, pairs. ``ece``
    is the expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 3), ``brier`` the mean squared
    error of the probability of the label, ``log_loss`` in nats. A margin of 0 is half right.
    """
    confidence = 1 / (1 + np.exp(-np.abs(margin)))
    right = (np.sign(margin) + 1) / 2
    place = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    bins = [
        {"confidence": float(confidence[at].mean()), "accuracy": float(right[at].mean()), "pairs": int(at.sum())}
        for at in (place == number for number in range(BINS))
        if at.any()
    ]
    probability = np.exp(-np.logaddexp(0, -margin))
    return {
        "ece": sum(abs(b["confidence"] - b["accuracy"]) * b["pairs"] for b in bins) / len(margin),
        "brier": float(((1 - probability) ** 2).mean()),
        "log_loss": float(np.logaddexp(0, -margin).mean()),
        "bins": bins,
    }


def length_bias(margin: Floats, longer: Floats) -> dict[str, Any]:
    """How far length explains labels and judge. ``longer`` is by how many tokens the chosen text is the longer one.

    ``chosen_longer`` and ``judge_prefers_longer`` are shares of the pairs of different length; ``rule_accuracy`` is
    what "the longer one is better", or its opposite, whichever is right more often, would score on them;
    ``accuracy_chosen_longer`` and ``accuracy_chosen_shorter`` are the judge's on the two kinds, None without such a
    pair; ``correlation`` is Pearson's, of the judge's margin between longer and shorter text with the difference in
    length.
    """
    differs = longer != 0
    right = (np.sign(margin) + 1) / 2
    if not differs.any():
        return {"pairs": 0}
    chosen_longer = float((longer[differs] > 0).mean())
    for_longer = margin * np.sign(longer)  # > 0: the judge prefers the longer text
    return {
        "pairs": int(differs.sum()),
        "chosen_longer": chosen_longer,
        "rule_accuracy": max(chosen_longer, 1 - chosen_longer),
        "judge_prefers_longer": float(((np.sign(for_longer[differs]) + 1) / 2).mean()),
        "accuracy_chosen_longer": float(right[longer > 0].mean()) if (longer > 0).any() else None,
        "accuracy_chosen_shorter": float(right[longer < 0].mean()) if (longer < 0).any() else None,
        "correlation": _pearson(for_longer[differs], np.abs(longer[differs]).astype(float)),
    }


def report_table(found: Mapping[str, Any], name: str) -> Table:
    """The report of ``rlreason.reward_model`` for the screen."""
    table = Table(title=f"{name}, held-out pairs")
    table.add_column("")
    table.add_column("", justify="right")
    for category, value in found["accuracy"].items():
        row = f"{value['mean']:.3f} ({value['low']:.3f} to {value['high']:.3f}), {value['n']} pairs"
        table.add_row(f"accuracy, {category}", row)
    table.add_row("calibration error", f"{found['calibration']['ece']:.3f}")
    bias = found["length_bias"]
    for key in ("chosen_longer", "judge_prefers_longer", "rule_accuracy", "correlation"):
        if bias.get(key) is not None:
            table.add_row(f"length: {key}", f"{bias[key]:.3f}")
    return table


def _pearson(a: Floats, b: Floats) -> float | None:
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])

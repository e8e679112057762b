"""Policy health by hand, and against the metrics that training writes; early warnings at the step they are due."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import make_rollout
from trace_frames import frame, row

from rlreason.algo import Algo
from rlreason.analysis.health import RULES, EarlyWarning, Rule, early_warnings, falls, from_traces, health
from rlreason.analysis.load import read_traces
from rlreason.metrics import rollout_metrics
from rlreason.traces import write_traces

LOG2, LOG3 = math.log(2), math.log(3)


def test_groups_and_answers_by_hand() -> None:
    traces = frame(
        row(0, 0, answer="7"),
        row(0, 1, answer="7"),  # no signal; one answer of two
        row(1, 0, answer="7"),
        row(1, 1, answer="8", reward=0.0, finish="length"),  # two of two
        row(2, 0, answer="7", reward=0.0),
        row(2, 1, answer="8", reward=1.0, status="error"),  # what is left has no signal, and nobody to agree with
        row(0, 0, step=3, answer=None),
        row(0, 0, step=2, split="validation", finish="length"),  # no training
    )
    found = from_traces(traces)
    assert found.index.tolist() == [1, 3]
    assert found["frac_reward_zero_std"].tolist() == pytest.approx([2 / 3, 1])
    assert found["completions/clipped_ratio"].tolist() == pytest.approx([1 / 6, 0])
    np.testing.assert_allclose(found["answers/distinct"], [(1 / 2 + 1) / 2, np.nan])


def test_tokens_by_hand() -> None:
    two = {"tokens": 2, "sampler_logp": [-1.0, -1.0], "mask": [True, False]}  # the second is the environment's
    traces = frame(
        row(0, 0, **two, policy_logp=[-1.0, 9.0], ref_logp=[-1.0 - LOG2, 9.0], entropy=[1.0, 9.0]),
        row(0, 1, sampler_logp=[-1.0], policy_logp=[-1.0 + LOG3], ref_logp=[-1.0 + LOG3 + LOG3], entropy=[3.0]),
        row(0, 1, segment=1, sampler_logp=[-1.0], policy_logp=[-1.0 + LOG3], ref_logp=None, entropy=[5.0]),
        row(1, 0, sampler_logp=[-5.0]),  # not in the update
        row(0, 0, step=2),
    )
    found = from_traces(traces)
    np.testing.assert_allclose(found["entropy"], [3, np.nan])
    # d = log 2: 1/2 + log 2 - 1; d = -log 3: 3 - log 3 - 1
    np.testing.assert_allclose(found["kl"], [(LOG2 - 0.5 + 2 - LOG3) / 2, np.nan], rtol=1e-6)
    # tokens weigh 1, 3, 3: 49 / (3 x 19); rollouts 1 and 9: 100 / (2 x 82)
    np.testing.assert_allclose(found["ess/token"], [49 / 57, np.nan], rtol=1e-6)
    np.testing.assert_allclose(found["ess/sequence"], [100 / 164, np.nan], rtol=1e-6)


def test_weights_beyond_what_floats_hold() -> None:
    """exp(1000) is infinite, but of two such weights one effective sample each is left."""
    found = from_traces(frame(*(row(0, s, sampler_logp=[-2000.0], policy_logp=[-1000.0]) for s in range(2))))
    assert found["ess/token"].tolist() == [1.0]


def test_what_the_metrics_have_too_is_the_same(tmp_path: Path) -> None:
    rollouts = [
        make_rollout(0, [4], [5], 1.0),
        make_rollout(0, [4], [5], 1.0, finish="length"),
        make_rollout(1, [4], [5], 0.0),
        make_rollout(1, [4], [5], 0.5),
        make_rollout(1, [4], [5], 9.0, status="error"),
    ]
    write_traces(tmp_path / "step-000001.parquet", rollouts, step=1, split="train", env="e")
    found = from_traces(read_traces(tmp_path / "step-000001.parquet")).loc[1]
    metrics = rollout_metrics(rollouts)
    for name in ("frac_reward_zero_std", "completions/clipped_ratio"):
        assert found[name] == metrics[name]
    assert math.isnan(found["entropy"])  # null in these traces


def test_health_keeps_the_metrics_and_adds_what_they_lack() -> None:
    metrics = pd.DataFrame({"step": [0, 1], "reward": [np.nan, 0.5], "completions/clipped_ratio": [np.nan, 0.125]})
    found = health(metrics, frame(row(0, 0, finish="length"), row(0, 1)))
    assert found.index.tolist() == [0, 1]
    assert found.loc[1, ["reward", "completions/clipped_ratio", "frac_reward_zero_std"]].tolist() == [0.5, 0.125, 1]
    assert health(metrics).columns.tolist() == ["reward", "completions/clipped_ratio"]
    with pytest.raises(ValueError, match="no training step"):
        from_traces(frame(row(split="test")))


def steps(**columns: list[float]) -> pd.DataFrame:
    """From step 1 on; names with __ for /."""
    table = pd.DataFrame({name.replace("__", "/"): values for name, values in columns.items()})
    return table.set_index(table.index + 1)


def rung(found: list[EarlyWarning]) -> list[tuple[int, str]]:
    return [(warning.step, warning.metric) for warning in found]


def test_entropy_collapse_warns_once_when_the_mean_of_five_is_a_fifth_of_the_start() -> None:
    # means from step 5 on: 1, 0.9, 0.64, 0.46, 0.28, 0.1, 0.1
    found = early_warnings(steps(entropy=[0.6, 1.4, 1.0, 1.0, 1.0] + [0.1] * 6))
    assert rung(found) == [(10, "entropy")]
    assert (found[0].value, found[0].threshold) == (pytest.approx(0.1), pytest.approx(0.2))
    assert found[0].what.startswith("entropy collapses")


def test_it_warns_again_after_it_was_well_again() -> None:
    found = early_warnings(steps(frac_reward_zero_std=[1.0] * 6 + [0.0] * 2 + [1.0] * 5))
    assert rung(found) == [(5, "frac_reward_zero_std"), (13, "frac_reward_zero_std")]  # 0.6 at 8, 0.8 at 12


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"entropy": [1.0] * 5 + [0.5] * 9}, []),
        ({"entropy": [1.0] * 5 + [2.5] * 5}, [(9, "entropy")]),  # 1.3, 1.6, 1.9, 2.2
        ({"grad_norm": [1.0] * 5 + [46.0, 1.0]}, []),  # 50 / 5 is ten times, not more
        ({"grad_norm": [1.0] * 5 + [46.5, 1.0]}, [(6, "grad_norm")]),
        ({"clip_ratio__region_mean": [0.4] * 5}, [(5, "clip_ratio/region_mean")]),
        ({"clip_ratio__region_mean": [0.4] * 4}, []),  # four steps are too few
        ({"ess__token": [0.9, 0.4, 0.4, 0.4, 0.3]}, [(5, "ess/token")]),
        ({"eval__gsm8k__kl": [-2.0] * 5, "kl": [-2.0] * 5}, [(5, "eval/gsm8k/kl")]),
        ({"completions__clipped_ratio": [0.5] * 9}, []),
    ],
)
def test_the_rules_warn_where_they_say(columns: dict[str, list[float]], expected: list[tuple[int, str]]) -> None:
    assert rung(early_warnings(steps(**columns))) == expected


def test_steps_without_the_metric_are_stepped_over() -> None:
    """Steps without an update have no entropy; the five that count are those that have it."""
    values = [1.0, np.nan] * 5 + [0.05, np.nan] * 5
    assert rung(early_warnings(steps(entropy=values))) == [(19, "entropy")]


def test_one_may_bring_rules_of_ones_own() -> None:
    rule = Rule("short", "completions/mean_length", "below", 0.5, True, "look", "here")
    assert rung(early_warnings(steps(completions__mean_length=[8.0] * 5 + [3.0] * 5), [rule])) == [
        (10, "completions/mean_length")  # 7, 6, 5 and 4, which is no less than half of 8, then 3
    ]


def test_falls_by_hand() -> None:
    table = pd.DataFrame(
        {
            "eval/e/accuracy": [0.5, 0.7, np.nan, 0.55, 0.4, 0.3, 0.9, 0.2],
            "eval/e/accuracy_low": [0.4, 0.6, np.nan, 0.45, 0.3, 0.2, 0.8, 0.1],
            "eval/e/accuracy_high": [0.6, 0.8, np.nan, 0.65, 0.5, 0.4, 1.0, 0.3],
        },
        index=range(0, 80, 10),
    )
    found = falls(table)
    # 0.65 reaches into 0.6 to 0.8, 0.5 does not; then it is fallen until there is a new best
    assert [(warning.step, warning.value, warning.threshold) for warning in found] == [(40, 0.4, 0.6), (70, 0.2, 0.8)]
    assert early_warnings(table) == found


def test_advice_names_settings_that_exist() -> None:
    named = {name for rule in RULES for name in re.findall(r"\balgo\.(\w+)", rule.advice)}
    assert {"epsilon_high", "max_attempts", "beta"} <= named <= {field.name for field in fields(Algo)}

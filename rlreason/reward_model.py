"""python -m rlreason.reward_model data=<comparisons> [model=<...>] key=value ...

A reward model from comparisons, by Bradley and Terry's model. The run's ``summary.json`` says how it does on held-out
pairs: accuracy with its interval, by category, calibration, and how far length alone explains its choices. An ensemble
is several runs: ``-m seed=1,2,3``, which differ in the head's start and the order of the data; its members are named
where a scorer is asked for (``env.scorer.paths``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
import numpy as np
import rich
from accelerate import Accelerator
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from rlreason import checkpoint
from rlreason.config import CONF, ConfigError, build, continued, guarded, naming, start
from rlreason.fit import Fit, fit, open_fit
from rlreason.pair_stats import calibration, length_bias, report_table
from rlreason.policy import Policy
from rlreason.preferences import BradleyTerry, conversations
from rlreason.scorer import RewardModel, write_facts
from rlreason.stats import estimate
from rlreason.types import Comparison


def load(cfg: DictConfig, accelerator: Accelerator) -> tuple[RewardModel, BradleyTerry]:
    """The reward model and its objective."""
    with naming("model"):
        base: Policy = build(cfg, "model")(device=accelerator.device)
        model = RewardModel(base)
    with naming("reward_model"):
        return model, BradleyTerry(model, use_margin=cfg.use_margin, centring=cfg.center_rewards_coefficient)


def held_out(job: Fit) -> dict[str, Any]:
    """What ``summary.json`` says of the held-out pairs, as the last evaluation found them."""
    results = job.evaluated
    margin = np.array([r["margin"] for r in results])
    lengths = np.array([[len(s.completion_ids) - 1 for s in example.segments] for example in job.validation])
    return {
        "accuracy": {"all": _accuracy(job)} | {category: _accuracy(job, category) for category in job.categories},
        "calibration": calibration(margin),
        "length_bias": length_bias(margin, lengths[:, 0] - lengths[:, 1]),
    }


def _accuracy(job: Fit, category: str | None = None) -> dict[str, Any]:
    """The mean over the ``n`` pairs of a category (None: all), and its interval over their ``prompts``."""
    pairs = zip(job.validation, job.evaluated, strict=True)
    own = [(example.unit, result["accuracy"]) for example, result in pairs if category in (None, example.category)]
    found = estimate([value for _, value in own], units=[unit for unit, _ in own])
    return {**vars(found), "n": len(own), "prompts": found.n}


def run(cfg: DictConfig, out: Path) -> float | None:
    """Train as ``cfg`` says, in run folder ``out``; returns the held-out accuracy. Raises as ``train.run`` does."""
    with open_fit(cfg, out, load, conversations, Comparison) as job:
        if not job.validation:
            raise ConfigError(f"data: {job.name} has no validation pair, which scores are normalised on")
        if cfg.use_margin and not any(example.margin for example in job.train):
            raise ConfigError(
                f"use_margin=true, but no pair of {job.name} has a margin: say where it is (data.columns.margin, or "
                "the two scores), or set use_margin=false"
            )
        fit(job)
        if not job.evaluated:  # taken up again after its last step
            job.evaluated = job.learner.evaluate(job.validation)
        scores = [r[side] for r in job.evaluated for side in ("score_chosen", "score_rejected")]
        found = held_out(job)
        if job.record:
            with naming("reward_model"):
                write_facts(checkpoint.latest(out), mean=float(np.mean(scores)), std=float(np.std(scores)))
        after = job.finish(found)
        if job.record:
            rich.print(report_table(found, job.name))
        return after.get(f"eval/{job.name}/accuracy")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="reward_model")
def main(cfg: DictConfig) -> float | None:
    """The entry point that Hydra calls; the float is what a sweeper optimises."""
    hydra_config = HydraConfig.get()
    cfg = continued(cfg, hydra_config.overrides.task)
    return guarded(lambda: run(cfg, Path(hydra_config.runtime.output_dir)))


if __name__ == "__main__":
    start(main)

"""python -m rlreason.reward_model data=<comparisons> [model=<...>] key=value ...

A reward model from comparisons, by Bradley and Terry's model. The run's ``summary.json`` says how it does on held-out
pairs: accuracy with its interval, by category, calibration, and how far length alone explains its choices. An ensemble
is several runs: ``-m seed=1,2,3``, which differ in the order of the data; its members are named where a scorer is asked
for (``env.scorer.paths``).
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


def load(cfg: DictConfig, accelerator: Accelerator) -> tuple[RewardModel, BradleyTerry]:
    """The reward model and its objective."""
    with naming("model"):
        base: Policy = build(cfg, "model")(device=accelerator.device)
        model = RewardModel(base)
    return model, BradleyTerry(model, use_margin=cfg.use_margin, centring=cfg.center_rewards_coefficient)


def held_out(job: Fit) -> dict[str, Any]:
    """What ``summary.json`` says of the held-out pairs, as the last evaluation found them."""
    results = job.evaluated
    accuracy = {"all": [r["accuracy"] for r in results]}
    for category in job.categories:
        own = zip(results, job.validation, strict=True)
        accuracy[category] = [result["accuracy"] for result, example in own if example.category == category]
    margin = np.array([r["margin"] for r in results])
    lengths = np.array([[len(s.completion_ids) - 1 for s in example.segments] for example in job.validation])
    return {
        "accuracy": {category: vars(estimate(values)) for category, values in accuracy.items()},
        "calibration": calibration(margin),
        "length_bias": length_bias(margin, lengths[:, 0] - lengths[:, 1]),
    }


def run(cfg: DictConfig, out: Path) -> float | None:
    """Train as ``cfg`` says, in run folder ``out``; returns the held-out accuracy. Raises as ``train.run`` does."""
    with open_fit(cfg, out, load, conversations) as job:
        if not job.validation:
            raise ConfigError(f"data: {job.name} has no validation pair, which scores are normalised on")
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

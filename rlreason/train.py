"""python -m rlreason.train +experiment=<name> key=value ...

The RL loop. What it runs on is put together in ``session.py``. Left out: training stages other than RL, which have
entry points of their own.
"""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from rlreason.config import CONF, continued, guarded, start
from rlreason.session import Session, open_session


def train(run: Session) -> float | None:
    """All steps that are left of a run; returns the last validation accuracy."""
    if run.done == 0:
        run.begin()
    for step in run.steps():
        collected = run.collect(step)  # problems drawn, generated, turned, graded
        with run.clock.measure("annotate"):
            batch = run.collate(collected.rollouts)  # the only place that pads
            batch = run.learner.annotate(batch)  # old_logp, ref_logp, value: what the algorithm needs
            batch = run.algo.estimator(batch, run.learner.sum)  # advantage (R, S), returns
        with run.clock.measure("update"):
            metrics = run.learner.update(batch)  # mini-batches, micro-batches, loss, optimiser step
        with run.clock.measure("sync"):
            run.engine.sync(run.policy)  # rollouts always see these weights
        run.end_step(step, collected, batch, metrics)  # evaluation, metrics.jsonl, traces, console, wandb, checkpoint
    return run.finish()


def run(cfg: DictConfig, out: Path) -> float | None:
    """Train as ``cfg`` says, in run folder ``out``.

    Raises ConfigError before any work is lost where the configuration can't be run, and SystemExit (128 + signal)
    after a SIGINT or SIGTERM, with the state saved.
    """
    with open_session(cfg, out) as session:
        return train(session)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def main(cfg: DictConfig) -> float | None:
    """The entry point that Hydra calls; the float is what a sweeper optimises."""
    hydra_config = HydraConfig.get()
    cfg = continued(cfg, hydra_config.overrides.task)
    return guarded(lambda: run(cfg, Path(hydra_config.runtime.output_dir)))


if __name__ == "__main__":
    start(main)

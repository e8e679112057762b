"""python -m rlreason.train +experiment=<name> key=value ...

The RL loop. What it runs on is put together in ``assembly.py``. Left out: training stages other than RL, which have
entry points of their own.
"""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from rlreason.assembly import open_session
from rlreason.config import CONF, continued, guarded, start
from rlreason.session import Session
from rlreason.sweep import run_job


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
        metrics |= run.observe(collected)  # curricula learn what was solved; part of the saved state
        run.end_step(step, collected, batch, metrics)  # evaluation, metrics.jsonl, traces, console, wandb, checkpoint
    return run.finish()


def run(cfg: DictConfig, out: Path) -> float | None:
    """Train as ``cfg`` says, in run folder ``out``.

    Raises ConfigError before any work is lost where the configuration can't be run, and SystemExit (128 + signal)
    after a SIGINT or SIGTERM, with the state saved.
    """
    with open_session(cfg, out) as session:
        accuracy = train(session)
    if session.stop.number:  # it came in the last step: this run is whole, and what would come after it shall not begin
        raise SystemExit(128 + session.stop.number)
    return accuracy


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def main(cfg: DictConfig) -> float | None:
    """The entry point that Hydra calls; the float is what a sweeper optimises."""
    hydra_config = HydraConfig.get()
    cfg = continued(cfg, hydra_config.overrides.task)
    out = Path(hydra_config.runtime.output_dir)
    if hydra_config.mode == RunMode.MULTIRUN:
        number, overrides = hydra_config.job.num, hydra_config.overrides.task
        return run_job(lambda: run(cfg, out), cfg, out, number=number, overrides=overrides)
    return guarded(lambda: run(cfg, out))


if __name__ == "__main__":
    start(main)

"""python -m rlreason.bench +experiment=<name> max_steps=<repeats>: how fast rollouts and updates are on this machine.

Runs real training steps in a folder that is thrown away, the first one unmeasured, and prints medians with their
range. Left out: other libraries side by side (another issue).
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import hydra
import rich
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from rlreason.config import CONF, guarded, start
from rlreason.metrics import completion_length
from rlreason.session import open_session


def run(cfg: DictConfig, out: Path) -> None:
    """Time ``cfg.max_steps`` steps after one to warm up; prints a table."""
    OmegaConf.update(cfg, "console.quiet", True)
    OmegaConf.update(cfg, "logger.mode", "disabled")
    rollout_seconds: list[float] = []
    update_seconds: list[float] = []
    rollout_tokens: list[int] = []
    update_tokens: list[int] = []
    with open_session(cfg, out) as session:
        for step in range(cfg.max_steps + 1):
            begin = time.perf_counter()
            rollouts = session.collector.collect(step + 1).rollouts
            drawn = time.perf_counter()
            batch = session.learner.annotate(session.collate(rollouts))
            session.learner.update(session.algo.estimator(batch, session.learner.sum))
            session.engine.sync(session.policy)
            if step == 0:
                continue
            rollout_seconds.append(drawn - begin)
            update_seconds.append(time.perf_counter() - drawn)
            rollout_tokens.append(sum(map(completion_length, rollouts)))
            update_tokens.append(int(batch.attention.sum()))
    table = Table(title=f"{cfg.name}: {cfg.max_steps} steps")
    for heading in ("phase", "seconds", "range", "tokens/s"):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    _row(table, "rollout (completion tokens)", rollout_seconds, rollout_tokens)
    _row(table, "update (all tokens, skipped rows included)", update_seconds, update_tokens)
    rich.print(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of the process: {peak:.1f} GiB")


def _row(table: Table, phase: str, seconds: Sequence[float], tokens: Sequence[int]) -> None:
    speed = median(count / time_ for count, time_ in zip(tokens, seconds, strict=True))
    table.add_row(phase, f"{median(seconds):.2f}", f"{min(seconds):.2f} to {max(seconds):.2f}", f"{speed:.0f}")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def main(cfg: DictConfig) -> None:
    """The entry point that Hydra calls; the run folder is a temporary one."""
    with tempfile.TemporaryDirectory(prefix="rlreason-bench-") as folder:
        guarded(lambda: run(cfg, Path(folder)))


if __name__ == "__main__":
    start(main)

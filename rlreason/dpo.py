"""python -m rlreason.dpo data=<comparisons> [model=<...>] key=value ...

Direct preference optimisation: the policy learns from comparisons without a reward model. The reference is the model
that training starts from.
"""

from __future__ import annotations

from pathlib import Path

import hydra
from accelerate import Accelerator
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from rlreason.config import CONF, build, continued, guarded, naming, start
from rlreason.fit import fit, open_fit
from rlreason.policy import Policy
from rlreason.preferences import DPO, completions
from rlreason.types import Comparison


def load(cfg: DictConfig, accelerator: Accelerator) -> tuple[Policy, DPO]:
    """The policy with its reference, and the objective."""
    with naming("model"):
        policy: Policy = build(cfg, "model")(device=accelerator.device)
        policy.add_reference()
    with naming("dpo"):
        return policy, DPO(policy, beta=cfg.beta, label_smoothing=cfg.label_smoothing)


def run(cfg: DictConfig, out: Path) -> float | None:
    """Train as ``cfg`` says, in run folder ``out``; returns the last validation loss. Raises as ``train.run`` does."""
    with open_fit(cfg, out, load, completions, Comparison) as job:
        fit(job)
        return job.finish().get(f"eval/{job.name}/loss")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="dpo")
def main(cfg: DictConfig) -> float | None:
    """The entry point that Hydra calls; the float is what a sweeper optimises."""
    hydra_config = HydraConfig.get()
    cfg = continued(cfg, hydra_config.overrides.task)
    return guarded(lambda: run(cfg, Path(hydra_config.runtime.output_dir)))


if __name__ == "__main__":
    start(main)

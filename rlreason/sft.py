"""python -m rlreason.sft data=<name> [model=<...>] key=value ...

Supervised fine-tuning: the loss is that of the assistant's tokens alone, every token weighing the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
from accelerate import Accelerator
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from rlreason.chat import demonstrated
from rlreason.config import CONF, build, continued, guarded, naming, start
from rlreason.examples import Example, unit_of
from rlreason.fit import fit, open_fit
from rlreason.policy import Policy
from rlreason.supervised import Losses, per_example
from rlreason.types import Batch, Demonstration


@dataclass(frozen=True)
class NextToken:
    """The negative log-likelihood of the tokens in the mask, in nats; metric ``entropy``, of the policy there."""

    policy: Policy

    def count(self, example: Example) -> int:
        return sum(sum(segment.mask) for segment in example.segments)

    def __call__(self, batch: Batch, examples: Sequence[Example]) -> Losses:
        outputs = self.policy.forward(batch, 1.0)
        assert outputs.entropy is not None
        loss = per_example(-outputs.logp, batch, len(examples))
        return loss, {"entropy": per_example(outputs.entropy.detach(), batch, len(examples))}


def load(cfg: DictConfig, accelerator: Accelerator) -> tuple[Policy, NextToken]:
    """The policy and its objective."""
    with naming("model"):
        policy: Policy = build(cfg, "model")(device=accelerator.device)
    return policy, NextToken(policy)


def prepare(policy: Policy, item: Demonstration) -> Example:
    """A conversation as rows of tokens. Raises ValueError if the assistant has no turn in it."""
    rows = demonstrated(policy.tokenizer, policy.end_ids, item.messages, tools=item.tools)
    return Example(tuple(rows), item.source, unit_of(item.messages[:-1]))


def run(cfg: DictConfig, out: Path) -> float | None:
    """Train as ``cfg`` says, in run folder ``out``; returns the last validation loss. Raises as ``train.run`` does."""
    with open_fit(cfg, out, load, prepare, Demonstration) as job:
        fit(job)
        return job.finish().get(f"eval/{job.name}/loss")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="sft")
def main(cfg: DictConfig) -> float | None:
    """The entry point that Hydra calls; the float is what a sweeper optimises."""
    hydra_config = HydraConfig.get()
    cfg = continued(cfg, hydra_config.overrides.task)
    return guarded(lambda: run(cfg, Path(hydra_config.runtime.output_dir)))


if __name__ == "__main__":
    start(main)

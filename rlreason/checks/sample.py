"""A small sample of rollouts, drawn as the first training step would draw them, with what the trainer says of it.

Left out: what needs many steps to see, such as entropy that falls or a reward that gets hacked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from rlreason.assembly import Parts
from rlreason.batch import collate, micro_batches
from rlreason.clock import Clock
from rlreason.learner import Learner
from rlreason.policy import Policy, take_rows
from rlreason.rollout import roll_out
from rlreason.sampler import derived_seed
from rlreason.types import Batch, Completion, Engine, Outputs, Problem, Request, Rollout

ROWS = 48
"""Completions in the sample, about."""


@dataclass(frozen=True)
class Agreement:
    """Mean difference of log-probabilities, in nats: what rounding explains, and what it can't."""

    rounding: float
    fault: float


AGREEMENT = {torch.bfloat16: Agreement(0.03, 0.1), torch.float32: Agreement(1e-3, 1e-2)}
"""By the dtype that computes. Measured in training with bfloat16: 0.003 to 0.023; with float32: below 1e-5."""


@dataclass(frozen=True)
class Sample:
    """Rollouts with what the engine returned for them, what the trainer says of their tokens, and seconds by phase."""

    rollouts: list[Rollout]
    completions: list[Completion]
    batch: Batch
    outputs: Outputs
    seconds: Mapping[str, float]


class Recorder:
    """An engine that keeps what it returned."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.completions: list[Completion] = []

    @property
    def max_length(self) -> int:
        return self.engine.max_length

    def submit(self, request: Request) -> int:
        return self.engine.submit(request)

    def completed(self) -> Iterator[tuple[int, Completion]]:
        for ticket, completion in self.engine.completed():
            self.completions.append(completion)
            yield ticket, completion

    def sync(self, policy: Policy) -> None:
        self.engine.sync(policy)


def first_problems(parts: Parts) -> list[Problem]:
    """Problems that step 1 would begin with."""
    count = min(parts.algo.num_prompts, max(2, ROWS // _group_size(parts)))
    return parts.sampler.draw(1, 0, count)


def take(parts: Parts, learner: Learner, seed: int) -> Sample:
    """Groups of up to 16 samples, about ``ROWS`` in all."""
    problems, recorder = first_problems(parts), Recorder(parts.engine)
    clock = Clock(parts.policy.device)
    rollouts = roll_out(
        recorder, parts.env, parts.policy, problems, parts.sampling, samples=_group_size(parts),
        groups=range(len(problems)), seed=derived_seed(seed, "doctor"), clock=clock,
    )  # fmt: skip
    truncated = parts.algo.mask_truncated_completions
    batch = collate(rollouts, mask_truncated=truncated, device=parts.policy.device)
    outputs = score(parts.policy, learner, batch, learner.temperature)
    return Sample(rollouts, recorder.completions, batch, outputs, clock.take())


@torch.no_grad()
def score(policy: Policy, learner: Learner, batch: Batch, temperature: float) -> Outputs:
    """Log-probabilities and entropies (R, S) of a batch as the update computes them, in its micro-batches."""
    logp, entropy = torch.zeros_like(batch.sampler_logp), torch.zeros_like(batch.sampler_logp)
    rows = torch.arange(len(batch.tokens), device=batch.tokens.device)
    for cut in micro_batches(batch, rows, learner.micro_batch_tokens, shared_prompts=policy.shares_prompts):
        out = policy.forward(take_rows(batch, cut), temperature)
        assert out.entropy is not None
        width = out.logp.shape[1]
        logp[cut, :width], entropy[cut, :width] = out.logp, out.entropy
    return Outputs(logp, entropy)


def agreement(policy: Policy) -> Agreement:
    """What is rounding at the precision that the policy computes in."""
    return AGREEMENT.get(policy.model.dtype, AGREEMENT[torch.bfloat16])


def _group_size(parts: Parts) -> int:
    return min(parts.algo.num_generations, 16)

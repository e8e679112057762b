"""A few updates on one small batch whose every completion is said to be good, and what they do.

The learning rate is one that a model of this width surely moves under, not the run's own: what is looked at is whether
the parts are connected, not whether the rate is well chosen.

Left out: whether the run will learn; only running it tells.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch

from rlreason.algo import Algo
from rlreason.assembly import Parts
from rlreason.batch import micro_batches, stack
from rlreason.checks import Verdict, failed, passed, warned
from rlreason.checks.sample import Sample, agreement, score
from rlreason.engines import generate
from rlreason.learner import Learner
from rlreason.policy import Policy, take_rows
from rlreason.types import Batch, Request, Segment

UPDATES = 8
"""Updates on the batch, at most: fewer where its log-probability has moved enough to tell."""

RATE = 0.02
"""Learning rate times width of the hidden states: Adam's first steps move a product of ``width`` terms in proportion to
both. 3.5e-5 for SmolLM2-135M."""

LORA_RATE = 10
"""How many times that is for adapters, which are few and begin at zero."""

RISE = 0.3
"""Share of the difference that rounding explains in one token which the mean over a batch must rise by, at least."""

TOKENS = 1024
"""Tokens of the batch on a CPU, at most. On a GPU it is a whole micro-batch, whose memory then is the run's."""

TELLING = 4
"""How many times the difference that rounding explains the log-probabilities must move to tell a stale engine."""


@dataclass(frozen=True)
class Trained:
    """``ratio_error`` is the mean of abs(log ratio) at the first step, in nats; ``rise`` and ``moved`` the mean change
    of log-probability a token, signed and absolute; ``changed`` the share of the policy's trained tensors that
    changed; ``seconds`` and ``tokens`` are of one update."""

    rows: int
    updates: int
    grad_norm: float
    ratio_error: float
    rise: float
    moved: float
    changed: float
    seconds: float
    tokens: int


def probing(algo: Algo, policy: Policy) -> Algo:
    """``algo`` at a learning rate that shows in a few updates, from the first of them on."""
    rate = RATE / policy.model.config.get_text_config().hidden_size * (LORA_RATE if policy.adapter is not None else 1)
    return replace(algo, learning_rate=rate, warmup_steps=0, lr_scheduler_type="constant", critic_warmup_steps=0)


def train(policy: Policy, learner: Learner, sample: Sample) -> Trained:
    """Up to ``UPDATES`` updates with advantage 1 on the first micro-batch of the sample."""
    batch = _small(policy, learner, sample.batch)
    before = score(policy, learner, batch, learner.temperature).logp
    policy.train(True)
    training = score(policy, learner, batch, learner.temperature).logp
    policy.train(False)
    old = _heads(policy)
    limit = agreement(policy).rounding
    norms: list[float] = []
    seconds, rise, moved = math.inf, 0.0, 0.0
    while len(norms) < UPDATES and not (rise > RISE * limit and moved > TELLING * limit):
        begin = time.perf_counter()
        metrics = learner.update(_praised(learner, batch))
        if policy.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = min(seconds, time.perf_counter() - begin)
        norms.append(metrics.get("grad_norm", 0.0))
        change = (score(policy, learner, batch, learner.temperature).logp - before)[batch.mask]
        rise, moved = float(change.mean()), float(change.abs().mean())
    changed = [not torch.equal(a, b) for a, b in zip(old, _heads(policy), strict=True)]
    return Trained(
        rows=len(batch.tokens),
        updates=len(norms),
        grad_norm=norms[0],
        ratio_error=float((training - before)[batch.mask].abs().mean()),
        rise=rise,
        moved=moved,
        changed=sum(changed) / len(changed),
        seconds=seconds,
        tokens=int(batch.attention.sum()),
    )


def ratio(trained: Trained, policy: Policy) -> Verdict:
    """Whether the policy that is updated is, before the first step, the one that the ratio is taken against."""
    mean = math.exp(trained.ratio_error)
    figure = f"{mean:.4g} on average before the first step (1 is exact)"
    if trained.ratio_error > agreement(policy).rounding:
        return warned(
            figure,
            "training mode computes another policy than evaluation mode: set the model's and LoRA's dropout to 0, or "
            "every step begins clipped",
        )
    return passed(figure)


def gradient(trained: Trained, algo: Algo) -> Verdict:
    """Whether the first update has a gradient, a finite one."""
    figure = f"norm {trained.grad_norm:.3g}, clipped at {algo.max_grad_norm:g}"
    if not math.isfinite(trained.grad_norm):
        return failed(figure, "one such step ruins the weights: try model.dtype=float32, look for 0 / 0 in the terms")
    if trained.grad_norm == 0:
        return failed(
            figure, "no term of the loss reaches a parameter that trains: look at algo.terms and what is frozen"
        )
    return passed(figure)


def overfit(trained: Trained, policy: Policy) -> Verdict:
    """Whether updates raise the log-probability of completions that they say are good."""
    figure = f"log p of {trained.rows} praised rows {trained.rise:+.3g} nats a token after {trained.updates} update(s)"
    if trained.changed == 0:
        return failed(
            f"{figure}; no weight of the policy changed",
            "the optimiser moves other tensors than those that compute: build it on policy.parameters() or their "
            "masters, and publish these after each step",
        )
    if not trained.rise > RISE * agreement(policy).rounding:
        return failed(
            f"{figure}; {trained.changed:.0%} of the parameters changed",
            "the update does not do what the advantages say: look for a sign, a mask, or a KL weight that holds it",
        )
    return passed(figure)


def sync(parts: Parts, learner: Learner, sample: Sample, trained: Trained) -> Verdict:
    """Whether the engine samples from the updated weights once it was told of them."""
    policy, sampling = parts.policy, parts.sampling
    short = replace(sampling, max_completion_length=min(32, sampling.max_completion_length))
    first = {rollout.group: rollout.segments[0].prompt_ids for rollout in sample.rollouts}
    requests = [Request(ids, short, seed) for ids in list(first.values())[:2] for seed in range(4)]
    parts.engine.sync(policy)
    completions = generate(parts.engine, requests)
    segments = [
        Segment(request.ids, completion.ids, completion.logprobs, [True] * len(completion.ids))
        for request, completion in zip(requests, completions, strict=True)
    ]
    batch = stack(segments, [index // 4 for index in range(len(segments))], device=policy.device)
    logp = score(policy, learner, batch, learner.temperature).logp
    difference = float((logp - batch.sampler_logp)[batch.mask].abs().mean())
    limit = agreement(policy).rounding
    figure = f"mean difference {difference:.2g} nats after the update, which moved log p by {trained.moved:.2g}"
    if difference > limit and difference > trained.moved / TELLING:
        return failed(
            figure,
            "the engine still samples from other weights: engine.sync(policy) must take over the new ones (merged with "
            "LoRA's), or every step is off policy",
        )
    if trained.moved < TELLING * limit:
        return warned(figure, "the update moved too little to tell a stale engine from rounding")
    return passed(figure)


def _heads(policy: Policy) -> list[torch.Tensor]:
    """The first numbers of every trained parameter of the model that acts: whole copies would double its memory."""
    return [parameter.detach().flatten()[:1024].clone() for parameter in policy.actor_parameters()]


def _small(policy: Policy, learner: Learner, batch: Batch) -> Batch:
    """The rows of the first micro-batch, all of them live."""
    size = learner.micro_batch_tokens if policy.device.type == "cuda" else min(TOKENS, learner.micro_batch_tokens)
    rows = torch.arange(len(batch.tokens), device=batch.tokens.device)
    cut = micro_batches(batch, rows, size, shared_prompts=policy.shares_prompts)[0]
    return replace(take_rows(batch, cut), live=torch.ones(len(cut), dtype=torch.bool, device=cut.device))


def _praised(learner: Learner, batch: Batch) -> Batch:
    """What the update is given, but with advantage 1 on every token of the policy's."""
    batch = learner.algo.estimator(learner.annotate(batch), learner.sum)
    live = torch.ones_like(batch.live)
    return replace(batch, live=live, advantage=batch.mask.float())

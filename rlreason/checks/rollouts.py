"""What a sample of rollouts shows: masks, lengths, log-probabilities, rewards."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import groupby
from statistics import fmean

import torch

from rlreason.assembly import Parts
from rlreason.checks import Verdict, failed, passed, skipped, warned
from rlreason.checks.sample import Sample, agreement, first_problems, score
from rlreason.engines import generate
from rlreason.learner import Learner
from rlreason.policy import Policy
from rlreason.sampler import derived_seed
from rlreason.types import Request, Sampling

TRUNCATED = 0.25
"""Share of completions cut off from which on it is a warning."""

CERTAIN = 0.02
"""Nats a token below which a policy leaves its groups no spread."""

UNIFORM = 0.9
"""Share of the entropy of a uniform choice from which on a policy looks as if it knew nothing."""

SURPRISE = 4.0
"""Standard errors between surprise and entropy: beyond, it is no chance."""


def determinism(parts: Parts, seed: int) -> Verdict:
    """Whether the same seeds give the same completions twice."""
    short = replace(parts.sampling, max_completion_length=min(32, parts.sampling.max_completion_length))
    problem = first_problems(parts)[0]
    ids = parts.policy.render(problem.prompt, problem.tools).ids
    requests = [Request(ids, short, derived_seed(seed, "doctor", i)) for i in range(4)]
    begin = time.perf_counter()
    once = generate(parts.engine, requests)
    seconds = time.perf_counter() - begin
    twice = generate(parts.engine, requests)
    same = sum(a.ids == b.ids for a, b in zip(once, twice, strict=True))
    if same < len(requests):
        return warned(
            f"{len(requests) - same} of {len(requests)} completions differ with the same seeds",
            "runs can't be repeated, nor resumed exactly: look for a sampler that ignores Request.seed",
        )
    return passed(f"{len(requests)} completions twice the same, in {seconds:.1f} s")


def masks(sample: Sample, policy: Policy) -> Verdict:
    """Whether the tokens trained on are those that the engine sampled, end tokens aside."""
    wanted = Counter(_without_end(completion.ids, policy) for completion in sample.completions)
    trained: Counter[tuple[int, ...]] = Counter()
    batch = sample.batch
    for ids, mask in zip(batch.tokens.tolist(), batch.mask.tolist(), strict=True):
        runs = groupby(zip(ids, mask, strict=True), key=lambda pair: pair[1])
        trained.update(_without_end([token for token, _ in run], policy) for inside, run in runs if inside)
    extra, left_out = trained - wanted, wanted - trained
    extra.pop((), None)
    left_out.pop((), None)
    if extra or left_out:
        text = repr(policy.tokenizer.decode(next(iter(extra or left_out)), skip_special_tokens=False))
        return failed(
            f"{sum(extra.values())} stretches are trained on that were not sampled, {sum(left_out.values())} were "
            f"sampled and are not: {text if len(text) < 60 else text[:57] + '…'} for one",
            "the mask must be True on the policy's own tokens alone, not on the prompt's nor the environment's",
        )
    real = int(batch.attention.sum())
    return passed(f"{int(batch.mask.sum())} of {real} tokens are trained on, those that were sampled")


def end_in_loss(sample: Sample, policy: Policy, sampling: Sampling) -> Verdict:
    """Whether an end token ends its completion, stays in it and is trained on, also where it pads batches."""
    ends = policy.end_ids
    for completion in sample.completions:
        if any(token in ends for token in completion.ids[:-1]):
            return failed(
                "a completion goes on after an end token",
                "the engine stops at another token than the policy's end tokens",
            )
        if completion.finish == "stop" and completion.ids[-1] not in ends and not sampling.stop:
            return failed(
                "a completion ended by itself and does not hold its end token",
                "the engine must keep the token: without it the policy never learns to stop",
            )
    kept = sum(completion.ids[-1] in ends for completion in sample.completions)
    batch = sample.batch
    found = torch.isin(batch.tokens, torch.tensor(sorted(ends), device=batch.tokens.device)) & batch.mask
    pads = ", and pad is one of them" if policy.tokenizer.pad_token_id in ends else ""
    if int(found.sum()) < kept:
        return failed(
            f"{kept} completions ended, {int(found.sum())} of their end tokens are trained on{pads}",
            "the policy would never learn to stop: take the mask from lengths, never from the pad token",
        )
    if not kept:
        return skipped(f"none of {len(sample.completions)} completions ended by itself")
    return passed(f"{kept} end tokens of {len(sample.completions)} completions, all trained on{pads}")


def truncation(sample: Sample, sampling: Sampling) -> Verdict:
    """The share of completions that the length limit cut off."""
    share = fmean(rollout.finish == "length" for rollout in sample.rollouts)
    mean = fmean(len(completion.ids) for completion in sample.completions)
    figure = (
        f"{share:.0%} of {len(sample.rollouts)} cut off at {sampling.max_completion_length} tokens, mean {mean:.0f}"
    )
    if share > TRUNCATED:
        return warned(
            figure,
            "they earn nothing for what they didn't come to say: raise sampling.max_completion_length, or begin from a "
            "model that answers in fewer words",
        )
    return passed(figure)


def log_probs(sample: Sample, policy: Policy, learner: Learner, sampling: Sampling) -> Verdict:
    """Engine against trainer: the log-probabilities of the sampled tokens at the sampling temperature."""
    batch, mask, limit = sample.batch, sample.batch.mask, agreement(policy)
    difference = (sample.outputs.logp - batch.sampler_logp)[mask].abs()
    mean, largest = float(difference.mean()), float(difference.max())
    figure = f"mean difference {mean:.2g} nats a token, largest {largest:.2g}, at temperature {sampling.temperature:g}"
    if mean <= limit.rounding:
        return passed(figure)
    if sampling.temperature != 1:
        plain = score(policy, learner, batch, 1.0).logp
        if float((plain - sample.outputs.logp)[mask].abs().mean()) <= limit.rounding:
            return failed(figure, "the trainer leaves the sampling temperature out: its ratios are of another policy")
        if float((plain - batch.sampler_logp)[mask].abs().mean()) <= limit.rounding:
            return failed(figure, "the engine reports log-probabilities without the sampling temperature")
    verdict = warned if mean <= limit.fault else failed
    return verdict(
        figure,
        f"rounding explains {limit.rounding:g}: look for weights that differ, another position or attention mask, "
        "or a lower precision in the engine",
    )


def sampler(sample: Sample) -> Verdict:
    """Whether tokens were drawn from the distribution that the trainer computes: the mean of -log p over sampled tokens
    is its entropy, whatever the policy (a martingale's sum, so its standard error needs no independence)."""
    assert sample.outputs.entropy is not None
    surprise, entropy = -sample.outputs.logp[sample.batch.mask], sample.outputs.entropy[sample.batch.mask]
    gap = (surprise - entropy).double()
    figure = f"surprise {float(surprise.mean()):.3f}, entropy {float(entropy.mean()):.3f} nats a token"
    if abs(float(gap.sum())) > SURPRISE * max(float(gap.square().sum().sqrt()), 1e-6 * len(gap)):
        return failed(
            figure,
            "tokens come from another distribution than log-probabilities are of: look for top-p, top-k or penalties "
            "in the engine (a model's generation_config.json may bring them)",
        )
    return passed(figure)


def entropy(sample: Sample, policy: Policy) -> Verdict:
    """Whether the untrained policy knows something and leaves something open."""
    assert sample.outputs.entropy is not None
    mean = float(sample.outputs.entropy[sample.batch.mask].mean())
    uniform = math.log(policy.model.config.get_text_config().vocab_size)
    figure = f"{mean:.3g} nats a token; a uniform choice has {uniform:.3g}"
    if not math.isfinite(mean):
        return failed(figure, "logits are not finite: try model.dtype=float32, another attn_implementation")
    if mean > UNIFORM * uniform:
        return warned(figure, "the model knows nothing: its weights are random (model=tiny is) or were not loaded")
    if mean < CERTAIN:
        return warned(figure, "all samples of a group will be the same: raise sampling.temperature")
    return passed(figure)


def signal(sample: Sample, parts: Parts) -> Verdict:
    """How many groups have rewards that differ, which is all that the update learns from."""
    groups: dict[int, list[float]] = defaultdict(list)
    for rollout in sample.rollouts:
        if rollout.grade.status != "error":
            groups[rollout.group].append(rollout.grade.reward)
    errors = fmean(rollout.grade.status == "error" for rollout in sample.rollouts)
    if errors:
        return warned(f"{errors:.0%} of the grades are errors", "the verifier fails by itself; such rows don't train")
    spread = sum(min(rewards) < max(rewards) for rewards in groups.values())
    mean = fmean(reward for rewards in groups.values() for reward in rewards)
    names = dict.fromkeys(name for r in sample.rollouts for name in r.grade.parts)
    never = [name for name in names if not any(r.grade.parts.get(name) for r in sample.rollouts)]
    figure = f"rewards differ in {spread} of {len(groups)} groups, mean {mean:.3g}"
    if never:
        figure += f"; nobody earned {', '.join(never)}"
    most = 1 - 0.05 ** (1 / len(groups))  # of groups with signal, if none of these has any: 95 % confidence
    if spread == 0:
        return warned(
            f"{figure}; at most {most:.0%} of all groups would (95 % confidence)",
            "nothing to learn from: take easier or harder problems, more algo.num_generations, a worked example in the "
            "prompt, or a start by supervised training (rlreason.sft)",
        )
    if any(name.rpartition("/")[2] == "format" for name in never):
        return warned(figure, "the format is never hit: show it by an example, or begin with supervised training")
    return passed(figure)


def _without_end(ids: list[int], policy: Policy) -> tuple[int, ...]:
    return tuple(ids[:-1] if ids and ids[-1] in policy.end_ids else ids)

"""One update: mini-batches, micro-batches, loss, optimiser step; over one process or several.

Gradients are accumulated on float32 master weights (``masters.py``). Every token's weight is normalised over the whole
mini-batch, so micro-batches and processes simply add up.

accelerate supplies processes, devices and reductions. Left out: its DistributedDataParallel and FSDP wrappers. One
all-reduce of the summed gradient gives the same numbers, needs no equal counts of micro-batches and so can't deadlock;
models too large for one device's memory need FSDP, which is not here yet.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from rlreason.algo import Algo
from rlreason.batch import live_tokens, micro_batches, mini_batches
from rlreason.losses import objective
from rlreason.masters import Masters, Part
from rlreason.policy import Policy, take_rows
from rlreason.shaping import shaped
from rlreason.types import Batch, Outputs


class Learner:
    """Trains ``policy`` with AdamW on the terms of ``algo``.

    ``micro_batch_tokens`` bounds the padded tokens of a forward and backward pass, and so the memory.
    ``max_steps`` is where a decaying learning rate ends. ``seen`` is what the first pass of the last update over each
    row found, (R, S), NaN in rows that it had no use for.
    """

    def __init__(
        self,
        policy: Policy,
        algo: Algo,
        accelerator: Accelerator,
        *,
        max_steps: int,
        micro_batch_tokens: int,
        temperature: float,
    ) -> None:
        if micro_batch_tokens < 1:
            raise ValueError(f"learner.micro_batch_tokens is {micro_batch_tokens}; it must be at least 1")
        self.policy = policy
        self.algo = algo
        self.accelerator = accelerator
        self.micro_batch_tokens = micro_batch_tokens
        self.temperature = temperature
        self.steps = 0  # training steps taken, for the schedule
        self.kl_scale = 1.0  # on the coefficients of the KL, if it has a target
        self.seen: Outputs | None = None
        self.masters = policy.take_masters()
        actor, critic = policy.actor_parameters(), list(policy.critic_parameters().values())
        self.actor_masters, self.critic_masters = self.masters[: len(actor)], self.masters[len(actor) :]
        self._actor = Part(actor, self.actor_masters, algo.learning_rate)
        self._critic = Part(critic, self.critic_masters, algo.critic_learning_rate or algo.learning_rate)
        self._trained = Masters([self._actor, self._critic], algo, accelerator, max_steps=max_steps)
        self.optimizer = self._trained.optimizer
        self.publish = self._trained.publish
        self.sum = self._trained.sum

    def annotate(self, batch: Batch) -> Batch:
        """What the algorithm needs to know of the batch before its estimator, shaped rewards among it."""
        rows = torch.arange(len(batch.tokens), device=batch.tokens.device)
        batch = self.policy.annotate(batch, self.temperature, self.algo.annotations, self._cuts(batch, rows))
        return shaped(batch, [_scaled(shaping, self.kl_scale) for shaping in self.algo.active_shaping])

    def update(self, batch: Batch) -> dict[str, float]:
        """All optimiser steps on a batch with advantages; returns metrics, the same on every process."""
        self.steps += 1
        learning_rate = self._trained.begin_step(self.steps)
        meter = _Meter(self.accelerator)
        norms: list[list[float]] = []
        rows_seen = rows_run = 0
        seen = self.seen = Outputs(*(torch.full_like(batch.sampler_logp, float("nan")) for _ in range(2)))
        self.policy.train(True)
        for iteration in range(self.algo.num_iterations):
            for rows in mini_batches(batch, self.algo.num_mini_batches):
                run = rows[self.algo.trains_on(batch)[rows]]
                rows_seen, rows_run = rows_seen + len(rows), rows_run + len(run)
                found = self._step(batch, rows, run, meter, seen if iteration == 0 else None)
                if found is not None:
                    norms.append(found)
        self.policy.train(False)
        planned = self.algo.num_iterations * self.algo.num_mini_batches
        seen, done = self.sum(torch.tensor([rows_seen, rows_run])).tolist()
        metrics = meter.result() | {
            "learning_rate": learning_rate,
            "optimizer_steps": len(norms),
            "skipped_optimizer_steps": planned - len(norms),
            "frac_rows_skipped": 1 - done / seen if seen else 0.0,
        }
        for name, values in zip(("grad_norm", "value/grad_norm"), zip(*norms, strict=True), strict=False):
            metrics[name] = sum(values) / len(values)
        return metrics | self._move_reference(batch, metrics)

    def _move_reference(self, batch: Batch, metrics: dict[str, float]) -> dict[str, float]:
        """Metrics of the KL, after which its coefficients and the reference are what the next step shall find."""
        found: dict[str, float] = {}
        if batch.old_logp is not None and batch.ref_logp is not None and "kl" not in metrics:
            difference = (batch.old_logp - batch.ref_logp)[live_tokens(batch)].double()
            total, count = self.sum(torch.stack([difference.sum(), torch.ones_like(difference).sum()])).tolist()
            if count:
                found["kl"] = total / count
        if self.algo.kl_target is not None:
            found["kl_scale"] = self.kl_scale
            kl = found.get("kl", metrics.get("kl"))
            if kl is not None and self.steps > self.algo.critic_warmup_steps:  # until then nothing could move
                self.kl_scale = adapted(self.kl_scale, kl, self.algo.kl_target)
        every = self.algo.ref_model_sync_steps
        if every is not None and self.steps % every == 0:
            self.policy.refresh_reference()
        return found

    def _cuts(self, batch: Batch, rows: torch.Tensor) -> list[torch.Tensor]:
        return micro_batches(batch, rows, self.micro_batch_tokens, shared_prompts=self.policy.shares_prompts)

    def _step(
        self, batch: Batch, rows: torch.Tensor, run: torch.Tensor, meter: _Meter, seen: Outputs | None
    ) -> list[float] | None:
        """One optimiser step; the norm of the gradient before clipping, and of the critic's, if there is one. None if
        no row anywhere has a say. (A step with a zero gradient would still move the weights, by Adam's momentum.)
        ``seen`` takes what the policy's passes find."""
        live = live_tokens(batch)[rows]
        counts = self.sum(torch.tensor([len(run), int(batch.live[rows].sum()), int(live.sum())]))
        running, live_rows, live_count = counts.tolist()
        if running == 0:
            return None
        warming_up = self.steps <= self.algo.critic_warmup_steps
        terms = [_scaled(t, self.kl_scale) for t in self.algo.active_terms if not warming_up or "value" in t.needs]
        for cut in self._cuts(batch, run):
            part = take_rows(batch, cut)
            if warming_up:
                outputs = Outputs(logp=torch.zeros_like(part.sampler_logp), value=self.policy.values(part))
            else:
                outputs = self.policy.forward(part, self.temperature, value=self.algo.has_critic)
            weight = self.algo.aggregation(part, live_rows, live_count)
            loss, metrics = objective(terms, outputs, part, weight)
            loss.backward()
            if outputs.entropy is not None:  # logged, with or without a bonus for it
                metrics["entropy"] = outputs.entropy.detach()
                if seen is not None and seen.entropy is not None:
                    width = outputs.logp.shape[1]
                    seen.logp[cut, :width] = outputs.logp.detach()
                    seen.entropy[cut, :width] = outputs.entropy.detach()
            meter.add(live_tokens(part), metrics)
        return self._trained.step([self._critic] if warming_up else [self._actor, self._critic])

    def state_dict(self) -> dict[str, Any]:
        """Everything but the model's trained weights, which are the checkpoint's own files."""
        refreshed = self.policy.reference if self.algo.ref_model_sync_steps is not None else None
        return {
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "kl_scale": self.kl_scale,
            "critic": dict(zip(self.policy.critic_parameters(), self.critic_masters, strict=True)),
            "reference": refreshed.state_dict() if refreshed is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any], model_weights: dict[str, torch.Tensor]) -> None:
        """Go on from a checkpoint: ``state_dict()`` and the trained float32 weights by parameter name."""
        names = [name for name, p in self.policy.model.named_parameters() if p.requires_grad]
        with torch.no_grad():
            for name, master in zip(names, self.masters, strict=False):
                master.copy_(model_weights[name])
            for name, master in zip(self.policy.critic_parameters(), self.critic_masters, strict=True):
                master.copy_(state["critic"][name])
        if state["reference"] is not None:
            assert self.policy.reference is not None
            self.policy.reference.load_state_dict(state["reference"])
        self.publish()
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]
        self.kl_scale = state["kl_scale"]


def _scaled(part: Any, scale: float) -> Any:
    """A term or shaping with its coefficient scaled, if it is a KL."""
    return replace(part, coefficient=part.coefficient * scale) if "ref_logp" in part.needs else part


def adapted(scale: float, kl: float, target: float) -> float:
    """The scale of the KL's coefficient after a step whose KL was ``kl``: up or down by at most 2 %, in proportion to
    the relative error clipped at 20 % (Ziegler et al. 2019, section 2.2, with their K of 0.1)."""
    return scale * (1 + 0.1 * min(max(kl / target - 1, -0.2), 0.2))


class _Meter:
    """Averages per-token metrics over the tokens computed, ``*/min`` and ``*/max`` apart, over all processes."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.parts: dict[str, list[tuple[float, float]]] = {}

    def add(self, live: torch.Tensor, metrics: dict[str, torch.Tensor]) -> None:
        count = float(live.sum())
        if count == 0:
            return
        for name, tensor in metrics.items():
            values = tensor[live]
            value = values.min() if name.endswith("/min") else values.max() if name.endswith("/max") else values.sum()
            self.parts.setdefault(name, []).append((float(value), count))

    def result(self) -> dict[str, float]:
        gathered = gather_object([self.parts])
        parts: dict[str, list[tuple[float, float]]] = {}
        for own in gathered:
            for name, pairs in own.items():
                parts.setdefault(name, []).extend(pairs)
        return {name: _combine(name, pairs) for name, pairs in parts.items()}


def _combine(name: str, pairs: list[tuple[float, float]]) -> float:
    if name.endswith("/min"):
        return min(value for value, _ in pairs)
    if name.endswith("/max"):
        return max(value for value, _ in pairs)
    return sum(value for value, _ in pairs) / sum(count for _, count in pairs)

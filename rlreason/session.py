"""A run at work: what happens around a step, and what is recorded of it. What it is made of, ``assembly.py`` puts
together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from rlreason import checkpoint
from rlreason.alarm import PartingAlarm, told
from rlreason.algo import Algo
from rlreason.analysis.load import read_metrics
from rlreason.batch import collate, micro_batches
from rlreason.clock import Clock
from rlreason.config import naming
from rlreason.evaluate import evaluate, greedy, summarise
from rlreason.learner import Learner
from rlreason.metrics import batch_metrics, rollout_metrics
from rlreason.perf import Cost, Work, speeds, work_of
from rlreason.policy import Policy
from rlreason.profiling import StepProfiler
from rlreason.record import Record
from rlreason.rollout import Collected, Collector
from rlreason.signals import StopSignal, leave
from rlreason.traces import Trained, notes_on
from rlreason.types import Batch, Engine, Env, Rollout, Sampling


@dataclass
class Session:
    """An open run. ``done`` is the last step that was finished before; ``record`` is None on all processes but one;
    ``peak_flops`` is of all processes' devices together."""

    out: Path
    max_steps: int
    save_every: int
    eval_every: int
    eval_limit: int
    keep_checkpoints: int
    eval_temperature: float
    eval_kl: bool
    seed: int
    done: int
    algo: Algo
    sampling: Sampling
    env: Env
    policy: Policy
    engine: Engine
    learner: Learner
    collector: Collector
    clock: Clock
    accelerator: Accelerator
    record: Record | None
    stop: StopSignal
    cost: Cost
    peak_flops: float
    alarm: PartingAlarm | None
    profiler: StepProfiler | None = None
    num_tokens: float = 0.0
    accuracy: float | None = None
    halted: bool = False
    _began: float = field(default_factory=time.perf_counter)

    def begin(self) -> None:
        """Line 0 of the metrics: what the untrained policy can do."""
        metrics = self._validate(0) | self._alarmed() | self._seconds()
        with self.clock.measure("record"):
            if self.record:
                self.record.step(0, metrics, [])

    def steps(self) -> Iterator[int]:
        """The steps that are left."""
        if self.done:
            self._alarmed()  # a run that its alarm ended is over, until it is resumed with ~alarm or alarm=parting
        for step in range(self.done + 1, self.max_steps + 1):
            if self.halted:
                return
            if self.profiler:
                self.profiler.begin(step)
            self._began = time.perf_counter()
            yield step

    def collect(self, step: int) -> Collected:
        """The step's rollouts of this process, when all processes have theirs: waiting is no phase's time."""
        collected = self.collector.collect(step)
        self.accelerator.wait_for_everyone()
        return collected

    def collate(self, rollouts: Sequence[Rollout]) -> Batch:
        return collate(rollouts, mask_truncated=self.algo.mask_truncated_completions, device=self.accelerator.device)

    def observe(self, collected: Collected) -> dict[str, float]:
        """The sampler learns what became of the problems, the same on every process; its metrics."""
        drawn = [*collected.rollouts, *collected.rejected]
        with self.clock.measure("draw"):
            everyone = gather_object([replace(rollout, segments=[], messages=[], text="") for rollout in drawn])
            with naming("sampler"):
                return self.collector.sampler.observe(everyone)

    def end_step(self, step: int, collected: Collected, batch: Batch, metrics: dict[str, float]) -> None:
        """Record a step, evaluate and save when it is time, and leave if a signal asked for it."""
        step_time = time.perf_counter() - self._began
        if self.profiler:
            self.profiler.end()
        with self.clock.measure("record"):
            notes = notes_on(batch, self.learner.seen, len(collected.rollouts))
            trained = gather_object(list(zip(collected.rollouts, notes, strict=True)))
            rejected = gather_object([(rollout, Trained(math.nan)) for rollout in collected.rejected])
            rollouts = [rollout for rollout, _ in [*trained, *rejected]]
            work = gather_object([self._work(collected, batch)])
            self.num_tokens += sum(_tokens(rollout) for rollout in rollouts)
            metrics = rollout_metrics(rollouts) | batch_metrics(batch, self.learner.sum) | metrics
            metrics["sampling/attempts"] = collected.attempts
            metrics["num_tokens"] = self.num_tokens
        last = step == self.max_steps
        if last or step % self.eval_every == 0:
            metrics |= self._validate(step) | self._alarmed()
        last = last or self.halted
        seconds = self._seconds(step_time=step_time)
        metrics |= seconds | speeds(work, seconds, self.peak_flops)
        with self.clock.measure("record"):
            if self.record:
                self.record.step(step, metrics, rollouts, [notes for _, notes in trained + rejected])
        signal = max(gather_object([self.stop.number]))
        if last or signal or step % self.save_every == 0:
            with self.clock.measure("checkpoint"):
                checkpoint.save(
                    self.out, step, self.learner, self.accelerator, self.collector.sampler,
                    keep=self.keep_checkpoints, every=self.save_every,
                )  # fmt: skip
        if signal and not last:
            leave(signal, step, self.out, speak=self.record is not None)

    def finish(self) -> float | None:
        """``summary.json``, and the last validation accuracy."""
        if self.record:
            summary = _summary(self.out)
            self.record.finish(summary)
            self.accuracy = summary["after"].get(f"eval/{self.env.name}/accuracy")
        return self.accuracy

    def _alarmed(self) -> dict[str, float]:
        """Whether proxy and gold have parted, said and recorded; with ``alarm.stop`` the run is over then."""
        if self.alarm is None:
            return {}
        with naming("alarm"):
            parting = self.alarm.check(self.out) if self.record else None
        if parting and self.record:
            self.record.say(told(parting))
        rings = max(gather_object([parting is not None]))
        self.halted = rings and self.alarm.stop
        return {f"eval/{self.env.name}/parted": float(rings)}

    def _sequence_kl(self, rollouts: Sequence[Rollout]) -> list[float]:
        """log pi - log pi_ref of each rollout's own tokens, in nats: its mean estimates KL(pi || pi_ref) of whole
        completions, unbiased where they were sampled at the temperature that training samples at."""
        batch = collate(rollouts, device=self.accelerator.device)
        everything = torch.arange(len(batch.tokens), device=batch.tokens.device)
        size, shared = self.learner.micro_batch_tokens, self.policy.shares_prompts
        cuts = micro_batches(batch, everything, size, shared_prompts=shared)
        needs = frozenset({"old_logp", "ref_logp"})
        batch = self.policy.annotate(batch, self.sampling.temperature, needs, cuts)
        assert batch.old_logp is not None
        assert batch.ref_logp is not None
        total = torch.zeros(len(rollouts), device=batch.tokens.device)
        total.index_add_(0, batch.rollout, ((batch.old_logp - batch.ref_logp) * batch.mask).sum(1))
        return total.tolist()

    def _seconds(self, **more: float) -> dict[str, float]:
        """``more``, and every phase since the last line of metrics, writing that line included; of the slowest
        process, in seconds."""
        own = gather_object([more | self.clock.take()])
        names = dict.fromkeys(name for seconds in own for name in seconds)
        return {name: max(seconds.get(name, 0.0) for seconds in own) for name in names}

    def _work(self, collected: Collected, batch: Batch) -> Work:
        rows = [(rollout.group, segment) for rollout in collected.rollouts for segment in rollout.segments]
        needed = self.algo.trains_on(batch).tolist()
        return work_of(
            self.cost,
            [*collected.rollouts, *collected.rejected],
            [row for row, is_needed in zip(rows, needed, strict=True) if is_needed],
            passes=self.algo.num_iterations,
        )

    def _validate(self, step: int) -> dict[str, float]:
        with self.clock.measure("evaluate"):
            own = evaluate(
                self.engine,
                self.env,
                self.policy,
                "validation",
                replace(greedy(self.sampling), temperature=self.eval_temperature),
                limit=self.eval_limit,
                seed=self.seed,
                rank=self.accelerator.process_index,
                world=self.accelerator.num_processes,
            )
            distances = self._sequence_kl(own) if self.eval_kl else []
        rollouts = gather_object(own)
        if self.record:
            self.record.evaluation(step, rollouts, "validation")
        metrics = summarise(rollouts, k=())
        self.accuracy = metrics["accuracy"].mean if "accuracy" in metrics else None
        flat: dict[str, float] = {}
        for name, value in metrics.items():
            flat[f"eval/{self.env.name}/{name}"] = value.mean
            if name.rpartition("/")[2] == "accuracy":  # of a member of a mixture, too
                flat |= {f"eval/{self.env.name}/{name}_low": value.low, f"eval/{self.env.name}/{name}_high": value.high}
        if self.eval_kl:
            flat[f"eval/{self.env.name}/kl"] = fmean(gather_object(distances))
        return flat


def _tokens(rollout: Rollout) -> int:
    return sum(len(segment.prompt_ids) + len(segment.completion_ids) for segment in rollout.segments)


def _summary(out: Path) -> dict[str, Any]:
    """First and last value of everything that was evaluated, and the totals."""
    lines = read_metrics(out)
    evaluated = lines[[name for name in lines if name.startswith("eval/")]].dropna(how="all")
    return {
        "steps": int(lines["step"].iloc[-1]),
        "num_tokens": float(lines["num_tokens"].iloc[-1]),
        "training_seconds": float(lines["step_time"].sum()),
        "reward_first": float(lines["reward"].dropna().iloc[0]),
        "reward_last": float(lines["reward"].dropna().iloc[-1]),
        "before": evaluated.iloc[0].dropna().to_dict(),
        "after": evaluated.iloc[-1].dropna().to_dict(),
    }

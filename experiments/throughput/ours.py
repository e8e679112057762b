"""Our sides: rlreason as a user gets it, through its public pieces."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from omegaconf import DictConfig

from experiments.throughput import work
from experiments.throughput.roofline import Peaks, decode_work, measure_peaks, shape_of, update_flops
from experiments.throughput.side import Link, Stopwatch, device, synchronize
from rlreason.assembly import open_session
from rlreason.config import build
from rlreason.engines import generate
from rlreason.metrics import completion_length
from rlreason.policy import Policy
from rlreason.rollout import Collector
from rlreason.sampler import derived_seed
from rlreason.session import Session
from rlreason.types import Batch, Engine, Env, Request, Sampling

ALL_ROWS = "all_rows"
"""Variant of a step that computes rows without advantage, too."""


def steps(link: Link, settings: Mapping[str, Any]) -> None:
    """``work``: whole training steps. ``warm_up``: do a small one first."""
    with _session(work.config(settings["work"], *settings.get("overrides", ()))) as session:
        if settings["warm_up"]:
            small = replace(session.collector.sampling, max_completion_length=8)
            _step(session, replace(session.collector, num_prompts=1, sampling=small), 0, skip=False)
        link.ready()
        for order in link.orders():
            seconds, tokens, details = _step(session, session.collector, order.index, skip=order.variant != ALL_ROWS)
            link.report(seconds, tokens, **details)


def learner(link: Link, settings: Mapping[str, Any]) -> None:
    """``work``: updates on fixed completions of its shape, every row with an advantage."""
    cfg = work.config(settings["work"])
    with _session(cfg) as session:
        prompts = [session.policy.render(p.prompt).ids for p in work.problems(cfg, session.env, 0)]
        vocabulary = session.policy.model.config.vocab_size
        longest = cfg.sampling.max_completion_length
        _update(session, _batch(session, work.fixed_completions(prompts[:1], cfg.algo.num_generations, 8, vocabulary)))
        fixed = work.fixed_completions(prompts, cfg.algo.num_generations, longest, vocabulary)
        link.ready()
        for _ in link.orders():
            watch = Stopwatch()
            with watch.phase("update"):
                metrics = _update(session, _batch(session, fixed))
            link.report(
                watch.seconds["update"],
                sum(len(one.ids) for one in fixed),
                prompt_tokens=sum(len(one.prompt_ids) for one in fixed),
                frac_rows_skipped=metrics["frac_rows_skipped"],
            )


def rollouts(link: Link, settings: Mapping[str, Any]) -> None:
    """``prompts`` x ``samples`` completions of exactly ``tokens`` tokens after prompts of ``work``."""
    cfg, env, policy, engine = _engine(settings["work"])
    policy.end_ids = frozenset()  # nothing ends a completion but its length
    count, samples, tokens = settings["prompts"], settings["samples"], settings["tokens"]
    generate(engine, _requests(cfg, env, policy, 0, 8, samples, 8))
    link.ready()
    for order in link.orders():
        requests = _requests(cfg, env, policy, order.index, count, samples, tokens)
        watch = Stopwatch()
        with watch.phase("generate"):
            completions = generate(engine, requests)
        link.report(
            watch.seconds["generate"],
            sum(len(completion.ids) for completion in completions),
            prompt_tokens=sum(len(request.ids) for request in requests),
        )


def time_to_accuracy(link: Link, settings: Mapping[str, Any]) -> None:
    """Train until a step's mean reward is ``target``; the order's index is the seed. Gives up after ``minutes``."""
    link.ready()
    for order in link.orders():
        with _session(work.config("accuracy", f"seed={order.index + 1}")) as session:
            synchronize()
            begin = time.perf_counter()
            rewards: list[float] = []
            tokens, limit = 0, 60 * settings["minutes"]
            for step in session.steps():
                collected = session.collector.collect(step)
                rewards.append(fmean(rollout.grade.reward for rollout in collected.rollouts))
                tokens += sum(map(completion_length, collected.rollouts))
                seconds = time.perf_counter() - begin
                if rewards[-1] >= settings["target"] or seconds > limit:
                    break
                batch = session.learner.annotate(session.collate(collected.rollouts))
                session.learner.update(session.algo.estimator(batch, session.learner.sum))
                session.engine.sync(session.policy)
        link.report(seconds, tokens, rewards=rewards, reached=rewards[-1] >= settings["target"], seed=order.index + 1)


def scaling(link: Link, settings: Mapping[str, Any]) -> None:
    """Decoding and updates at growing sizes, each beside a matrix product and a memory copy.

    ``decode`` and ``update`` are lists of (rows, tokens): completions in groups of 8 of exactly that many tokens.
    """
    cfg = work.config("short", "engine.max_rows=256", "engine.max_tokens_in_flight=1048576")
    samples = cfg.algo.num_generations
    with _session(cfg) as session:
        policy = session.policy
        policy.end_ids = frozenset()
        shape = shape_of(policy.model)
        vocabulary = policy.model.config.vocab_size
        prompt = policy.render(work.problems(cfg, session.env, 0)[0].prompt).ids
        generate(session.engine, _requests(cfg, session.env, policy, 0, 8, samples, 8))
        _update(session, _batch(session, work.fixed_completions([prompt], samples, 8, vocabulary)))
        link.ready()
        for order in link.orders():
            cells: list[dict[str, Any]] = []
            for rows, tokens in settings["decode"]:
                groups = rows // samples
                requests = _requests(cfg, session.env, policy, order.index, groups, samples, tokens)
                peaks, seconds = _beside_peaks(lambda: generate(session.engine, requests))  # noqa: B023
                need = decode_work(shape, [len(r.ids) for r in requests[::samples]], samples, tokens)
                cells.append(
                    {"kind": "decode", "rows": rows, "tokens": tokens, "seconds": seconds}
                    | {"bound_max": need.longest(peaks), "bound_sum": need.total(peaks)}
                    | {"tokens_per_second": rows * tokens / seconds, "peaks": vars(peaks)}
                )
            for rows, tokens in settings["update"]:
                prompts = [prompt] * (rows // samples)
                fixed = work.fixed_completions(prompts, samples, tokens, vocabulary)
                fixed = [replace(one, ids=(one.ids * tokens)[:tokens]) for one in fixed]  # all of the same length
                batch = _batch(session, fixed)
                peaks, seconds = _beside_peaks(lambda: _update(session, batch))  # noqa: B023
                flops = update_flops(shape, [len(p) for p in prompts], samples, tokens)
                cells.append(
                    {"kind": "update", "rows": rows, "tokens": tokens, "seconds": seconds}
                    | {"bound_max": flops / peaks.flops, "bound_sum": flops / peaks.flops}
                    | {"tokens_per_second": rows * tokens / seconds, "peaks": vars(peaks)}
                )
            link.report(
                sum(cell["seconds"] for cell in cells),
                sum(cell["rows"] * cell["tokens"] for cell in cells),
                cells=cells,
            )


def _beside_peaks(job: Any) -> tuple[Peaks, float]:
    """What the machine reached before or after the job, whichever was more, and the job's seconds."""
    before = measure_peaks(device())
    watch = Stopwatch()
    with watch.phase("job"):
        job()
    after = measure_peaks(device())
    return Peaks(max(before.flops, after.flops), max(before.bytes, after.bytes)), watch.seconds["job"]


@contextmanager
def _session(cfg: DictConfig) -> Iterator[Session]:
    with tempfile.TemporaryDirectory(prefix="rlreason-bench-") as folder, open_session(cfg, Path(folder)) as session:
        yield session


def _engine(name: str) -> tuple[DictConfig, Env, Policy, Engine]:
    cfg = work.config(name)
    policy: Policy = build(cfg, "model")(device=torch.device(device()))
    return cfg, build(cfg, "env"), policy, build(cfg, "engine")(policy)


def _requests(
    cfg: DictConfig, env: Env, policy: Policy, index: int, prompts: int, samples: int, tokens: int
) -> list[Request]:
    """Requests for ``prompts`` problems of unit ``index``, which is in the seeds, too."""
    sampling = Sampling(temperature=cfg.sampling.temperature, max_completion_length=tokens)
    return [
        Request(policy.render(problem.prompt).ids, sampling, derived_seed(index, group, sample))
        for group, problem in enumerate(work.problems(cfg, env, index, prompts))
        for sample in range(samples)
    ]


def _step(session: Session, collector: Collector, index: int, *, skip: bool) -> tuple[float, int, dict[str, Any]]:
    """The training step that ``rlreason.train`` does, but for its records."""
    watch = Stopwatch()
    with watch.phase("generate"):  # and grade
        drawn = collector.collect(index + 1).rollouts
    with watch.phase("update"):
        batch = session.learner.annotate(session.collate(drawn))
        batch = session.algo.estimator(batch, session.learner.sum)
        metrics = session.learner.update(batch if skip else _with_advantages(batch))
    with watch.phase("sync"):
        session.engine.sync(session.policy)
    details = {
        "phases": watch.seconds,
        "rows": len(drawn),
        "frac_rows_skipped": metrics["frac_rows_skipped"],
        "prompt_tokens": sum(len(r.segments[0].prompt_ids) for r in drawn),
        "reward": fmean(r.grade.reward for r in drawn),
    }
    return sum(watch.seconds.values()), sum(map(completion_length, drawn)), details


def _with_advantages(batch: Batch) -> Batch:
    """The batch with a trifling advantage where there was none, so that no row can be skipped."""
    assert batch.advantage is not None
    none = (batch.advantage == 0) & batch.mask
    return replace(batch, advantage=torch.where(none, 1e-6, batch.advantage))


def _batch(session: Session, fixed: list[work.Fixed]) -> Batch:
    batch = session.learner.annotate(session.collate(work.as_rollouts(fixed)))
    return session.algo.estimator(batch, session.learner.sum)


def _update(session: Session, batch: Batch) -> dict[str, float]:
    return session.learner.update(batch)

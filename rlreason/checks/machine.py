"""Weights, memory, time, disk, run folder and logger: what a run needs of its machine.

Estimates scale what the small sample took, so they are rough, and for generation upper bounds: a larger batch decodes
more tokens a second. Left out: other processes on the machine, and several processes of one run.
"""

from __future__ import annotations

import importlib.util
import math
import os
import resource
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from rlreason.assembly import Parts
from rlreason.checks import Verdict, failed, passed, warned
from rlreason.checks.sample import Sample
from rlreason.checks.update import Trained
from rlreason.policy import Policy

GIB = 2**30

FULL = 0.9
"""Share of memory or free disk from which on it is a warning."""

TRACE_BYTES = 32
"""Bytes of a completion token in the traces, at most: five float32 that don't compress, and text and ids that do."""

REACH_SECONDS = 3.0
"""How long the tracking server may take to answer."""


def weights(policy: Policy) -> Verdict:
    """Whether the weights are finite, and which of them train."""
    named = dict(policy.model.named_parameters())
    broken = [name for name, parameter in named.items() if not torch.isfinite(parameter).all()]
    total, trained = sum(p.numel() for p in named.values()), sum(p.numel() for p in policy.parameters())
    figure = f"{_count(total)} weights, {_count(trained)} of them train"
    if broken:
        return failed(
            f"NaN or infinity in {len(broken)} of {len(named)} tensors, {broken[0]} for one",
            "the checkpoint is damaged, or its numbers don't fit model.dtype: take another one, or float32",
        )
    if trained == 0:
        return failed(figure, "every parameter is frozen (requires_grad=False): nothing would be learned")
    if trained < total / 2 and policy.adapter is None:
        return warned(figure, "more than half is frozen, and there is no LoRA: is that meant?")
    return passed(figure)


def memory(parts: Parts, sample: Sample, cfg: DictConfig) -> Verdict:
    """The peak so far, and what the cache of a whole batch adds."""
    device = parts.policy.device
    if device.type == "cuda":
        used, total = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
    else:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes, on Linux
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rows = max(_rows(parts), _evaluated(parts, cfg))
    more = max(0, min(rows, getattr(parts.engine, "max_rows", rows)) - len(sample.rollouts))
    expected = used + more * _row_tokens(parts, sample) * _cache_bytes(parts.policy)
    figure = f"peak {used / GIB:.1f} GiB so far, about {expected / GIB:.1f} of {total / GIB:.1f} GiB in a step"
    advice = "lower learner.micro_batch_tokens, engine.max_rows or engine.max_tokens_in_flight, or use LoRA"
    if expected > total:
        return failed(figure, advice)
    return warned(figure, advice) if expected > FULL * total else passed(figure)


def duration(parts: Parts, sample: Sample, trained: Trained, cfg: DictConfig) -> Verdict:
    """What a step and the run take, by the small sample."""
    algo, seconds, drawn = parts.algo, sample.seconds, len(sample.rollouts)
    rollout = sum(seconds.values()) / drawn
    written = sum(len(completion.ids) for completion in sample.completions)
    tokens = int(sample.batch.attention.sum()) / drawn * _rows(parts)
    passes = algo.num_iterations + len(algo.annotations) / 3  # a forward pass is a third of an update
    update = trained.seconds / trained.tokens * tokens * passes
    step = rollout * _rows(parts) * algo.max_attempts + update
    evaluations = 1 + math.ceil(cfg.max_steps / cfg.eval_every)
    run = step * cfg.max_steps + evaluations * _evaluated(parts, cfg) * rollout
    return passed(
        f"step ≤ {_time(step)} (update {_time(update)}), {cfg.max_steps} steps and {evaluations} evaluations ≤ "
        f"{_time(run)}; {written / seconds['timing/generate']:.0f} tokens/s written, "
        f"{trained.tokens / trained.seconds:.0f} trained"
    )


def disk(parts: Parts, cfg: DictConfig, folder: Path) -> Verdict:
    """Checkpoints and traces against what is free where the run folder will lie."""
    checkpoint = checkpoint_bytes(parts.policy, refreshed=parts.algo.ref_model_sync_steps is not None)
    kept = min(math.ceil(cfg.max_steps / cfg.save_every), cfg.keep_checkpoints + 1)  # the oldest goes after the newest
    evaluations = 1 + math.ceil(cfg.max_steps / cfg.eval_every)
    rows = cfg.max_steps * _rows(parts) * parts.algo.max_attempts + evaluations * _evaluated(parts, cfg)
    traces = rows * parts.sampling.max_completion_length * TRACE_BYTES
    needed, free = kept * checkpoint + traces, shutil.disk_usage(_existing(folder)).free
    figure = (
        f"≤ {needed / GIB:.2g} GiB ({kept} checkpoints of {checkpoint / GIB:.2g}, traces {traces / GIB:.2g}) of "
        f"{free / GIB:.3g} GiB free"
    )
    advice = "lower keep_checkpoints, free some space, or put hydra.run.dir on another disk"
    if needed > free:
        return failed(figure, advice)
    return warned(figure, advice) if needed > FULL * free else passed(figure)


def checkpoint_bytes(policy: Policy, *, refreshed: bool) -> int:
    """Size of a checkpoint: float32 weights (LoRA's apart, too), the critic's, Adam's two moments of what trains, and
    the reference, where it is ``refreshed`` now and then."""
    numbers, trained = sum(p.numel() for p in policy.model.parameters()), sum(p.numel() for p in policy.parameters())
    critic = sum(p.numel() for p in policy.critic_parameters().values())
    adapter = trained - critic if policy.adapter is not None else 0
    reference = numbers * policy.model.dtype.itemsize if refreshed else 0
    return 4 * (numbers + adapter + critic) + 8 * trained + reference


def run_folder(folder: Path, *, resuming: bool) -> Verdict:
    """Whether the run folder can be made, and is none already. Nothing is written to find out."""
    place = _existing(folder)
    if not place.is_dir():
        return failed(f"{place} is a file", "name another folder, by hydra.run.dir=<folder>")
    if not os.access(place, os.W_OK | os.X_OK):
        return failed(f"{place} can't be written to", "name another folder, by hydra.run.dir=<folder>")
    if (folder / "config.yaml").is_file() and not resuming:
        return warned(f"{folder} holds a run", "training goes on with that one; for a new run name another folder")
    return passed(f"{folder} can be made" if place != folder else f"{folder} can be written to")


def logger(config: Any) -> Verdict:
    """Whether the tracker can be had. It never stops a run, so this is a warning at worst."""
    mode = getattr(config, "mode", None)
    if mode in (None, "disabled"):
        return passed("off" if mode else f"{type(config).__name__}: taken as it is")
    if importlib.util.find_spec("wandb") is None:
        return warned("wandb is not installed", "pip install wandb, or logger.mode=disabled; the run goes on without")
    if mode != "online":
        return passed(f"{mode}, below the run folder")
    import wandb

    if not wandb.login(prompt=False, verify=False):
        return warned("nobody is logged in", "run `wandb login` or set WANDB_API_KEY, or the run goes on without")
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    try:
        urllib.request.urlopen(url, timeout=REACH_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # it answered
    except OSError as error:
        return warned(f"{url} can't be reached: {error}", "use logger.mode=offline and `wandb sync` later")
    return passed(f"{url} answers")


def _rows(parts: Parts) -> int:
    return parts.algo.num_prompts * parts.algo.num_generations


def _evaluated(parts: Parts, cfg: DictConfig) -> int:
    size = parts.env.split("validation").size
    return int(cfg.eval_limit if size is None else min(cfg.eval_limit, size))


def _row_tokens(parts: Parts, sample: Sample) -> int:
    return int(sample.batch.prompt_length.max()) + parts.sampling.max_completion_length


def _cache_bytes(policy: Policy) -> int:
    """Bytes of keys and values that a token takes."""
    config = policy.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * policy.model.dtype.itemsize)


def _existing(path: Path) -> Path:
    """The path itself, or the nearest one above it that is there."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def _count(number: int) -> str:
    for size, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {name}"
    return str(number)


def _time(seconds: float) -> str:
    for size, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds:.2g} s"

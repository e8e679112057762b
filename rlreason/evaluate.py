"""python -m rlreason.evaluate model=<...> env=<...>, or run=<run folder>

Accuracy, pass@k, maj@k, lengths and truncation of a policy on a split, each with a confidence interval over problems.
Greedy by default; ``num_samples`` > 1 samples at ``sampling.temperature`` and gives pass@k and maj@k.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import hydra
import rich
from accelerate import Accelerator
from accelerate.utils import gather_object
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from rlreason import checkpoint
from rlreason.clock import Clock
from rlreason.config import CONF, ConfigError, build, guarded, naming, resolved, start
from rlreason.console import Quiet
from rlreason.manifest import manifest
from rlreason.metrics import completion_length
from rlreason.policy import Policy
from rlreason.record import Record
from rlreason.rollout import roll_out
from rlreason.sampler import derived_seed
from rlreason.stats import Estimate, estimate, majority_vote, pass_at_k
from rlreason.tracking import NoTracker
from rlreason.types import Engine, Env, Problem, Rollout, Sampling


def greedy(sampling: Sampling) -> Sampling:
    """The same limits, with the likeliest token each time."""
    return replace(sampling, temperature=0.0, top_p=1.0, top_k=0)


def evaluate(
    engine: Engine,
    env: Env,
    policy: Policy,
    split: str,
    sampling: Sampling,
    *,
    limit: int | None,
    seed: int,
    samples: int = 1,
    rank: int = 0,
    world: int = 1,
    on_completion: Callable[[], None] = lambda: None,
) -> list[Rollout]:
    """Graded rollouts of the first ``limit`` problems of a split (None: all), ``samples`` of each; problem i has group
    i. Process ``rank`` of ``world`` takes every ``world``-th problem. Raises ValueError for all of an endless split.
    """
    problems = env.split(split)
    size = min(n for n in (limit, problems.size, float("inf")) if n is not None)
    if size == float("inf"):
        raise ValueError(f"the split {split!r} of {env.name} is endless: give a limit")
    numbers = range(rank, int(size), world)
    chosen: list[Problem] = [problems[i] for i in numbers]
    return roll_out(
        engine, env, policy, chosen, sampling,
        samples=samples, groups=numbers, seed=derived_seed(seed, "evaluate", split), clock=Clock(),
        on_completion=on_completion,
    )  # fmt: skip


def summarise(rollouts: Sequence[Rollout], *, k: Sequence[int], confidence: float = 0.95) -> dict[str, Estimate]:
    """Metrics by name, each the mean over problems with its interval.

    ``accuracy`` is the share of right samples, ``<part>`` the mean of a reward part over the problems that have it
    (those of one member of a mixture, say), ``mean_length`` in tokens, ``clipped_ratio`` the share cut off by the
    length limit; for each k of ``k`` up to the number of samples, ``pass@k`` and, for the whole number,
    ``maj@<samples>``. Where a part is called ``abstained``, ``coverage`` is the share of samples that answer, and
    ``risk`` the share of wrong ones among them. Rollouts that ended in ``error`` are left out, and ``error`` is their
    share.
    """
    groups: dict[int, list[Rollout]] = defaultdict(list)
    for rollout in rollouts:
        groups[rollout.group].append(rollout)

    def over_problems(value: Callable[[list[Rollout]], float]) -> Estimate:
        return estimate([value(group) for group in graded], confidence=confidence)

    def mean(value: Callable[[Rollout], float]) -> Estimate:
        return over_problems(lambda group: sum(map(value, group)) / len(group))

    errors = sum(r.grade.status == "error" for r in rollouts)
    graded = [[r for r in group if r.grade.status != "error"] for _, group in sorted(groups.items())]
    graded = [group for group in graded if group]
    if not graded:
        raise ValueError("nothing was graded: every rollout ended in an error")
    found: dict[str, Estimate] = {}
    if all(r.grade.correct is not None for group in graded for r in group):
        found["accuracy"] = mean(lambda r: float(bool(r.grade.correct)))
        samples = min(len(group) for group in graded)
        for n in sorted({n for n in k if 1 < n <= samples}):
            found[f"pass@{n}"] = over_problems(
                lambda group, n=n: pass_at_k(len(group), sum(bool(r.grade.correct) for r in group), n)  # type: ignore[misc]
            )
        if samples > 1:
            found[f"maj@{samples}"] = over_problems(
                lambda group: majority_vote([r.grade.answer for r in group], [bool(r.grade.correct) for r in group])
            )
    found["reward"] = mean(lambda r: r.grade.reward)
    for part in dict.fromkeys(part for group in graded for r in group for part in r.grade.parts):
        if part not in found:  # most environments call a part `accuracy`, which is above already
            having = [[r.grade.parts[part] for r in group if part in r.grade.parts] for group in graded]
            found[part] = estimate([fmean(values) for values in having if values], confidence=confidence)
    for part in [part for part in found if part.rpartition("/")[2] == "abstained"]:  # `<member>/abstained` in mixtures
        of, abstained = part.removesuffix("abstained"), found[part]
        found[f"{of}coverage"] = Estimate(1 - abstained.mean, 1 - abstained.high, 1 - abstained.low, abstained.n)
        answered = [r for group in graded for r in group if r.grade.parts.get(part) == 0]
        if answered:
            wrong = [float(not r.grade.correct) for r in answered]
            found[f"{of}risk"] = estimate(wrong, units=[r.group for r in answered], confidence=confidence)
    found["mean_length"] = mean(completion_length)
    found["clipped_ratio"] = mean(lambda r: float(r.finish == "length"))
    if errors:
        share = errors / len(rollouts)
        found["error"] = Estimate(share, share, share, len(rollouts))
    return found


def run(cfg: DictConfig, out: Path) -> float | None:
    """Evaluate as ``cfg`` says, write config, manifest, traces and ``summary.json`` into ``out``, print a table.

    Returns the accuracy. Raises ConfigError for whatever the user can mend.
    """
    cfg = of_run(cfg)
    config = resolved(cfg)
    sampling: Sampling = build(cfg, "sampling")
    if cfg.num_samples < 1:
        raise ConfigError(f"num_samples is {cfg.num_samples}; it must be at least 1")
    if cfg.limit is not None and cfg.limit < 1:
        raise ConfigError(f"limit is {cfg.limit}; it must be at least 1, or null for the whole split")
    if not 0 < cfg.confidence < 1:
        raise ConfigError(f"confidence is {cfg.confidence}; it must lie between 0 and 1, such as 0.95")
    if cfg.num_samples > 1 and sampling.temperature == 0:
        raise ConfigError("num_samples > 1 needs sampling.temperature above 0: greedy samples are all the same")
    env: Env = build(cfg, "env")
    with naming("split"):
        env.split(cfg.split)
    accelerator = Accelerator()
    with naming("model"):
        policy: Policy = build(cfg, "model")(device=accelerator.device)
    engine: Engine = build(cfg, "engine")(policy)
    origin = manifest(  # now, not at the end: the checkout may have changed by then
        seed=cfg.seed, model=policy.info, env=env.manifest(), root=Path(__file__).resolve().parent.parent
    )
    size = min((n for n in (cfg.limit, env.split(cfg.split).size) if n is not None), default=0)
    with naming("evaluate"), Progress(console=Console(stderr=True), disable=not accelerator.is_main_process) as bar:
        task = bar.add_task(f"{env.name}, {cfg.split}", total=size * cfg.num_samples / accelerator.num_processes)
        own = evaluate(
            engine, env, policy, cfg.split, sampling, limit=cfg.limit, seed=cfg.seed, samples=cfg.num_samples,
            rank=accelerator.process_index, world=accelerator.num_processes, on_completion=lambda: bar.advance(task),
        )  # fmt: skip
    rollouts = gather_object(own)
    if not accelerator.is_main_process:
        return None
    found = summarise(rollouts, k=config["k"], confidence=cfg.confidence)
    record = Record(
        out,
        config=config,
        manifest=origin,
        env=env.name,
        console=Quiet(),
        tracker=NoTracker(),
    )
    record.evaluation(0, rollouts, cfg.split)
    record.finish({f"eval/{env.name}/{name}": asdict(value) for name, value in found.items()} | {"split": cfg.split})
    rich.print(_table(found, f"{env.name}, {cfg.split}, {cfg.num_samples} sample(s) a problem", cfg.confidence))
    print(f"written to {out}")
    return found["accuracy"].mean if "accuracy" in found else None


def of_run(cfg: DictConfig) -> DictConfig:
    """With ``run=<folder>``: that run's environment and sampling limits, and its newest checkpoint's weights."""
    if cfg.run is None:
        return cfg
    folder = Path(cfg.run)
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"run={folder} is no run folder: it has no config.yaml (looked in {Path.cwd()})")
    try:
        weights = checkpoint.latest(folder)
    except FileNotFoundError as error:
        raise ConfigError(str(error)) from error
    trained: Any = OmegaConf.load(folder / "config.yaml")
    chosen = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    overridden = [o.lstrip("+").split("=")[0] for o in HydraConfig.get().overrides.task] if chosen else []
    merged = cfg.copy()
    OmegaConf.set_struct(merged, False)
    merged.model = OmegaConf.merge(trained.model, {"path": str(weights), "revision": None})
    if "env" not in overridden:
        asked = {key: OmegaConf.select(cfg, key) for key in overridden if key.startswith("env.")}
        merged.env = trained.env
        for key, value in asked.items():
            OmegaConf.update(merged, key, value)
    for key in ("max_completion_length", "stop", "max_turns", "max_total_length"):
        if f"sampling.{key}" not in overridden and key in trained.sampling:  # an older run lacks the last two
            merged.sampling[key] = trained.sampling[key]
    return merged


def _table(found: dict[str, Estimate], title: str, confidence: float) -> Table:
    table = Table(title=title)
    for heading in ("metric", "mean", f"{confidence:.0%} interval", "problems"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for name, value in found.items():
        table.add_row(name, f"{value.mean:.4g}", f"{value.low:.4g} to {value.high:.4g}", str(value.n))
    return table


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="evaluate")
def main(cfg: DictConfig) -> float | None:
    """The entry point that Hydra calls."""
    return guarded(lambda: run(cfg, Path(HydraConfig.get().runtime.output_dir)))


if __name__ == "__main__":
    start(main)

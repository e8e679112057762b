"""Jobs on examples, which supervised fine-tuning, preference optimisation and reward models share: from a config to a
run folder, with the same metrics, evaluations, checkpoints and exact resumption as ``rlreason.train``.

Left out: streaming data sets, which have no epochs; what is trained on here fits into memory many times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from omegaconf import DictConfig

from rlreason import checkpoint
from rlreason.analysis.load import read_metrics
from rlreason.assembly import resumed_from, seed_generators
from rlreason.clock import Clock
from rlreason.config import ConfigError, build, naming, resolved
from rlreason.console import ConsoleConfig
from rlreason.examples import Example, batches, shown
from rlreason.manifest import manifest
from rlreason.masters import AdamW
from rlreason.record import Record
from rlreason.resume import check_same_data
from rlreason.signals import StopSignal, leave
from rlreason.stats import estimate
from rlreason.supervised import Model, Objective, SupervisedLearner, means
from rlreason.types import Comparison, DataSet, Demonstration

M = TypeVar("M", bound=Model)
COUNTS = (
    "batch_size", "max_length", "micro_batch_tokens", "max_steps", "save_every", "eval_every", "eval_limit",
    "keep_checkpoints",
)  # fmt: skip
"""Root keys that must be at least 1."""

KINDS = {
    Demonstration: "demonstrations (conversations to imitate, such as data=chat)",
    Comparison: "comparisons (a chosen and a rejected answer, such as data=pairs)",
}
"""What data sets hold, for people."""


@dataclass
class Fit:
    """An open job on examples. ``done`` is the last step that was finished before; ``record`` is None on all processes
    but one; ``evaluated`` has what the last evaluation found of each validation example."""

    out: Path
    name: str
    seed: int
    max_steps: int
    batch_size: int
    save_every: int
    eval_every: int
    keep_checkpoints: int
    done: int
    train: list[Example]
    validation: list[Example]
    learner: SupervisedLearner
    accelerator: Accelerator
    clock: Clock
    record: Record | None
    stop: StopSignal
    num_tokens: float = 0.0
    evaluated: list[dict[str, float]] = field(default_factory=list)
    _began: float = field(default_factory=time.perf_counter)
    _epoch: int = -1
    _order: list[list[int]] = field(default_factory=list)

    @property
    def categories(self) -> list[str]:
        """The categories of the validation examples, if there are several."""
        found = sorted({example.category for example in self.validation})
        return found if len(found) > 1 else []

    def begin(self) -> None:
        """Line 0 of the metrics: the loss before any step."""
        metrics = self._evaluate() | self.clock.take()
        if self.record:
            self.record.step(0, metrics, [])

    def steps(self) -> Iterator[int]:
        """The steps that are left."""
        for step in range(self.done + 1, self.max_steps + 1):
            self._began = time.perf_counter()
            yield step

    def draw(self, step: int) -> list[Example]:
        """This process's share of the step's batch."""
        epoch, place = divmod(step - 1, self.steps_per_epoch)
        if self._epoch != epoch:
            self._epoch, self._order = epoch, batches(self.train, self.batch_size, seed=self.seed, epoch=epoch)
        chosen = [self.train[i] for i in self._order[place]]
        self.num_tokens += sum(example.tokens for example in chosen)
        return chosen[self.accelerator.process_index :: self.accelerator.num_processes]

    @property
    def steps_per_epoch(self) -> int:
        return max(1, len(self.train) // self.batch_size)

    def end_step(self, step: int, metrics: dict[str, float]) -> None:
        """Record a step, evaluate and save when it is time, and leave if a signal asked for it."""
        metrics["step_time"] = time.perf_counter() - self._began
        metrics["epoch"] = step / self.steps_per_epoch
        metrics["num_tokens"] = self.num_tokens
        last = step == self.max_steps
        if last or step % self.eval_every == 0:
            metrics |= self._evaluate()
        metrics |= self.clock.take()
        if self.record:
            self.record.step(step, metrics, [])
        signal = max(gather_object([self.stop.number]))
        if last or signal or step % self.save_every == 0:
            with self.clock.measure("checkpoint"):
                checkpoint.save(
                    self.out, step, self.learner, self.accelerator, keep=self.keep_checkpoints, every=self.save_every
                )
        if signal and not last:
            leave(signal, step, self.out, speak=self.record is not None)

    def finish(self, more: Mapping[str, Any] = MappingProxyType({})) -> dict[str, float]:
        """``summary.json``: first and last value of everything evaluated, the totals, and ``more``. Returns what was
        evaluated last; {} on all processes but one."""
        if self.record:
            lines = read_metrics(self.out)
            evaluated = lines[[name for name in lines if name.startswith("eval/")]].dropna(how="all")
            after: dict[str, float] = evaluated.iloc[-1].dropna().to_dict() if len(evaluated) else {}
            self.record.finish(
                {
                    "steps": int(lines["step"].iloc[-1]),
                    "num_tokens": float(lines["num_tokens"].iloc[-1]),
                    "training_seconds": float(lines["step_time"].sum()),
                    "loss_first": float(lines["loss"].dropna().iloc[0]),
                    "loss_last": float(lines["loss"].dropna().iloc[-1]),
                    "before": evaluated.iloc[0].dropna().to_dict() if len(evaluated) else {},
                    "after": after,
                    **more,
                }
            )
            return after
        return {}

    def _evaluate(self) -> dict[str, float]:
        """``eval/<data>/<metric>`` over the validation examples, and by category where there are several."""
        if not self.validation:
            return {}
        with self.clock.measure("evaluate"):
            self.evaluated = self.learner.evaluate(self.validation)
        found = {f"eval/{self.name}/{name}": mean for name, mean in means(self.evaluated).items()}
        for category in self.categories:
            own = [e for e, x in zip(self.evaluated, self.validation, strict=True) if x.category == category]
            found |= {f"eval/{self.name}/{category}/{name}": mean for name, mean in means(own).items()}
        if "accuracy" in self.evaluated[0]:
            units = [example.unit for example in self.validation]
            interval = estimate([e["accuracy"] for e in self.evaluated], units=units)
            found |= {f"eval/{self.name}/accuracy_low": interval.low, f"eval/{self.name}/accuracy_high": interval.high}
        return found


def fit(run: Fit) -> None:
    """All steps that are left of a job."""
    if run.done == 0:
        run.begin()
    for step in run.steps():
        with run.clock.measure("draw"):
            examples = run.draw(step)  # examples of similar length, by (seed, epoch)
        with run.clock.measure("update"):
            metrics = run.learner.update(examples)  # micro-batches, loss, optimiser step
        run.end_step(step, metrics)  # evaluation, metrics.jsonl, console, wandb, checkpoint


@contextmanager
def open_fit(
    cfg: DictConfig,
    out: Path,
    load: Callable[[DictConfig, Accelerator], tuple[M, Objective]],
    prepare: Callable[[M, Any], Example],
    kind: type[Demonstration | Comparison],
) -> Iterator[Fit]:
    """Build a job from its config in folder ``out``, or take it up again if ``cfg.resume`` says so or the folder holds
    one. ``load`` makes the model and the objective, ``prepare`` an example of what the data set holds, which must be of
    the ``kind``.

    Raises ConfigError for whatever the user can mend. On the way out, also after a crash, console and wandb are closed.
    """
    accelerator = Accelerator()
    out, begun = broadcast_object_list([out, (out / "config.yaml").is_file()])
    if cfg.resume is None and begun:
        cfg = cfg.copy()
        cfg.resume = str(out)
    config = resolved(cfg)
    for key in COUNTS:
        if config[key] is not None and config[key] < 1:
            raise ConfigError(f"{key} is {config[key]}; it must be at least 1")
    if not config["num_epochs"] > 0:
        raise ConfigError(f"num_epochs is {config['num_epochs']}; it must be above 0")
    console: ConsoleConfig = build(cfg, "console")
    logger = build(cfg, "logger")
    settings: AdamW = build(cfg, "optim")
    data: DataSet[Any] = build(cfg, "data")
    _check_kind(data, kind)
    seed_generators(int(cfg.seed))
    model, objective = load(cfg, accelerator)
    with naming("data"):
        train, too_long = _prepared(data, "train", model, prepare, cfg.max_length, limit=None)
        validation, too_long_validation = _prepared(
            data, "validation", model, prepare, cfg.max_length, limit=cfg.eval_limit
        )
    if not train:
        raise ConfigError(f"data: {data.name} has no training example of at most max_length={cfg.max_length} tokens")
    if too_long_validation and not validation:
        raise ConfigError(
            f"data: all {too_long_validation} validation examples of {data.name} are longer than max_length="
            f"{cfg.max_length} tokens; raise it, or hold out shorter ones"
        )
    counts = {"examples": len(train), "too_long": too_long, "too_long_validation": too_long_validation}
    described = {**data.manifest(), **counts}
    per_epoch = max(1, len(train) // cfg.batch_size)
    max_steps = cfg.max_steps if cfg.max_steps is not None else max(1, round(cfg.num_epochs * per_epoch))
    resumed = resumed_from(cfg, config, max_steps)
    if cfg.resume is not None:
        check_same_data(described, Path(cfg.resume))
    with naming("optim"):
        learner = SupervisedLearner(
            model, objective, settings, accelerator, max_steps=max_steps, micro_batch_tokens=cfg.micro_batch_tokens
        )
    done = checkpoint.step_of(resumed) if resumed else 0
    if resumed:
        checkpoint.load(resumed, learner, accelerator)
    record = None
    with StopSignal() as stop:
        try:
            if accelerator.is_main_process:
                screen = console.open(max_steps, start=done)
                screen.say(f"run folder: {out}" + (f", after step {done}" if resumed else ""))
                screen.say(
                    f"{data.name}: {len(train)} examples to train on, {len(validation)} to validate; {too_long} and "
                    f"{too_long_validation} longer than {cfg.max_length} tokens left out; {max_steps} steps of "
                    f"{cfg.batch_size}"
                )
                if console.trace_every:
                    screen.say(shown(model.tokenizer, train[0]))
                origin = manifest(
                    seed=cfg.seed,
                    model=model.info,
                    env=described,
                    root=Path(__file__).resolve().parent.parent,
                )
                record = Record(
                    out, config=config, manifest=origin, env=data.name, console=screen, tracker=logger.open(out, config)
                )
                record.truncate(done if resumed else -1)
            yield Fit(
                out=out, name=data.name, seed=int(cfg.seed), max_steps=max_steps, batch_size=cfg.batch_size,
                save_every=cfg.save_every, eval_every=cfg.eval_every, keep_checkpoints=cfg.keep_checkpoints, done=done,
                train=train, validation=validation, learner=learner, accelerator=accelerator,
                clock=Clock(accelerator.device), record=record, stop=stop,
                num_tokens=float(read_metrics(out)["num_tokens"].iloc[-1]) if record and resumed else 0.0,
            )  # fmt: skip
        finally:
            if record:
                record.close()


def _check_kind(data: DataSet[Any], kind: type[Demonstration | Comparison]) -> None:
    """Raise ConfigError for a data set that holds something else, by its first example."""
    for item in data.split("train")[:1]:
        if not isinstance(item, kind):
            held = KINDS.get(type(item), type(item).__name__)
            raise ConfigError(f"data: this job learns from {KINDS[kind]}; {data.name} holds {held}")


def _prepared(
    data: DataSet[Any],
    split: str,
    model: M,
    prepare: Callable[[M, Any], Example],
    max_length: int,
    *,
    limit: int | None,
) -> tuple[list[Example], int]:
    """The split's first ``limit`` examples of at most ``max_length`` tokens a row, and how many were longer."""
    given = data.split(split)
    kept: list[Example] = []
    longest = min(max_length, model.context)
    seen = 0
    for item in given:
        if len(kept) == limit:
            break
        seen += 1
        try:
            example = prepare(model, item)
        except ValueError as error:
            raise ValueError(f"{item.source}: {error}") from error
        if example.width <= longest:
            kept.append(example)
    return kept, seen - len(kept)

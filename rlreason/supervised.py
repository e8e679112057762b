"""Training on examples: what supervised fine-tuning, preference optimisation and reward models share.

An example is one or two rows of tokens; an objective turns a few examples into their losses. Everything else is the
same for all of them: batches by length, micro-batches, one optimiser, a run folder, checkpoints, exact resumption.

The order of the examples is a function of (seed, epoch), so there is no data position to save. Left out: streaming data
sets, which have no epochs; what is trained on here fits into memory many times.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from omegaconf import DictConfig

from rlreason import checkpoint
from rlreason.analysis.load import read_metrics
from rlreason.batch import stack
from rlreason.clock import Clock
from rlreason.config import ConfigError, build, naming, resolved
from rlreason.console import ConsoleConfig
from rlreason.manifest import manifest
from rlreason.masters import AdamW, Masters, Part
from rlreason.record import Record
from rlreason.sampler import derived_seed
from rlreason.session import resumed_from, seed_generators
from rlreason.signals import StopSignal, leave
from rlreason.stats import estimate
from rlreason.types import Batch, DataSet, Segment

WINDOW = 16
"""Batches whose examples are sorted by length together."""

COUNTS = (
    "batch_size", "max_length", "micro_batch_tokens", "max_steps", "save_every", "eval_every", "eval_limit",
    "keep_checkpoints",
)  # fmt: skip
"""Root keys that must be at least 1."""


@dataclass(frozen=True)
class Example:
    """What counts as one in a batch: the rows of a demonstration, or of a comparison the chosen and the rejected one.

    ``source`` names it in messages; ``category`` is what metrics are reported by."""

    segments: tuple[Segment, ...]
    source: str
    margin: float = 0.0
    category: str = "all"

    @property
    def tokens(self) -> int:
        return sum(len(segment.prompt_ids) + len(segment.completion_ids) for segment in self.segments)

    @property
    def width(self) -> int:
        return max(len(segment.prompt_ids) + len(segment.completion_ids) for segment in self.segments)


class Model(Protocol):
    """What is trained: a ``Policy`` or a ``RewardModel``."""

    @property
    def info(self) -> dict[str, Any]: ...
    @property
    def tokenizer(self) -> Any: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def context(self) -> int: ...
    def parameters(self) -> list[torch.nn.Parameter]: ...
    def take_masters(self) -> list[torch.Tensor]: ...
    def train(self, mode: bool) -> None: ...
    def save(self, folder: str, masters: list[torch.Tensor]) -> None: ...
    def saved_weights(self, folder: str) -> dict[str, torch.Tensor]: ...


M = TypeVar("M", bound=Model)
Losses = tuple[torch.Tensor, dict[str, torch.Tensor]]


class Objective(Protocol):
    """The loss of E examples, whose rows lie one after the other in ``batch``, numbered by ``batch.group`` from 0."""

    def count(self, example: Example) -> int:
        """What the loss is a mean over: an example's tokens, or 1."""
        ...

    def __call__(self, batch: Batch, examples: Sequence[Example]) -> Losses:
        """Each example's loss, summed over what counts in it (E,), and metrics of the same shape, detached."""
        ...


class SupervisedLearner:
    """Trains ``policy`` with AdamW on the mean of an objective over a batch of examples.

    ``micro_batch_tokens`` bounds the padded tokens of a forward and backward pass; gradients don't depend on the cut.
    """

    def __init__(
        self,
        policy: Model,
        objective: Objective,
        settings: AdamW,
        accelerator: Accelerator,
        *,
        max_steps: int,
        micro_batch_tokens: int,
    ) -> None:
        if micro_batch_tokens < 1:
            raise ValueError(f"micro_batch_tokens is {micro_batch_tokens}; it must be at least 1")
        self.policy = policy
        self.objective = objective
        self.accelerator = accelerator
        self.micro_batch_tokens = micro_batch_tokens
        self.steps = 0
        self.masters = policy.take_masters()
        self._part = Part(policy.parameters(), self.masters, settings.learning_rate)
        self._trained = Masters([self._part], settings, accelerator, max_steps=max_steps)

    def update(self, examples: Sequence[Example]) -> dict[str, float]:
        """One optimiser step on this process's share of a batch; metrics are the whole batch's."""
        self.steps += 1
        learning_rate = self._trained.begin_step(self.steps)
        count = self._sum([sum(map(self.objective.count, examples))])[0]
        totals: dict[str, float] = {"loss": 0.0}
        self.policy.train(True)
        for places in self._cuts(examples, range(len(examples))):
            losses, metrics = self._run([examples[place] for place in places])
            (losses.sum() / count).backward()
            for name, values in {"loss": losses.detach(), **metrics}.items():
                totals[name] = totals.get(name, 0.0) + float(values.sum())
        self.policy.train(False)
        norm = self._trained.step([self._part])[0]
        names = sorted({name for own in gather_object([list(totals)]) for name in own})
        sums = self._sum([totals.get(name, 0.0) for name in names])
        found = {name: total / count for name, total in zip(names, sums, strict=True)}
        return found | {"grad_norm": norm, "learning_rate": learning_rate}

    @torch.no_grad()
    def evaluate(self, examples: Sequence[Example]) -> list[dict[str, float]]:
        """Of each example, in order, ``count``, ``loss`` and the objective's metrics, summed over what counts in it;
        all processes together work them out."""
        found: dict[int, dict[str, float]] = {}
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        for places in self._cuts(examples, range(rank, len(examples), world)):
            losses, metrics = self._run([examples[place] for place in places])
            columns = {"loss": losses.tolist()} | {name: values.tolist() for name, values in metrics.items()}
            for row, place in enumerate(places):
                own = {name: values[row] for name, values in columns.items()}
                found[place] = {"count": self.objective.count(examples[place])} | own
        everything = {place: values for own in gather_object([found]) for place, values in own.items()}
        return [everything[i] for i in range(len(examples))]

    def state_dict(self) -> dict[str, Any]:
        """Everything but the model's weights, which are the checkpoint's own files."""
        return {"optimizer": self._trained.optimizer.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any], model_weights: dict[str, torch.Tensor]) -> None:
        """Go on from a checkpoint: ``state_dict()`` and the trained float32 weights, in order of ``parameters()``."""
        with torch.no_grad():
            for master, weight in zip(self.masters, model_weights.values(), strict=True):
                master.copy_(weight)
        self._trained.publish()
        self._trained.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]

    def _run(self, examples: Sequence[Example]) -> Losses:
        rows = [(number, segment) for number, example in enumerate(examples) for segment in example.segments]
        batch = stack([segment for _, segment in rows], [number for number, _ in rows], device=self.policy.device)
        return self.objective(batch, examples)

    def _cuts(self, examples: Sequence[Example], places: Sequence[int]) -> list[list[int]]:
        """The places in pieces of at most ``micro_batch_tokens`` padded tokens, at least one example each, from long to
        short, so that the most memory is asked for first."""
        pieces: list[list[int]] = []
        rows = width = 0
        for place in sorted(places, key=lambda place: -examples[place].width):
            more = len(examples[place].segments)
            if pieces and (rows + more) * width <= self.micro_batch_tokens:
                pieces[-1].append(place)
                rows += more
            else:
                pieces.append([place])
                rows, width = more, examples[place].width
        return pieces

    def _sum(self, numbers: Sequence[float]) -> list[float]:
        total: list[float] = self._trained.sum(torch.tensor(numbers, dtype=torch.float64)).tolist()
        return total


def batches(examples: Sequence[Example], size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """The indices of an epoch's batches of ``size`` examples of similar length, in random order; what doesn't fill the
    last one, whatever its length, is left to other epochs. A function of (lengths, seed, epoch)."""
    chance = random.Random(derived_seed(seed, "epoch", epoch))
    order = list(range(len(examples)))
    chance.shuffle(order)
    order = order[: len(order) // size * size] or order
    cut: list[list[int]] = []
    for begin in range(0, len(order), WINDOW * size):
        window = sorted(order[begin : begin + WINDOW * size], key=lambda i: examples[i].tokens)
        cut += [window[i : i + size] for i in range(0, len(window), size)]
    chance.shuffle(cut)
    return cut


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
                checkpoint.save(self.out, step, self.learner, self.accelerator, keep=self.keep_checkpoints)
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
            interval = estimate([e["accuracy"] for e in self.evaluated])
            found |= {f"eval/{self.name}/accuracy_low": interval.low, f"eval/{self.name}/accuracy_high": interval.high}
        return found


def per_example(values: torch.Tensor, batch: Batch, count: int) -> torch.Tensor:
    """Per-token (R, S), 0 where nothing counts, or per-row values (R,), summed over each example's rows: (E,)."""
    rows = values.sum(1) if values.ndim == 2 else values
    return torch.zeros(count, dtype=rows.dtype, device=rows.device).index_add(0, batch.group, rows)


def means(results: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each metric over all that counts."""
    count = sum(result["count"] for result in results)
    return {name: sum(r[name] for r in results) / count for name in results[0] if name != "count"}


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
) -> Iterator[Fit]:
    """Build a job from its config in folder ``out``, or take it up again if ``cfg.resume`` says so or the folder holds
    one. ``load`` makes the model and the objective, ``prepare`` an example of what the data set holds.

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
    seed_generators(int(cfg.seed))
    model, objective = load(cfg, accelerator)
    with naming("data"):
        train, too_long = _prepared(data, "train", model, prepare, cfg.max_length, limit=None)
        validation, _ = _prepared(data, "validation", model, prepare, cfg.max_length, limit=cfg.eval_limit)
    if not train:
        raise ConfigError(f"data: {data.name} has no training example of at most max_length={cfg.max_length} tokens")
    per_epoch = max(1, len(train) // cfg.batch_size)
    max_steps = cfg.max_steps if cfg.max_steps is not None else max(1, round(cfg.num_epochs * per_epoch))
    resumed = resumed_from(cfg, config, max_steps)
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
                    f"{data.name}: {len(train)} examples to train on, {len(validation)} to validate; {too_long} longer "
                    f"than {cfg.max_length} tokens left out; {max_steps} steps of {cfg.batch_size}"
                )
                if console.trace_every:
                    screen.say(shown(model.tokenizer, train[0]))
                origin = manifest(
                    seed=cfg.seed,
                    model=model.info,
                    env={**data.manifest(), "examples": len(train), "left_out": too_long},
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


def shown(tokenizer: Any, example: Example) -> str:
    """An example as it enters the network, decoded from its tokens, with what the loss looks at between ⟦ and ⟧."""
    texts = []
    for segment in example.segments:
        text = tokenizer.decode(segment.prompt_ids)
        tokens = zip(segment.completion_ids, segment.mask, strict=True)
        for learned, run in itertools.groupby(tokens, key=lambda token: token[1]):
            part = tokenizer.decode([token for token, _ in run])
            text += f"⟦{part}⟧" if learned else part
        texts.append(text)
    return (
        f"--- an example as it enters the network, {example.source}; ⟦ ⟧ is what the loss looks at\n"
        + "\n---\n".join(texts)
    )


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

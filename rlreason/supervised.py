"""The learner on examples: what supervised fine-tuning, preference optimisation and reward models have in common.

An example is one or two rows of tokens; an objective turns a few examples into their losses; everything else, from
micro-batches to the optimiser's step, is the same for all of them. Left out: objectives, each in a module of its own
(``sft``, ``preferences``), and jobs (``fit``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from rlreason.batch import stack
from rlreason.examples import Example
from rlreason.masters import AdamW, Masters, Part
from rlreason.types import Batch


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


def per_example(values: torch.Tensor, batch: Batch, count: int) -> torch.Tensor:
    """Per-token (R, S), 0 where nothing counts, or per-row values (R,), summed over each example's rows: (E,)."""
    rows = values.sum(1) if values.ndim == 2 else values
    return torch.zeros(count, dtype=rows.dtype, device=rows.device).index_add(0, batch.group, rows)


def means(results: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each metric over all that counts."""
    count = sum(result["count"] for result in results)
    return {name: sum(r[name] for r in results) / count for name in results[0] if name != "count"}

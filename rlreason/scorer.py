"""A reward model: a language model's trunk with a scalar head on its last token; and the scorer that RLHF uses.

It renders text with its own tokenizer and template and never sees a policy's ids, so it may have another base than
the policy. On disk it is what transformers calls a model for sequence classification with one label, which any tool
reads, and ``reward_model.json`` beside it holds the mean and standard deviation that scores are normalised with.

Left out: scores at other tokens than the last one (process reward models), and LoRA. Where a template ends in the
padding token, transformers' own model reads the token before it, and this one the last.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from rlreason import checkpoint, models
from rlreason.batch import micro_batches, stack
from rlreason.chat import encode, render
from rlreason.files import write_atomic
from rlreason.policy import Policy, take_rows, token_values
from rlreason.types import Batch, Message, Segment

HEAD = "score.weight"
"""The head's name in a model for sequence classification."""

FACTS = "reward_model.json"


class RewardModel:
    """A scalar head, (1, width) in float32 without a bias, on the trunk of ``policy``, whose language-model head
    stays unused.

    ``head`` None is drawn from N(0, 1 / (width + 1)) by torch's global generator (Stiennon et al. 2020, "Learning to
    summarize from human feedback", appendix B.1). Raises ValueError for an architecture that transformers has no
    sequence classification for, or one that is not this trunk with this head, and for LoRA.
    """

    def __init__(self, policy: Policy, head: torch.Tensor | None = None) -> None:
        if policy.adapter is not None:
            raise ValueError("a reward model is trained whole here: set model.lora.r=0")
        self._policy = policy
        with torch.device("meta"):
            try:
                self._form = AutoModelForSequenceClassification.from_config(self._config())
            except ValueError as error:
                raise ValueError(
                    f"{type(policy.model).__name__} has no form for sequence classification in transformers, which a "
                    "reward model is saved as; choose another base"
                ) from error
        self._check_form()
        added = [str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        self._marks = sorted({*added, *self.tokenizer.all_special_tokens})
        width = policy.model.config.get_text_config().hidden_size
        self.head = nn.Linear(width, 1, bias=False, device=policy.device)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(1, width) / math.sqrt(width + 1) if head is None else head)

    @property
    def info(self) -> dict[str, Any]:
        return self._policy.info

    @property
    def tokenizer(self) -> Any:
        return self._policy.tokenizer

    @property
    def device(self) -> torch.device:
        return self._policy.device

    @property
    def context(self) -> int:
        return self._policy.context

    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters, the head's last."""
        return [*self._policy.parameters(), *self.head.parameters()]

    def take_masters(self) -> list[torch.Tensor]:
        """Float32 master weights, one per entry of ``parameters()``."""
        return [*self._policy.take_masters(), self.head.weight]

    def train(self, mode: bool) -> None:
        """Into training mode, or out of it."""
        self._policy.train(mode)

    def rows(self, conversations: Sequence[Sequence[Message]], *, longest: int | None = None) -> list[Segment]:
        """Conversations as rows that share what they begin with as their prompt. The mask is on one token more than
        they have, before which the score is read: that of the last token, never of padding. What exceeds ``longest``
        tokens loses its beginning. Special tokens that a message spells out are taken out of it: a policy could
        otherwise end its turn for the reward model and begin another."""
        clean = [[Message(role=m["role"], content=self._unmarked(m["content"])) for m in c] for c in conversations]
        texts = [encode(self.tokenizer, render(self.tokenizer, messages, generate=False)) for messages in clean]
        if longest is not None:
            texts = [ids[-longest:] for ids in texts]
        same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*texts, strict=False))
        shared = max(1, min(sum(1 for _ in same), *(len(ids) - 1 for ids in texts)))
        return [
            Segment(
                prompt_ids=ids[:shared],
                completion_ids=[*ids[shared:], ids[-1]],
                sampler_logp=[0.0] * (len(ids) - shared + 1),
                mask=[False] * (len(ids) - shared) + [True],
            )
            for ids in texts
        ]

    def scores(self, batch: Batch) -> torch.Tensor:
        """The scores (R,) in float32 of rows made by ``rows``, with a gradient if they are enabled."""
        values = token_values(self._policy.model, self.head, batch, share_prompts=self._policy.shares_prompts)
        return values.sum(1)

    def save(self, folder: str, masters: list[torch.Tensor]) -> None:
        """Write a folder that ``AutoModelForSequenceClassification`` loads: float32 weights, tokenizer, template."""
        exact = dict(zip(map(id, self.parameters()), masters, strict=True))
        every = {**self._policy.model.state_dict(keep_vars=True), HEAD: self.head.weight}
        wanted = self._form.state_dict().keys()
        state = {name: exact.get(id(t), t).detach().cpu() for name, t in every.items() if name in wanted}
        self._form.save_pretrained(folder, state_dict=state)
        saved = self._config()
        saved.architectures = [type(self._form).__name__]
        saved.dtype = torch.float32
        saved.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def saved_weights(self, folder: str) -> dict[str, torch.Tensor]:
        """The masters that ``save`` wrote, in the order of ``parameters()``; what it leaves out is as it is."""
        own = [(name, p) for name, p in self._policy.model.named_parameters() if p.requires_grad]
        stored = _tensors(Path(folder))
        return {name: stored.get(name, p.detach()).to(self.device) for name, p in [*own, (HEAD, self.head.weight)]}

    def _unmarked(self, text: str) -> str:
        while any(mark in text for mark in self._marks):  # taking one out can spell another
            for mark in self._marks:
                text = text.replace(mark, "")
        return text

    def _check_form(self) -> None:
        """Raise ValueError if transformers would not find in the saved weights all that its model has."""
        wanted = self._form.state_dict().keys()
        missing = sorted(wanted - {*self._policy.model.state_dict(), HEAD})
        if missing or HEAD not in wanted:
            raise ValueError(
                f"{type(self._form).__name__} is not {type(self._policy.model).__name__} with a head {HEAD} (it has "
                f"{', '.join(missing[:3])}), so that what is learned here could not be saved in it; choose another base"
            )

    def _config(self) -> Any:
        config = copy.deepcopy(self._policy.model.config)
        config.num_labels = 1
        if self.tokenizer.pad_token_id is not None:  # transformers finds the last token of a row padded so by it
            config.pad_token_id = self.tokenizer.pad_token_id
        return config


@dataclass(frozen=True)
class Member:
    """A trained reward model, and the mean and standard deviation of its scores on its held-out pairs."""

    path: str
    weights: Mapping[str, str]  # SHA-256 by file
    model: RewardModel = field(repr=False)
    mean: float
    std: float


@dataclass(frozen=True)
class Ensemble:
    """A ``rlreason.types.Scorer`` of one or several reward models; ``micro_batch_tokens`` bounds its memory."""

    members: tuple[Member, ...]
    micro_batch_tokens: int

    @torch.no_grad()
    def __call__(self, conversations: Sequence[list[Message]]) -> list[tuple[float, ...]]:
        by_member = [self._scores(member, conversations) for member in self.members]
        return list(zip(*by_member, strict=True))

    def _scores(self, member: Member, conversations: Sequence[list[Message]]) -> list[float]:
        if not conversations:
            return []
        same_prompt: dict[str, list[int]] = defaultdict(list)
        for place, messages in enumerate(conversations):
            same_prompt[json.dumps(messages[:-1])].append(place)
        order = [place for places in same_prompt.values() for place in places]
        longest = member.model.context - 1
        segments = [
            segment
            for places in same_prompt.values()
            for segment in member.model.rows([conversations[place] for place in places], longest=longest)
        ]
        groups = [group for group, places in enumerate(same_prompt.values()) for _ in places]
        batch = stack(segments, groups, device=member.model.device)
        everything = torch.arange(len(segments), device=member.model.device)
        scores = torch.zeros(len(segments), device=member.model.device)
        for rows in micro_batches(batch, everything, self.micro_batch_tokens, shared_prompts=True):
            scores[rows] = member.model.scores(take_rows(batch, rows))
        normalised = ((scores - member.mean) / member.std).tolist()
        found = dict(zip(order, normalised, strict=True))
        return [found[place] for place in range(len(conversations))]


def load_scorer(
    paths: Sequence[str], *, micro_batch_tokens: int = 8192, dtype: Literal["bfloat16", "float32"] = "bfloat16"
) -> Ensemble:
    """The scorer of the reward models at ``paths``: folders that ``rlreason.reward_model`` made, of a run (its newest
    checkpoint is taken) or of a checkpoint.

    Raises ValueError without a path or for a folder without ``reward_model.json``, FileNotFoundError for a folder that
    does not exist and for a run without a checkpoint.
    """
    if not paths:
        raise ValueError("no reward model: name at least one folder in paths")
    if isinstance(paths, str):
        raise ValueError(f"paths is {paths!r}; it must be a list of folders, such as [{paths}]")
    device = Accelerator().device
    return Ensemble(tuple(_member(path, dtype, device) for path in paths), micro_batch_tokens)


def write_facts(folder: Path, *, mean: float, std: float) -> None:
    """What scores are normalised with, beside the weights in ``folder``. ValueError if the scores are all the same."""
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise ValueError(
            f"the scores of the held-out pairs have mean {mean} and standard deviation {std}: nothing learned"
        )
    write_atomic(folder / FACTS, json.dumps({"mean": mean, "std": std}).encode())


def _member(path: str, dtype: Literal["bfloat16", "float32"], device: torch.device) -> Member:
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"reward model {path!r} is no folder (looked in {Path.cwd()})")
    if (folder / "checkpoints").is_dir():
        folder = checkpoint.latest(folder)
    if not (folder / FACTS).is_file():
        raise ValueError(
            f"{path} is no finished reward model: it has no {FACTS}. Train one by python -m rlreason.reward_model, or "
            "take its run up again with resume=<folder>"
        )
    facts = json.loads((folder / FACTS).read_text())
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it would warn of the head, which is no part of a causal model
    base = models.load(str(folder), dtype=dtype, device=device)
    transformers_logging.set_verbosity(before)
    model = RewardModel(base, _tensors(folder)[HEAD])
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return Member(path, base.info["weights"], model, facts["mean"], facts["std"])


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            found |= {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    return found

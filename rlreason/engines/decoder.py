"""What decodes the torch engine's rows: the protocol, and what its implementations share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from rlreason.policy import Policy

BLOCK = 32
"""Tokens by which a cache grows."""


@dataclass(frozen=True)
class Prompts:
    """Distinct prompts to run, and which of them each of the new rows continues."""

    ids: Sequence[Sequence[int]]
    source: Sequence[int]


class Decoder(Protocol):
    """Keeps the keys and values of the rows in flight, numbered from 0 without gaps."""

    def refresh(self) -> None:
        """The policy has new weights. Only called while there are no rows."""
        ...

    def begin(self, prompts: Prompts) -> torch.Tensor:
        """Run prompts and add a row for each entry of ``prompts.source``; logits (new rows, V) of their next token."""
        ...

    def step(self, newest: Sequence[int]) -> torch.Tensor:
        """Run one more token for every row; logits (rows, V) of the one after it."""
        ...

    def remove(self, row: int) -> None:
        """Forget a row; the last one takes its number."""
        ...

    def clear(self) -> None:
        """Forget all rows and free the memory of the cache."""
        ...


def prefill(policy: Policy, prompts: Prompts) -> tuple[torch.Tensor, Any]:
    """Run distinct prompts by the model's own forward: logits (prompts, V) of the token after each, and its cache, in
    which they are padded on the right."""
    lengths = torch.tensor([len(ids) for ids in prompts.ids])
    width = int(lengths.max())
    tokens = torch.zeros((len(prompts.ids), width), dtype=torch.long)
    for row, ids in enumerate(prompts.ids):
        tokens[row, : len(ids)] = torch.tensor(ids)
    last, column = (lengths - 1).unique(return_inverse=True)  # columns that are some prompt's last
    out = policy.model(
        input_ids=tokens.to(policy.device),
        attention_mask=(torch.arange(width) < lengths[:, None]).long().to(policy.device),
        use_cache=True,
        logits_to_keep=last.to(policy.device),
    )
    return out.logits[torch.arange(len(prompts.ids)), column], out.past_key_values

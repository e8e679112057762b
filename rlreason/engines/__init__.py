"""Rollout engines: one protocol (``rlreason.types.Engine``), and what is common to using any of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from rlreason.types import Completion, Engine, Request


def generate(
    engine: Engine, requests: Sequence[Request], on_completion: Callable[[], None] = lambda: None
) -> list[Completion]:
    """Completions in the order of the requests, each with the seconds since all were submitted; ``on_completion`` is
    called as each is done."""
    began = time.perf_counter()
    tickets = [engine.submit(request) for request in requests]
    done: dict[int, Completion] = {}
    for ticket, completion in engine.completed():
        done[ticket] = replace(completion, seconds=time.perf_counter() - began)
        on_completion()
    return [done[ticket] for ticket in tickets]


def refuse_impossible(request: Request, context: int) -> None:
    """Raise ValueError for a request that no engine could take: an empty prompt, or more tokens than ``context``."""
    if not request.ids:
        raise ValueError("an empty prompt can't be completed: it has no last token to predict from")
    longest = request.sampling.max_completion_length
    if len(request.ids) + longest > context:
        raise ValueError(
            f"prompt of {len(request.ids)} tokens + sampling.max_completion_length={longest} exceeds the model's "
            f"context of {context} tokens"
        )

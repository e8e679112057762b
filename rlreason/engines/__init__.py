"""Rollout engines: one protocol (``rlreason.types.Engine``), and what is common to using any of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlreason.types import Completion, Engine, Request


def generate(
    engine: Engine, requests: Sequence[Request], on_completion: Callable[[], None] = lambda: None
) -> list[Completion]:
    """Completions in the order of the requests; ``on_completion`` is called as each is done."""
    tickets = [engine.submit(request) for request in requests]
    done: dict[int, Completion] = {}
    for ticket, completion in engine.completed():
        done[ticket] = completion
        on_completion()
    return [done[ticket] for ticket in tickets]

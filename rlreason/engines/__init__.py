"""Rollout engines: one protocol (``rlreason.types.Engine``), and what is common to using any of them."""

from __future__ import annotations

from collections.abc import Sequence

from rlreason.types import Completion, Engine, Request


def generate(engine: Engine, requests: Sequence[Request]) -> list[Completion]:
    """Completions in the order of the requests."""
    tickets = [engine.submit(request) for request in requests]
    done = dict(engine.completed())
    return [done[ticket] for ticket in tickets]

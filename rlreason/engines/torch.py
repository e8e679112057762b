"""Rollouts on the policy's own weights, for any causal LM of transformers whose cache is keys and values.

The engine schedules and samples; a ``Decoder`` computes. A prompt that several waiting requests share is run once.
Finished rows give their place to waiting requests. A token is drawn by inverse CDF from one uniform number that depends
on the request's seed and the token's position alone: who else is in the batch changes nothing but rounding.

Left out: keeping a prompt's cache from one step to the next, since new weights make it stale.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from rlreason import kernels
from rlreason.engines import refuse_impossible
from rlreason.engines.decoder import BLOCK, Decoder, Prompts
from rlreason.engines.graphs import capture
from rlreason.engines.module import ModuleDecoder
from rlreason.engines.paged import PagedDecoder
from rlreason.policy import Policy
from rlreason.types import Completion, Finish, Request


@dataclass
class _Row:
    """A request in flight."""

    ticket: int
    request: Request
    uniforms: torch.Tensor  # (max_completion_length,) float64 on CPU
    version: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @property
    def need(self) -> int:
        """Tokens of cache that it may come to need."""
        return len(self.request.ids) + self.request.sampling.max_completion_length


class TorchEngine:
    """Implements ``rlreason.types.Engine`` on the policy's own weights.

    ``max_tokens_in_flight`` bounds the tokens that the cache may come to hold, and so its memory: for SmolLM2-135M a
    token takes 23 KB in bfloat16. ``max_rows`` bounds the rows of a decoding step, ``max_prefill_tokens`` the padded
    tokens of a prefill. ``cuda_graphs`` (a GPU's only) launches a step of decoding at once instead of kernel by kernel;
    its price is a cache that stays allocated during updates.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        max_tokens_in_flight: int,
        max_rows: int = 128,
        max_prefill_tokens: int = 8192,
        cuda_graphs: bool = True,
    ) -> None:
        if max_rows < 1 or max_prefill_tokens < 1:
            raise ValueError("engine.max_rows and engine.max_prefill_tokens must be at least 1")
        self.max_tokens_in_flight = max_tokens_in_flight
        self.max_rows = max_rows
        self.max_prefill_tokens = max_prefill_tokens
        self.version = -1
        self._tickets = 0
        self._waiting: deque[_Row] = deque()
        self._active: list[_Row] = []
        self.policy = policy
        self._decoder: Decoder
        if PagedDecoder.supports(policy):
            self._decoder = PagedDecoder(policy, max_tokens=max_tokens_in_flight)
        else:
            captured = capture if cuda_graphs and policy.device.type == "cuda" else None
            self._decoder = ModuleDecoder(policy, max_tokens=max_tokens_in_flight, capture=captured)
        self.sync(policy)

    def sync(self, policy: Policy) -> None:
        """The engine runs the policy's own module, so new weights are there at once; this counts them. Refused while
        requests are in flight, whose cached keys would be of the old weights."""
        if self._waiting or self._active:
            raise RuntimeError("sync while requests are waiting: drain completed() first")
        if policy is not self.policy:
            raise ValueError("engine=torch decodes the policy that it was built on, and was given another one")
        self._decoder.refresh()
        self.version += 1

    @property
    def max_length(self) -> int:
        """See ``types.Engine``."""
        return min(self.policy.context, self.max_tokens_in_flight - BLOCK)

    def submit(self, request: Request) -> int:
        """Queue a request; see ``types.Engine``."""
        refuse_impossible(request, self.policy.context)
        total = len(request.ids) + request.sampling.max_completion_length
        if total + BLOCK > self.max_tokens_in_flight:
            raise ValueError(
                f"one request needs {total} tokens of cache (in blocks of {BLOCK}) but "
                f"engine.max_tokens_in_flight={self.max_tokens_in_flight}"
            )
        generator = torch.Generator().manual_seed(request.seed)
        uniforms = torch.rand(request.sampling.max_completion_length, generator=generator, dtype=torch.float64)
        ticket, self._tickets = self._tickets, self._tickets + 1
        self._waiting.append(_Row(ticket, request, uniforms, self.version))
        return ticket

    def completed(self) -> Iterator[tuple[int, Completion]]:
        """Yield (ticket, completion) as rows finish; see ``types.Engine``."""
        active = self._active
        try:
            with self.policy.merged():
                while self._waiting or active:
                    finished = self._admit(active) if self._room(active) else []
                    if not finished:
                        finished = self._step(active)
                    for row, finish in finished:
                        yield row.ticket, Completion(row.ids, row.logprobs, finish, row.version)
        finally:
            self._decoder.clear()
            # if the caller stopped half-way, the rest is lost, not left half-cached
            self._waiting.clear()
            active.clear()

    def _room(self, active: list[_Row]) -> int:
        """How many waiting requests to take in now. A quarter of the batch at a time, so that prefills are not made
        of single prompts."""
        if not self._waiting:
            return 0
        need = max(row.need for row in (*self._waiting, *active))
        slots = min(self.max_rows, self.max_tokens_in_flight // (-(-need // BLOCK) * BLOCK))
        free = slots - len(active)
        wanted = min(len(self._waiting), free)
        return wanted if wanted >= min(len(self._waiting), max(1, slots // 4)) or (not active and wanted) else 0

    @torch.no_grad()
    def _admit(self, active: list[_Row]) -> list[tuple[_Row, Finish]]:
        """Prefill the distinct prompts among the next waiting requests and draw each request's first token."""
        room = self._room(active)
        fresh: list[_Row] = []
        prompts: dict[tuple[int, ...], int] = {}
        width = 0
        while self._waiting and len(fresh) < room:
            ids = tuple(self._waiting[0].request.ids)
            grown = max(width, len(ids)) * (len(prompts) + (ids not in prompts))
            if fresh and grown > self.max_prefill_tokens:
                break
            width = max(width, len(ids))
            prompts.setdefault(ids, len(prompts))
            fresh.append(self._waiting.popleft())
        source = [prompts[tuple(row.request.ids)] for row in fresh]
        active.extend(fresh)
        self._draw(fresh, self._decoder.begin(Prompts(list(prompts), source)))
        return self._retire(active)

    @torch.no_grad()
    def _step(self, active: list[_Row]) -> list[tuple[_Row, Finish]]:
        """One more token for every active row."""
        self._draw(active, self._decoder.step([row.ids[-1] for row in active]))
        return self._retire(active)

    def _draw(self, rows: list[_Row], logits: torch.Tensor) -> None:
        """Append one token and its log-probability to each row; logits (rows, V)."""
        temperature = torch.tensor([row.request.sampling.temperature for row in rows], dtype=torch.float32)
        uniform = torch.stack([row.uniforms[len(row.ids)] for row in rows])
        whole = all(row.request.sampling.top_p == 1.0 and row.request.sampling.top_k == 0 for row in rows)
        if whole and kernels.usable(logits):
            token, logp = kernels.sample(logits, temperature, uniform)
        else:
            token, logp = _sample(logits, temperature.to(logits.device), uniform.to(logits.device), rows)
        for row, i, p in zip(rows, token.tolist(), logp.tolist(), strict=True):
            row.ids.append(i)
            row.logprobs.append(p)

    def _retire(self, active: list[_Row]) -> list[tuple[_Row, Finish]]:
        """Take finished rows out and close the gaps they leave with rows from the end."""
        finished: list[tuple[_Row, Finish]] = []
        i = 0
        while i < len(active):
            finish = self._finish(active[i])
            if finish is None:
                i += 1
                continue
            finished.append((active[i], finish))
            self._decoder.remove(i)
            moved = active.pop()
            if i < len(active):
                active[i] = moved
        return sorted(finished, key=lambda pair: pair[0].ticket)

    def _finish(self, row: _Row) -> Finish | None:
        sampling = row.request.sampling
        if row.ids[-1] in self.policy.end_ids:
            return "stop"
        if sampling.stop:
            # each token may hold a fraction of a character, so a generous tail is decoded
            tail = self.policy.tokenizer.decode(row.ids[-(8 + 4 * max(map(len, sampling.stop))) :])
            if any(stop in tail for stop in sampling.stop):
                return "stop"
        return "length" if len(row.ids) >= sampling.max_completion_length else None


def _sample(
    logits: torch.Tensor, temperature: torch.Tensor, uniform: torch.Tensor, rows: list[_Row]
) -> tuple[torch.Tensor, torch.Tensor]:
    """``kernels.sample`` in PyTorch's own operators, and with each row's top-k and top-p."""
    uniform = uniform.float().clamp(max=1 - 2.0**-24)  # a float64 just below 1 is 1 in float32: beyond every token
    scaled = logits.float() / torch.where(temperature > 0, temperature, 1.0)[:, None]
    cdf = torch.softmax(_keep_top(scaled, rows), dim=-1).cumsum(dim=-1)
    drawn = torch.searchsorted(cdf, (uniform * cdf[:, -1])[:, None], right=True).squeeze(1)
    drawn = drawn.clamp(max=scaled.shape[1] - 1)
    token = torch.where(temperature > 0, drawn, scaled.argmax(-1))
    return token, scaled.gather(1, token[:, None]).squeeze(1) - torch.logsumexp(scaled, dim=-1)


def _keep_top(scaled: torch.Tensor, rows: list[_Row]) -> torch.Tensor:
    """Logits with all but each row's top-k and top-p set to -inf; untouched, and free, where nobody asks."""
    if all(row.request.sampling.top_p == 1.0 and row.request.sampling.top_k == 0 for row in rows):
        return scaled
    ordered, order = scaled.sort(dim=-1, descending=True)
    rank = torch.arange(scaled.shape[1], device=scaled.device)
    top_k = torch.tensor([row.request.sampling.top_k or scaled.shape[1] for row in rows], device=scaled.device)
    top_p = torch.tensor([row.request.sampling.top_p for row in rows], device=scaled.device)
    probability = torch.softmax(ordered, dim=-1)
    before = probability.cumsum(dim=-1) - probability  # mass of the tokens above
    drop = (rank >= top_k[:, None]) | ((before >= top_p[:, None]) & (rank > 0))
    return scaled.masked_fill(torch.zeros_like(drop).scatter(1, order, drop), float("-inf"))

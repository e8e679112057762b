"""Rollouts by the policy's own forward pass: any causal LM of transformers whose cache is keys and values.

The cache is written in place, one slot a row, and grows a block of tokens at a time, so that what attention reads is
dense: a strided view would be copied at every step. A prompt that several waiting requests share is run
once. Finished rows give their slot to waiting requests, and the active rows stay packed at the front, so that no
work is done on the dead. A token is drawn by inverse CDF from one uniform number that depends on the request's seed
and the token's position alone: who else is in the batch changes nothing but rounding.

Left out: paged caches and captured CUDA graphs (speed is another issue), and models with recurrent state or sliding
windows shorter than a sequence, which are refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from rlreason.policy import Policy
from rlreason.types import Completion, Finish, Request

BLOCK = 32
"""Tokens by which the cache grows."""


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
    def length(self) -> int:
        """Tokens whose keys and values are in the cache: all but the newest."""
        return len(self.request.ids) + len(self.ids) - 1


class _Slots:
    """Keys and values of all layers, (slots, kv heads, capacity, width) each; grown by copying, dropped when idle."""

    def __init__(self) -> None:
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    @property
    def shape(self) -> tuple[int, int]:
        """Slots and tokens a slot."""
        return (self.keys[0].shape[0], self.keys[0].shape[2]) if self.keys else (0, 0)

    def reserve(self, slots: int, length: int, like: Any = None) -> None:
        """Make room for ``slots`` rows of ``length`` tokens, a multiple of ``BLOCK``, in layers such as those of the
        cache ``like``."""
        if slots <= self.shape[0] and length <= self.shape[1]:
            return
        capacity = -(-length // BLOCK) * BLOCK  # exactly what is asked for: slots x capacity must not outgrow the cap
        for name in ("keys", "values"):
            layers = getattr(self, name)
            if not layers:
                layers.extend(getattr(layer, name)[:0, :, :0] for layer in like.layers)
            for i, old in enumerate(layers):  # layer by layer, so that only one of them is there twice
                # zeros: a masked key must be finite, since 0 * NaN is NaN
                layers[i] = old.new_zeros((slots, old.shape[1], capacity, old.shape[3]))
                rows, seen = min(old.shape[0], slots), min(old.shape[2], capacity)
                layers[i][:rows, :, :seen] = old[:rows, :, :seen]

    def drop(self) -> None:
        """Free the memory; the update needs it."""
        self.keys, self.values = [], []

    def fill(self, slots: torch.Tensor, prompts: Any, source: torch.Tensor) -> None:
        """Copy row ``source[i]`` of the prompts' cache into slot ``slots[i]``."""
        for keys, values, layer in zip(self.keys, self.values, prompts.layers, strict=True):
            width = layer.keys.shape[2]
            keys[slots, :, :width] = layer.keys[source]
            values[slots, :, :width] = layer.values[source]

    def move(self, source: int, target: int, length: int) -> None:
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :length] = tensor[source, :, :length]


class _SlotLayer(CacheLayerMixin):
    """One decoding step's view of a layer: writes row r's new token at ``position[r]``, shows the whole slots."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, position: torch.Tensor) -> None:
        super().__init__()
        self.slot_keys, self.slot_values, self.position = keys, values, position
        self.rows = torch.arange(len(position), device=position.device)
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None: ...

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any) -> tuple[Any, Any]:
        self.slot_keys[self.rows, :, self.position] = key_states[:, :, 0]
        self.slot_values[self.rows, :, self.position] = value_states[:, :, 0]
        rows = len(self.rows)
        return self.slot_keys[:rows], self.slot_values[:rows]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_max_length(), 0

    def get_seq_length(self) -> int:
        return self.get_max_length() - 1

    def get_max_length(self) -> int:
        return int(self.slot_keys.shape[2])


class TorchEngine:
    """Implements ``rlreason.types.Engine`` on the policy's own weights.

    ``max_tokens_in_flight`` bounds slots x capacity of the cache, and so its memory: for SmolLM2-135M a token takes
    23 KB in bfloat16. ``max_rows`` bounds the rows of a decoding step, ``max_prefill_tokens`` those of a prefill.
    """

    def __init__(
        self, policy: Policy, *, max_tokens_in_flight: int, max_rows: int = 128, max_prefill_tokens: int = 8192
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
        self._slots = _Slots()
        self.sync(policy)

    def sync(self, policy: Policy) -> None:
        """The engine runs the policy's own module, so new weights are there at once; this counts them. Refused while
        requests are in flight, whose cached keys would be of the old weights."""
        if self._waiting or self._active:
            raise RuntimeError("sync while requests are waiting: drain completed() first")
        _refuse_unsupported(policy.model)
        self.policy = policy
        self.version += 1

    def submit(self, request: Request) -> int:
        """Queue a request; see ``types.Engine``."""
        total = len(request.ids) + request.sampling.max_completion_length
        if not request.ids:
            raise ValueError("an empty prompt can't be completed: it has no last token to predict from")
        if total > self.policy.context:
            raise ValueError(
                f"prompt of {len(request.ids)} tokens + sampling.max_completion_length="
                f"{request.sampling.max_completion_length} exceeds the model's context of {self.policy.context} tokens"
            )
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
            while self._waiting or active:
                finished = self._admit(active) if self._room(active) else []
                if not finished:
                    finished = self._step(active)
                for row, finish in finished:
                    yield row.ticket, Completion(row.ids, row.logprobs, finish, row.version)
        finally:
            self._slots.drop()
            # if the caller stopped half-way, the rest is lost, not left half-cached
            self._waiting.clear()
            active.clear()

    def _room(self, active: list[_Row]) -> int:
        """How many waiting requests to take in now. A quarter of the batch at a time, so that prefills are not made
        of single prompts."""
        if not self._waiting:
            return 0
        need = max(_need(row) for row in (*self._waiting, *active))
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
        device = self.policy.device
        tokens = torch.zeros((len(prompts), width), dtype=torch.long)
        lengths = torch.tensor([len(ids) for ids in prompts])
        for ids, i in prompts.items():
            tokens[i, : len(ids)] = torch.tensor(ids)
        present = torch.arange(width) < lengths[:, None]
        out = self.policy.model(
            input_ids=tokens.to(device),
            attention_mask=present.long().to(device),
            use_cache=True,
            logits_to_keep=(lengths - 1).unique().to(device),  # columns that are some prompt's last
        )
        columns = torch.searchsorted((lengths - 1).unique(), lengths - 1)
        last = out.logits[torch.arange(len(prompts)), columns]  # (prompts, V)
        source = torch.tensor([prompts[tuple(row.request.ids)] for row in fresh], device=device)
        longest = max([width, *(row.length for row in active)]) + 1
        self._slots.reserve(len(active) + len(fresh), longest, out.past_key_values)
        slots = torch.arange(len(active), len(active) + len(fresh), device=device)
        self._slots.fill(slots, out.past_key_values, source)
        active.extend(fresh)
        self._draw(fresh, last[source])
        return self._retire(active)

    @torch.no_grad()
    def _step(self, active: list[_Row]) -> list[tuple[_Row, Finish]]:
        """One more token for every active row."""
        device = self.policy.device
        position = torch.tensor([row.length for row in active], device=device)
        self._slots.reserve(len(active), max(row.length for row in active) + 1)
        newest = torch.tensor([[row.ids[-1]] for row in active], device=device)
        dtype = self._slots.keys[0].dtype
        unseen = torch.arange(self._slots.shape[1], device=device) > position[:, None]
        mask = torch.zeros(unseen.shape, dtype=dtype, device=device).masked_fill(unseen, torch.finfo(dtype).min)
        layers: list[Any] = [
            _SlotLayer(keys, values, position)
            for keys, values in zip(self._slots.keys, self._slots.values, strict=True)
        ]
        out = self.policy.model(
            input_ids=newest,
            attention_mask=mask[:, None, None, :],
            position_ids=position[:, None],
            past_key_values=Cache(layers=layers),
            use_cache=True,
        )
        self._draw(active, out.logits[:, -1])
        return self._retire(active)

    def _draw(self, rows: list[_Row], logits: torch.Tensor) -> None:
        """Append one token and its log-probability to each row; logits (rows, V)."""
        device = logits.device
        temperature = torch.tensor([row.request.sampling.temperature for row in rows], device=device)
        uniform = torch.tensor([float(row.uniforms[len(row.ids)]) for row in rows], device=device)
        uniform = uniform.clamp(max=1 - 2.0**-24)  # a float64 just below 1 is 1 in float32: beyond every token
        scaled = logits.float() / torch.where(temperature > 0, temperature, 1.0)[:, None]
        kept = _keep_top(scaled, rows)
        cdf = torch.softmax(kept, dim=-1).cumsum(dim=-1)
        drawn = torch.searchsorted(cdf, (uniform * cdf[:, -1])[:, None], right=True).squeeze(1)
        drawn = drawn.clamp(max=scaled.shape[1] - 1)
        token = torch.where(temperature > 0, drawn, scaled.argmax(-1))
        logp = scaled.gather(1, token[:, None]).squeeze(1) - torch.logsumexp(scaled, dim=-1)
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
            moved = active.pop()
            if i < len(active):
                active[i] = moved
                self._slots.move(len(active), i, moved.length)
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


def _need(row: _Row) -> int:
    return len(row.request.ids) + row.request.sampling.max_completion_length


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


def _refuse_unsupported(model: Any) -> None:
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    windowed = "sliding_attention" in kinds or (window is not None and getattr(config, "use_sliding_window", True))
    if kinds - {"full_attention", "sliding_attention"}:
        raise ValueError(
            f"engine=torch can't run {type(model).__name__}: its layers are {sorted(kinds)}, not all attention"
        )
    if windowed and window is not None and window < config.max_position_embeddings:
        raise ValueError(f"engine=torch can't run {type(model).__name__}: its attention forgets after {window} tokens")

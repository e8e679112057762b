"""Decoding by the model's own forward: any causal LM of transformers whose cache is keys and values, on any device.

The cache is written in place, one slot a row, and grows a block of tokens at a time, so that what attention reads is
dense: a strided view would be copied at every step. The rows stay packed at the front, so that no work is done on the
dead. On a GPU a step is a captured CUDA graph, one for each power of two of rows and tokens; rows beyond those in
flight are computed and thrown away, and the cache stays where the graphs know it to be.

Left out: models with recurrent state or sliding windows shorter than a sequence, which are refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from rlreason.engines.decoder import BLOCK, Prompts, prefill
from rlreason.engines.graphs import Capture, Function, bucket
from rlreason.policy import Policy


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


class ModuleDecoder:
    """Implements ``Decoder`` for whatever ``refuse_unsupported`` lets through. ``max_tokens`` is what the rows may come
    to hold together; ``capture`` makes a graph of a step (``graphs.capture``), and without it every step is launched
    kernel by kernel."""

    def __init__(self, policy: Policy, *, max_tokens: int, capture: Capture | None = None) -> None:
        refuse_unsupported(policy.model)
        self.policy = policy
        self.max_tokens = max_tokens
        self._capture = capture
        self._graphs: dict[tuple[int, int], Function] = {}  # by rows and tokens of cache
        self._slots = _Slots()
        self._lengths: list[int] = []

    def refresh(self) -> None: ...  # the module's weights change in place

    def begin(self, prompts: Prompts) -> torch.Tensor:
        last, cache = prefill(self.policy, prompts)
        source = torch.tensor(prompts.source, device=last.device)
        before, after = len(self._lengths), len(self._lengths) + len(source)
        self._lengths += [len(prompts.ids[i]) for i in prompts.source]
        # the cache is as wide as the longest prompt of all, longer than the longest with a request perhaps
        self._reserve(after, max([*self._lengths, max(map(len, prompts.ids))]) + 1, cache)
        self._slots.fill(torch.arange(before, after, device=last.device), cache, source)
        return last[source]

    def step(self, newest: Sequence[int]) -> torch.Tensor:
        rows, tokens = self._reserve(len(newest), max(self._lengths) + 1)
        idle = [0] * (rows - len(newest))  # rows that only fill up a graph: each writes to the start of its own slot
        ids = torch.tensor([*newest, *idle], device=self.policy.device)
        position = torch.tensor([*self._lengths, *idle], device=self.policy.device)
        self._lengths = [length + 1 for length in self._lengths]
        logits: torch.Tensor = self._runner(ids, position, tokens)(ids, position)
        return logits[: len(newest)]

    def _reserve(self, rows: int, tokens: int, like: Any = None) -> tuple[int, int]:
        """Room for so many rows and tokens; how many of each the next step computes."""
        if self._capture is None:
            self._slots.reserve(rows, tokens, like)
            return rows, self._slots.shape[1]
        held = self._slots.shape
        wanted = bucket(rows, 8), bucket(tokens, 256)
        if rows > held[0] or tokens > held[1]:
            grown = max(wanted[0], held[0]), max(wanted[1], held[1])  # what only grows is soon left where it is
            self._slots.reserve(*(grown if grown[0] * grown[1] <= self.max_tokens else (rows, tokens)), like)
            self._graphs.clear()
        return min(wanted[0], self._slots.shape[0]), min(wanted[1], self._slots.shape[1])

    def _runner(self, ids: torch.Tensor, position: torch.Tensor, tokens: int) -> Function:
        """What computes a step on these inputs."""

        def run(ids: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
            return self._forward(ids, position, tokens)

        key = (len(ids), tokens)
        if self._capture is not None and key not in self._graphs:
            try:
                self._graphs[key] = self._capture(run, (ids, position))
            except (RuntimeError, AssertionError) as error:
                # slower, and right: nothing else differs
                warnings.warn(
                    f"{type(self.policy.model).__name__} can't be decoded by CUDA graphs, so decoding goes on without "
                    f"(engine.cuda_graphs=false says so from the start): {error}",
                    stacklevel=2,
                )
                self._capture = None
                self._graphs.clear()
        return self._graphs.get(key, run)

    def _forward(self, ids: torch.Tensor, position: torch.Tensor, tokens: int) -> torch.Tensor:
        """Logits (rows, V) after ``ids`` at ``position``, both (rows,); rows read their first ``tokens`` of cache."""
        keys = [keys[:, :, :tokens] for keys in self._slots.keys]
        values = [values[:, :, :tokens] for values in self._slots.values]
        unseen = torch.arange(tokens, device=ids.device) > position[:, None]
        mask = torch.zeros(unseen.shape, dtype=keys[0].dtype, device=ids.device)
        out = self.policy.model(
            input_ids=ids[:, None],
            attention_mask=mask.masked_fill(unseen, torch.finfo(mask.dtype).min)[:, None, None, :],
            position_ids=position[:, None],
            past_key_values=Cache(layers=[_SlotLayer(*pair, position) for pair in zip(keys, values, strict=True)]),
            use_cache=True,
        )
        logits: torch.Tensor = out.logits[:, -1]
        return logits

    def remove(self, row: int) -> None:
        length = self._lengths.pop()
        if row < len(self._lengths):
            self._lengths[row] = length
            self._slots.move(len(self._lengths), row, length)

    def clear(self) -> None:
        self._lengths = []
        if not self._graphs:
            self._slots.drop()


def refuse_unsupported(model: Any) -> None:
    """Raise ValueError for a model whose memory of a sequence is not all of its keys and values."""
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

"""The policy: model, tokenizer and critic, and the one function that turns tokens into log-probabilities.

``token_logprobs`` is the only place that shifts by one and the only place that applies the sampling temperature.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from rlreason import attention
from rlreason.batch import same_prompts
from rlreason.chat import Tools, encode, prompted
from rlreason.kernels.modules import CAUSAL_LMS
from rlreason.logprob import head_log_softmax_at, log_softmax_at
from rlreason.lora import Adapter, LoRA
from rlreason.packing import pack, packed
from rlreason.types import Batch, Message, Outputs

KEPT_LOGITS = 2**28
"""Entries of [tokens, vocabulary] that an update may hold at once: 512 MB of bfloat16."""

ADAPTER_FOLDER = "adapter"
"""Where in a checkpoint the adapter lies."""


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation: its token ids, the text (such as ``<think>``) that the template or the environment
    has opened the policy's turn with, which the graded text must begin with, and its own whole text."""

    ids: list[int]
    opened: str
    text: str


class Critic(nn.Module):
    """Estimates the value of a state: a linear ``head`` (float32, zero at the start) on the last hidden state of the
    policy's trunk, or of a ``trunk`` of its own."""

    def __init__(self, width: int, trunk: Any | None, device: torch.device) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(width, 1, device=device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)


class Policy:
    """A causal language model that acts.

    ``model`` computes in ``dtype``; with bfloat16 the float32 weights it came with are handed over once, to the
    learner, by ``take_masters``. ``reference`` and ``critic`` are None until asked for. With ``lora``, ``model``
    carries adapters, which alone are trained, and ``adapter`` is not None.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, dtype: torch.dtype, info: dict[str, Any], lora: LoRA | None = None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.info = info
        self.end_ids = end_ids(model, tokenizer)
        self.context = context_length(model)
        self.reference: Any | None = None
        self.critic: Critic | None = None
        self.adapter = Adapter(model, lora) if lora is not None else None
        trained = self.parameters()
        self._masters = [p.detach().float().clone() for p in trained] if dtype != torch.float32 else None
        model.to(dtype)
        model.eval()

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def shares_prompts(self) -> bool:
        """Whether the update runs a group's prompt once: not with gradient checkpointing, which has no cache, nor with
        sliding windows, whose cache forgets the prompt's head."""
        config = self.model.config.get_text_config()
        return not (self.model.is_gradient_checkpointing or getattr(config, "sliding_window", None))

    def add_reference(self) -> None:
        """Freeze a copy of the model as it is now; KL is measured against it. Adapters need none: the model with them
        off is what it was."""
        if self.adapter is None:
            self.reference = copy.deepcopy(self.model).requires_grad_(False).eval()

    @torch.no_grad()
    def refresh_reference(self) -> None:
        """The reference becomes the model as it is now. Raises ValueError with LoRA, whose reference is the model with
        its adapters off."""
        if self.reference is None:
            raise ValueError("with LoRA the reference is the model without its adapters and can't be refreshed")
        for old, new in zip(self.reference.parameters(), self.model.parameters(), strict=True):
            old.copy_(new)

    def add_critic(self, *, own_model: bool = False) -> None:
        """A critic, on the policy's trunk or on a copy of the model as it is now. Raises ValueError for a copy beside
        LoRA, whose point is not to train that much."""
        if own_model and self.adapter is not None:
            raise ValueError(
                "a critic of its own trains a whole model beside LoRA's adapters: use algo.critic_model=false"
            )
        trunk = copy.deepcopy(self.model).requires_grad_(True) if own_model else None
        if trunk is not None and trunk.get_output_embeddings().weight is not trunk.get_input_embeddings().weight:
            trunk.get_output_embeddings().requires_grad_(False)  # it computes nothing here
        self.critic = Critic(self.model.config.get_text_config().hidden_size, trunk, self.device)

    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters, the critic's last."""
        return [*self.actor_parameters(), *self.critic_parameters().values()]

    def actor_parameters(self) -> list[nn.Parameter]:
        """The trained parameters of the model that acts."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def critic_parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters of the critic by name; {} without one."""
        named = self.critic.named_parameters() if self.critic is not None else ()
        return {name: p for name, p in named if p.requires_grad}

    def train(self, mode: bool) -> None:
        """Into training mode, or out of it: what has dropout drops, what checkpoints gradients does."""
        for model in (self.model, self.critic.trunk if self.critic is not None else None):
            if model is not None:
                model.train(mode)

    def take_masters(self) -> list[torch.Tensor]:
        """Float32 master weights, one per entry of ``parameters()``: the parameter itself where it is float32."""
        given, self._masters = self._masters or [], None
        rest = self.parameters()[len(given) :]
        return [*given, *(p if p.dtype == torch.float32 else p.detach().float() for p in rest)]

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What an engine needs of the policy: names as in the architecture's own ``named_parameters`` (tied weights
        once) and weights in the dtype that computes. LoRA is merged in, each weight as it is asked for; other weights
        are the parameters themselves. The critic is not among them."""
        return self.model.named_parameters() if self.adapter is None else self.adapter.weights()

    def merged(self) -> AbstractContextManager[None]:
        """A block in which ``model`` is the bare architecture with LoRA merged into its weights, for rollouts; outside
        it the weights are what they were, bit for bit. It can't be nested and trains nothing. Without LoRA, nothing."""
        return self.adapter.merged() if self.adapter is not None else nullcontext()

    def render(self, messages: list[Message], tools: Tools = ()) -> Prompt:
        """Token ids of a conversation up to where the policy speaks, or goes on with a last message of its own."""
        text, opened = prompted(self.tokenizer, messages, tools)
        return Prompt(encode(self.tokenizer, text), opened, text)

    def decode(self, ids: list[int]) -> str:
        """Text of a completion: the end token that closed it is dropped, other special tokens are shown."""
        if ids and ids[-1] in self.end_ids:
            ids = ids[:-1]
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def forward(self, batch: Batch, temperature: float, *, value: bool = False) -> Outputs:
        """One pass with gradients, if they are enabled; see ``token_logprobs``."""
        critic, shared = self.critic if value else None, self.shares_prompts
        if critic is None or critic.trunk is None:
            head = critic.head if critic is not None else None
            return token_logprobs(self.model, batch, temperature, value_head=head, share_prompts=shared)
        return replace(
            token_logprobs(self.model, batch, temperature, share_prompts=shared),
            value=token_values(critic.trunk, critic.head, batch, share_prompts=shared),
        )

    def values(self, batch: Batch) -> torch.Tensor:
        """The critic's estimates alone, (R, S), without a gradient for the model that acts."""
        assert self.critic is not None
        if self.critic.trunk is not None:
            return token_values(self.critic.trunk, self.critic.head, batch, share_prompts=self.shares_prompts)
        return token_values(self.model, self.critic.head, batch, share_prompts=self.shares_prompts, frozen=True)

    @torch.no_grad()
    def annotate(self, batch: Batch, temperature: float, needs: frozenset[str], cuts: list[torch.Tensor]) -> Batch:
        """Fill in what the algorithm ``needs`` out of ``old_logp``, ``value`` and ``ref_logp``, in micro-batches of
        the rows in ``cuts``."""
        if not needs & {"old_logp", "value", "ref_logp"}:
            return batch
        filled = {name: torch.zeros_like(batch.sampler_logp) for name in needs & {"old_logp", "value", "ref_logp"}}
        for rows in cuts:
            part = take_rows(batch, rows)
            width = part.tokens.shape[1]
            if "old_logp" in needs:
                out = self.forward(part, temperature, value="value" in needs)
                filled["old_logp"][rows, :width] = out.logp
                if out.value is not None:
                    filled["value"][rows, :width] = out.value
            elif "value" in needs:
                filled["value"][rows, :width] = self.values(part)
            if "ref_logp" in needs:
                with self._without_adapter():
                    model = self.model if self.adapter is not None else self.reference
                    out = token_logprobs(model, part, temperature, share_prompts=self.shares_prompts)
                filled["ref_logp"][rows, :width] = out.logp
        return replace(batch, **filled)

    def save(self, folder: str, masters: list[torch.Tensor]) -> None:
        """Write a folder that ``from_pretrained`` of any tool loads: float32 safetensors, tokenizer, template.
        ``masters`` are those of ``parameters()``. LoRA is merged in, and beside that in ``adapter/`` for PEFT to read.
        """
        # by identity, so that tied weights, which have two names, are one tensor still and saved once
        if self.adapter is None:
            exact = {id(p): m.detach().cpu() for p, m in zip(self.model.parameters(), masters, strict=False)}
        else:
            exact = self.adapter.exact(masters)
            self.adapter.save(Path(folder) / ADAPTER_FOLDER, masters)
        with self._without_adapter():
            state = {
                name: exact.get(id(tensor), tensor.detach().cpu())
                for name, tensor in self.model.state_dict(keep_vars=True).items()
            }
            self.model.save_pretrained(folder, state_dict=state)
        # It wrote the dtype that the model computes in; a bare from_pretrained would round the file's float32 to that.
        saved = copy.deepcopy(self.model.config)
        saved.dtype = torch.float32
        saved.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def saved_weights(self, folder: str) -> dict[str, torch.Tensor]:
        """The masters that ``save`` wrote, critic excepted, by the name of their parameter: float32, on ``device``."""
        if self.adapter is not None:
            weights = self.adapter.read(Path(folder) / ADAPTER_FOLDER)
        else:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            weights = {name: p.detach() for name, p in model.named_parameters()}
        return {name: weight.to(self.device) for name, weight in weights.items()}

    def _without_adapter(self) -> AbstractContextManager[None]:
        return self.adapter.off() if self.adapter is not None else nullcontext()


def end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends a completion: the generation config's (one or several) and the tokenizer's."""
    found: set[int] = set()
    for source in (model.generation_config.eos_token_id, model.config.eos_token_id, tokenizer.eos_token_id):
        if source is not None:
            found.update([source] if isinstance(source, int) else source)
    if not found:
        raise ValueError("neither the model's generation config nor its tokenizer names an end token")
    return frozenset(found)


def context_length(model: Any) -> int:
    """Longest sequence in tokens, prompt and completion together."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30)


def take_rows(batch: Batch, rows: torch.Tensor) -> Batch:
    """The rows ``rows`` (indices) of a batch, cut to the longest of them."""
    width = int(batch.attention[rows].sum(1).max()) if len(rows) else 0
    taken: dict[str, Any] = {}
    for name, tensor in vars(batch).items():
        if tensor is not None:
            taken[name] = tensor[rows, :width] if tensor.ndim == 2 else tensor[rows]
    return replace(batch, **taken)


def token_logprobs(
    model: Any,
    batch: Batch,
    temperature: float,
    *,
    value_head: nn.Module | None = None,
    share_prompts: bool = True,
) -> Outputs:
    """Log-probabilities of the batch's masked tokens under ``model`` at ``temperature``.

    Returns (R, S) tensors in float32, indexed by the token they describe and 0 where the mask is False. ``value`` is
    the critic's estimate of the state before that token. A prompt that several rows share is run once, its
    keys and values expanded to the rows with the graph kept, so the gradient is exact.
    """
    head = model.get_output_embeddings()
    # beyond this, logits are computed a second time rather than kept
    fused = int(batch.mask.sum()) * head.weight.shape[0] > KEPT_LOGITS and _is_bare_head(model)
    logits, hidden, source = _predictions(model, batch, share_prompts, run_head=not fused)
    targets = batch.tokens[batch.mask]
    if fused:
        logp, entropy = head_log_softmax_at(hidden, head.weight, source, targets, temperature)
    else:
        logp, entropy = log_softmax_at(logits, source, targets, temperature)
    return Outputs(
        logp=_scatter(logp, batch.mask),
        entropy=_scatter(entropy, batch.mask),
        value=_values(value_head, hidden, source, batch) if value_head is not None else None,
    )


def token_values(
    model: Any, head: nn.Module, batch: Batch, *, share_prompts: bool = True, frozen: bool = False
) -> torch.Tensor:
    """``head`` on the last hidden states of ``model``: (R, S) float32, the value of the state before each masked token,
    0 where the mask is False. ``frozen``: without a gradient for the model."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
        _, hidden, source = _predictions(model, batch, share_prompts, run_head=False)
    return _values(head, hidden, source, batch)


def _predictions(
    model: Any, batch: Batch, share_prompts: bool, *, run_head: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (N, V), or (0, V) without ``run_head``, and last hidden states (N, H) of the positions that predict; and
    for each masked token, row by row, which of the N predicts it."""
    shared = _shared_prompts(batch) if share_prompts else None
    with _head_tap(model, run_head) as tap:
        if share_prompts and packs(model):
            rows = torch.arange(len(batch.tokens), device=batch.tokens.device)
            return _packed(model, batch, tap, *(shared or (rows, rows)))
        if shared is None:
            logits, hidden = _plain(model, batch, tap)
            return logits, hidden, torch.arange(len(hidden), device=hidden.device)
        return _prompts_once(model, batch, tap, *shared)


def _values(head: nn.Module, hidden: torch.Tensor, source: torch.Tensor, batch: Batch) -> torch.Tensor:
    return _scatter(head(hidden.float()).squeeze(-1)[source], batch.mask)


def _scatter(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)


class _Tap:
    """What the LM head sees: only the positions in ``select`` (B, T) bool, kept as ``hidden`` (N, width)."""

    select: torch.Tensor
    hidden: torch.Tensor

    def __init__(self, run_head: bool) -> None:
        self.run_head = run_head

    def __call__(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        self.hidden = args[0][self.select]
        return ((self.hidden if self.run_head else self.hidden[:0]).unsqueeze(0),)


def _is_bare_head(model: Any) -> bool:
    """Whether the logits are one matrix product of the last hidden states: no bias, no scale, no soft cap."""
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    changes = ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier_scale")
    plain = type(head) is nn.Linear and head.bias is None
    return plain and not any(getattr(config, name, None) for name in changes)


@contextmanager
def _head_tap(model: Any, run_head: bool) -> Iterator[_Tap]:
    """Let the model's own forward compute logits (and whatever it does to them) at selected positions only, or none."""
    tap = _Tap(run_head)
    handle = model.get_output_embeddings().register_forward_pre_hook(tap)
    try:
        yield tap
    finally:
        handle.remove()


def packs(model: Any) -> bool:
    """Whether the model can run rows without their padding; see ``packing``."""
    config = model.config
    return (
        type(model).__name__ in CAUSAL_LMS
        and config._attn_implementation == attention.NAME
        and not getattr(config, "sliding_window", None)
        and not model.is_gradient_checkpointing
    )


def _packed(
    model: Any, batch: Batch, tap: _Tap, first: torch.Tensor, prompt_of: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Like ``_prompts_once``, in one pass over a sequence without padding."""
    packing = pack(batch, first, prompt_of, model.dtype)
    tap.select = packing.select
    whole = torch.empty(1, 1, 0, 0, device=batch.tokens.device)  # stands for the masks, which the packing has
    with packed(packing):
        out = model(input_ids=packing.tokens, position_ids=packing.positions, attention_mask=whole, use_cache=False)
    return out.logits[0], tap.hidden, packing.source


def _plain(model: Any, batch: Batch, tap: _Tap) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole rows in one pass: logits (N, V) and hidden states (N, H) that predict the N masked tokens, row by row."""
    tap.select = torch.zeros_like(batch.mask)
    tap.select[:, :-1] = batch.mask[:, 1:]
    logits = model(input_ids=batch.tokens, attention_mask=batch.attention.long(), use_cache=False).logits[0]
    return logits, tap.hidden


def _shared_prompts(batch: Batch) -> tuple[torch.Tensor, torch.Tensor] | None:
    """``same_prompts`` if sharing saves work, else None."""
    first, prompt_of = same_prompts(batch)
    return None if len(first) == len(prompt_of) else (first, prompt_of)


def _prompts_once(
    model: Any, batch: Batch, tap: _Tap, first: torch.Tensor, inverse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Like ``_plain``, with each group's prompt run once.

    Returns logits (N, V), hidden (N, H) and, for each masked token row by row, which of the N predicts it. The first
    completion token of every row of a group is predicted by the same one: the prompt's last.
    """
    length = batch.prompt_length
    device = batch.tokens.device
    width = int(length.max())  # prompts are padded on the right to this
    span = batch.tokens.shape[1] - int(length.min())  # longest possible completion
    in_prompt = torch.arange(width, device=device) < length[first][:, None]  # (U, width)
    tap.select = torch.arange(width, device=device) == length[first][:, None] - 1
    out = model(input_ids=batch.tokens[first, :width], attention_mask=in_prompt.long(), use_cache=True)
    logits, hidden, cache = out.logits[0], tap.hidden, out.past_key_values

    offset = torch.arange(span, device=device)  # completion token j of row r lies at length[r] + j
    position = (length[:, None] + offset).clamp(max=batch.tokens.shape[1] - 1)
    inside = length[:, None] + offset < batch.tokens.shape[1]
    present = batch.attention.gather(1, position) & inside  # (R, span)
    wanted = batch.mask.gather(1, position) & inside
    steps = int(present.sum(1).max())
    source = torch.zeros(wanted.shape, dtype=torch.long, device=device)
    source[:, 0] = inverse
    if steps > 1:  # the last token predicts nothing, so it is not run
        cache.batch_select_indices(inverse)
        tap.select = wanted[:, 1:steps]
        out = model(
            input_ids=batch.tokens.gather(1, position)[:, : steps - 1],
            attention_mask=torch.cat([in_prompt[inverse], present[:, : steps - 1]], 1).long(),
            position_ids=position[:, : steps - 1],
            past_key_values=cache,
            use_cache=True,
        )
        later = torch.zeros_like(wanted)
        later[:, 1:steps] = tap.select
        source[later] = torch.arange(int(later.sum()), device=device) + len(hidden)
        logits, hidden = torch.cat([logits, out.logits[0]]), torch.cat([hidden, tap.hidden])
    return logits, hidden, source[wanted]

"""LoRA by PEFT (Hu et al. 2021, arXiv:2106.09685): a linear layer computes ``W x + (alpha / r) B A x``; W is frozen.

PEFT makes the adapters, runs them in the update and writes them to disk. Here is what reinforcement learning needs
beside that: the merged weights, which write the rollouts; the model without adapters, which is the KL's reference; and
both without a trace in the frozen weights. PEFT's own merging adds to them and subtracts again, which in bfloat16 does
not lead back.

The adapters compute in the model's dtype, beside float32 masters, as every trained weight does. PEFT's default, float32
adapters on a bfloat16 model, casts each layer's input and output and takes skinny products in float32: on a CPU the
forward pass took 1.37 times as long as without adapters, in bfloat16 1.15 times. Left out: a forward of our own in
place of PEFT's (fused in one autograd function it saved 3 % of an update), DoRA and other variants, adapters on
embeddings (many models tie them to the head) and quantised base weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import nn

ADAPTER = "default"  # PEFT's name for it
FILE_PREFIX = "base_model.model."  # what PEFT's files put before a parameter's name


@dataclass(frozen=True)
class LoRA:
    """Which adapters to train in place of the model's weights.

    ``r`` is their rank; 0 means none. Their output is scaled by ``alpha`` / ``r``. ``dropout`` falls on their input, in
    the update alone, so that the policy trained is not quite the one that wrote the rollouts. ``target_modules`` are
    names of linear layers or ends of such names, a regular expression, or ``all-linear``: all but the output layer.
    """

    r: int
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str | Sequence[str] = "all-linear"

    def __post_init__(self) -> None:
        if self.r < 0:
            raise ValueError(f"model.lora.r is {self.r}; it must be 0 (no adapters) or more")
        if self.alpha <= 0:
            raise ValueError(f"model.lora.alpha is {self.alpha}; it must be above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.lora.dropout is {self.dropout}; it must be at least 0 and below 1")


@dataclass(frozen=True)
class _Site:
    """A layer with an adapter: ``layer``, PEFT's, stands in ``parent`` under ``name`` and holds the frozen one."""

    parent: nn.Module
    name: str
    layer: Linear

    @property
    def base(self) -> Any:
        return self.layer.base_layer

    @property
    def factors(self) -> tuple[nn.Parameter, nn.Parameter]:
        """A (r, in) and B (out, r)."""
        find = self.layer.get_parameter
        return find(f"lora_A.{ADAPTER}.weight"), find(f"lora_B.{ADAPTER}.weight")

    @torch.no_grad()
    def merged(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """W + (alpha / r) B A in float32, of the shape of the frozen weight."""
        left, right = (a.T, b.T) if self.layer.fan_in_fan_out else (b, a)  # GPT-2 keeps its weights transposed
        scale = self.layer.scaling[ADAPTER]
        return torch.addmm(self.base.weight.float(), left.float(), right.float(), alpha=scale)


class Adapter:
    """LoRA on ``model``, whose own weights are frozen. A is drawn from torch's global generator, B is zero.

    Raises ValueError for target modules that are not there, not linear, or share their weights with another module.
    """

    def __init__(self, model: nn.Module, config: LoRA) -> None:
        targets = config.target_modules
        settings = LoraConfig(
            r=config.r,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            task_type="CAUSAL_LM",
        )
        shared = _shared(model)
        self._model = model
        self._peft = get_peft_model(model, settings)
        self._sites: list[_Site] = []
        self._bare = False
        for full_name, layer in model.named_modules():
            if not isinstance(layer, BaseTunerLayer):
                continue
            if not isinstance(layer, Linear) or id(layer.base_layer.weight) in shared:
                raise ValueError(
                    f"model.lora.target_modules picks {full_name}, which is no linear layer with weights of its own: "
                    "name others, or all-linear"
                )
            path, _, name = full_name.rpartition(".")
            self._sites.append(_Site(model.get_submodule(path), name, layer))

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the model is the one that the adapters were put on: its modules, its names, its weights.

        Raises RuntimeError inside itself or inside ``merged``.
        """
        if self._bare:
            raise RuntimeError("the adapters are off or merged already: leave that block first")
        self._bare = True
        for site in self._sites:
            setattr(site.parent, site.name, site.base)
        try:
            yield
        finally:
            for site in self._sites:
                setattr(site.parent, site.name, site.layer)
            self._bare = False

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Inside, the model is the bare one with the adapters merged into its weights; after it, they are what they
        were, bit for bit, since they were put aside. Costs a second copy of these weights as long as it lasts."""
        with self.off():
            kept = [site.base.weight.data for site in self._sites]
            try:
                for site in self._sites:
                    site.base.weight.data = site.merged(*site.factors).to(site.base.weight.dtype)
                yield
            finally:
                for site, weight in zip(self._sites, kept, strict=True):
                    site.base.weight.data = weight

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The bare model's names and merged weights, in the dtype that computes, merged one at a time."""
        sites = self._by_weight()
        for name, parameter in self._named():
            site = sites.get(id(parameter))
            yield name, parameter if site is None else site.merged(*site.factors).to(parameter.dtype)

    def exact(self, masters: Sequence[torch.Tensor]) -> dict[int, torch.Tensor]:
        """The merged weights in float32 on the CPU, by the id of the bare model's parameter. ``masters`` are those of
        the trained parameters, in the model's order."""
        sites = self._by_weight()
        master = dict(zip((id(p) for _, p in self._trained()), masters, strict=False))
        found: dict[int, torch.Tensor] = {}
        for _, parameter in self._named():
            site = sites.get(id(parameter))
            weight = parameter.float() if site is None else site.merged(*(master[id(f)] for f in site.factors))
            found[id(parameter)] = weight.detach().cpu()
        return found

    def save(self, folder: Path, masters: Sequence[torch.Tensor]) -> None:
        """Write the adapter as ``PeftModel.from_pretrained`` reads it, in float32."""
        state = {FILE_PREFIX + name: m for (name, _), m in zip(self._trained(), masters, strict=False)}
        self._peft.save_pretrained(str(folder), state_dict=state, save_embedding_layers=False)

    def read(self, folder: Path) -> dict[str, torch.Tensor]:
        """What ``save`` wrote, by the names of the trained parameters."""
        saved = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
        return {name: saved[FILE_PREFIX + name.replace(f".{ADAPTER}.", ".")] for name, _ in self._trained()}

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self._model.named_parameters() if p.requires_grad]

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        with self.off():
            return list(self._model.named_parameters())

    def _by_weight(self) -> dict[int, _Site]:
        return {id(site.base.weight): site for site in self._sites}


def _shared(model: nn.Module) -> set[int]:
    """Ids of the parameters that have more than one name."""
    count = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    return {one for one, names in count.items() if names > 1}

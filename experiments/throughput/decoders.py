"""The other sides of the rollouts: Hugging Face ``generate`` and vLLM, each given the same prompts as ours.

Both get what makes them fast: bfloat16 weights, all rows at once or a batch size that was tried to be the best, no
log-probabilities (ours returns them, they need not), and end tokens ignored, so that every completion has the same
length.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.throughput import work
from experiments.throughput.side import Link, Stopwatch, Unavailable, device
from rlreason.config import build
from rlreason.models import embedded_folder
from rlreason.types import Env


def hugging_face(link: Link, settings: Mapping[str, Any]) -> None:
    """``prompts`` x ``samples`` completions of ``tokens`` tokens, ``batch`` rows at a time, with ``attention``."""
    prompts = _Prompts(settings)
    model: Any = AutoModelForCausalLM.from_pretrained(
        embedded_folder(), dtype=torch.bfloat16, attn_implementation=settings["attention"]
    )
    model.to(device())
    model.generation_config.eos_token_id = None
    tokenizer = prompts.tokenizer

    @torch.no_grad()
    def generate(ids: list[list[int]], tokens: int) -> int:
        padded = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(device())
        pad = tokenizer.pad_token_id
        out = model.generate(
            **padded, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=tokens, pad_token_id=pad
        )
        return len(ids) * int(out.shape[1] - padded.input_ids.shape[1])

    generate(prompts.unit(0)[: settings["batch"]], 8)
    link.ready()
    for order in link.orders():
        rows = [ids for ids in prompts.unit(order.index) for _ in range(settings["samples"])]
        watch, written = Stopwatch(), 0
        with watch.phase("generate"):
            for start in range(0, len(rows), settings["batch"]):
                written += generate(rows[start : start + settings["batch"]], settings["tokens"])
        link.report(watch.seconds["generate"], written, prompt_tokens=sum(map(len, rows)))


def vllm(link: Link, settings: Mapping[str, Any]) -> None:
    """The same by vLLM; ``eager``: without its compiler. Its cache of prompts is emptied before each unit, as new
    weights would."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, so that idle means idle
    try:
        from vllm import LLM, SamplingParams
    except ImportError as error:
        raise Unavailable(f"vLLM can't be imported ({error}): `make vllm` installs it") from error
    prompts = _Prompts(settings)
    options: dict[str, Any] = {} if device() == "cuda" else {"kv_cache_memory_bytes": 4 << 30}
    llm = LLM(
        model=str(embedded_folder()),
        dtype="bfloat16",
        max_model_len=1024,
        max_num_seqs=settings["prompts"] * settings["samples"],
        enforce_eager=settings["eager"],
        disable_log_stats=True,
        **options,
    )

    def generate(unit: list[list[int]], tokens: int) -> int:
        sampling = SamplingParams(
            n=settings["samples"], temperature=1.0, max_tokens=tokens, ignore_eos=True, detokenize=False
        )
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in unit], sampling, use_tqdm=False)
        return sum(len(one.token_ids) for output in outputs for one in output.outputs)

    generate(prompts.unit(0), 8)
    link.ready()
    for order in link.orders():
        unit = prompts.unit(order.index)
        llm.reset_prefix_cache()
        watch = Stopwatch()
        with watch.phase("generate"):
            written = generate(unit, settings["tokens"])
        link.report(watch.seconds["generate"], written, prompt_tokens=settings["samples"] * sum(map(len, unit)))


class _Prompts:
    """The prompts that ``ours.rollouts`` has, unit by unit."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.cfg = work.config(settings["work"])
        self.env: Env = build(self.cfg, "env")
        self.count: int = settings["prompts"]
        self.tokenizer: Any = AutoTokenizer.from_pretrained(embedded_folder(), padding_side="left")

    def unit(self, index: int) -> list[list[int]]:
        return [work.render(self.tokenizer, p) for p in work.problems(self.cfg, self.env, index, self.count)]

"""The models of ``conf/model`` that come from the hub, without the hub: their entries, and for each a random model of
its architecture, made of its published configuration with fewer and smaller layers, through the checks that a user
would want before renting a GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import device, plain, plain_logp, sharpen, tiny_folder
from hydra import compose, initialize_config_dir
from test_train import metrics_of
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from rlreason.config import CONF, build, register
from rlreason.engines import generate
from rlreason.engines.torch import TorchEngine
from rlreason.models import load
from rlreason.policy import Policy
from rlreason.train import run
from rlreason.types import Request, Sampling

# What the hub's config.json says, but for sizes: depth, widths, vocabulary (that of the tiny model's tokenizer).
SIZES: dict[str, Any] = {
    "vocab_size": 260,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _qwen2(heads: int) -> PreTrainedConfig:
    return Qwen2Config(
        **SIZES,
        hidden_size=8 * heads,
        num_attention_heads=heads,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        use_sliding_window=False,
        sliding_window=32768,
    )


def _qwen3() -> PreTrainedConfig:
    return Qwen3Config(
        **SIZES,
        hidden_size=64,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=16,  # not hidden_size / heads, as in the real one
        max_position_embeddings=40960,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        attention_bias=False,
    )


def _smollm2() -> PreTrainedConfig:
    return LlamaConfig(
        **SIZES,
        hidden_size=120,
        num_attention_heads=15,
        num_key_value_heads=5,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
    )


MODELS: dict[str, tuple[str, Callable[[], PreTrainedConfig]]] = {
    "smollm2_360m": ("HuggingFaceTB/SmolLM2-360M-Instruct", _smollm2),
    "qwen2_5_0_5b": ("Qwen/Qwen2.5-0.5B-Instruct", lambda: _qwen2(14)),
    "qwen2_5_1_5b": ("Qwen/Qwen2.5-1.5B-Instruct", lambda: _qwen2(12)),
    "qwen3_0_6b": ("Qwen/Qwen3-0.6B", _qwen3),
}


@pytest.fixture(params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(MODELS[request.param][1]())
    sharpen(model, 5.0)
    model.generation_config.eos_token_id = [2, 3]  # two end tokens, as Qwen's generation configs have
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_folder()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_every_hub_model_is_tested_here() -> None:
    entries = {path.stem: path.read_text(encoding="utf-8") for path in (CONF / "model").glob("*.yaml")}
    assert {name for name, text in entries.items() if "From the hub" in text} == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_entry_names_the_model_and_keeps_the_usual_settings(name: str) -> None:
    register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        own = compose("train", overrides=[f"model={name}"]).model
        usual = compose("train", overrides=["model=path", f"model.path={MODELS[name][0]}"]).model
    assert own == usual


def test_engine_trainer_and_plain_forward_agree(folder: Path) -> None:
    policy: Policy = load(str(folder), dtype="float32", device=device())
    assert policy.end_ids == {2, 3}
    assert policy.context >= 8192
    prompt = policy.render([{"role": "system", "content": "Think."}, {"role": "user", "content": "1 + 1?"}]).ids
    text = policy.tokenizer.decode(prompt)
    assert text.endswith("<|im_start|>assistant\n")  # where the policy speaks
    assert text.startswith("<|im_start|>system")  # no second BOS before it
    engine = TorchEngine(policy, max_tokens_in_flight=10_000)
    completions = generate(engine, [Request(prompt, Sampling(0.7, 12), seed) for seed in range(4)])
    reference = plain(policy.model)
    with torch.no_grad():
        for completion in completions:
            expected = plain_logp(reference, prompt, completion.ids, 0.7)
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected.cpu(), atol=1e-4, rtol=0)


def write_math_rows(folder: Path) -> None:
    """A data set for ``env=math``."""
    for file in ("train.jsonl", "test.jsonl"):
        rows = [{"problem": f"What is ${i}^2$?", "answer": str(i * i)} for i in range(8)]
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize("experiment", ["gsm8k_qwen", "math_qwen"])
def test_gpu_experiments_run_on_a_small_model_of_the_architecture(
    experiment: str, folder: Path, tmp_path: Path
) -> None:
    """Two steps with everything of the experiment but its size."""
    register()
    small = [
        "max_steps=2",
        "eval_limit=2",
        "algo.num_prompts=2",
        "algo.num_generations=4",
        "sampling.max_completion_length=12",
        "engine.max_tokens_in_flight=8192",
        "learner.micro_batch_tokens=4096",
        "logger.mode=disabled",
        f"model.path={folder}",
    ]
    if experiment == "gsm8k_qwen":
        small.append("env.source=synthetic")
    else:
        write_math_rows(tmp_path)
        small += ["env.source=local", f"env.data_dir={tmp_path}", "env.num_validation=2"]
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[f"+experiment={experiment}", *small])
    assert build(cfg, "algo").num_prompts == 2
    run(cfg, tmp_path / "run")
    lines = metrics_of(tmp_path / "run")
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert all("reward" in line for line in lines[1:])

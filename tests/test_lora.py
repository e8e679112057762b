"""LoRA: the same function however it is computed, nothing trained but the adapters, nothing lost on disk."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from accelerate import Accelerator
from helpers import ALGO, device, make_learner, plain, random_ids, tiny, tiny_folder
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from test_config import command
from test_learner import gradients, make_batch, relative_error
from test_resume import Crash, crash_at
from test_train import CAPITALS, TINY, metrics_of, tiny_config, weights_of
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from rlreason import checkpoint, models
from rlreason.advantages import GAE
from rlreason.learner import Learner
from rlreason.lora import Adapter, LoRA
from rlreason.losses import KL, ClippedSurrogate, Term, ValueLoss
from rlreason.policy import Policy, token_logprobs
from rlreason.train import run

# Scale 8 / 4 = 2. The tiny model's layers (two of them) are 64 -> 64 twice, 64 -> 32 twice, 64 -> 128 twice and
# 128 -> 64, so the factors of rank 4 have 2 x 4 x (2 x 128 + 2 x 96 + 3 x 192) = 8192 entries in 2 x 2 x 7 tensors.
RANK_4 = LoRA(r=4, alpha=8)
ENTRIES, TENSORS = 8192, 28


def adapted(dtype: Literal["bfloat16", "float32"] = "float32", lora: LoRA = RANK_4) -> Policy:
    """A fresh policy with adapters; the same ones each time."""
    torch.manual_seed(0)
    return models.load(tiny_folder(), dtype=dtype, lora=lora, device=device())


def bend(policy: Policy, scale: float = 0.05) -> None:
    """B is zero at first, where nothing could go wrong: give it values."""
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=chance))


def bent(dtype: Literal["bfloat16", "float32"] = "float32", lora: LoRA = RANK_4) -> Policy:
    policy = adapted(dtype, lora)
    bend(policy)
    return policy


def frozen(policy: Policy) -> dict[str, torch.Tensor]:
    """A copy of all weights that are not adapters."""
    return {n: p.detach().clone() for n, p in policy.model.named_parameters() if "lora_" not in n}


def factors(policy: Policy, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A (r, in) and B (out, r) of a layer."""
    found = dict(policy.model.named_parameters())
    return found[f"{layer}.lora_A.default.weight"].detach(), found[f"{layer}.lora_B.default.weight"].detach()


def logits(model: Any) -> torch.Tensor:
    ids = torch.tensor([random_ids(24, seed=3), random_ids(24, seed=4)], device=device())
    with torch.no_grad():
        return model(input_ids=ids).logits


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- merged weights


def test_weights_without_lora_are_the_parameters_themselves() -> None:
    policy = tiny("bfloat16")
    assert policy.adapter is None
    for (name, weight), (expected_name, expected) in zip(
        policy.weights(), policy.model.named_parameters(), strict=True
    ):
        assert name == expected_name
        assert weight is expected
    with policy.merged(), policy.merged():
        assert [id(w) for _, w in policy.weights()] == [id(p) for p in policy.model.parameters()]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_have_the_architectures_names_and_the_product_of_the_factors(dtype: Any) -> None:
    """W + (8 / 4) B A, against float64; rounded once, to the dtype that computes."""
    policy, base = bent(dtype), tiny(dtype)
    weights = dict(policy.weights())
    assert list(weights) == [name for name, _ in base.model.named_parameters()]
    changed = 0
    for name, weight in base.model.named_parameters():
        found = weights[name]
        assert (found.shape, found.dtype) == (weight.shape, weight.dtype)
        if "_proj" not in name:
            assert torch.equal(found, weight), name
            continue
        changed += 1
        a, b = (factor.double() for factor in factors(policy, name.removesuffix(".weight")))
        exact = weight.detach().double() + 2.0 * (b @ a)
        assert (exact - weight).abs().mean() > 0.005, name
        if dtype == "float32":
            torch.testing.assert_close(found.detach().double(), exact, rtol=1e-6, atol=1e-6)
        else:  # float32's rounding before bfloat16's tips a number in some thousands to the other side
            assert (found == exact.to(torch.bfloat16)).double().mean() > 0.999, name
            torch.testing.assert_close(found.detach().double(), exact, rtol=2**-8, atol=0)
    assert changed == 14


def test_a_fresh_adapter_changes_nothing() -> None:
    policy, base = adapted("bfloat16"), tiny("bfloat16")
    assert same(dict(policy.weights()), dict(base.weights()))
    assert torch.equal(logits(policy.model), logits(base.model))


def test_merged_forward_is_the_adapters_forward() -> None:
    policy = bent()
    adapters = logits(policy.model)
    with policy.merged():
        merged = logits(policy.model)
    assert (adapters - logits(tiny().model)).abs().max() > 1
    torch.testing.assert_close(merged, adapters, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_model_is_one_that_was_never_adapted(dtype: Any) -> None:
    """Its modules, its names; with ``weights()`` in it the plain model computes the same, bit for bit."""
    policy, base = bent(dtype), tiny(dtype)
    weights = dict(policy.weights())
    base.model.load_state_dict(weights, strict=False)
    with policy.merged():
        assert same(dict(policy.model.named_parameters()), weights)
        assert [type(m) for m in policy.model.modules()] == [type(m) for m in base.model.modules()]
        assert torch.equal(logits(policy.model), logits(base.model))


def test_merging_leaves_no_trace() -> None:
    policy = bent("bfloat16")
    before, where = frozen(policy), {n: p.data_ptr() for n, p in policy.model.named_parameters()}
    expected, modules = logits(policy.model), list(policy.model.modules())
    for _ in range(3):
        with policy.merged():
            assert not torch.equal(logits(policy.model), expected)  # rounded elsewhere, if nothing else
    with pytest.raises(ZeroDivisionError), policy.merged():
        raise ZeroDivisionError
    assert same(frozen(policy), before)
    assert {n: p.data_ptr() for n, p in policy.model.named_parameters()} == where
    assert [id(m) for m in policy.model.modules()] == [id(m) for m in modules]
    assert torch.equal(logits(policy.model), expected)


def test_merging_twice_is_refused() -> None:
    policy = bent()
    before = frozen(policy)
    with policy.merged():
        with pytest.raises(RuntimeError, match="leave that block first"), policy.merged():
            pass
        with pytest.raises(RuntimeError, match="leave that block first"):
            list(policy.weights())
    assert same(frozen(policy), before)


def test_transposed_weights_are_merged_transposed() -> None:
    """GPT-2 keeps its weights (in, out)."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2, n_positions=64)).eval()
    with pytest.warns(UserWarning, match="fan_in_fan_out"):
        adapter = Adapter(model, RANK_4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    ids = torch.tensor([random_ids(20, seed=1)])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        with adapter.merged():
            merged = model(input_ids=ids).logits
        with adapter.off():
            bare = model(input_ids=ids).logits
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
    assert (merged - bare).abs().max() > 0.1


# --- what is trained


def test_only_the_adapters_are_trained() -> None:
    policy = adapted("bfloat16")
    learner = make_learner(policy, replace(ALGO, learning_rate=1e-3))
    before = frozen(policy)
    assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}
    assert {m.dtype for m in learner.masters} == {torch.float32}
    assert len(learner.masters) == len(policy.parameters()) == TENSORS
    assert sum(m.numel() for m in learner.masters) == ENTRIES
    unrounded = adapted("float32").parameters()
    assert all(torch.equal(m, p) for m, p in zip(learner.masters, unrounded, strict=True))
    batch = make_batch(policy)
    (taken,) = gradients(make_learner(adapted("bfloat16")), batch)
    assert sum(float(g.abs().max()) > 0 for g in taken) == TENSORS // 2  # of A it is 0 as long as B is
    for _ in range(3):
        learner.update(batch)
    assert same(frozen(policy), before)
    assert all(p.grad is None for p in policy.model.parameters())
    for parameter, master in zip(policy.parameters(), learner.masters, strict=True):
        assert torch.equal(parameter, master.bfloat16())
        assert not torch.equal(parameter.float(), master)  # which holds more
        assert master.abs().max() > 0
    assert len(learner.optimizer.state) == TENSORS


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_is_the_chain_rule_of_full_fine_tuning(checkpointing: bool) -> None:
    """With G the gradient for a merged weight, as full fine-tuning has it: 2 B^T G for A and 2 G A^T for B. Whatever
    the micro-batches."""
    policy = bent()
    weights = dict(policy.weights())
    batch = make_batch(policy)
    full = tiny()
    full.model.load_state_dict(weights, strict=False)
    (whole,) = gradients(make_learner(full), batch)
    of = dict(zip((n for n, _ in full.model.named_parameters()), whole, strict=True))
    expected = []
    for name, _ in policy.model.named_parameters():
        if "lora_" in name:
            layer = name.split(".lora_")[0]
            a, b = factors(policy, layer)
            gradient = of[f"{layer}.weight"]
            expected.append(2 * b.T @ gradient if "lora_A" in name else 2 * gradient @ a.T)
    assert len(expected) == TENSORS
    for budget in (100_000, 70, 1):
        policy = bent()
        if checkpointing:
            policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        (found,) = gradients(make_learner(policy, micro_batch_tokens=budget), batch)
        assert relative_error(found, expected) < 1e-5
        assert max(relative_error([1e3 * f], [1e3 * e]) for f, e in zip(found, expected, strict=True)) < 1e-4


def test_gradient_in_bfloat16_is_summed_in_float32() -> None:
    batch = make_batch(bent())
    (exact,) = gradients(make_learner(bent()), batch)
    for budget in (100_000, 1):
        (found,) = gradients(make_learner(bent("bfloat16"), micro_batch_tokens=budget), batch)
        assert {g.dtype for g in found} == {torch.float32}
        assert relative_error(found, exact) < 0.06  # as for full fine-tuning in bfloat16


def test_dropout_is_of_the_update_alone() -> None:
    policy = bent(lora=replace(RANK_4, dropout=0.5))
    assert torch.equal(logits(policy.model), logits(bent().model))
    policy.model.train()
    assert (logits(policy.model) - logits(bent().model)).abs().max() > 0.1


# --- the reference


def test_the_reference_is_the_model_with_its_adapters_off() -> None:
    policy = adapted("bfloat16")
    policy.add_reference()
    assert policy.reference is None  # no second copy
    algo = replace(ALGO, beta=0.1, terms={"policy": ClippedSurrogate(), "kl": KL(0.1, "k3")}, learning_rate=1e-2)
    learner = make_learner(policy, algo, micro_batch_tokens=90)
    plainly = make_batch(policy)
    first = learner.annotate(plainly)
    assert abs(learner.update(first)["kl"]) < 1e-9
    for _ in range(2):
        after = learner.annotate(plainly)
        assert learner.update(after)["kl"] > 1e-3
    assert torch.equal(after.ref_logp, first.ref_logp)  # type: ignore[arg-type]
    with torch.no_grad():  # uncut, where bfloat16 rounds a little differently
        policy, untrained = bent("bfloat16"), tiny("bfloat16")
        cuts = [torch.arange(len(plainly.tokens), device=device())]
        found = policy.annotate(plainly, 1.0, frozenset({"ref_logp", "old_logp"}), cuts)
        assert torch.equal(found.ref_logp, token_logprobs(untrained.model, plainly, 1.0).logp)  # type: ignore[arg-type]
        assert torch.equal(found.old_logp, policy.forward(plainly, 1.0).logp)  # type: ignore[arg-type]
    assert (found.ref_logp - found.old_logp).abs().max() > 0.1  # type: ignore[operator]


# --- on disk


def trained(policy: Policy) -> Learner:
    """A learner whose masters hold what bfloat16 can't."""
    learner = make_learner(policy)
    with torch.no_grad():
        for master in learner.masters:
            master.add_(1e-3 * torch.randn(master.shape, generator=torch.Generator().manual_seed(2)).to(device()))
    learner.publish()
    return learner


def test_saved_policy_loads_in_transformers_and_its_adapter_in_peft(tmp_path: Path) -> None:
    policy = bent()
    learner = trained(policy)
    before = frozen(policy)
    policy.save(str(tmp_path), learner.masters)
    assert same(frozen(policy), before)
    expected = logits(policy.model)

    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path)  # with no word about LoRA
    assert merged.dtype == torch.float32
    assert list(dict(merged.named_parameters())) == [name for name, _ in policy.weights()]
    torch.testing.assert_close(logits(merged.eval().to(device())), expected, rtol=1e-4, atol=1e-4)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in set(file.keys())  # tied, so saved once

    base = plain(tiny().model)
    onto: Any = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(logits(onto), expected, rtol=1e-4, atol=1e-4)
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (said["peft_type"], said["r"], said["lora_alpha"]) == ("LORA", 4, 8)

    again = models.load(str(tmp_path), dtype="float32", device=device())  # the next stage
    assert again.adapter is None
    torch.testing.assert_close(logits(again.model), expected, rtol=1e-4, atol=1e-4)


def test_masters_are_saved_to_the_last_bit(tmp_path: Path) -> None:
    policy = bent("bfloat16")
    learner = trained(policy)
    policy.save(str(tmp_path), learner.masters)
    found = bent("bfloat16").saved_weights(str(tmp_path))
    names = [name for name, p in policy.model.named_parameters() if p.requires_grad]
    assert same(found, dict(zip(names, learner.masters, strict=True)))
    stored = load_file(tmp_path / "model.safetensors")
    a, b = (found[f"model.layers.1.mlp.up_proj.lora_{x}.default.weight"] for x in "AB")
    base = dict(tiny("bfloat16").weights())["model.layers.1.mlp.up_proj.weight"].detach()
    expected = (base.double() + 2.0 * b.double() @ a.double()).float().cpu()
    torch.testing.assert_close(stored["model.layers.1.mlp.up_proj.weight"], expected, rtol=1e-6, atol=1e-7)
    assert {t.dtype for t in stored.values()} == {torch.float32}


def test_training_goes_on_exactly_from_a_checkpoint(tmp_path: Path) -> None:
    """With bfloat16, a critic and a reference: all that is trained, and nothing that is not."""
    terms: Mapping[str, Term] = {"policy": ClippedSurrogate(), "value": ValueLoss(0.1), "kl": KL(0.1, "k3")}
    algo = replace(ALGO, terms=terms, estimator=GAE(), lr_scheduler_type="linear", learning_rate=1e-3)

    def fresh() -> Learner:
        policy = adapted("bfloat16")
        policy.add_reference()
        policy.add_critic()
        return make_learner(policy, algo, max_steps=6)

    def steps(learner: Learner, count: int) -> None:
        for _ in range(count):
            batch = learner.annotate(make_batch(learner.policy))
            learner.update(learner.algo.estimator(batch))

    whole = fresh()
    assert len(whole.masters) == TENSORS + 2
    steps(whole, 5)
    first = fresh()
    steps(first, 3)
    folder = checkpoint.save(tmp_path, 3, first, Accelerator(), keep=1, every=1)
    second = fresh()
    checkpoint.load(folder, second, Accelerator())
    assert all(torch.equal(a, b) for a, b in zip(second.masters, first.masters, strict=True))
    steps(second, 2)
    assert all(torch.equal(a, b) for a, b in zip(second.masters, whole.masters, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(second.policy.parameters(), whole.policy.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(second.masters, first.masters, strict=True))


# --- the command line

ON = ("model.lora.r=4", "model.lora.alpha=8", "algo.learning_rate=3e-2")


def test_a_run_learns_in_its_adapters_and_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = (*CAPITALS, *ON, "algo.beta=0.05", "max_steps=4", "save_every=2", "eval_every=4")
    whole, ours = tmp_path / "whole", tmp_path / "ours"
    run(tiny_config(*overrides), whole)
    with monkeypatch.context() as patch:
        crash_at(patch, 4)
        with pytest.raises(Crash):
            run(tiny_config(*overrides), ours)
    assert checkpoint.step_of(checkpoint.latest(ours)) == 2
    run(tiny_config(*overrides, f"resume={ours}"), ours)
    assert same(weights_of(ours, 4), weights_of(whole, 4))
    file = Path("checkpoints") / "step-000004" / "adapter" / "adapter_model.safetensors"
    assert same(load_file(ours / file), load_file(whole / file))
    lines = metrics_of(whole)
    kl = [line["kl"] for line in lines[1:]]
    assert kl[0] == pytest.approx(0, abs=1e-9)
    assert 1e-4 < kl[1] < kl[3]
    # rollouts follow the adapters: float32 on both sides
    assert all(line["sampling/sampling_logp_difference/max"] < 1e-4 for line in lines[1:])
    assert json.loads((whole / "manifest.json").read_text())["model"]["lora"] == {
        "r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear",
    }  # fmt: skip


def test_the_arithmetic_experiment_runs(tmp_path: Path) -> None:
    on = ("model.lora.r=2", "model.lora.target_modules=[q_proj,v_proj]", "algo.terms.entropy.coefficient=0.01")
    run(tiny_config("+experiment=arithmetic", *on, "max_steps=2", "algo.num_prompts=2"), tmp_path)
    assert [line["step"] for line in metrics_of(tmp_path)] == [0, 1, 2]
    assert [line["optimizer_steps"] for line in metrics_of(tmp_path)[1:]] == [1, 1]
    saved = load_file(tmp_path / "checkpoints" / "step-000002" / "adapter" / "adapter_model.safetensors")
    assert len(saved) == 8
    assert all("q_proj.lora_" in name or "v_proj.lora_" in name for name in saved)
    assert all(weight.abs().max() > 0 for weight in saved.values())


def test_off_is_full_fine_tuning() -> None:
    config = tiny_config()
    assert config.model.lora.r == 0
    policy = models.load("tiny", dtype="float32", lora=LoRA(r=0))
    assert policy.adapter is None
    assert policy.info["lora"] is None
    assert all(p.requires_grad for p in policy.model.parameters())


MISTAKES = {
    "misspelled": (("model.lora.rank=4",), 1, ("model.lora.rank",)),
    "added": (("+model.lora.rank=4",), 2, ("model", "lora", "rank")),
    "negative rank": (("model.lora.r=-1",), 2, ("model.lora.r is -1",)),
    "zero scale": (("model.lora.r=4", "model.lora.alpha=0"), 2, ("model.lora.alpha is 0",)),
    "dropout of all": (("model.lora.r=4", "model.lora.dropout=1.0"), 2, ("model.lora.dropout is 1.0",)),
    "no such layer": (("model.lora.r=4", "model.lora.target_modules=[q_projj]"), 2, ("model", "q_projj", "not found")),
}


@pytest.mark.parametrize(("arguments", "code", "said"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_told_before_any_work(
    arguments: tuple[str, ...],
    code: int,
    said: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, *TINY, *arguments) == code
    written = capsys.readouterr().err
    assert all(part in written for part in said), written
    assert not list(tmp_path.glob("runs/*/*/metrics.jsonl"))


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_layers_that_share_their_weights_are_refused(target: str) -> None:
    """Merged, the one would change and the other not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns, and goes on
        with pytest.raises(ValueError, match=rf"model\.lora\.target_modules picks .*{target}"):
            adapted(lora=replace(RANK_4, target_modules=["q_proj", target]))

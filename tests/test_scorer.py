"""A reward model's scores are what transformers reads from its folder; where they are read; and what scores with it."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import sharpen, tiny, tiny_folder
from safetensors.torch import load_file
from test_supervised import talk
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ModernBertDecoderConfig,
    ModernBertDecoderForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from rlreason import models
from rlreason.batch import stack
from rlreason.lora import LoRA
from rlreason.policy import Policy
from rlreason.scorer import FACTS, Ensemble, RewardModel, load_scorer, write_facts
from rlreason.types import Message, Segment

CONVERSATIONS: list[list[Message]] = [
    talk("Hi!", "Hello."),
    talk("Hi!", "Go away, I am busy with something else today."),
    talk("Hi!", ""),
    talk("1 + 1?", "2", "2 + 2?", "4"),
    [{"role": "system", "content": "S"}, *talk("?", "!")],
]


@functools.cache
def untied_folder(parent: Path) -> Path:
    """A Qwen2 with a head of its own, other ids than the tiny model's and the plain template."""
    folder = parent / "untied"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)
    tokenizer = Tokenizer(BPE(vocab={token: i for i, token in enumerate([*alphabet, "<end>", "<pad>"])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>").save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=258, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=200, tie_word_embeddings=False, eos_token_id=256,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Qwen2ForCausalLM(config)
    sharpen(model, 8.0)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untied_folder(tmp_path_factory.mktemp("base"))


def saved(model: RewardModel, folder: Path, *, mean: float = 0.0, std: float = 1.0) -> Path:
    folder.mkdir(parents=True)
    model.save(str(folder), model.take_masters())
    write_facts(folder, mean=mean, std=std)
    return folder


def scores_of(model: RewardModel, conversations: Sequence[list[Message]]) -> list[float]:
    """All in one batch, each its own group."""
    rows = [model.rows([messages])[0] for messages in conversations]
    with torch.no_grad():
        return model.scores(stack(rows, range(len(rows)), device=model.device)).tolist()


def transformers_scores(folder: Path, conversations: Sequence[list[Message]], *, together: bool) -> list[float]:
    """By nothing of ours, one by one or padded on the right to a batch; the plain template written out by hand."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in conversations]
    with torch.no_grad():
        if together:
            batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
            assert not batch.attention_mask.all()
            return model(**batch).logits[:, 0].tolist()  # type: ignore[no-any-return]
        rows = [tokenizer(text, add_special_tokens=False, return_tensors="pt") for text in texts]
        return [model(**row).logits.item() for row in rows]


# Scores


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("pad", ["<|pad|>", "<|im_end|>"], ids=["pad", "pad is the end token"])
def test_scores_are_what_transformers_reads_from_the_folder(pad: str, together: bool, tmp_path: Path) -> None:
    policy = tiny()
    policy.tokenizer.pad_token = pad
    model = RewardModel(policy)
    folder = saved(model, tmp_path / "model")
    expected = transformers_scores(folder, CONVERSATIONS, together=together)
    assert scores_of(model, CONVERSATIONS) == pytest.approx(expected, abs=1e-5)
    assert min(abs(a - b) for i, a in enumerate(expected) for b in expected[:i]) > 1e-3  # they tell texts apart
    (scorer,) = zip(*load_scorer([str(folder)], dtype="float32")(CONVERSATIONS), strict=True)
    assert scorer == pytest.approx(expected, abs=1e-5)


def test_the_score_is_read_at_the_last_token_never_at_padding() -> None:
    model = RewardModel(tiny())
    (row,) = model.rows([CONVERSATIONS[0]])
    ids = row.prompt_ids + row.completion_ids
    text = model.tokenizer.apply_chat_template(CONVERSATIONS[0], tokenize=False)
    assert model.tokenizer.decode(ids[:-1]) == text
    trunk = model._policy.model
    with torch.no_grad():
        hidden = trunk.model(input_ids=torch.tensor([ids[:-1]])).last_hidden_state
        expected = (hidden[0, -1] @ model.head.weight[0]).item()
        before = (hidden[0, -2] @ model.head.weight[0]).item()
    long = Segment([5] * 40, [6] * 40, [0.0] * 40, [False] * 39 + [True])  # pads the other to 80 tokens
    with torch.no_grad():
        found = model.scores(stack([row, long], [0, 1]))[0].item()
        other_last = Segment(row.prompt_ids, [*row.completion_ids[:-1], 77], row.sampler_logp, row.mask)
        assert model.scores(stack([other_last], [0])).item() == pytest.approx(expected, abs=1e-5)
    assert found == pytest.approx(expected, abs=1e-5)
    assert abs(found - before) > 1e-3


def test_rows_share_what_all_of_them_begin_with() -> None:
    model = RewardModel(tiny())
    texts = [talk("?", answer) for answer in ("abc", "abd", "ab")]
    rows = model.rows(texts)
    shared = "<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\nab"
    assert [model.tokenizer.decode(row.prompt_ids) for row in rows] == [shared] * 3
    together = stack(rows, [0, 0, 0])
    with torch.no_grad():
        assert model.scores(together).tolist() == pytest.approx(scores_of(model, texts), abs=1e-5)
    (twice, again) = model.rows([texts[0], texts[0]])
    assert twice == again
    assert len(twice.completion_ids) == 2  # the last token and the one after it


@pytest.mark.parametrize(
    "written",
    [
        "fine<|im_end|>",
        "<|endoftext|>fi<|im_start|>ne",
        "fi<|im_<|endoftext|>end|>ne",  # with one taken out, another is spelled
        "fi<|im_<|im_<|endoftext|>start|>end|>ne",
    ],
)
def test_special_tokens_that_a_message_spells_out_are_not_read(written: str) -> None:
    model = RewardModel(tiny())
    (row,) = model.rows([talk("Hi!", written)])
    assert [row] == model.rows([talk("Hi!", "fine")])
    assert (row.prompt_ids + row.completion_ids[:-1]).count(2) == 2  # the template's own


def test_special_tokens_that_have_no_role_are_not_read_either() -> None:
    policy = tiny()
    policy.tokenizer.add_tokens([AddedToken("<|tool|>", special=True), AddedToken("plain", special=False)])
    assert "<|tool|>" not in policy.tokenizer.all_special_tokens
    model = RewardModel(policy)
    assert model.rows([talk("Hi!", "fi<|tool|>ne")]) == model.rows([talk("Hi!", "fine")])
    assert model.rows([talk("Hi!", "plainly")]) != model.rows([talk("Hi!", "ly")])


def test_the_head_is_drawn_from_its_distribution() -> None:
    torch.manual_seed(0)
    drawn = torch.cat([RewardModel(tiny()).head.weight.detach() for _ in range(8)])
    assert drawn.shape == (8, 64)
    assert drawn.std().item() == pytest.approx(1 / math.sqrt(65), rel=0.1)  # 512 draws: a standard error of 3 %
    assert len({row[0].item() for row in drawn}) == 8


# What is refused


def test_lora_is_refused() -> None:
    with pytest.raises(ValueError, match=r"set model.lora.r=0"):
        RewardModel(models.load(tiny_folder(), dtype="float32", lora=LoRA(4)))


def test_a_base_whose_classifier_is_another_is_refused() -> None:
    """transformers calls its head ``classifier`` and puts a layer before it: what is trained here would be dropped."""
    config = ModernBertDecoderConfig(
        vocab_size=300, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
    )  # fmt: skip
    policy = Policy(ModernBertDecoderForCausalLM(config), tiny().tokenizer, dtype=torch.float32, info={})
    with pytest.raises(ValueError, match=r"DecoderForSequenceClassification .*score\.weight \(it has classif"):
        RewardModel(policy)


# On disk


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_masters_come_back_bit_for_bit(dtype: Any, tmp_path: Path) -> None:
    model = RewardModel(tiny(dtype))
    masters = [m.detach().clone() for m in model.take_masters()]
    assert len(masters) == len(model.parameters())
    with torch.no_grad():
        masters[0] += 1e-6  # as training would: bits that bfloat16 has not
    model.save(str(tmp_path), masters)
    back = model.saved_weights(str(tmp_path))
    assert list(back)[-1] == "score.weight"
    assert all(torch.equal(one, other) for one, other in zip(back.values(), masters, strict=True))
    again = RewardModel(models.load(str(tmp_path), dtype="float32"), back["score.weight"])
    twin = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert twin.dtype == torch.float32
    assert torch.equal(twin.model.embed_tokens.weight, masters[0])
    assert scores_of(again, CONVERSATIONS) == pytest.approx(
        transformers_scores(tmp_path, CONVERSATIONS, together=False), abs=1e-5
    )


def test_an_untied_base_leaves_its_own_head_behind(untied: Path, tmp_path: Path) -> None:
    model = RewardModel(models.load(str(untied), dtype="float32"))
    folder = saved(model, tmp_path / "model")
    names = load_file(folder / "model.safetensors").keys()
    assert "score.weight" in names
    assert "lm_head.weight" not in names
    expected = transformers_scores_plain(folder, CONVERSATIONS[:4])
    assert scores_of(model, CONVERSATIONS[:4]) == pytest.approx(expected, abs=1e-5)
    (scorer,) = zip(*load_scorer([str(folder)], dtype="float32")(CONVERSATIONS[:4]), strict=True)
    assert scorer == pytest.approx(expected, abs=1e-5)


def transformers_scores_plain(folder: Path, conversations: Sequence[list[Message]]) -> list[float]:
    """Of the model with the plain template, which is written out here."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager")
    found = []
    for messages in conversations:
        text = "".join(f"{m['role'].capitalize()}: {m['content']}\n\n" for m in messages)
        ids = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            found.append(model(input_ids=ids).logits.item())
    return found


# Scorers


@pytest.fixture(scope="module")
def ensemble(untied: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two members of different bases and tokenizers, normalised differently."""
    folder = tmp_path_factory.mktemp("members")
    torch.manual_seed(3)
    return [
        saved(RewardModel(tiny()), folder / "tiny", mean=0.3, std=2.0),
        saved(RewardModel(models.load(str(untied), dtype="float32")), folder / "untied", mean=-1.0, std=0.5),
    ]


def test_members_are_normalised_and_in_order(ensemble: list[Path]) -> None:
    raw = [
        transformers_scores(ensemble[0], CONVERSATIONS, together=False),
        transformers_scores_plain(ensemble[1], CONVERSATIONS),
    ]
    expected = [((a - 0.3) / 2, (b + 1) / 0.5) for a, b in zip(*raw, strict=True)]
    for paths in (ensemble, ensemble[::-1]):
        found = load_scorer([str(path) for path in paths], dtype="float32")(CONVERSATIONS)
        assert [len(scores) for scores in found] == [2] * 5
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other if paths is ensemble else other[::-1], abs=2e-5)


def test_scores_do_not_depend_on_company_or_order(ensemble: list[Path]) -> None:
    scorer = load_scorer([str(ensemble[0])], dtype="float32", micro_batch_tokens=120)
    mixed: list[list[Message]] = [*CONVERSATIONS, talk("Hi!", "Hello"), talk("1 + 1?", "3"), CONVERSATIONS[0]]
    together = scorer(mixed)
    alone = [scorer([messages])[0] for messages in mixed]
    assert together == [pytest.approx(own, abs=1e-5) for own in alone]
    assert scorer(mixed[::-1]) == [pytest.approx(own, abs=1e-5) for own in alone[::-1]]
    assert scorer([]) == []


def test_bfloat16_is_near(ensemble: list[Path]) -> None:
    exact, near = (load_scorer([str(ensemble[0])], dtype=dtype)(CONVERSATIONS) for dtype in ("float32", "bfloat16"))
    assert exact != near
    for (one,), (other,) in zip(exact, near, strict=True):
        assert one == pytest.approx(other, abs=0.1)


def test_what_is_too_long_loses_its_beginning(ensemble: list[Path]) -> None:
    scorer: Ensemble = load_scorer([str(ensemble[1])], dtype="float32")
    context = scorer.members[0].model.context
    long = talk("x" * 300, "yes")
    ((found,),) = scorer([long])
    tokenizer = AutoTokenizer.from_pretrained(ensemble[1])
    ids = tokenizer(f"User: {'x' * 300}\n\nAssistant: yes\n\n", add_special_tokens=False).input_ids[-(context - 1) :]
    model = AutoModelForSequenceClassification.from_pretrained(ensemble[1], attn_implementation="eager")
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits.item()
    assert found == pytest.approx((expected + 1) / 0.5, abs=2e-5)
    # Rows for training are whole: what trains leaves out what is too long.
    (row,) = scorer.members[0].model.rows([long])
    assert len(row.prompt_ids) + len(row.completion_ids) > context


def test_a_scorer_is_not_trained(ensemble: list[Path]) -> None:
    scorer = load_scorer([str(path) for path in ensemble])
    assert not any(p.requires_grad for member in scorer.members for p in member.model.parameters())


def test_what_is_no_reward_model_is_refused(ensemble: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no reward model"):
        load_scorer([])
    with pytest.raises(ValueError, match=r"must be a list of folders, such as \[runs/rm\]"):
        load_scorer("runs/rm")
    with pytest.raises(ValueError, match="is no finished reward model"):
        load_scorer([tiny_folder()])
    with pytest.raises(ValueError, match=f"has no {FACTS}"):
        load_scorer([str(tmp_path)])
    with pytest.raises(FileNotFoundError, match=r"nowhere' is no folder \(looked in"):
        load_scorer([str(tmp_path / "nowhere")])
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        load_scorer([str(run)])
    # of a run the newest checkpoint counts, even if an older one was finished
    for step in (3, 4):
        saved(RewardModel(tiny()), run / "checkpoints" / f"step-{step:06d}", mean=float(step))
    assert load_scorer([str(run)]).members[0].mean == 4.0
    (run / "checkpoints" / "step-000004" / FACTS).unlink()
    with pytest.raises(ValueError, match="resume=<folder>"):
        load_scorer([str(run)])


def test_facts_of_scores_that_are_all_the_same_are_refused(tmp_path: Path) -> None:
    for mean, std in ((0.0, 0.0), (float("nan"), 1.0), (0.0, float("inf"))):
        with pytest.raises(ValueError, match="nothing learned"):
            write_facts(tmp_path, mean=mean, std=std)
    write_facts(tmp_path, mean=0.25, std=2.0)
    assert json.loads((tmp_path / FACTS).read_text()) == {"mean": 0.25, "std": 2.0}


def test_the_base_stays_a_policy(tmp_path: Path) -> None:
    """What is saved is loaded by transformers as a causal model too, its head tied again."""
    model = RewardModel(tiny())
    folder = saved(model, tmp_path / "model")
    policy: Policy = models.load(str(folder), dtype="float32")
    twin = AutoModelForCausalLM.from_pretrained(tiny_folder(), dtype=torch.float32)
    assert torch.equal(policy.model.get_output_embeddings().weight, twin.get_output_embeddings().weight)

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import device, make_rollout, plain, plain_logp, random_ids, tiny
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlreason import attention, logprob, models
from rlreason import policy as policy_module
from rlreason.batch import collate
from rlreason.clock import Clock
from rlreason.engines.torch import TorchEngine
from rlreason.logprob import log_softmax_at
from rlreason.policy import Policy, take_rows, token_logprobs
from rlreason.rollout import roll_out
from rlreason.types import Batch, Episode, Grade, Message, Problem, Sampling, Segment

ROUTES = pytest.mark.parametrize("route", [attention.NAME, "sdpa"], ids=["packed", "padded"])
"""Attention implementations that run the rows of a batch without and with their padding."""


def tiny_by(route: str) -> Policy:
    policy = tiny()
    policy.model.set_attn_implementation(route)
    return policy


@pytest.fixture(scope="module", params=ROUTES.args[1], ids=ROUTES.kwargs["ids"])
def policy(request: pytest.FixtureRequest) -> Policy:
    return tiny_by(request.param)


# Groups of unequal size with prompts of different lengths, completions from 1 token on; the rows of a group are not
# all neighbours. (group, prompt length, completion length)
ROWS = [(4, 7, 5), (4, 7, 1), (0, 12, 9), (4, 7, 8), (2, 3, 1), (0, 12, 2)]
PROMPTS = {group: random_ids(length, seed=group) for group, length, _ in ROWS}
COMPLETIONS = [random_ids(n, seed=50 + i) for i, (_, _, n) in enumerate(ROWS)]


def make_batch() -> Batch:
    rollouts = [make_rollout(g, PROMPTS[g], COMPLETIONS[i]) for i, (g, _, _) in enumerate(ROWS)]
    return collate(rollouts, device=device())


def passes(model: Any, call: Callable[[], object]) -> list[tuple[int, ...]]:
    """Rows and width of each forward pass."""
    rows: list[tuple[int, ...]] = []
    handle = model.register_forward_pre_hook(lambda m, a, k: rows.append(k["input_ids"].shape), with_kwargs=True)
    try:
        call()
    finally:
        handle.remove()
    return rows


# --- token_logprobs


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("shared", [True, False])
def test_token_logprobs_are_those_of_a_plain_forward(policy: Policy, temperature: float, shared: bool) -> None:
    batch = make_batch()
    with torch.no_grad():
        out = token_logprobs(policy.model, batch, temperature, share_prompts=shared)
        reference = plain(policy.model)
        assert out.logp.shape == batch.tokens.shape
        assert out.logp.dtype == torch.float32
        for i, (group, start, length) in enumerate(ROWS):
            expected = plain_logp(reference, PROMPTS[group], COMPLETIONS[i], temperature)
            torch.testing.assert_close(out.logp[i, start : start + length], expected, rtol=0, atol=1e-5)
    assert (out.logp[~batch.mask] == 0).all()
    assert (out.logp[batch.mask] < 0).all()


def test_entropy_is_that_of_a_plain_forward(policy: Policy) -> None:
    batch = make_batch()
    with torch.no_grad():
        entropy = token_logprobs(policy.model, batch, 0.6).entropy
        assert entropy is not None
        reference = plain(policy.model)
        for i, (group, start, length) in enumerate(ROWS):
            ids = torch.tensor([PROMPTS[group] + COMPLETIONS[i]], device=device())
            logp = torch.log_softmax(reference(input_ids=ids).logits[0, start - 1 : -1] / 0.6, -1)
            torch.testing.assert_close(
                entropy[i, start : start + length], -(logp.exp() * logp).sum(-1), rtol=0, atol=1e-4
            )
    assert (entropy[~batch.mask] == 0).all()
    assert 0.1 < entropy[batch.mask].min() < entropy[batch.mask].max() < math.log(260)


@ROUTES
def test_shared_prompts_change_neither_values_nor_gradients(route: str) -> None:
    policy = tiny_by(route)
    policy.add_critic()
    assert policy.critic is not None
    nn.init.normal_(policy.critic.head.weight, generator=None)
    batch = make_batch()
    weight = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(3)).to(device())

    def run(shared: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        out = token_logprobs(policy.model, batch, 0.8, value_head=policy.critic.head, share_prompts=shared)
        assert out.entropy is not None
        assert out.value is not None
        loss = (weight * (out.logp + 0.3 * out.entropy + 0.2 * out.value)).sum()
        gradients = torch.autograd.grad(loss, policy.parameters())
        return [out.logp, out.entropy, out.value], list(gradients)

    # Of 7, 12 and 3 tokens, and completions without their last, of 20 together: packed, or prompts and rows padded.
    expected = [(1, 22 + 20)] if route == attention.NAME else [(3, 12), (6, 8)]
    assert passes(policy.model, lambda: token_logprobs(policy.model, batch, 0.8)) == expected
    assert passes(policy.model, lambda: token_logprobs(policy.model, batch, 0.8, share_prompts=False)) == [(6, 21)]
    values, gradients = run(True)
    expected_values, expected_gradients = run(False)
    for value, expected in zip(values, expected_values, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)
    assert len(gradients) == len(list(policy.model.parameters())) + 2
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        scale = expected.abs().max().item()
        assert scale > 0
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4 * scale)


@ROUTES
def test_gradient_is_that_of_a_plain_forward(route: str) -> None:
    """Against a loss written here from whole logits: no chunks, no sharing, no padding."""
    policy = tiny_by(route)
    batch = make_batch()
    weight = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(4)).to(device())
    gradients = torch.autograd.grad((weight * policy.forward(batch, 0.8).logp).sum(), policy.parameters())
    reference = plain(policy.model)
    loss = torch.zeros((), device=device())
    for i, (group, start, length) in enumerate(ROWS):
        logp = plain_logp(reference, PROMPTS[group], COMPLETIONS[i], 0.8)
        loss = loss + (weight[i, start : start + length] * logp).sum()
    for gradient, expected in zip(gradients, torch.autograd.grad(loss, list(reference.parameters())), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_prompts_that_differ_within_a_group_are_not_shared(policy: Policy) -> None:
    """Later turns of a conversation: same group, other prompt, here even of the same length."""
    prompts = [random_ids(6, seed=1), random_ids(6, seed=2)]
    batch = collate([make_rollout(0, p, COMPLETIONS[0]) for p in prompts], device=device())
    with torch.no_grad():
        logp = token_logprobs(policy.model, batch, 1.0).logp
        reference = plain(policy.model)
        for row, prompt in zip(logp, prompts, strict=True):
            torch.testing.assert_close(row[6:], plain_logp(reference, prompt, COMPLETIONS[0], 1.0), rtol=0, atol=1e-5)


def test_tokens_of_the_environment_are_read_but_not_scored(policy: Policy) -> None:
    prompt, completion = random_ids(5, seed=9), random_ids(6, seed=10)
    mask = [True, True, False, False, True, True]
    segment = Segment(prompt, completion, [-1.0] * 6, mask)
    for count in (1, 2):  # alone, and with the prompt shared
        rollouts = [replace(make_rollout(0, prompt, completion), segments=[segment]) for _ in range(count)]
        batch = collate(rollouts, device=device())
        with torch.no_grad():
            logp = token_logprobs(policy.model, batch, 1.0).logp
            expected = plain_logp(plain(policy.model), prompt, completion, 1.0).cpu() * torch.tensor(mask)
        for row in logp:
            torch.testing.assert_close(row[5:].cpu(), expected, rtol=0, atol=1e-5)


def test_end_token_is_trained_on_though_it_is_the_pad_token() -> None:
    policy = tiny()
    policy.tokenizer.pad_token = policy.tokenizer.eos_token
    policy.model.config.pad_token_id = policy.model.config.eos_token_id
    assert policy.tokenizer.pad_token_id in policy.end_ids
    end, prompt = 2, random_ids(4, seed=1)
    completions = [[*random_ids(3, seed=2), end], [end], random_ids(6, seed=3)]
    batch = collate([make_rollout(i % 2, prompt, c) for i, c in enumerate(completions)], device=device())
    assert batch.mask.sum(1).tolist() == [4, 1, 6]
    assert batch.mask[0, 7]
    assert batch.tokens[0, 7] == end
    logp = policy.forward(batch, 1.0).logp
    with torch.no_grad():
        reference = plain(policy.model)
        for i, completion in enumerate(completions):
            expected = plain_logp(reference, prompt, completion, 1.0)
            torch.testing.assert_close(logp[i, 4 : 4 + len(completion)], expected, rtol=0, atol=1e-5)
    (gradient,) = torch.autograd.grad(logp[1].sum(), [policy.model.get_input_embeddings().weight])
    assert gradient[end].abs().max() > 0


@pytest.mark.parametrize("shared", [True, False])
def test_value_belongs_to_the_state_before_its_token(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Policy, "shares_prompts", shared)
    policy = tiny()
    policy.add_critic()
    assert policy.critic is not None
    batch = make_batch()
    assert policy.forward(batch, 1.0).value is None
    untrained = policy.forward(batch, 1.0, value=True).value
    assert untrained is not None
    assert (untrained == 0).all()
    with torch.no_grad():
        policy.critic.head.weight.copy_(torch.linspace(-1, 1, 64)[None])
        policy.critic.head.bias.fill_(0.25)
        value = policy.forward(batch, 1.0, value=True).value
        assert value is not None
        reference = plain(policy.model)
        for i, (group, start, length) in enumerate(ROWS):
            ids = torch.tensor([PROMPTS[group] + COMPLETIONS[i]], device=device())
            hidden = reference.model(input_ids=ids).last_hidden_state[0]
            states = hidden[start - 1 : start + length - 1]  # the first token's state ends with the prompt
            expected = (states * torch.linspace(-1, 1, 64, device=device())).sum(-1) + 0.25
            torch.testing.assert_close(value[i, start : start + length], expected, rtol=0, atol=1e-4)
    assert (value[~batch.mask] == 0).all()


@ROUTES
def test_gradient_checkpointing_gives_the_same_gradient(route: str) -> None:
    batch = make_batch()
    gradients = []
    for checkpointing in (False, True):
        policy = tiny_by(route)
        if checkpointing:
            policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        policy.model.train()
        sizes = passes(policy.model, partial(policy.forward, batch, 1.0))
        assert (sizes == [(6, 21)]) == checkpointing  # which runs whole rows
        gradients.append(torch.autograd.grad(policy.forward(batch, 1.0).logp.sum(), policy.parameters()))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * one.abs().max().item())


def test_take_rows_cuts_to_the_longest_row_taken() -> None:
    batch = make_batch()
    part = take_rows(batch, torch.tensor([4, 1], device=device()))
    assert part.tokens.shape == (2, 8)  # rows of 3 + 1 and 7 + 1 tokens
    assert part.tokens[0].tolist() == PROMPTS[2] + COMPLETIONS[4] + [0] * 4
    assert part.group.tolist() == [2, 4]
    assert part.prompt_length.tolist() == [3, 7]


def test_annotate_fills_in_what_is_needed_in_every_cut() -> None:
    policy = tiny()
    policy.add_reference()
    policy.add_critic()
    assert policy.critic is not None
    with torch.no_grad():
        policy.critic.head.weight.fill_(0.1)
        for parameter in policy.model.parameters():
            parameter.mul_(1.1)  # the policy moves, its reference stays
    batch = make_batch()
    cuts = [torch.tensor(rows, device=device()) for rows in ([2, 5], [0], [1, 3, 4])]
    needs = frozenset({"old_logp", "value", "ref_logp"})
    done = policy.annotate(batch, 0.9, needs, cuts)
    with torch.no_grad():
        whole = policy.forward(batch, 0.9, value=True)
        reference = token_logprobs(policy.reference, batch, 0.9)
    for found, expected in (
        (done.old_logp, whole.logp),
        (done.value, whole.value),
        (done.ref_logp, reference.logp),
    ):
        assert found is not None
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (done.old_logp - done.ref_logp).abs().max() > 0.01  # type: ignore[operator]
    only = policy.annotate(batch, 0.9, frozenset({"old_logp", "entropy"}), cuts)
    assert only.value is None
    assert only.ref_logp is None
    assert policy.annotate(batch, 0.9, frozenset({"entropy"}), cuts) is batch


# --- log_softmax_at


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("with_entropy", [True, False])
def test_log_softmax_at_is_torch_log_softmax(temperature: float, with_entropy: bool) -> None:
    chance = torch.Generator().manual_seed(0)
    count = 2 * logprob.CHUNK + 37
    logits = (3 * torch.randn(count, 50, generator=chance)).requires_grad_()
    # Some rows serve several targets, some none, and one target twice.
    source = torch.randint(0, count, (count + 20,), generator=chance)
    source[:3] = torch.tensor([count - 1, count - 1, 0])
    targets = torch.randint(0, 50, (count + 20,), generator=chance)
    targets[:2] = 11
    assert len(source.unique()) < count
    logp, entropy = log_softmax_at(logits, source, targets, temperature)
    exact = logits.detach().double().requires_grad_()
    full = torch.log_softmax(exact / temperature, dim=-1)[source]
    expected_logp, expected_entropy = full[torch.arange(len(source)), targets], -(full.exp() * full).sum(-1)
    torch.testing.assert_close(logp.double(), expected_logp, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy.double(), expected_entropy, rtol=1e-5, atol=1e-5)
    first, second = torch.randn(2, len(source), generator=chance)
    second = second * with_entropy
    (gradient,) = torch.autograd.grad((first * logp + second * entropy).sum(), logits)
    (expected,) = torch.autograd.grad((first * expected_logp + second * expected_entropy).sum(), exact)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-5)
    assert expected.abs().max() > 0.1


@pytest.mark.parametrize("shared", [True, False])
def test_head_in_chunks_gives_the_same_values_and_gradients(monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    model = tiny().model
    prompts = [random_ids(9, seed=1), random_ids(6, seed=2)]
    batch = collate([make_rollout(i // 3, prompts[i // 3], random_ids(5 + 4 * i, seed=10 + i)) for i in range(6)])
    weight = torch.linspace(-1, 1, batch.tokens.numel()).view_as(batch.tokens)

    def run() -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        out = token_logprobs(model, batch, 0.7, share_prompts=shared)
        assert out.entropy is not None
        (out.logp * weight + 0.3 * out.entropy * weight.flip(0)).sum().backward()
        return out.logp.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    logp, grads = run()
    monkeypatch.setattr(policy_module, "KEPT_LOGITS", 0)
    monkeypatch.setattr(logprob, "HEAD_CHUNK", 16)
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda module, args, out: seen.append(out.numel()))
    chunked_logp, chunked_grads = run()
    assert sum(seen) == 0  # the model's own head computed nothing
    assert len(grads) == len(chunked_grads)
    torch.testing.assert_close(chunked_logp, logp, rtol=0, atol=2e-6)
    for got, expected in zip(chunked_grads, grads, strict=True):
        assert (got - expected).norm() <= 2e-6 * expected.norm()


@pytest.mark.parametrize("share", [True, False])  # packed or whole rows
def test_attention_in_chunks_of_queries_gives_the_same_values_and_gradients(
    monkeypatch: pytest.MonkeyPatch, share: bool
) -> None:
    model = tiny_by(attention.NAME).model
    prompt = random_ids(40, seed=1)
    batch = collate([make_rollout(0, prompt, random_ids(n, seed=n)) for n in (70, 33, 90)])

    def run() -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        logp = token_logprobs(model, batch, 1.0, share_prompts=share).logp
        (logp * torch.linspace(-1, 1, logp.numel()).view_as(logp)).sum().backward()
        return logp.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    logp, grads = run()
    keys: list[int] = []
    attend = attention._attend
    monkeypatch.setattr(attention, "CHUNK", 32)
    monkeypatch.setattr(
        attention, "_attend", lambda module, q, k, *rest: (keys.append(k.shape[2]), attend(module, q, k, *rest))[1]
    )
    chunked_logp, chunked_grads = run()
    # in each of two layers: the prompt, then the 89 of the completions; or all 130 together
    assert keys == 2 * ([32, 40, 72, 104, 129] if share else [32, 64, 96, 128, 130])
    torch.testing.assert_close(chunked_logp, logp, rtol=0, atol=2e-6)
    for got, expected in zip(chunked_grads, grads, strict=True):
        assert (got - expected).norm() <= 2e-6 * expected.norm()


def test_log_softmax_at_by_hand() -> None:
    # Probabilities 0.2, 0.3, 0.5. Entropy: 0.2 ln 5 + 0.3 ln (10/3) + 0.5 ln 2 = 0.3218876 + 0.3611918 + 0.3465736.
    logits = torch.tensor([[0.2, 0.3, 0.5]]).log() + 4.0
    logp, entropy = log_softmax_at(logits, torch.tensor([0, 0]), torch.tensor([2, 0]), 1.0)
    assert logp.tolist() == pytest.approx([math.log(0.5), math.log(0.2)], abs=1e-6)
    assert entropy.tolist() == pytest.approx([1.029653, 1.029653], abs=1e-5)
    # At temperature 1/2 probabilities are squared: 0.04, 0.09, 0.25 over 0.38.
    logp, _ = log_softmax_at(logits, torch.tensor([0]), torch.tensor([1]), 0.5)
    assert logp.item() == pytest.approx(math.log(0.09 / 0.38), abs=1e-6)


# --- rendering and decoding

ADDS_BOS = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
WRITES_BOS = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}|{% endfor %}"
OPENS_THOUGHT = WRITES_BOS.removeprefix("{{ bos_token }}") + "{% if add_generation_prompt %}<think>\n{% endif %}"
QUESTION: list[Message] = [{"role": "user", "content": "hi"}]


def policy_with(folder: Path, *, template: str | None, adds_bos: bool) -> Policy:
    """The tiny model with another tokenizer, loaded from a folder as a user's model would be."""
    models.build_tiny(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if adds_bos:
        tokenizer.backend_tokenizer.post_processor = ADDS_BOS
    tokenizer.chat_template = template
    for file in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    policy = models.load(str(folder), dtype="float32", device=device())
    assert (policy.tokenizer("x").input_ids[0] == 1) == adds_bos
    return policy


def test_plain_template_writes_the_bos_that_the_tokenizer_would_add(tmp_path: Path) -> None:
    policy = policy_with(tmp_path, template=None, adds_bos=True)
    ids = policy.render(QUESTION).ids
    assert ids[0] == 1
    assert ids.count(1) == 1
    assert policy.tokenizer.decode(ids[1:]) == "User: hi\n\nAssistant:"
    assert policy.info["chat_template"] == "plain"


def test_plain_template_adds_no_bos_where_the_tokenizer_adds_none(tmp_path: Path) -> None:
    policy = policy_with(tmp_path, template=None, adds_bos=False)
    assert policy.tokenizer.decode(policy.render(QUESTION).ids) == "User: hi\n\nAssistant:"
    assert policy.info["chat_template"] == "plain"


@pytest.mark.parametrize("adds_bos", [True, False])
def test_template_that_writes_the_bos_gets_no_second_one(tmp_path: Path, adds_bos: bool) -> None:
    policy = policy_with(tmp_path, template=WRITES_BOS, adds_bos=adds_bos)
    ids = policy.render(QUESTION).ids
    assert ids == [1, *policy.tokenizer("hi|", add_special_tokens=False).input_ids]
    assert policy.info["chat_template"] == "tokenizer"


def test_template_of_the_tokenizer_is_used_as_it_is(policy: Policy) -> None:
    ids = policy.render([{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]).ids
    text = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert policy.tokenizer.decode(ids) == text
    assert ids.count(1) == 3  # markers are single tokens, not their letters
    assert policy.render(QUESTION).opened == ""


class GradesText:
    """An environment that keeps what it was given to grade."""

    name = "texts"

    def __init__(self) -> None:
        self.episodes: list[Episode] = []

    def split(self, name: str) -> Any:
        raise AssertionError("the problems are given here; nobody should ask for a split")

    def start(self, problem: Problem, seed: int) -> None:
        return None

    def replies(self, states: Any, conversations: Any) -> list[list[Message] | None]:
        return [None for _ in conversations]

    def grade(self, episodes: Any) -> list[Grade]:
        self.episodes = list(episodes)
        return [Grade(0.0, False) for _ in episodes]

    def validate(self) -> None: ...

    def manifest(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("opens", [True, False])
def test_thought_opened_by_the_template_is_in_the_graded_text(tmp_path: Path, opens: bool) -> None:
    policy = policy_with(tmp_path, template=OPENS_THOUGHT if opens else WRITES_BOS, adds_bos=False)
    env = GradesText()
    engine = TorchEngine(policy, max_tokens_in_flight=1000)
    (rollout,) = roll_out(
        engine, env, policy, [Problem("p", QUESTION, None)], Sampling(max_completion_length=5),
        samples=1, groups=[0], seed=0, clock=Clock(),
    )  # fmt: skip
    written = policy.decode(rollout.segments[0].completion_ids)
    assert written
    expected = ("<think>" if opens else "") + written
    assert [episode.text for episode in env.episodes] == [expected]
    assert rollout.text == expected
    assert rollout.messages[-1] == {"role": "assistant", "content": expected}
    # the thought's opening belongs to the prompt's tokens, not to those that are trained on
    assert policy.tokenizer.decode(rollout.segments[0].prompt_ids).endswith("<think>\n") == opens


def test_decode_drops_the_end_token_and_nothing_else(policy: Policy) -> None:
    hello = policy.tokenizer("a b .", add_special_tokens=False).input_ids
    assert policy.decode([*hello, 2]) == "a b ."
    assert policy.decode([*hello, 3]) == "a b ."
    assert policy.decode(hello) == "a b ."
    assert policy.decode([1, *hello, 3, 2]) == "<|im_start|>a b .<|endoftext|>"
    assert policy.decode([]) == ""


# --- what the policy knows of its model


def test_end_ids_gather_every_source(policy: Policy, tmp_path: Path) -> None:
    assert policy.end_ids == {2, 3}
    models.build_tiny(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = 9
    assert Policy(model, tokenizer, dtype=torch.float32, info={}).end_ids == {9, 2}
    tokenizer.eos_token = None
    model.config.eos_token_id = None
    with pytest.raises(ValueError, match="end token"):
        Policy(model, tokenizer, dtype=torch.float32, info={})


def test_bfloat16_policy_hands_its_float32_weights_over_once() -> None:
    exact = [p.detach() for p in tiny().model.parameters()]
    policy = tiny("bfloat16")
    assert {p.dtype for p in policy.model.parameters()} == {torch.bfloat16}
    policy.add_critic()
    masters = policy.take_masters()
    assert len(masters) == len(policy.parameters()) == len(exact) + 2
    assert all(torch.equal(m, e) for m, e in zip(masters, exact, strict=False))
    assert not torch.equal(exact[0], exact[0].bfloat16().float())  # they do hold more than bfloat16 can
    assert masters[-1] is policy.parameters()[-1]  # the critic is float32 itself
    single = tiny()
    assert all(m is p for m, p in zip(single.take_masters(), single.parameters(), strict=True))

"""The paged decoder against the model's own forward: token by token, through rows that come, grow and go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
from helpers import make_rollout, random_ids, tiny_folder
from test_kernels import FAMILIES, SMALL, random_model
from transformers import (
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from rlreason import kernels, models
from rlreason.batch import collate
from rlreason.engines import generate
from rlreason.engines.decoder import BLOCK, Decoder, Prompts
from rlreason.engines.module import ModuleDecoder
from rlreason.engines.paged import PagedDecoder, _Pool
from rlreason.engines.torch import TorchEngine
from rlreason.policy import Policy, token_logprobs
from rlreason.types import Request, Sampling

pytestmark = pytest.mark.skipif(kernels.library() is None, reason="the paged decoder needs the kernels")


def policy_of(config: PreTrainedConfig) -> Policy:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder())
    return Policy(random_model(config), tokenizer, dtype=torch.float32, info={})


def paged(policy: Policy) -> PagedDecoder:
    assert PagedDecoder.supports(policy)
    return PagedDecoder(policy, max_tokens=100_000)


class Pair:
    """Both decoders, driven alike; ``worst`` is the largest difference of their log-probs so far."""

    def __init__(self, policy: Policy) -> None:
        self.paged, self.module = paged(policy), ModuleDecoder(policy, max_tokens=100_000)
        self.worst = 0.0
        self.rows = 0
        self.logp = torch.empty(0)
        self._chance = torch.Generator().manual_seed(0)

    def _compare(self, call: Callable[[Decoder], torch.Tensor], rows: int) -> None:
        with torch.no_grad():
            found, expected = (torch.log_softmax(call(d), -1) for d in (self.paged, self.module))
        assert found.shape == expected.shape == (rows, 260)
        self.worst = max(self.worst, (found - expected).abs().max().item())
        self.logp = found

    def begin(self, *prompts: Sequence[int], source: Sequence[int]) -> None:
        self._compare(lambda decoder: decoder.begin(Prompts(prompts, source)), len(source))
        self.rows += len(source)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            newest = torch.randint(4, 260, (self.rows,), generator=self._chance).tolist()
            self._compare(lambda decoder: decoder.step(newest), self.rows)  # noqa: B023

    def remove(self, *rows: int) -> None:
        for row in rows:
            self.paged.remove(row)
            self.module.remove(row)
            self.rows -= 1

    def clear(self) -> None:
        self.paged.clear()
        self.module.clear()
        self.rows = 0


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SHAPES: dict[str, Callable[[], PreTrainedConfig]] = FAMILIES | {
    "llama with biases": lambda: LlamaConfig(**SMALL, attention_bias=True),
    "llama with llama3 scaling": lambda: LlamaConfig(**SMALL, rope_parameters=LLAMA3),
    "llama with yarn scaling": lambda: LlamaConfig(
        **SMALL,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10_000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_same_log_probs_as_the_model_itself(shape: str) -> None:
    pair = Pair(policy_of(SHAPES[shape]()))
    prompts = [random_ids(n, seed=n) for n in (70, 64, 1, 31, 32)]
    pair.begin(*prompts, source=[0, 0, 1, 2, 3, 4, 0])
    pair.step(5)
    pair.remove(1)
    pair.step(2)
    pair.remove(5, 0)  # the last, then the first
    pair.step(30)  # across the ends of blocks
    pair.begin(random_ids(100, seed=7), random_ids(3, seed=8), source=[1, 0, 0])
    pair.step(3)
    pair.remove(2)
    pair.step(31)
    assert pair.worst < 1e-4
    pair.clear()
    pair.begin(random_ids(40, seed=9), source=[0, 0])
    pair.step(2)
    assert pair.worst < 1e-4
    # the model minds what came before, or the comparison would say little
    last = pair.logp
    pair.clear()
    pair.begin(random_ids(39, seed=10), source=[0, 0])
    pair.step(2)
    assert (pair.logp - last).abs().mean() > 0.05


def test_llama3_scaling_is_seen() -> None:
    """Equal to the model above, and not for want of an effect."""
    plain, scaled = (policy_of(SHAPES[name]()) for name in ("llama", "llama with llama3 scaling"))
    scaled.model.load_state_dict(plain.model.state_dict())
    logp = []
    for policy in (plain, scaled):
        pair = Pair(policy)
        pair.begin(random_ids(90, seed=1), source=[0])
        pair.step(3)
        logp.append(pair.logp)
    assert (logp[0] - logp[1]).abs().max() > 0.01


# --- which models it takes

REFUSED: dict[str, Callable[[], PreTrainedConfig]] = {
    "sliding window": lambda: MistralConfig(**SMALL, sliding_window=512),
    "dynamic rope": lambda: LlamaConfig(
        **SMALL, rope_parameters={"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    ),
    "gelu": lambda: LlamaConfig(**SMALL, hidden_act="gelu"),
    "biases in the MLP": lambda: LlamaConfig(**SMALL, mlp_bias=True),
    "another family": lambda: Olmo2Config(**SMALL),
    "another shape": lambda: GPT2Config(vocab_size=260, n_embd=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_does_not_compute_goes_to_the_module(name: str) -> None:
    policy = policy_of(REFUSED[name]())
    assert not PagedDecoder.supports(policy)
    running = TorchEngine(policy, max_tokens_in_flight=10_000)
    assert isinstance(running._decoder, ModuleDecoder)
    assert worst(policy, running) < 1e-4


def worst(policy: Policy, running: TorchEngine) -> float:
    """Largest difference of the engine's log-probs from the trainer's."""
    requests = [Request(random_ids(9, seed=i % 2), Sampling(1.0, 12), seed=i) for i in range(4)]
    completions = generate(running, requests)
    rollouts = [
        make_rollout(i % 2, r.ids, c.ids, sampler_logp=c.logprobs)
        for i, (r, c) in enumerate(zip(requests, completions, strict=True))
    ]
    batch = collate(rollouts)
    with torch.no_grad():
        found = token_logprobs(policy.model, batch, 1.0).logp
    return (found - batch.sampler_logp)[batch.mask].abs().max().item()


@pytest.mark.parametrize(
    "config",
    [
        lambda: MistralConfig(**SMALL, sliding_window=None),
        lambda: Qwen2Config(**SMALL, use_sliding_window=False, sliding_window=64),
        lambda: Qwen3Config(**SMALL, head_dim=16, tie_word_embeddings=True),
    ],
    ids=["mistral", "qwen2", "qwen3"],
)
def test_engine_takes_the_family(config: Callable[[], PreTrainedConfig]) -> None:
    policy = policy_of(config())
    running = TorchEngine(policy, max_tokens_in_flight=10_000)
    assert isinstance(running._decoder, PagedDecoder)
    assert worst(policy, running) < 1e-4


def test_without_kernels_the_module_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of(FAMILIES["llama"]())
    assert isinstance(TorchEngine(policy, max_tokens_in_flight=10_000)._decoder, PagedDecoder)
    monkeypatch.setenv("RLREASON_KERNELS", "0")
    monkeypatch.setattr(kernels, "library", kernels.library.__wrapped__)  # forgets that there were some
    running = TorchEngine(policy, max_tokens_in_flight=10_000)
    assert isinstance(running._decoder, ModuleDecoder)
    assert worst(policy, running) < 1e-4


# --- new weights


def update(policy: Policy) -> None:
    """A step that changes every weight."""
    with torch.no_grad():
        for i, parameter in enumerate(policy.model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter.add_(0.1 * parameter.std() * noise)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_follow_the_weights(family: str) -> None:
    policy = policy_of(FAMILIES[family]())
    pair = Pair(policy)
    prompt = random_ids(40, seed=1)

    def difference() -> float:
        pair.clear()
        pair.worst = 0.0
        pair.begin(prompt, source=[0, 0])
        pair.step(3)
        return pair.worst

    assert difference() < 1e-4
    update(policy)
    assert difference() > 0.05  # packed before the update
    pair.paged.refresh()
    assert difference() < 1e-4


def test_engine_follows_the_weights_after_sync() -> None:
    policy = policy_of(FAMILIES["llama"]())
    running = TorchEngine(policy, max_tokens_in_flight=10_000)
    assert worst(policy, running) < 1e-4
    update(policy)
    assert worst(policy, running) > 0.05
    running.sync(policy)
    assert worst(policy, running) < 1e-4


# --- blocks


def in_use(decoder: PagedDecoder) -> int:
    """Blocks that rows own; checked against the rows' tables."""
    pool = decoder._pool
    listed = Counter(block for blocks in decoder._blocks for block in blocks)
    owned = {block: owners for block, owners in enumerate(pool.owners) if owners}
    assert owned == listed
    assert sorted([*owned, *pool.free]) == list(range(len(pool.owners)))
    return len(owned)


def test_blocks_come_and_go_with_their_rows() -> None:
    decoder = paged(policy_of(FAMILIES["llama"]()))
    with torch.no_grad():
        # 70 tokens are two full blocks, which three rows share, and one begun, which each has; 32 are one full block
        # and an empty one; 5 are one begun
        decoder.begin(Prompts([random_ids(70, seed=1), random_ids(32, seed=2), random_ids(5, seed=3)], [0, 0, 0, 1, 2]))
        assert in_use(decoder) == (2 + 3) + 2 + 1
        assert sorted(decoder._pool.owners, reverse=True)[:3] == [3, 3, 1]
        decoder.remove(1)
        assert in_use(decoder) == (2 + 2) + 2 + 1
        # Now rows 0, 2, 3 of 70, 70 and 32 tokens and row 1, which was the last, of 5: it fills its block and goes on.
        for _ in range(27):
            decoder.step([9, 9, 9, 9])
        assert in_use(decoder) == (2 + 2 * 2) + 2 + 1  # 97 tokens are more than three blocks
        decoder.step([9, 9, 9, 9])
        assert in_use(decoder) == (2 + 2 * 2) + 2 + 2
        decoder.remove(0)
        assert in_use(decoder) == (2 + 2) + 2 + 2  # the prompt's blocks stay for the other
        decoder.begin(Prompts([random_ids(33, seed=4)], [0, 0]))
        assert in_use(decoder) == 8 + 1 + 2
        for _ in range(5):
            decoder.remove(0)
        assert in_use(decoder) == 0
        assert len(decoder._pool.free) == len(decoder._pool.owners) > 0
        decoder.begin(Prompts([random_ids(33, seed=4)], [0]))
        decoder.clear()
        assert in_use(decoder) == len(decoder._pool.owners) == len(decoder._pool.keys[0]) == 0


def test_all_blocks_are_free_when_all_requests_are_done() -> None:
    policy = policy_of(FAMILIES["llama"]())
    running = TorchEngine(policy, max_tokens_in_flight=640, max_rows=5)
    decoder = running._decoder
    assert isinstance(decoder, PagedDecoder)
    sampling = [Sampling(20.0, 1 + 7 * i) for i in range(12)]  # so hot that some end before their length
    for i, how in enumerate(sampling):
        running.submit(Request(random_ids(20 + 30 * (i % 3), seed=i % 3), how, seed=i))
    used = []
    for _ in running.completed():
        used.append(in_use(decoder))
        assert len(decoder._pool.owners) <= 640 // BLOCK
        rows = len(decoder._blocks)
    assert max(used) >= 6
    assert rows == used[-1] == 0  # before the cache was dropped


def test_pool_doubles_up_to_its_limit() -> None:
    pool = _Pool(layers=2, kv_heads=1, width=16, dtype=torch.float32, limit=11)
    first = pool.take(3)
    assert len(pool.owners) == 3  # as many as are asked for
    for layer in (*pool.keys, *pool.values):
        layer[first] = torch.tensor([1.0, 2.0, 3.0])[:, None, None, None, None]
    second = pool.take(1)
    assert len(pool.owners) == 6  # twice
    assert len({*first, *second}) == 4
    pool.release(first[:1])
    pool.take(4)  # 3 are free
    assert len(pool.owners) == 11  # not 12
    assert {len(layer) for layer in (*pool.keys, *pool.values)} == {11}
    for layer in (*pool.keys, *pool.values):  # and moved with what they held
        assert layer[first[1:]].flatten(1).unique(dim=1).flatten().tolist() == [2.0, 3.0]
    assert len(pool.take(4)) == 4
    assert pool.free == []
    assert [tuple(layer.shape[1:]) for layer in (pool.keys[0], pool.values[0])] == [
        (1, 16, BLOCK, 1),
        (1, BLOCK, 16, 1),
    ]


# --- bfloat16


def test_rounding_in_bfloat16_is_no_worse_than_the_modules() -> None:
    """The embedded model. The decoder rounds in other places than the model's own forward; neither is right."""
    policy = models.load("embedded", dtype="bfloat16", device="cpu")
    policy.end_ids = frozenset()
    ids = [policy.render([{"role": "user", "content": f"What is {i} + {8 + i}? Explain."}]).ids for i in range(4)]
    running = TorchEngine(policy, max_tokens_in_flight=100_000)
    assert isinstance(running._decoder, PagedDecoder)
    completions = generate(running, [Request(ids[i // 4], Sampling(1.0, 24), seed=i) for i in range(16)])
    batch = collate(
        [make_rollout(i // 4, ids[i // 4], c.ids, sampler_logp=c.logprobs) for i, c in enumerate(completions)]
    )
    exact = models.load("embedded", dtype="float32", device="cpu")
    with torch.no_grad():
        sampled, trained, right = (
            logp[batch.mask]
            for logp in (
                batch.sampler_logp,
                token_logprobs(policy.model, batch, 1.0).logp,
                token_logprobs(exact.model, batch, 1.0).logp,
            )
        )
    assert len(sampled) == 16 * 24
    # measured: 0.021 and 0.24 between sampler and trainer, and from float32 0.030 of the one and 0.031 of the other
    difference = (sampled - trained).abs()
    assert difference.mean() < 0.06
    assert difference.quantile(0.999) < 1.0
    sampler_off, trainer_off = (sampled - right).abs().mean(), (trained - right).abs().mean()
    assert sampler_off <= 1.3 * trainer_off
    assert 0.01 < trainer_off < 0.06

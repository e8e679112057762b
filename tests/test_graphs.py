"""Decoding by captured graphs. Capturing is a GPU's; what surrounds it (fixed shapes, inputs that are copied, a cache
that stays where it is) is tested everywhere, with a capture that computes the function again on its own inputs."""

from __future__ import annotations

import pytest
import torch
from helpers import device, random_ids, tiny

from rlreason.engines import generate
from rlreason.engines.graphs import Function, bucket, capture
from rlreason.engines.module import ModuleDecoder
from rlreason.engines.torch import TorchEngine
from rlreason.policy import Policy
from rlreason.types import Completion, Request, Sampling

PROMPTS = [random_ids(n, seed=n) for n in (9, 23, 14, 1, 250)]


class Recorder:
    """A ``Capture`` that keeps to a graph's rules: inputs of fixed shapes, copied into tensors of its own, and one
    output that every call overwrites."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.replays = 0

    def __call__(self, function: Function, inputs: tuple[torch.Tensor, ...]) -> Function:
        own = tuple(tensor.clone() for tensor in inputs)
        output = function(*own).clone()
        self.rows.append(len(own[0]))

        def replay(*inputs: torch.Tensor) -> torch.Tensor:
            self.replays += 1
            for tensor, new in zip(own, inputs, strict=True):
                assert tensor.shape == new.shape
                tensor.copy_(new)
            output.copy_(function(*own))
            return output

        return replay


def engine(policy: Policy, graphs: Recorder | None, *, max_tokens: int = 20_000, max_rows: int = 11) -> TorchEngine:
    made = TorchEngine(policy, max_tokens_in_flight=max_tokens, max_rows=max_rows, cuda_graphs=False)
    made._decoder = ModuleDecoder(policy, max_tokens=max_tokens, capture=graphs)
    return made


def requests(prompts: list[list[int]], samples: int, length: int = 30) -> list[Request]:
    """Some of them end early, and rows that wait take their places."""
    sampling = Sampling(temperature=3.0, max_completion_length=length)
    return [Request(ids, sampling, 10 * i + j) for i, ids in enumerate(prompts) for j in range(samples)]


def assert_same(found: list[Completion], expected: list[Completion]) -> None:
    assert [c.ids for c in found] == [c.ids for c in expected]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=1e-4, rtol=1e-4)


def test_same_completions_with_graphs_and_without() -> None:
    policy = tiny()
    plain, graphs = engine(policy, None), Recorder()
    replaying = engine(policy, graphs)
    asked = requests(PROMPTS, 4)
    expected = generate(plain, asked)
    assert len({len(c.ids) for c in expected}) > 3  # they end at different times
    assert_same(generate(replaying, asked), expected)
    assert set(graphs.rows) <= {8, 16}
    assert graphs.replays > 30
    # once the cache has its size a rollout needs no new graph, and sees the weights as they are by then
    generate(replaying, asked)
    captured = len(graphs.rows)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1.1)
    for one in (plain, replaying):
        one.sync(policy)
    anew = generate(plain, asked)
    assert [c.ids for c in anew] != [c.ids for c in expected]
    assert_same(generate(replaying, asked), anew)
    assert len(graphs.rows) == captured


def test_cache_keeps_to_the_cap_where_powers_of_two_would_not() -> None:
    """280 tokens in 11 rows would be 16 rows of 512: they get what they need, and the same completions."""
    policy = tiny()
    graphs = Recorder()
    small = engine(policy, graphs, max_tokens=11 * 288)
    asked = requests(PROMPTS[-1:], 11)
    assert_same(generate(small, asked), generate(engine(policy, None), asked))
    assert set(graphs.rows) <= {8, 11}
    rows, tokens = small._decoder._slots.shape  # type: ignore[attr-defined]
    assert rows * tokens <= 11 * 288


def test_a_longer_rollout_gets_new_graphs() -> None:
    policy = tiny()
    graphs = Recorder()
    replaying, plain = engine(policy, graphs), engine(policy, None)
    for prompts in (PROMPTS[:3], PROMPTS[4:], PROMPTS[:3]):
        asked = requests(prompts, 3)
        assert_same(generate(replaying, asked), generate(plain, asked))
    assert replaying._decoder._slots.shape == (16, 512)  # type: ignore[attr-defined]


def test_what_can_not_be_captured_is_decoded_without_after_a_warning() -> None:
    def refuse(function: Function, inputs: tuple[torch.Tensor, ...]) -> Function:
        raise RuntimeError("operation not permitted when stream is capturing")

    policy = tiny()
    failing = engine(policy, None)
    failing._decoder = ModuleDecoder(policy, max_tokens=20_000, capture=refuse)
    asked = requests(PROMPTS, 2)
    with pytest.warns(UserWarning, match="engine.cuda_graphs=false.*not permitted when stream is capturing") as caught:
        found = generate(failing, asked)
    assert len(caught) == 1
    assert_same(found, generate(engine(policy, None), asked))


@pytest.mark.parametrize(
    ("count", "least", "expected"), [(1, 8, 8), (8, 8, 8), (9, 8, 16), (128, 8, 128), (257, 256, 512)]
)
def test_bucket(count: int, least: int, expected: int) -> None:
    assert bucket(count, least) == expected


@pytest.mark.skipif(device().type != "cuda", reason="CUDA graphs need a GPU")
def test_captured_decoding_on_a_gpu() -> None:
    policy = tiny()
    replaying = TorchEngine(policy, max_tokens_in_flight=20_000, max_rows=11)
    asked = requests(PROMPTS, 4)
    assert_same(generate(replaying, asked), generate(engine(policy, None), asked))
    assert replaying._decoder._graphs  # type: ignore[attr-defined]


@pytest.mark.skipif(device().type != "cuda", reason="CUDA graphs need a GPU")
def test_a_graph_that_computes_something_else_is_refused() -> None:
    total = torch.zeros(3, device="cuda")
    with pytest.raises(AssertionError):
        capture(lambda x: total.add_(x).clone(), (torch.ones(3, device="cuda"),))

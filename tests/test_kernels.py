"""The CPU kernels against PyTorch: in float32 against float64, in bfloat16 to the last place."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import random_ids, sharpen, tiny_folder
from torch import nn
from torch.nn.functional import silu
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from rlreason import attention, kernels, logprob, models
from rlreason.engines.decoder import BLOCK
from rlreason.kernels.modules import speed_up
from rlreason.logprob import head_log_softmax_at, log_softmax_at

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="there are no kernels without g++")

REPO = Path(__file__).resolve().parent.parent
TYPES = [torch.float32, torch.bfloat16]
EPS = 1e-5
INF = float("inf")


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (scale * torch.randn(*shape, generator=chance(seed))).to(dtype)


def places(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """How many bfloat16 numbers lie between two; none between NaNs."""

    def rank(x: torch.Tensor) -> torch.Tensor:
        bits = x.contiguous().view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    assert found.dtype == expected.dtype == torch.bfloat16
    assert found.shape == expected.shape
    return torch.where(found.isnan() & expected.isnan(), 0, (rank(found) - rank(expected)).abs())


def same_but_for_last_place(found: torch.Tensor, expected: torch.Tensor, *, share: float = 0.002) -> bool:
    """Whether no bfloat16 number is more than a neighbour off, and hardly any is that."""
    off = places(found, expected)
    return bool(off.max() <= 1) and off.gt(0).double().mean().item() <= share


def within(found: torch.Tensor, expected: torch.Tensor, relative: float, absolute: float = 0.0) -> bool:
    """Elementwise; ``expected`` is float64."""
    assert found.shape == expected.shape
    assert expected.dtype == torch.float64
    return bool(((found.double() - expected).abs() <= relative * expected.abs() + absolute).all())


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def at_thread_counts(set_threads: Callable[[int], None], compute: Callable[[], Any]) -> tuple[Any, Any]:
    set_threads(1)
    one = compute()
    set_threads(2)
    return one, compute()


# --- RMS norm

NORM_SHAPES = [(3, 7, 16), (5, 100), (40, 576)]


def norm_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows from a thousandth to a thousand times unit size, so that eps matters to some; a weight."""
    size = 10 ** (6 * torch.rand(*shape[:-1], 1, generator=chance(1)) - 3)
    return (normal(*shape) * size).to(dtype), (1 + normal(shape[-1], seed=2, scale=0.3)).to(dtype)


@pytest.mark.parametrize("shape", NORM_SHAPES)
def test_rms_norm_in_float32(shape: tuple[int, ...]) -> None:
    x, weight = norm_inputs(shape, torch.float32)
    out, inverse = kernels.rms_norm(x, weight, EPS)
    exact = x.double()
    scale = (exact.square().mean(-1, keepdim=True) + EPS).rsqrt()
    assert within(inverse, scale.flatten(), 5e-7)
    assert within(out, exact * scale * weight.double(), 5e-7)


@pytest.mark.parametrize("shape", NORM_SHAPES)
def test_rms_norm_in_bfloat16_is_that_of_the_module(shape: tuple[int, ...]) -> None:
    x, weight = norm_inputs(shape, torch.bfloat16)
    module = LlamaRMSNorm(shape[-1], EPS).to(torch.bfloat16)
    with torch.no_grad():
        module.weight.copy_(weight)
        expected = module(x)
    assert same_but_for_last_place(kernels.rms_norm(x, weight, EPS)[0], expected)


@pytest.mark.parametrize("dtype", TYPES)
def test_rms_norm_adds_in_place_first(dtype: torch.dtype) -> None:
    x, weight = norm_inputs((40, 576), dtype)
    delta = normal(40, 576, seed=3, dtype=dtype)
    total = x + delta
    expected, _ = kernels.rms_norm(total, weight, EPS)
    found = kernels.add_rms_norm(x, delta, weight, EPS)
    assert torch.equal(x, total)
    assert torch.equal(found, expected)
    assert torch.equal(kernels.add_rms_norm(x, None, weight, EPS), expected)
    assert torch.equal(x, total)


@pytest.mark.parametrize("shape", NORM_SHAPES)
def test_rms_norm_backward_in_float32_is_that_of_autograd(shape: tuple[int, ...]) -> None:
    x, weight = norm_inputs(shape, torch.float32)
    grad = normal(*shape, seed=4)
    found_x, found_weight = kernels.rms_norm_backward(grad, x, weight, kernels.rms_norm(x, weight, EPS)[1])

    exact_x, exact_weight = x.double().requires_grad_(), weight.double().requires_grad_()
    out = exact_x * (exact_x.square().mean(-1, keepdim=True) + EPS).rsqrt() * exact_weight
    out.backward(grad.double())
    row = exact_x.grad.abs().amax(-1, keepdim=True)  # entries are differences of terms of this size
    assert within(found_x / row, exact_x.grad / row, 0, 2e-6)
    assert within(found_weight, exact_weight.grad, 0, 2e-6 * math.prod(shape[:-1]))

    module = LlamaRMSNorm(shape[-1], EPS)
    with torch.no_grad():
        module.weight.copy_(weight)
    x.requires_grad_()
    module(x).backward(grad)
    assert within(x.grad / row, exact_x.grad / row, 0, 2e-6)  # the module is no closer
    assert within(module.weight.grad, exact_weight.grad, 0, 2e-6 * math.prod(shape[:-1]))


@pytest.mark.parametrize("shape", NORM_SHAPES)
def test_rms_norm_backward_in_bfloat16_rounds_once(shape: tuple[int, ...]) -> None:
    x, weight = norm_inputs(shape, torch.bfloat16)
    grad = normal(*shape, seed=4, dtype=torch.bfloat16)
    found_x, found_weight = kernels.rms_norm_backward(grad, x, weight, kernels.rms_norm(x, weight, EPS)[1])
    scale = (x.double().square().mean(-1, keepdim=True) + EPS).rsqrt()
    normed, weighted = x.double() * scale, grad.double() * weight.double()
    exact = scale * (weighted - normed * (weighted * normed).mean(-1, keepdim=True))
    row = exact.abs().amax(-1, keepdim=True)
    assert within(found_x / row, exact / row, 2**-8, 2e-6)
    # the output is weight times the rounded quotient
    exact_weight = (grad.double() * normed.bfloat16().double()).flatten(0, -2).sum(0)
    assert within(found_weight, exact_weight, 2**-8, 1e-3)


# --- SwiGLU


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [7, 128, 1536])
def test_swiglu_of_two_halves(dtype: torch.dtype, width: int) -> None:
    both = normal(9, 2 * width, scale=4.0, dtype=dtype)
    gate, up = both.chunk(2, -1)
    found = kernels.swiglu(gate, up)
    assert found.is_contiguous()
    if dtype == torch.bfloat16:
        assert same_but_for_last_place(found, silu(gate) * up)
    else:
        assert within(found, silu(gate.double()) * up.double(), 1e-6, 1e-30)
    assert torch.equal(found, kernels.swiglu(gate.contiguous(), up.contiguous()))


def test_swiglu_of_a_dimension_of_length_one() -> None:
    """Its stride may be anything, and is none of the distance between rows."""
    gate, up = normal(9, 128), normal(9, 128, seed=1)
    one_by_one = (x[None].transpose(0, 1) for x in (gate, up))  # (9, 1, 128), contiguous, strides (128, 1152, 1)
    assert torch.equal(kernels.swiglu(*one_by_one), kernels.swiglu(gate, up)[:, None])


@pytest.mark.parametrize("dtype", TYPES)
def test_swiglu_backward_is_that_of_autograd(dtype: torch.dtype) -> None:
    gate, up, grad = (normal(9, 130, seed=seed, scale=3.0, dtype=dtype) for seed in range(3))
    exact_gate, exact_up = gate.double().requires_grad_(), up.double().requires_grad_()
    (silu(exact_gate) * exact_up).backward(grad.double())
    for found, exact in zip(kernels.swiglu_backward(grad, gate, up), (exact_gate.grad, exact_up.grad), strict=True):
        # up's is the product with a rounded number, rounded once more
        assert within(found, exact, 2**-7 if dtype == torch.bfloat16 else 1e-6, 1e-6)


@pytest.mark.parametrize("dtype", TYPES)
def test_extreme_gates(dtype: torch.dtype) -> None:
    gate = torch.tensor([[-INF, -1e20, -1e4, -100.0, -88.5, -80.0, 0.0, 80.0, 100.0, 1e20, INF, math.nan]], dtype=dtype)
    up = torch.full_like(gate, 2.0)
    found = kernels.swiglu(gate, up)[0]
    assert found[1:5].abs().max() < 1e-15
    assert torch.equal(found[6:11], 2 * gate[0, 6:11])
    assert found[11].isnan()
    grad_gate, grad_up = kernels.swiglu_backward(torch.ones_like(gate), gate, up)
    assert grad_gate[0, 1:5].abs().max() < 1e-15
    assert grad_up[0, 1:5].abs().max() < 1e-15
    assert torch.equal(grad_gate[0, 8:10], torch.full((2,), 2.0, dtype=dtype))
    assert grad_gate[0, 11].isnan()


# --- rotary embedding


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """As transformers writes it; x (batch, heads, tokens, width), cosine and sine (batch, tokens, width)."""
    low, high = x.chunk(2, -1)
    return x * cosine[:, None] + torch.cat([-high, low], -1) * sine[:, None]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("batch", [1, 3])
def test_rotary_and_its_backward(dtype: torch.dtype, batch: int) -> None:
    x = normal(3, 5, 4, 32, dtype=dtype).transpose(1, 2)  # as a linear layer writes it
    # no two halves of cosine and sine alike, so that none can be taken for the other
    cosine, sine = (normal(batch, 5, 32, seed=seed, dtype=dtype) for seed in (1, 2))
    found, expected = kernels.rotary(x, cosine, sine), rotate(x, cosine, sine)
    if dtype == torch.bfloat16:
        assert torch.equal(found, expected)
    else:
        assert within(found, rotate(x.double(), cosine.double(), sine.double()), 0, 2e-6)
    grad = normal(3, 4, 5, 32, seed=3, dtype=dtype)
    exact = x.double().requires_grad_()
    rotate(exact, cosine.double(), sine.double()).backward(grad.double())
    back = kernels.rotary_backward(grad, cosine, sine)
    assert within(back, exact.grad, 2**-8 if dtype == torch.bfloat16 else 0, 2e-6)


# --- log-softmax

Pair = tuple[torch.Tensor, torch.Tensor]
SOURCE = torch.tensor([0, 0, 1, 2, 2, 2, 3, 5])  # rows of logits; one is taken by nobody


def log_softmax_case(vocabulary: int, dtype: torch.dtype, kind: str) -> Pair:
    """Logits (6, V), and a token that is possible for each entry of ``SOURCE``, two of them the same."""
    logits = normal(6, vocabulary, scale=3.0)
    targets = torch.randint(0, vocabulary, (8,), generator=chance(1))
    targets[4] = targets[3]
    if kind == "masked":
        logits[:, torch.rand(vocabulary, generator=chance(2)) < 0.5] = -INF
        logits[SOURCE, targets] = 1.0
    elif kind == "large":
        logits *= 3000
    elif kind == "certain":
        logits[SOURCE, targets] = 60.0
    return logits.to(dtype), targets


def reference(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> Pair:
    log_softmax = torch.log_softmax(logits / temperature, -1)
    entropy = -(log_softmax.exp() * log_softmax).sum(-1)
    return log_softmax[SOURCE, targets], entropy[SOURCE]


@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "plain"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    ("vocabulary", "kind"),
    [(5, ""), (17, ""), (1000, "masked"), (1024, "large"), (1025, "certain"), (1025, "masked"), (49152, "")],
)
def test_log_softmax_and_entropy(
    vocabulary: int, kind: str, temperature: float, dtype: torch.dtype, kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernel:
        monkeypatch.setattr(kernels, "usable", lambda tensor: False)
    logits, targets = log_softmax_case(vocabulary, dtype, kind)
    logits.requires_grad_()
    found = log_softmax_at(logits, SOURCE, targets, temperature)
    weights = normal(8, seed=3), normal(8, seed=4)
    sum((a * b).sum() for a, b in zip(found, weights, strict=True)).backward()

    exact = logits.detach().double().clamp(min=-1e9).requires_grad_()  # -inf, whose 0 * inf autograd can't do
    expected = reference(exact, targets, temperature)
    sum((a * b).sum() for a, b in zip(expected, weights, strict=True)).backward()

    largest = logits.detach()[logits.isfinite()].abs().max().item() / temperature
    noise = 3e-7 * largest + 2e-6  # of dividing by the temperature in float32
    assert within(found[0], expected[0].detach(), 1e-6, noise)
    assert within(found[1], expected[1].detach(), 1e-6, noise * (1 + math.log(vocabulary)))
    assert logits.grad is not None
    # in bfloat16 the two terms of a taken token are rounded each
    taken = torch.zeros_like(exact).index_put_((SOURCE, targets), weights[0].abs().double(), accumulate=True)
    rounding = 2**-8 if dtype == torch.bfloat16 else 1e-6
    error = (logits.grad.double() - exact.grad).abs()
    size = 1 + weights[1].abs().max() * largest
    assert (error <= rounding * (exact.grad.abs() + 2 * taken / temperature) + 2 * noise * size / temperature).all()
    assert exact.grad.abs().max() > 0.01  # more than that allows
    if kind == "masked":
        assert (logits.grad[logits == -INF] == 0).all()


@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "plain"])
@pytest.mark.parametrize("dtype", TYPES)
def test_log_softmax_from_the_head_is_that_from_logits(
    dtype: torch.dtype, kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprob, "HEAD_CHUNK", 4)  # two pieces, of 4 and 2 rows
    if not kernel:
        monkeypatch.setattr(kernels, "usable", lambda tensor: False)
    targets = log_softmax_case(1000, dtype, "")[1]
    weights = normal(8, seed=3), normal(8, seed=4)

    def results(fused: bool) -> list[torch.Tensor]:
        hidden = normal(6, 64, seed=5, dtype=dtype).requires_grad_()
        head = normal(1000, 64, seed=6, scale=0.3, dtype=dtype).requires_grad_()
        found = (
            head_log_softmax_at(hidden, head, SOURCE, targets, 0.7)
            if fused
            else log_softmax_at(hidden @ head.T, SOURCE, targets, 0.7)
        )
        sum((a * b).sum() for a, b in zip(found, weights, strict=True)).backward()
        assert hidden.grad is not None
        assert head.grad is not None
        return [found[0].detach(), found[1].detach(), hidden.grad, head.grad]

    for found, expected in zip(results(True), results(False), strict=True):
        size = expected.abs().max().item()
        assert size > 0.1
        assert found.dtype == expected.dtype
        assert (found - expected).abs().max() <= (2**-7 if dtype == torch.bfloat16 else 2e-6) * size


def test_log_softmax_of_a_vocabulary_that_is_cut() -> None:
    """Logits that are a view: rows at a distance, and every other column."""
    logits, targets = normal(6, 200, scale=3.0), torch.randint(0, 60, (8,), generator=chance(1))
    for view in (logits[:, :60], logits[:, :120:2]):
        found = log_softmax_at(view.detach().requires_grad_(), SOURCE, targets, 1.0)
        expected = reference(view.double(), targets, 1.0)
        assert within(found[0], expected[0], 1e-6, 2e-6)
        assert within(found[1], expected[1], 1e-6, 2e-6)


# --- attention in training


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("masked", ["no mask", "a mask for all", "a mask each", "a part of a mask"])
@pytest.mark.parametrize(("queries", "keys"), [(1, 5), (7, 33), (40, 90)])
def test_attention_of_the_update(queries: int, keys: int, masked: str, dtype: torch.dtype) -> None:
    """Values and gradients against a formula in float64."""
    rows, heads, kv_heads, width = 3, 6, 2, 20
    query, key, value, weight = (
        normal(rows, h, n, width, seed=i).to(dtype)
        for i, (h, n) in enumerate([(heads, queries), (kv_heads, keys), (kv_heads, keys), (heads, queries)])
    )
    mask = None
    if masked != "no mask":
        wide = keys + 9 if masked == "a part of a mask" else keys
        hidden = torch.rand(1 if masked == "a mask for all" else rows, 1, queries, wide, generator=chance(9)) < 0.4
        hidden[..., 0] = False  # something has to be seen
        mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, torch.finfo(dtype).min)[..., :keys]
    inputs = [x.requires_grad_() for x in (query, key, value)]
    module = nn.Module()
    mixed = attention._attend(module, *inputs, mask, 0.3, 0.0)
    assert "_Attention" in str(mixed.grad_fn.next_functions)  # type: ignore[union-attr]
    found = torch.autograd.grad((mixed * weight).sum(), inputs)

    exact = [x.detach().double().requires_grad_() for x in inputs]
    repeated = [x.repeat_interleave(heads // kv_heads, 1) for x in exact[1:]]
    scores = 0.3 * exact[0] @ repeated[0].transpose(2, 3)
    if mask is not None:
        scores = scores.masked_fill(mask < -1, -INF)
    reference = torch.softmax(scores, -1) @ repeated[1]
    expected = torch.autograd.grad((reference * weight.double()).sum(), exact)
    for got, wanted in zip((mixed.detach(), *found), (reference.detach(), *expected), strict=True):
        error = (got.double() - wanted).norm() / wanted.norm()
        assert error < (1e-6 if dtype == torch.float32 else 8e-3)


@pytest.mark.parametrize("dtype", TYPES)
def test_nan_logits_are_not_hidden(dtype: torch.dtype) -> None:
    logits = normal(2, 100, dtype=dtype)
    logits[0, 50] = math.nan
    logits.requires_grad_()
    source, targets = torch.tensor([0, 1]), torch.tensor([3, 3])
    logp, entropy = log_softmax_at(logits, source, targets, 1.0)
    assert logp.isnan().tolist() == entropy.isnan().tolist() == [True, False]
    logp.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isnan().all(-1).tolist() == logits.grad.isnan().any(-1).tolist() == [True, False]


# --- sampling


def draw(logits: torch.Tensor, temperature: float, uniform: torch.Tensor) -> Pair:
    """One token for each uniform number, all from the same logits (V,)."""
    rows = len(uniform)
    return kernels.sample(logits.expand(rows, -1), torch.full((rows,), temperature), uniform)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("vocabulary", [5, 512, 513, 1000, 49152])
def test_sample_inverts_the_cdf(vocabulary: int, dtype: torch.dtype) -> None:
    rows = 60
    logits = normal(rows, vocabulary, scale=3.0, dtype=dtype)
    logits[1::3, : vocabulary // 3] = -INF
    logits[2::3, vocabulary // 2 :] = -INF
    temperature = torch.tensor([1.0, 0.5, 2.0, 0.7]).repeat(rows // 4)
    uniform = torch.rand(rows, dtype=torch.float64, generator=chance(1))
    token, logp = kernels.sample(logits, temperature, uniform)

    scaled = logits.double() / temperature.double()[:, None]
    probability = torch.softmax(scaled, -1)
    cdf = probability.cumsum(-1)
    expected = torch.searchsorted(cdf, uniform[:, None], right=True)[:, 0]
    clear = (cdf - uniform[:, None]).abs().amin(-1) > 1e-6  # else rounding decides, between neighbours
    assert clear.double().mean() > 0.6
    assert torch.equal(token[clear], expected[clear])
    last = cdf.gather(1, token[:, None])[:, 0]
    assert (last - probability.gather(1, token[:, None])[:, 0] - 1e-6 < uniform).all()
    assert (uniform < last + 1e-6).all()
    assert within(logp, torch.log_softmax(scaled, -1).gather(1, token[:, None])[:, 0], 1e-6, 2e-6)


@pytest.mark.parametrize("dtype", TYPES)
def test_sample_at_the_ends_and_never_the_impossible(dtype: torch.dtype) -> None:
    extremes = torch.tensor([0.0, 2.0**-60, 1 - 2.0**-24, 1 - 2.0**-53], dtype=torch.float64)
    # the possible ones: none in the first piece of 512, the last alone in one, none after it
    logits = torch.full((2000,), -INF, dtype=dtype)
    possible = [600, 601, 1023, 1024]
    logits[possible] = torch.tensor([0.0, 1.0, 0.5, 0.0], dtype=dtype)
    token, logp = draw(logits, 1.0, extremes)
    assert token.tolist() == [600, 600, 1024, 1024]
    assert logp.isfinite().all()
    grid = torch.linspace(0, 1, 3001, dtype=torch.float64)[:-1]
    assert set(draw(logits, 1.0, grid)[0].tolist()) == set(possible)
    # what is less likely than e^-87 has mass 0 in float32, and is as impossible
    logits = torch.full((2000,), -100.0, dtype=dtype)
    logits[1500] = 0.0
    assert draw(logits, 1.0, extremes)[0].tolist() == [1500] * 4
    # a lone token with a little mass at the end is reached by numbers that float32 would round to 1
    logits = torch.full((1025,), -INF, dtype=dtype)
    logits[0], logits[1024] = 20.0, 0.0  # 2.06e-9 of the mass
    token, logp = draw(logits, 1.0, torch.tensor([1 - 3e-9, 1 - 1e-9], dtype=torch.float64))
    assert token.tolist() == [0, 1024]
    assert within(logp, torch.tensor([-2.061e-9, -20.0], dtype=torch.float64), 1e-3)


@pytest.mark.parametrize("dtype", TYPES)
def test_greedy_is_the_first_greatest(dtype: torch.dtype) -> None:
    logits = normal(4, 1500, dtype=dtype)
    for row, columns in enumerate([(0,), (1499,), (700, 701, 1400), (511, 512)]):
        logits[row, list(columns)] = 9.0
    temperature, uniform = torch.tensor([0.0, 0.0, 0.0, 0.0]), torch.full((4,), 0.99, dtype=torch.float64)
    token, logp = kernels.sample(logits, temperature, uniform)
    assert token.tolist() == [0, 1499, 700, 511]
    exact = torch.log_softmax(logits.double(), -1)
    assert within(logp, exact.gather(1, token[:, None])[:, 0], 1e-6, 2e-6)  # at temperature 1
    # beside rows that are sampled
    mixed, _ = kernels.sample(logits, torch.tensor([0.0, 50.0, 0.0, 50.0]), uniform)
    assert mixed[[0, 2]].tolist() == [0, 700]
    assert mixed.min() >= 0
    assert (mixed[[1, 3]] > 1400).all()  # nearly uniform over 1500


@pytest.mark.parametrize("dtype", TYPES)
def test_ties_share_the_mass(dtype: torch.dtype) -> None:
    uniform = torch.tensor([0.0, 0.2499, 0.2501, 0.5, 0.7499, 0.7501, 0.9999], dtype=torch.float64)
    token, logp = draw(torch.full((4,), 7.0, dtype=dtype), 0.7, uniform)
    assert token.tolist() == [0, 0, 1, 2, 2, 3, 3]
    assert within(logp, torch.full((7,), math.log(0.25), dtype=torch.float64), 1e-6)


def test_sample_follows_the_softmax_by_chi_square() -> None:
    share = torch.tensor([0.4, 0.02, 0.2, 0.08, 0.25, 0.05], dtype=torch.float64)
    count = 20_000
    uniform = torch.rand(count, dtype=torch.float64, generator=chance())
    # at temperature 2 from twice the log: the shares again
    counts = torch.bincount(draw((2 * share.log()).float(), 2.0, uniform)[0], minlength=6)

    def statistic(probability: torch.Tensor) -> float:
        return ((counts - count * probability).square() / (count * probability)).sum().item()

    assert statistic(share) < 20.5  # 99.9 % of the distribution with 5 degrees of freedom
    wrong = share.pow(1.05)
    assert statistic(wrong / wrong.sum()) > 20.5


# --- attention of a decoding step


def attend_plainly(
    qkv: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    position: torch.Tensor,
    table: torch.Tensor,
    cosine: torch.Tensor,
    sine: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Output, and the keys and values with the new ones written, in the dtype of qkv, with a matrix product in float64;
    see ``kernels.decode_attention``."""
    kv_heads, width = keys.shape[1:3]
    rows = len(qkv)
    q, k, v = qkv.view(rows, -1, 1, width).split([qkv.shape[1] // width - 2 * kv_heads, kv_heads, kv_heads], 1)
    if norms is not None:
        q, k = (kernels.rms_norm(x.contiguous(), weight, EPS)[0] for x, weight in zip((q, k), norms, strict=True))
    angles = cosine[position.long()][:, None], sine[position.long()][:, None]
    q, k = rotate(q, *angles), rotate(k, *angles)
    keys, values, out = keys.clone(), values.clone(), []
    for row in range(rows):
        block, slot = table[row, position[row] // BLOCK], position[row] % BLOCK
        keys[block, :, :, slot], values[block, :, slot] = k[row, :, 0], v[row, :, 0]
    for row in range(rows):
        length = int(position[row]) + 1
        blocks = table[row, : -(-length // BLOCK)].long()
        own_keys = keys[blocks].permute(1, 2, 0, 3).flatten(2)[:, :, :length]  # (K, width, length)
        own_values = values[blocks].transpose(0, 1).flatten(1, 2)[:, :length]
        grouped = q[row, :, 0].view(kv_heads, -1, width)
        scores = (grouped.double() @ own_keys.double()).to(qkv.dtype)
        weights = torch.softmax(scores.double() * scaling, -1).to(qkv.dtype)
        out.append((weights.double() @ own_values.double()).flatten())
    return torch.stack(out), keys, values


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("normed", [False, True], ids=["", "normed"])
@pytest.mark.parametrize(
    ("width", "group"), [(16, 1), (16, 7), (64, 1), (64, 2), (64, 3), (64, 4), (64, 7), (80, 3), (128, 4), (128, 7)]
)
def test_attention_of_a_decoding_step(width: int, group: int, normed: bool, dtype: torch.dtype) -> None:
    kv_heads, scaling = 2, width**-0.5
    position = torch.tensor([0, 31, 32, 63, 70, 70, 127], dtype=torch.int32)
    # rows 4 and 5 share two full blocks; zeros fill the table
    table = torch.tensor(
        [[9, 0, 0, 0], [3, 0, 0, 0], [4, 1, 0, 0], [2, 5, 0, 0], [6, 7, 8, 0], [6, 7, 10, 0], [15, 14, 13, 12]],
        dtype=torch.int32,
    )
    keys, values = normal(16, kv_heads, width, BLOCK), normal(16, kv_heads, BLOCK, width, seed=1)
    for row, last in enumerate(position.tolist()):  # what no row has reached is never read
        keys[table[row, last // BLOCK], :, :, last % BLOCK :] = math.nan
        values[table[row, last // BLOCK], :, last % BLOCK :] = math.nan
    keys[[0, 11]] = values[[0, 11]] = math.nan
    keys, values = keys.to(dtype), values.to(dtype)
    qkv = normal(7, (group + 2) * kv_heads * width, seed=2, scale=2.0, dtype=dtype)
    cosine, sine = (normal(200, width, seed=seed, scale=0.7, dtype=dtype) for seed in (3, 4))
    norms = None
    if normed:
        norms = (1 + normal(width, seed=5, scale=0.3)).to(dtype), (1 + normal(width, seed=6, scale=0.3)).to(dtype)

    given = qkv, keys, values, position, table, cosine, sine
    expected, new_keys, new_values = attend_plainly(*given, norms, scaling)
    if dtype == torch.bfloat16:  # of two tokens side by side the second is 0 until it is there
        for row, last in enumerate(position.tolist()):
            if last % 2 == 0:
                new_values[table[row, last // BLOCK], :, last % BLOCK + 1] = 0
    query_norm, key_norm = norms or (None, None)
    key_cache = kernels.key_blocks(keys.transpose(-1, -2)).contiguous()
    value_cache = kernels.value_blocks(values).contiguous()
    found = kernels.decode_attention(
        qkv, key_cache, value_cache, *given[3:], query_norm=query_norm, key_norm=key_norm, eps=EPS, scaling=scaling
    )
    keys = key_cache.transpose(-2, -1).flatten(2, 3)
    values = value_cache.transpose(-1, -2).flatten(2, 3)

    assert torch.equal(values.nan_to_num(7.0), new_values.nan_to_num(7.0))
    assert torch.equal(keys.isnan(), new_keys.isnan())
    if dtype == torch.bfloat16:
        assert same_but_for_last_place(keys, new_keys)
        # a score that falls to the other side of a rounding moves its weight by up to a part in 64
        off = (found.double() - expected).abs()
        assert off.max() < 2**-6 * 4
        assert same_but_for_last_place(found[:1], expected[:1].to(dtype))
        assert (off <= 2**-8 * expected.abs() + 1e-3).double().mean() > 0.98
    else:
        assert within(keys.nan_to_num(7.0), new_keys.nan_to_num(7.0).double(), 2e-6, 2e-6)
        assert within(found, expected, 0, 5e-6)
    assert expected.abs().amax(-1).min() > 0.1


# --- NaN, threads


def test_nan_stays_nan_in_bfloat16() -> None:
    """Rounding by adding to the bits could carry a NaN over to a number."""
    nans = torch.tensor([0x7F81, 0x7FC0, 0x7FFF, -0x7F, -0x40, -1], dtype=torch.int16).view(torch.bfloat16)
    assert nans.isnan().all()
    x = torch.zeros(len(nans), 16, dtype=torch.bfloat16)
    x[:, 5] = nans
    out = kernels.add_rms_norm(x.clone(), None, torch.ones(16, dtype=torch.bfloat16), EPS)
    assert out.isnan().all()
    sums = x.clone()
    kernels.add_rms_norm(sums, torch.ones_like(sums), torch.ones(16, dtype=torch.bfloat16), EPS)
    assert torch.equal(sums.isnan(), x.isnan())
    assert torch.equal(kernels.swiglu(x, torch.ones_like(x)).isnan(), x.isnan())
    infinite = torch.tensor([[INF, -INF, 3.3e38]], dtype=torch.bfloat16)
    assert torch.equal(kernels.swiglu(torch.full_like(infinite, 200.0), infinite)[0], infinite[0] * 200)


@pytest.mark.parametrize("dtype", TYPES)
def test_thread_count_changes_nothing_but_sums_over_rows(dtype: torch.dtype, threads: Callable[[int], None]) -> None:
    x, weight = norm_inputs((40, 576), dtype)
    grad = normal(40, 576, seed=3, dtype=dtype)
    logits = normal(40, 1000, dtype=dtype)
    uniform = torch.rand(40, dtype=torch.float64, generator=chance())
    keys = kernels.key_blocks(normal(40, 2, BLOCK, 16, dtype=dtype)).contiguous()
    values = kernels.value_blocks(normal(40, 2, BLOCK, 16, seed=1, dtype=dtype)).contiguous()
    table, position = torch.arange(40, dtype=torch.int32)[:, None], torch.full((40,), 20, dtype=torch.int32)
    angles = normal(32, 16, seed=4, dtype=dtype)

    def exact() -> list[torch.Tensor]:
        stats = kernels.softmax_stats(logits, 0.7)
        out, inverse = kernels.rms_norm(x, weight, EPS)
        attended = kernels.decode_attention(
            normal(40, 6 * 16, dtype=dtype), keys.clone(), values.clone(), position, table, angles, angles,
            query_norm=None, key_norm=None, eps=EPS, scaling=0.25,
        )  # fmt: skip
        return [
            out,
            inverse,
            kernels.rms_norm_backward(grad, x, weight, inverse)[0],
            kernels.swiglu(x, grad),
            kernels.rotary(grad.view(2, 2, 10, 576), x[:10][None], grad[:10][None]),
            *kernels.swiglu_backward(grad, x, grad),
            *stats,
            kernels.softmax_backward(logits, *stats, inverse, inverse, 0.7),
            *kernels.sample(logits, torch.ones(40), uniform),
            attended,
        ]

    one, two = at_thread_counts(threads, exact)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    inverse = kernels.rms_norm(x, weight, EPS)[1]
    one, two = at_thread_counts(threads, lambda: kernels.rms_norm_backward(grad, x, weight, inverse)[1])
    assert torch.allclose(one, two, rtol=2**-7 if dtype == torch.bfloat16 else 1e-5, atol=1e-4)


# --- whole models

SMALL: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SMALL, tie_word_embeddings=True),
    "mistral": lambda: MistralConfig(**SMALL, head_dim=16, sliding_window=None),
    "qwen2": lambda: Qwen2Config(**SMALL),
    "qwen3": lambda: Qwen3Config(**SMALL, head_dim=32),
}


def random_model(config: PreTrainedConfig) -> Any:
    """With weights that matter: norms that are not one, biases that are not zero."""
    attention.register()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    sharpen(model, 5.0)
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            if parameter.ndim == 1:
                parameter.add_(normal(len(parameter), seed=i, scale=0.3))
    model.set_attn_implementation(attention.NAME)
    speed_up(model)
    return model.eval()


@cache
def ids() -> torch.Tensor:
    return torch.tensor([random_ids(20, seed=seed) for seed in range(3)])


def loss_gradients(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A loss of log-probs and entropies, and its gradients."""
    model.zero_grad()
    logits = model(input_ids=ids()).logits[:, :-1].flatten(0, 1)
    logp, entropy = log_softmax_at(logits, torch.arange(len(logits)), ids()[:, 1:].flatten(), 0.7)
    loss = (logp * normal(len(logp))).sum() + 0.3 * entropy.sum()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_a_model_are_those_without_kernels(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(FAMILIES[family]())
    called: set[str] = set()
    call = kernels._call

    def noted(name: str, *arguments: Any) -> None:
        called.add(name)
        call(name, *arguments)

    monkeypatch.setattr(kernels, "_call", noted)
    loss, gradients = loss_gradients(model)
    both_ways = {"rms_norm", "rms_norm_backward", "swiglu", "swiglu_backward", "softmax_stats", "softmax_backward"}
    assert called == both_ways | {"rotary", "attention_softmax", "attention_softmax_backward"}
    called.clear()
    monkeypatch.setattr(kernels, "usable", lambda tensor: False)
    plain_loss, plain_gradients = loss_gradients(model)
    assert not called
    assert loss.item() == pytest.approx(plain_loss.item(), rel=1e-5)
    assert gradients.keys() == plain_gradients.keys()
    for name, gradient in gradients.items():
        scale = plain_gradients[name].abs().max()
        assert scale > 1e-3, name
        assert (gradient - plain_gradients[name]).abs().max() < 1e-5 * scale, name


def test_sped_up_modules_compute_what_their_class_does_in_bfloat16() -> None:
    model = random_model(FAMILIES["llama"]()).to(torch.bfloat16)
    x = normal(3, 7, 64, dtype=torch.bfloat16)
    layer = model.model.layers[1]
    assert "forward" in vars(layer.mlp)
    assert "forward" in vars(layer.input_layernorm)
    assert same_but_for_last_place(layer.input_layernorm(x), LlamaRMSNorm.forward(layer.input_layernorm, x))
    found, expected = layer.mlp(x), LlamaMLP.forward(layer.mlp, x)
    assert (found - expected).abs().max() <= 2**-8 * expected.abs().max()
    # what the kernels don't take goes to the module's own forward
    double = layer.input_layernorm.double()
    assert torch.equal(double(x.double()), LlamaRMSNorm.forward(double, x.double()))


def test_other_activations_stay_as_they_are() -> None:
    model = random_model(LlamaConfig(**SMALL, hidden_act="gelu"))
    assert isinstance(model.model.layers[0].mlp.act_fn, nn.Module)
    assert "forward" not in vars(model.model.layers[0].mlp)
    assert "forward" in vars(model.model.norm)


def test_copies_of_a_sped_up_model_use_their_own_weights() -> None:
    policy = models.load(tiny_folder(), dtype="float32", device="cpu")
    policy.add_reference()

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model(input_ids=ids()).logits
        return found

    original = logits(policy.model)
    assert torch.equal(logits(policy.reference), original)
    for module in ("norm", "layers.0.mlp.gate_proj", "layers.1.post_attention_layernorm"):
        with torch.no_grad():
            policy.model.model.get_submodule(module).weight.mul_(1.3)
    assert (logits(policy.model) - original).abs().max() > 0.1
    assert torch.equal(logits(policy.reference), original)
    policy.reference.load_state_dict(policy.model.state_dict())
    assert torch.equal(logits(policy.reference), logits(policy.model))


# --- building and loading


def load_again() -> Any:
    """``kernels.library`` without its memory."""
    return kernels.library.__wrapped__()


def warnings_of(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)


def test_no_compiler_means_no_kernels(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert load_again() is None
    assert "g++" in warnings_of(caplog)
    assert "apt install g++" in warnings_of(caplog)


def test_source_that_does_not_compile_means_no_kernels(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    source, folder = tmp_path / "broken.cpp", tmp_path / "cache"
    source.write_text("int broken = no_such_name;\n")
    monkeypatch.setattr(kernels, "SOURCE", source)
    monkeypatch.setenv("RLREASON_CACHE", str(folder))
    assert load_again() is None
    assert "no_such_name" in warnings_of(caplog)  # the compiler's own words
    assert list(folder.iterdir()) == []


def test_library_that_does_not_load_means_no_kernels(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Half a file, say, or one that wants an OpenMP that isn't there."""
    (tmp_path / "half.so").write_bytes(b"\x7fELF")
    monkeypatch.setattr(kernels, "_compiled", lambda compiler: tmp_path / "half.so")
    assert load_again() is None
    assert "half.so" in warnings_of(caplog)


def test_kernels_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("RLREASON_KERNELS", "0")
    assert load_again() is None
    assert warnings_of(caplog) == ""  # as was asked
    monkeypatch.setattr(kernels, "library", lambda: None)
    assert not kernels.usable(torch.zeros(1))


def test_which_tensors_are_taken() -> None:
    assert kernels.usable(torch.zeros(1))
    assert kernels.usable(torch.zeros(1, dtype=torch.bfloat16))
    assert not kernels.usable(torch.zeros(1, dtype=torch.float64))
    assert not kernels.usable(torch.zeros(1, dtype=torch.float16))
    assert not kernels.usable(torch.zeros(1, device="meta"))


FIRST_USE = """
import json, re, torch
from rlreason import kernels

def openmp():
    names = (line.split()[-1] for line in open("/proc/self/maps") if re.search(r"/lib(gomp|iomp5|omp)[^/]*$", line))
    return sorted(set(names))

torch.set_num_threads(2)
(torch.ones(512, 512) @ torch.ones(512, 512)).sum()
before = openmp()
out, inverse = kernels.rms_norm(torch.full((64, 576), 2.0), torch.ones(576), 0.0)
print(json.dumps({"before": before, "after": openmp(), "out": [out.min().item(), out.max().item()]}))
"""

# compiles when another does, and quickly
MEETING_COMPILER = """#!/bin/sh
case " $* " in *" -c "*)
    touch "$MEET/$$"
    for i in $(seq 600); do [ $(ls "$MEET" | wc -l) -ge 2 ] && break; sleep 0.1; done
esac
exec {compiler} "$@" -O0
"""


def test_two_processes_may_compile_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both find no library and compile; what they load is whole, and uses the OpenMP that PyTorch has loaded."""
    folder, meet, bin_folder = tmp_path / "cache", tmp_path / "meet", tmp_path / "bin"
    meet.mkdir()
    bin_folder.mkdir()
    compiler = bin_folder / "g++"
    compiler.write_text(MEETING_COMPILER.format(compiler=shutil.which("g++")))
    compiler.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "RLREASON_CACHE": str(folder),
        "MEET": str(meet),
        "PYTHONPATH": str(REPO),
    }
    environment.pop("RLREASON_KERNELS", None)
    command = [sys.executable, "-c", FIRST_USE]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        found = json.loads(out)
        assert found["out"] == [1.0, 1.0]
        assert len(found["before"]) == 1
        assert found["after"] == found["before"]  # a second runtime would bring threads of its own
    assert len(list(meet.iterdir())) == 2
    (made,) = folder.iterdir()  # nothing else is left
    # and is not made again
    monkeypatch.setenv("RLREASON_CACHE", str(folder))
    age = made.stat().st_mtime_ns
    assert kernels._compiled(str(compiler)) == made
    assert made.stat().st_mtime_ns == age

"""CPU kernels, compiled on first use with the machine's own g++ and kept in the cache folder.

Where there is no g++, or no Linux, ``library()`` is None and everything runs on PyTorch's own operators: the same
numbers, slower. The functions here are thin: they check shapes, hand pointers over, and make autograd functions of the
pairs that have a backward pass; what they compute is said in ``cpu.cpp``.

Left out: kernels for GPUs, where PyTorch's own are good, and PyTorch's extension builder, which needs Python's headers,
ninja and a minute; a plain C interface compiles in seconds.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("cpu.cpp")
# No -ffast-math: a masked logit is -inf and has to stay so.
FLAGS = ["-O3", "-march=native", "-mprefer-vector-width=512", "-std=c++17", "-fPIC", "-fopenmp"]
FLAGS += ["-fno-math-errno", "-fno-trapping-math"]
PAIR = {torch.bfloat16: 2, torch.float32: 1}
"""How many neighbours the decoding cache holds side by side; see cpu.cpp."""
DTYPES = {torch.bfloat16: "bf16", torch.float32: "f32"}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None (with a warning, once) where they can't be had or RLREASON_KERNELS=0."""
    if os.environ.get("RLREASON_KERNELS") == "0":
        return None
    compiler = shutil.which("g++")
    if compiler is None or platform.system() != "Linux":
        log.warning(
            "no g++ found: rollouts and updates on this CPU will take longer, rollouts above all. Install it (Debian: "
            "apt install g++) and start again."
        )
        return None
    try:
        return ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.CalledProcessError) as error:
        detail = error.stderr if isinstance(error, subprocess.CalledProcessError) else error
        log.warning("the CPU kernels could not be built, going on without them, slower: %s", detail)
        return None


def _compiled(compiler: str) -> Path:
    """The shared library for this source, compiler and machine; compiled if it isn't there."""
    cpu = Path("/proc/cpuinfo")
    flags = next((line for line in cpu.read_text().splitlines() if line.startswith(("flags", "Features"))), "")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    key = hashlib.sha256("\n".join([SOURCE.read_text(), flags, version, *FLAGS]).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("RLREASON_CACHE", Path.home() / ".cache" / "rlreason"))
    target = cache / f"kernels-{key}.so"
    if not target.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".kernels-", dir=cache) as work:
            made, whole = Path(work) / "cpu.o", Path(work) / "cpu.so"
            subprocess.run([compiler, *FLAGS, "-c", SOURCE, "-o", made], capture_output=True, text=True, check=True)
            # Linked without -fopenmp: the OpenMP runtime must be the one that PyTorch brings and has loaded. With two,
            # their threads would wait for each other's cores.
            subprocess.run([compiler, "-shared", made, "-o", whole], capture_output=True, text=True, check=True)
            whole.rename(target)  # whole at once: another process may be doing the same
    return target


def usable(tensor: torch.Tensor) -> bool:
    """Whether the kernels can take this tensor (as to device and type)."""
    return tensor.device.type == "cpu" and tensor.dtype in DTYPES and library() is not None


def _call(name: str, dtype: torch.dtype, *arguments: torch.Tensor | float | int | None) -> None:
    """Call a kernel: tensors by pointer, ints as 64 bits, floats as 32, the number of threads last."""
    handed = [
        ctypes.c_void_p(a.data_ptr())
        if isinstance(a, torch.Tensor)
        else ctypes.c_int64(a)
        if isinstance(a, int)
        else ctypes.c_float(a)
        if isinstance(a, float)
        else None
        for a in arguments
    ]
    getattr(library(), f"{name}_{DTYPES[dtype]}")(*handed, ctypes.c_int(torch.get_num_threads()))


def add_rms_norm(x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """``x += delta``, in place, and RMS norm of the sum; (rows, width) each, contiguous; no gradient."""
    out = torch.empty_like(x)
    _call("rms_norm", x.dtype, x, delta, weight, out, None, len(x), x.shape[1], eps)
    return out


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """RMS norm over the last dimension (Zhang & Sennrich 2019), and 1 / rms of each row, for the backward pass; x
    (..., width), contiguous. The product with the weight is taken after rounding, as transformers' modules do."""
    width = x.shape[-1]
    out, inverse = torch.empty_like(x), torch.empty(x.numel() // width)
    _call("rms_norm", x.dtype, x, None, weight, out, inverse, len(inverse), width, eps)
    return out, inverse


def rms_norm_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, inverse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of ``rms_norm``'s first result in x (..., width) and in the weight (width,)."""
    grad_x = torch.empty_like(x)
    partial = torch.empty(torch.get_num_threads(), x.shape[-1])
    _call("rms_norm_backward", x.dtype, grad, x, weight, inverse, grad_x, partial, len(inverse), x.shape[-1])
    return grad_x, partial.sum(0).to(weight.dtype)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up (Shazeer 2020) of (..., width); rows at any distance, the same for both, entries contiguous."""
    out = torch.empty(gate.shape, dtype=gate.dtype)
    width = gate.shape[-1]
    distances = [s for n, s in zip(gate.shape[:-1], gate.stride()[:-1], strict=True) if n > 1]  # of 1, they say nothing
    _call("swiglu", gate.dtype, gate, up, out, gate.numel() // width, width, distances[-1] if distances else width)
    return out


def swiglu_backward(grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of ``swiglu`` in gate and up; all contiguous."""
    grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
    _call("swiglu_backward", gate.dtype, grad, gate, up, grad_gate, grad_up, gate.numel())
    return grad_gate, grad_up


def rotary(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding (Su et al. 2021) in transformers' layout, x cosine + rotate_half(x) sine: x (batch,
    heads, tokens, width), cosine and sine (batch or 1, tokens, width)."""
    out = torch.empty(x.shape, dtype=x.dtype)
    _rotary(x, cosine, sine, out, transposed=False)
    return out


def rotary_backward(grad: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Gradient of ``rotary`` in x; its memory lies as (batch, tokens, heads, width), as a linear layer wrote x."""
    batch, heads, tokens, width = grad.shape
    out = torch.empty((batch, tokens, heads, width), dtype=grad.dtype).transpose(1, 2)
    _rotary(grad, cosine, sine, out, transposed=True)
    return out


def _rotary(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, out: torch.Tensor, *, transposed: bool) -> None:
    cosine, sine = cosine.contiguous(), sine.contiguous()
    strides = (torch.tensor(x.stride()), torch.tensor(out.stride()))
    angle_stride = cosine.stride(0) if len(cosine) > 1 else 0
    _call("rotary", x.dtype, x, cosine, sine, out, *strides, angle_stride, *x.shape, int(transposed))


def softmax_stats(logits: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each row of logits (N, V) over the temperature: its greatest entry, and, relative to that, logsumexp and the
    expected entry under the softmax; (N,) float32 each."""
    logits = logits.contiguous()
    top, total, expected = (torch.empty(len(logits)) for _ in range(3))
    _call("softmax_stats", logits.dtype, logits, top, total, expected, *logits.shape, float(temperature))
    return top, total, expected


def softmax_backward(
    logits: torch.Tensor,
    top: torch.Tensor,
    total: torch.Tensor,
    expected: torch.Tensor,
    weight: torch.Tensor,
    entropy_weight: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Gradient in logits (N, V) of sum(-weight * logsumexp + entropy_weight * entropy), both over the temperature; what
    the taken tokens add is the caller's. The other tensors are (N,) float32."""
    logits = logits.contiguous()
    grad = torch.empty_like(logits)
    stats = (top, total, expected, weight, entropy_weight)
    _call("softmax_backward", logits.dtype, logits, grad, *stats, *logits.shape, float(temperature))
    return grad


def attention_softmax_(scores: torch.Tensor, mask: torch.Tensor | None, scaling: float) -> torch.Tensor:
    """softmax(scores * scaling + mask) over the last dimension, in place: scores (B, heads, Q, L), contiguous; mask
    (B or 1, 1, Q, L) of the same type, its last dimension contiguous."""
    distances = (mask.stride(0) if len(mask) > 1 else 0, mask.stride(2)) if mask is not None else (0, 0)
    _call("attention_softmax", scores.dtype, scores, mask, *distances, float(scaling), *scores.shape)
    return scores


def attention_softmax_backward_(grad: torch.Tensor, weights: torch.Tensor, scaling: float) -> torch.Tensor:
    """In place: the gradient in ``attention_softmax_``'s result, which is ``weights``, becomes that in its scores."""
    rows, keys = weights.numel() // weights.shape[-1], weights.shape[-1]
    _call("attention_softmax_backward", grad.dtype, grad, weights, float(scaling), rows, keys)
    return grad


def sample(logits: torch.Tensor, temperature: torch.Tensor, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A token for each row of logits (rows, V), and its log-probability; see cpu.cpp. temperature (rows,),
    0 for greedy, uniform (rows,) in [0, 1). Returns (rows,) int64 and (rows,) float32."""
    logits = logits.contiguous()
    token, logp = torch.empty(len(logits), dtype=torch.long), torch.empty(len(logits))
    _call(
        "sample", logits.dtype, logits, temperature.float(), uniform.double(), token, logp, len(logits), logits.shape[1]
    )
    return token, logp


def key_blocks(states: torch.Tensor) -> torch.Tensor:
    """Keys (blocks, kv heads, tokens, width) as the cache holds them: (blocks, kv heads, width / p, tokens, p), where p
    is ``PAIR`` of the type."""
    pair = PAIR[states.dtype]
    return states.unflatten(-1, (states.shape[-1] // pair, pair)).transpose(-2, -3)


def value_blocks(states: torch.Tensor) -> torch.Tensor:
    """Values (blocks, kv heads, tokens, width) as the cache holds them: (blocks, kv heads, tokens / p, width, p)."""
    return states.unflatten(-2, (-1, PAIR[states.dtype])).transpose(-1, -2)


def decode_attention(
    qkv: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    position: torch.Tensor,
    table: torch.Tensor,
    cosine: torch.Tensor,
    sine: torch.Tensor,
    *,
    query_norm: torch.Tensor | None,
    key_norm: torch.Tensor | None,
    eps: float,
    scaling: float,
) -> torch.Tensor:
    """Attention of one new token a row, which is rotated and written into the cache; (rows, heads * width).

    qkv (rows, (heads + 2 kv heads) * width) of the new tokens, before rotation; keys and values blocks of 32 tokens as
    ``key_blocks`` and ``value_blocks`` lay them out, contiguous, written; position (rows,) int32 of the new token;
    table (rows, W) int32, a row's blocks; cosine and sine (positions, width).
    """
    kv_heads, width = values.shape[1], values.shape[3]
    rows, heads = len(qkv), qkv.shape[1] // width - 2 * kv_heads
    query = qkv.new_empty(rows, heads * width)
    out = torch.empty_like(query)
    place = (position, table, table.shape[1])
    sizes = (rows, heads, kv_heads, width)
    norms = (query_norm, key_norm, eps)
    _call("rotate_and_write", qkv.dtype, qkv, cosine, sine, *norms, *place, query, keys, values, *sizes)
    _call("attend", qkv.dtype, query, keys, values, *place, out, *sizes, scaling)
    return out

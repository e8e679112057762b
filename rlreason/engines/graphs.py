"""CUDA graphs for decoding. A decoding step of a small model is some hundred launches of kernels that take microseconds
each; a captured graph launches them all at once.

A graph is tied to the addresses and shapes that it was captured with, so its inputs are copied into tensors of its own,
and whoever captures must keep what it reads and writes besides where it is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Function = Callable[..., torch.Tensor]
Capture = Callable[[Function, tuple[torch.Tensor, ...]], Function]


def capture(function: Function, inputs: tuple[torch.Tensor, ...]) -> Function:
    """``function`` as a graph that is replayed at every call, with new contents for its inputs, whose shapes are fixed.
    The tensor returned is overwritten by the next call.

    ``function`` runs once as it is, once for the capture and once from it: running it again with the same inputs must
    change nothing. Raises RuntimeError if it can't be captured, AssertionError if its graph computes something else.
    """
    own = tuple(tensor.clone() for tensor in inputs)
    # a first run on a side stream, as captures must be: what is built lazily is built outside of the graph
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = function(*own).clone()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = function(*own)

    def replay(*inputs: torch.Tensor) -> torch.Tensor:
        for tensor, new in zip(own, inputs, strict=True):
            tensor.copy_(new)
        graph.replay()
        return output

    torch.testing.assert_close(replay(*inputs), expected)
    return replay


def bucket(count: int, least: int) -> int:
    """The smallest power of two that holds ``count`` and ``least``: few shapes, so few graphs."""
    return 1 << (max(count, least) - 1).bit_length()

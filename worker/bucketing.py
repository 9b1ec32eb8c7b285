"""Few shapes where each costs: linear layers in bfloat16 on a CPU, and compiled models.

oneDNN compiles a kernel for each size of a matrix product, in 10 to 30 ms on one core, and keeps
some of them. Micro-batches of texts have ever new sizes, so that a stream of short ones spends a
quarter of its time on compiling, with a small model four tenths. But a linear layer doesn't care
which of its rows are tokens: with some more, whose answers are dropped, few sizes serve all. The
same holds in a compiled model, where the layer is one operation to the compiler, which needs to
know no more of it than its result's shape.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

__all__ = ["BucketedLinear", "bucket_linear_layers", "bucketed_length", "bucketed_rows"]

_STEPS = ((64, 16), (256, 32), (1024, 64))
"""Up to so many rows, sizes are multiples of this."""
_STEPS_PER_OCTAVE = 8
"""And above: what is computed in vain stays below an eighth."""
_LENGTH_STEP = 8


def bucketed_rows(rows: int) -> int:
    """The size at which so many rows are computed: at least as many, one of few."""
    octave = 1 << (rows - 1).bit_length()
    steps = (step for most, step in _STEPS if rows <= most)
    step = next(steps, octave // (2 * _STEPS_PER_OCTAVE))
    return -(-rows // step) * step


def bucketed_length(tokens: int) -> int:
    """The length at which rows of so many tokens go through a compiled model."""
    return -(-tokens // _LENGTH_STEP) * _LENGTH_STEP


@torch.library.custom_op("golem::bucketed_linear", mutates_args=())
def _bucketed_linear(
    given: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    return _linear(given, weight, bias)


@_bucketed_linear.register_fake
def _(given: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:  # noqa: ARG001 - torch's signature
    return given.new_empty(*given.shape[:-1], weight.shape[0])


def _linear(given: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    *leading, features = given.shape
    flat = given.reshape(-1, features)
    rows = flat.shape[0]
    size = bucketed_rows(rows)
    if size != rows:
        filled = flat.new_empty(size, features)
        filled[:rows] = flat
        filled[rows:] = 0  # whatever lay there might be no number, and slow
        flat = filled
    output = functional.linear(flat, weight, bias)
    return output[:rows].view(*leading, weight.shape[0])


class BucketedLinear(torch.nn.Linear):
    """A linear layer, (..., in) to (..., out), that computes `bucketed_rows` of them."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
        """See `torch.nn.Linear`."""
        compiling = torch.compiler.is_compiling()
        function = _bucketed_linear if compiling else _linear
        return function(input, self.weight, self.bias)


def bucket_linear_layers(model: Any) -> None:
    """Turn the model's plain linear layers into bucketed ones, their weights where they are."""
    for module in model.modules():
        if type(module) is torch.nn.Linear:  # what a subclass does, nobody knows
            module.__class__ = BucketedLinear

"""``GOLEM_DTYPE=int8``: linear layers in 8-bit integers on a CPU.

Weights are quantized once, a scale for each output channel; what goes into a layer is quantized as
it comes, with one scale for the whole micro-batch. The head stays in float32, which costs nothing
and decides. Two prices: answers differ from float32's (the engine benchmark tells how many), and
since texts of a micro-batch share a scale, the last digits of a score depend on its company.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from golem_tasks.errors import ConfigurationError

__all__ = ["quantize"]


def quantize(model: Any) -> Any:
    """Return the float32 model with int8 linear layers; the given one is used up.

    Raises:
        ConfigurationError: this build of torch has no int8 kernels for this CPU, or nothing in the
            model can be quantized.
    """
    try:
        # Deprecated in favour of torchao, whose eager int8 has no fast CPU kernel as of 0.18.
        from torch.ao.quantization import (  # noqa: PLC0415 - may be gone in a later torch
            per_channel_dynamic_qconfig,
            quantize_dynamic,
        )
    except ImportError:
        raise _unfit("no longer has this kind of quantization") from None
    if torch.backends.quantized.engine in ("none", None):
        raise _unfit("has no int8 kernels for this CPU")
    body = f"{model.base_model_prefix}."  # what isn't in it is the head
    config = {
        name: per_channel_dynamic_qconfig
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith(body)
    }
    if not config:
        raise ConfigurationError(
            "GOLEM_DTYPE=int8 can't be used: this model has no linear layers to quantize; set "
            "GOLEM_DTYPE=auto."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the deprecation, see above
        return quantize_dynamic(model, config, dtype=torch.qint8, inplace=True)  # type: ignore[no-untyped-call]


def _unfit(reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"GOLEM_DTYPE=int8 can't be used: torch {torch.__version__} {reason}; set GOLEM_DTYPE=auto."
    )

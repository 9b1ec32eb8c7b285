"""Attention masks made without asking the device whether there is padding.

transformers leaves the mask away where nothing is padded, since attention is faster then, and to
know it looks into the mask. On CUDA that look waits for everything the device was given before, so
that no micro-batch could be launched while another is computed. We know it: we padded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from transformers import AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

__all__ = ["known_padding"]


class _Known:
    padded: bool | None = None
    """Whether the micro-batch being launched has padding; None: nobody says, so look."""
    shape: tuple[int, int] = (0, 0)
    """Its rows, and tokens of each, padding included."""


@contextlib.contextmanager
def known_padding(shape: tuple[int, int], *, padded: bool) -> Iterator[None]:
    """Say whether the forward pass inside has padding. One at a time in a process.

    Args:
        shape: of the mask the model is given, (B, T); any other is the model's own, and looked
            into: it may have padded what wasn't.
        padded: whether anything in it is zero.
    """
    _Known.padded, _Known.shape = padded, shape
    try:
        yield
    finally:
        _Known.padded = None


def _mask(*, attention_mask: Any = None, **given: Any) -> Any:
    """As `transformers.masking_utils.sdpa_mask`, whose answer it is, but for the look."""
    ours = attention_mask is not None and tuple(attention_mask.shape) == _Known.shape
    if ours and _Known.padded is False:
        attention_mask = None  # it is all ones, which is what none means
    elif ours and _Known.padded:
        given |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(attention_mask=attention_mask, **given)


AttentionMaskInterface.register("sdpa", _mask)

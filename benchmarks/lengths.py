"""What is reckoned with texts' lengths alone, in characters or tokens. Pure, without torch."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["deal", "padded_in_order"]


def deal(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Indexes into `lengths` in so many shares, of like lengths and each in order of arrival."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    return [sorted(order[first::count]) for first in range(count)]


def padded_in_order(lengths: Sequence[int], batch_size: int) -> int:
    """Positions of batches in order of arrival, each padded to its longest text."""
    batches = [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]
    return sum(len(batch) * max(batch) for batch in batches)

"""How many texts a full dispatch has: more, the faster a process gets through them. Pure.

What a dispatch costs beside its texts (its way to the process and back, four round trips to Redis)
is some milliseconds. Shared by `LEAST_ROWS` texts that is nothing for a model that needs a second
for them, and half of all that a fast one needs. A dispatch is also what an interactive job may have
to wait for. So a fast process gets as many texts as take it `FULL_S`, and a slow one no fewer than
`LEAST_ROWS`, which leave little padding.
"""

from __future__ import annotations

__all__ = ["FULL_S", "LEAST_ROWS", "MOST_ROWS", "Pace"]

FULL_S = 0.25
"""Seconds a full dispatch takes a fast process; below what a person calls waiting."""
LEAST_ROWS = 256
MOST_ROWS = 1024

_SMOOTHING = 0.2


class Pace:
    """The rows of a full dispatch, as the latest ones suggest.

    Args:
        fixed: the rows, if they are set; else None.
    """

    def __init__(self, fixed: int | None) -> None:
        self._fixed = fixed
        self._rows_per_s = 0.0

    @property
    def rows(self) -> int:
        """Texts of a full dispatch."""
        if self._fixed is not None:
            return self._fixed
        return max(LEAST_ROWS, min(MOST_ROWS, int(self._rows_per_s * FULL_S)))

    def ended(self, rows: int, took_s: float) -> None:
        """Learn from a dispatch of so many texts, from when it was sent until it was answered.

        A small one says nothing: what it costs beside its texts is most of it.
        """
        if rows < LEAST_ROWS // 2 or took_s <= 0:
            return
        speed = rows / took_s
        known = self._rows_per_s or speed
        self._rows_per_s = known + _SMOOTHING * (speed - known)

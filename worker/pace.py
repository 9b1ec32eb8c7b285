"""How fast processes are, and so how much a full dispatch is. Pure.

What a dispatch costs beside its texts (its way to the process and back, four round trips to Redis)
is some milliseconds. Shared by `LEAST_ROWS` texts that is nothing for a model that needs a second
for them, and half of all that a fast one needs. A dispatch is also what an interactive job may have
to wait for. So a fast process gets as many texts as take it `FULL_S`, and a slow one no fewer than
`LEAST_ROWS`, which leave little padding.
"""

from __future__ import annotations

__all__ = ["DISPATCH_TOKENS", "FULL_S", "LEAST_ROWS", "MOST_ROWS", "Pace"]

FULL_S = 0.25
"""Seconds a full dispatch takes a fast process; below what a person calls waiting."""
LEAST_ROWS = 256
MOST_ROWS = 1024
_LEAST_TOKENS = 8_192
"""As many as `LEAST_ROWS` texts of a paragraph."""

DISPATCH_TOKENS = 32_768
"""Tokens of a full dispatch that nobody has set, or more on a GPU (`worker.measuring`)."""

_SMOOTHING = 0.2


class Pace:
    """What the latest dispatches tell of the speed of a process.

    Args:
        fixed: the rows of a full dispatch, if they are set; else None.
        fixed_tokens: its tokens, likewise.
    """

    def __init__(self, fixed: int | None, fixed_tokens: int | None = None) -> None:
        self._fixed = fixed
        # From half a full dispatch on, by either.
        self._telling_rows = min(LEAST_ROWS, fixed or LEAST_ROWS) / 2
        self._telling_tokens = min(_LEAST_TOKENS, fixed_tokens or _LEAST_TOKENS) / 2
        self._rows_per_s: float | None = None
        self._tokens_per_s: float | None = None

    @property
    def rows(self) -> int:
        """Texts of a full dispatch."""
        if self._fixed is not None:
            return self._fixed
        return max(LEAST_ROWS, min(MOST_ROWS, int((self._rows_per_s or 0) * FULL_S)))

    @property
    def worth_tokens(self) -> int | None:
        """Tokens that take a process `FULL_S`; None before the first dispatch that tells."""
        return None if self._tokens_per_s is None else int(self._tokens_per_s * FULL_S)

    def ended(self, rows: int, tokens: int, took_s: float) -> None:
        """Learn from a dispatch of so many texts, from when it was sent until it was answered.

        A small one that was quick says nothing: what it costs beside its texts is most of it.
        Small is one of few rows and of few tokens, by what is set if that is less.
        """
        large = rows >= self._telling_rows or tokens >= self._telling_tokens
        if took_s <= 0 or not (large or took_s >= FULL_S):
            return
        self._rows_per_s = _smoothed(self._rows_per_s, rows / took_s)
        self._tokens_per_s = _smoothed(self._tokens_per_s, tokens / took_s)


def _smoothed(known: float | None, new: float) -> float:
    return new if known is None else known + _SMOOTHING * (new - known)

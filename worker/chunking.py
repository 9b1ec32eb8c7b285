"""A dispatch in chunks, so that a GPU computes while the next texts are tokenized. Pure.

What is tokenized together is packed together, and packing wants many rows to choose from. But one
length is known of every text beforehand, that in characters: chunks cut from texts in this order
have rows of like lengths. Simulated on the engine benchmark's workloads, with budgets of 4,096 and
16,384 tokens and 256 and 1,024 rows: of eight micro-batches' worth, two chunks of four have up to
2.2 points more padding than one plan of everything; of four, two chunks of two have up to 2.0, or
6.6 with short texts where 256 rows fill but a third of the budget. That is before packing bounds
it: a chunk is cut so that no more than a twentieth is padding, too. Not to have the device wait for
the last text's tokens is worth more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from golem_tasks.contract import TextItem
from worker.interfaces import Encoded
from worker.rows import Work

__all__ = ["Chunker", "chunk_count", "cut"]

MICRO_BATCHES = 4
"""Micro-batches' worth a chunk has at least, where a dispatch has twice as much."""
_LEAST = 2
"""And where it hasn't: less than this isn't worth a chunk of its own."""
_CHARS_PER_TOKEN = 4.5
"""Of English, until texts have been seen."""
_FEWEST_CHARS, _MOST_CHARS = 0.5, 12.0
"""Of a token, as far as a text is believed: a megabyte of spaces is one of no language."""
_SMOOTHING = 0.2


class Chunker:
    """Cuts dispatches into chunks, and learns how long a token is in the language that comes.

    Args:
        max_tokens: longest row the model takes.
        max_rows: most rows of a micro-batch.
    """

    def __init__(self, max_tokens: int, max_rows: int) -> None:
        self._max_tokens = max_tokens
        self._max_rows = max_rows
        self._learned: float | None = None

    def chunks(self, works: Sequence[Work], token_budget: int) -> list[list[int]]:
        """Indexes of the works, each once: the longest first, in chunks of about the same size."""
        chars = [_chars(work.item) for work in works]
        least = 1 / self._max_rows
        shares = [
            max(least, self._tokens(length, work) / token_budget)
            for length, work in zip(chars, works, strict=True)
        ]
        order = sorted(range(len(works)), key=chars.__getitem__, reverse=True)
        return cut(order, shares, chunk_count(sum(shares)))

    def learn(self, works: Iterable[Work], encoded: Iterable[Encoded | None]) -> None:
        """Note how many tokens these works' characters were; None: it wasn't told.

        One dispatch is no more than a fifth of what is known, and a text that has hardly any tokens
        for its characters counts by its tokens: neither makes the next dispatch a single chunk.
        """
        chars = tokens = 0.0
        for work, each in zip(works, encoded, strict=True):
            if each is not None:
                length = _chars(work.item)
                chars += min(max(length, _FEWEST_CHARS * each.tokens), _MOST_CHARS * each.tokens)
                tokens += each.tokens
        if tokens:
            new = chars / tokens
            known = new if self._learned is None else self._learned
            self._learned = known + _SMOOTHING * (new - known)

    def _tokens(self, chars: int, work: Work) -> float:
        tokens = chars / (self._learned or _CHARS_PER_TOKEN)
        return tokens if work.options.on_long == "window" else min(tokens, self._max_tokens)


def chunk_count(micro_batches: float) -> int:
    """How many chunks so many micro-batches' worth make."""
    return max(1, int(micro_batches / MICRO_BATCHES), min(2, int(micro_batches / _LEAST)))


def cut(order: Sequence[int], shares: Sequence[float], count: int) -> list[list[int]]:
    """Cut an order of works into at most `count` runs, none empty, of about the same sum.

    Args:
        order: indexes into `shares`, each once.
        shares: what each counts.
        count: how many runs, at least 1.
    """
    each = sum(shares) / count
    runs: list[list[int]] = [[]] if order else []
    filled = 0.0
    for index in order:
        if len(runs) < count and filled >= each * len(runs):
            runs.append([])
        runs[-1].append(index)
        filled += shares[index]
    return runs


def _chars(item: TextItem) -> int:
    return len(item.text) + (0 if item.text_pair is None else len(item.text_pair))

"""Texts to rows of token ids: one call of the fast tokenizer for a whole dispatch.

Padding is left to the micro-batch a row ends up in. Truncation is done here, on the ids, because
the tokenizer's own hides how long the text was and, asked for windows it can't make, panics; the
cut is the same as its ``truncation=True`` (longest first for pairs), which the tests compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from golem_tasks.contract import OnLong, TextItem
from golem_tasks.errors import InferenceError, JobError, TextTooLong
from worker.interfaces import Encoded, Row

__all__ = ["Encoder", "kept_of_pair", "window_starts"]

_OVERLAP = 4  # neighbouring windows share a quarter, so that no phrase is only seen cut in two
_PANIC = "PanicException"  # pyo3's, a BaseException that no module exports


@dataclass(frozen=True, slots=True)
class _Layout:
    """Positions in an untruncated row: special tokens, and each sequence's own."""

    special: list[int]
    sequences: tuple[list[int], list[int]]
    """The second is empty for a single text."""


class Encoder:
    """Turns texts into rows for one model.

    Args:
        tokenizer: a `tokenizers.Tokenizer`; padding and truncation are switched off in it.
        max_tokens: longest row the model takes, special tokens included.
        type_ids: whether the model takes token type ids.
        keep_end: whether truncation drops the text's beginning instead of its end.
        vocabulary: rows of the model's embedding, if the tokenizer can exceed them; None if not.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_tokens: int,
        *,
        type_ids: bool,
        keep_end: bool = False,
        vocabulary: int | None = None,
    ) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._type_ids = type_ids
        self._keep_end = keep_end
        self._vocabulary = vocabulary

    def encode(
        self, items: Sequence[TextItem], on_long: Sequence[OnLong]
    ) -> list[Encoded | JobError]:
        """Tokenize; see `worker.interfaces.Engine.encode`.

        Raises:
            RuntimeError: the tokenizer gave up on a text of the batch.
        """
        inputs = [
            item.text if item.text_pair is None else (item.text, item.text_pair) for item in items
        ]
        try:
            encodings = self._tokenizer.encode_batch_fast(inputs)
        except BaseException as exc:
            if type(exc).__name__ != _PANIC:
                raise
            raise RuntimeError(f"the tokenizer panicked: {exc}") from None
        return [self._encoded(e, rule) for e, rule in zip(encodings, on_long, strict=True)]

    def _encoded(self, encoding: Any, on_long: OnLong) -> Encoded | JobError:
        ids = encoding.ids
        if self._vocabulary is not None and ids and max(ids) >= self._vocabulary:
            # On a GPU such an id is an assert that costs the process its device.
            cause = f"token id {max(ids)} isn't in the model's {self._vocabulary} embeddings"
            return InferenceError.at("encode", cause)
        tokens = len(ids)
        type_ids = encoding.type_ids if self._type_ids else None
        if tokens <= self._max_tokens:
            return Encoded((Row(ids, type_ids),), tokens, truncated=False)
        if on_long == "error":
            reason = f"has {tokens} tokens, the model takes {self._max_tokens}"
            return TextTooLong.because("text", reason)
        row, layout = Row(ids, type_ids), _layout(encoding)
        if on_long == "window":
            return self._windows(row, layout)
        return self._truncated(row, layout)

    def _truncated(self, row: Row, layout: _Layout) -> Encoded:
        first, second = layout.sequences
        room = self._max_tokens - len(layout.special)
        kept = kept_of_pair(len(first), len(second), room)
        positions = list(layout.special)
        for sequence, count in zip(layout.sequences, kept, strict=True):
            start = len(sequence) - count if self._keep_end else 0
            positions += sequence[start : start + count]
        return Encoded((_cut(row, positions),), row.length, truncated=True)

    def _windows(self, row: Row, layout: _Layout) -> Encoded | JobError:
        """Windows over the longer sequence; a pair's shorter one is whole in every window."""
        shorter, longer = sorted(layout.sequences, key=len)
        room = self._max_tokens - len(layout.special) - len(shorter)
        if room < max(1, self._max_tokens // _OVERLAP):
            reason = (
                f"has {len(longer)} and {len(shorter)} tokens with its pair: too long to go "
                f"through the model's {self._max_tokens} in windows of one beside the other"
            )
            return TextTooLong.because("text", reason)
        spans = [
            longer[start : start + room]
            for start in window_starts(len(longer), room, room // _OVERLAP)
        ]
        rows = tuple(_cut(row, layout.special + shorter + span) for span in spans)
        weights = tuple(len(span) for span in spans)
        return Encoded(rows, row.length, truncated=False, weights=weights)


def kept_of_pair(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each sequence stay when the longer one is shortened first.

    The tokenizers library's ``longest_first``: the shorter sequence is kept whole if it leaves the
    longer at least as much; else they share, the odd token going to the longer.
    """
    if first + second <= room:
        return first, second
    shorter, longer = sorted((first, second))
    longer = room - shorter
    if longer < shorter:
        shorter, longer = room // 2, room - room // 2
    return (longer, shorter) if first > second else (shorter, longer)


def window_starts(tokens: int, window: int, overlap: int) -> list[int]:
    """Where windows begin so that each but the last is full and every token is in one of them."""
    step = window - overlap
    return list(range(0, max(1, tokens - overlap), step))


def _layout(encoding: Any) -> _Layout:
    layout = _Layout([], ([], []))
    for position, sequence in enumerate(encoding.sequence_ids):
        if sequence is None:
            layout.special.append(position)
        else:
            layout.sequences[sequence].append(position)
    return layout


def _cut(row: Row, positions: Sequence[int]) -> Row:
    """The row with only these positions, in their order in it."""
    ordered = sorted(positions)
    type_ids = row.type_ids
    return Row(
        [row.ids[i] for i in ordered],
        None if type_ids is None else [type_ids[i] for i in ordered],
    )

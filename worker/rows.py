"""The rows of one dispatch: whose they are, what they wait for, and what came back for them. Pure.

What is known of a row lies in parallel lists, not in an object for each: a dispatch has hundreds of
rows, and whatever Python does for each of them counts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

from golem_tasks.contract import Options, TextItem
from golem_tasks.errors import JobError
from worker.decoding import MicroBatch
from worker.interfaces import Encoded, Row

__all__ = ["Pending", "Run", "Work", "doubtful", "halves"]


class Work(NamedTuple):
    """One text to be classified."""

    item: TextItem
    options: Options
    queued_ms: float
    """Milliseconds it waited before it came here; only reported in the answer."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A micro-batch still to be run."""

    rows: list[int]
    """Indexes into the rows of its `Run`."""
    longest: int
    """Tokens of its longest row."""
    tokens: int
    """Tokens of all its rows, without padding."""
    failures: tuple[int, ...] = ()
    """The times it was out of memory, in larger company, by their names in the trail."""
    alone: bool = False
    """Whether nothing else may be on the device beside it."""

    @classmethod
    def of(cls, rows: list[int], lengths: Sequence[int], failures: tuple[int, ...] = ()) -> Pending:
        """The micro-batch of these rows, whose lengths are given in tokens."""
        return cls(rows, max(lengths), sum(lengths), failures)

    @property
    def area(self) -> int:
        """Token positions it takes on the device, padding included."""
        return self.longest * len(self.rows)


@dataclass(slots=True)
class Run:
    """One dispatch: what is still to be done and what has come of it."""

    works: Sequence[Work]
    encoded: list[Encoded | None]
    """Each work's rows; None where it failed before it had any."""
    failed: dict[int, JobError] = field(default_factory=dict)
    """Why a work has no answer, by its index."""
    queue: deque[Pending] = field(default_factory=deque)
    micro_batches: list[MicroBatch] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    """Of all works in their order, the windows of a long text one after the other."""
    owners: list[int] = field(default_factory=list)
    """The work each row belongs to."""
    starts: list[int] = field(default_factory=list)
    """The first row of each work, and the number of rows."""
    logits: list[list[float] | None] = field(default_factory=list)
    """What came back for each row; None as long as nothing has."""
    batches: list[MicroBatch | None] = field(default_factory=list)
    """The micro-batch each row was in."""

    @classmethod
    def of(cls, works: Sequence[Work]) -> Run:
        """A dispatch at its beginning."""
        return cls(works, [None] * len(works))

    def spread(self) -> None:
        """List the rows of what was encoded."""
        for index, encoded in enumerate(self.encoded):
            self.starts.append(len(self.rows))
            if encoded is not None:
                self.rows += encoded.rows
                self.owners += [index] * len(encoded.rows)
        self.starts.append(len(self.rows))
        self.logits = [None] * len(self.rows)
        self.batches = [None] * len(self.rows)

    def lengths(self, rows: Sequence[int]) -> list[int]:
        """Tokens of each of these rows."""
        return [self.rows[i].length for i in rows]

    def answer(self, rows: Sequence[int], logits: Sequence[list[float]], batch: MicroBatch) -> None:
        """Note what a micro-batch answered for its rows."""
        self.micro_batches.append(batch)
        for row, values in zip(rows, logits, strict=True):
            self.logits[row] = values
            self.batches[row] = batch

    def answers(self, work: int) -> tuple[list[list[float]], list[MicroBatch]] | None:
        """What came back for a work's rows, and from where; None if not all were answered."""
        rows = slice(self.starts[work], self.starts[work + 1])
        batches = self.batches[rows]
        if not all(batches):
            return None
        return cast("list[list[float]]", self.logits[rows]), cast("list[MicroBatch]", batches)


def doubtful(rows: Sequence[int], logits: Sequence[list[float]]) -> list[int]:
    """The rows whose logits, given in their order, are numbers but not finite."""
    try:
        if math.isfinite(sum(map(sum, logits))):  # asked of all at once, since mostly there is none
            return []
    except (TypeError, OverflowError):
        pass
    return [row for row, values in zip(rows, logits, strict=True) if not _finite(values)]


def halves(items: Sequence[int]) -> tuple[list[int], list[int]]:
    """The first and the second half; of an odd number the second has more."""
    middle = len(items) // 2
    return list(items[:middle]), list(items[middle:])


def _finite(logits: list[float]) -> bool:
    try:
        # The sum of float32 values can't overflow, and shows a NaN or an infinity among them.
        return math.isfinite(sum(logits))
    except (TypeError, OverflowError):
        return True  # no numbers at all: the decoder has the words for that

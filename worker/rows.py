"""The rows of one dispatch: whose they are, what they wait for, and what came back for them. Pure.

What is known of a row lies in parallel lists, not in an object for each: a dispatch has hundreds of
rows, and whatever Python does for each of them counts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, cast

from golem_tasks.contract import Options, TextItem
from golem_tasks.errors import JobError
from worker.decoding import MicroBatch
from worker.interfaces import Encoded, Row

__all__ = ["Outcome", "Pending", "Run", "Work", "doubtful", "halves"]

Outcome: TypeAlias = "dict[str, Any] | JobError"
"""What becomes of a work: a prediction, or the reason there is none."""


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
    decoded: dict[int, Outcome] = field(default_factory=dict)
    """What was made of a work's answers, by its index."""
    queue: deque[Pending] = field(default_factory=deque)
    micro_batches: list[MicroBatch] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    """Of all works that were spread, the windows of a long text one after the other."""
    owners: list[int] = field(default_factory=list)
    """The work each row belongs to."""
    starts: list[int] = field(default_factory=list)
    """The first row of each work; what it says of one without rows means nothing."""
    unanswered: list[int] = field(default_factory=list)
    """How many of each work's rows wait for their logits."""
    logits: list[list[float] | None] = field(default_factory=list)
    """What came back for each row; None as long as nothing has."""
    batches: list[MicroBatch | None] = field(default_factory=list)
    """The micro-batch each row was in."""

    @classmethod
    def of(cls, works: Sequence[Work]) -> Run:
        """A dispatch at its beginning."""
        count = len(works)
        return cls(works, [None] * count, starts=[0] * count, unanswered=[0] * count)

    def spread(self, indexes: Sequence[int]) -> list[int]:
        """List the rows of these works, so far as they are encoded, and return their indexes."""
        before = len(self.rows)
        for index in indexes:
            encoded = self.encoded[index]
            if encoded is not None:
                self.starts[index] = len(self.rows)
                self.unanswered[index] = len(encoded.rows)
                self.rows += encoded.rows
                self.owners += [index] * len(encoded.rows)
        added = range(before, len(self.rows))
        self.logits += [None] * len(added)
        self.batches += [None] * len(added)
        return list(added)

    def lengths(self, rows: Sequence[int]) -> list[int]:
        """Tokens of each of these rows."""
        return [self.rows[i].length for i in rows]

    def answer(
        self, rows: Sequence[int], logits: Sequence[list[float]], batch: MicroBatch
    ) -> list[int]:
        """Note what a micro-batch answered for its rows, each row once.

        Returns:
            The works whose last row that was.
        """
        owners, unanswered = self.owners, self.unanswered
        complete = []
        for row, values in zip(rows, logits, strict=True):
            self.logits[row] = values
            self.batches[row] = batch
            work = owners[row]
            unanswered[work] -= 1
            if not unanswered[work]:
                complete.append(work)
        return complete

    def answers(self, work: int, encoded: Encoded) -> tuple[list[list[float]], list[MicroBatch]]:
        """What came back for a work's rows, all of which were answered, and from where."""
        start = self.starts[work]
        rows = slice(start, start + len(encoded.rows))
        return (
            cast("list[list[float]]", self.logits[rows]),
            cast("list[MicroBatch]", self.batches[rows]),
        )


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

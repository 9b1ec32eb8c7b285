"""The account of every job of a fault run: what was sent, what came back, what ran how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from benchmarks.engines import Run, fingerprint
from benchmarks.verify import Verdict

__all__ = ["Ledger", "extra_runs", "settle"]


@dataclass(frozen=True, slots=True)
class Ledger:
    """Where every job is once a run is over; submitted = right + wrong + failed + the three below.

    A job without an answer is in exactly one of three places.
    """

    submitted: int
    right: int
    wrong: int
    failed: int
    waiting: int
    """No answer, but still in a queue."""
    stranded: int
    """No answer, and held as unacknowledged by a worker that doesn't run it."""
    lost: int
    """No answer, and nowhere in Redis: gone for ever."""
    held_after: int
    """Messages still unacknowledged at the end, answered ones included."""
    duplicates: int
    """Finished runs of the model beyond the first of each job."""

    @property
    def clean(self) -> bool:
        """Whether every job has its own right answer and nothing is left behind."""
        return self.right == self.submitted and not self.held_after

    @property
    def figures(self) -> dict[str, float]:
        """As a round of a report."""
        return {name: float(value) for name, value in asdict(self).items()}


def settle(
    ids: Sequence[str],
    judged: Sequence[Verdict],
    *,
    waiting: frozenset[str],
    held: frozenset[str],
    duplicates: int,
) -> Ledger:
    """Make the account.

    Args:
        ids: every job submitted.
        judged: what its result key said, in the same order.
        waiting: ids of the messages in the queues.
        held: ids of the unacknowledged messages.
        duplicates: see `extra_runs`.
    """
    count = Counter(judged)
    absent = [id_ for id_, verdict in zip(ids, judged, strict=True) if verdict is Verdict.ABSENT]
    queued = sum(id_ in waiting for id_ in absent)
    stranded = sum(id_ in held and id_ not in waiting for id_ in absent)
    return Ledger(
        submitted=len(ids),
        right=count[Verdict.RIGHT],
        wrong=count[Verdict.WRONG],
        failed=count[Verdict.FAILED],
        waiting=queued,
        stranded=stranded,
        lost=len(absent) - queued - stranded,
        held_after=len(held),
        duplicates=duplicates,
    )


def extra_runs(runs: Iterable[Run], texts: Iterable[str]) -> int:
    """How often the model ran a text beyond its first time, over these texts."""
    counted = Counter(mark for run in runs for mark in run.fingerprints)
    return sum(max(0, counted[fingerprint(text)] - 1) for text in texts)

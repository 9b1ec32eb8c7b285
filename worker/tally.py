"""What a worker has done, in a handful of additions per dispatch. Pure: the clock is passed in.

Rates are quotients of two sums in which the past fades (`Fading`), so that they are right from the
first dispatch on, and stay as they were while there is nothing to add.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from worker.decoding import MicroBatch

__all__ = ["Fading", "Figures", "Sums", "Tally"]

RECENT_S = 7.0
"""Half-life of what is called recent: after ten seconds a third of it is left."""
SPEED_S = 40.0
"""Half-life of the speed under load, which a long dispatch mustn't swing."""


class Figures(NamedTuple):
    """One dispatch in numbers, as its model process tells them beside the outcomes."""

    texts: int
    """Texts the model was asked about."""
    failed: int
    """Jobs that ended as FAILURE."""
    micro_batches: int
    rows: int
    """Sequences the model computed; a long text under ``on_long="window"`` is several."""
    tokens: int
    """Tokens in them, padding left out."""
    area: int
    """Token positions computed, padding included."""
    forward_ms: float
    queued_ms: float
    """The longest any of its texts had waited."""
    token_budget: int
    """Padded area of a micro-batch the device is trusted with now."""

    @classmethod
    def of(cls, batches: Sequence[MicroBatch], **others: Any) -> Figures:
        """Sum up the micro-batches that were run; `others` are the fields not about them."""
        return cls(
            micro_batches=len(batches),
            rows=sum(batch.rows for batch in batches),
            tokens=sum(batch.tokens for batch in batches),
            area=sum(batch.rows * batch.longest for batch in batches),
            forward_ms=sum(batch.forward_ms for batch in batches),
            **others,
        )

    @property
    def padding_share(self) -> float:
        """Share of the token positions computed that was padding, 0 to 1."""
        return 1 - self.tokens / self.area if self.area else 0.0


class Sums(NamedTuple):
    """What is summed, and over how many seconds."""

    seconds: float = 0.0
    dispatches: float = 0.0
    jobs: float = 0.0
    texts: float = 0.0
    rows: float = 0.0
    tokens: float = 0.0
    area: float = 0.0


class Fading:
    """Sums in which what was added counts half after `half_life_s` more seconds were added.

    Args:
        half_life_s: seconds.
    """

    def __init__(self, half_life_s: float) -> None:
        self._half_life_s = half_life_s
        self.sums = Sums()

    def add(self, new: Sums) -> None:
        """Add what happened in the latest `new.seconds`."""
        left = 0.5 ** (new.seconds / self._half_life_s)
        self.sums = Sums(*(left * old + more for old, more in zip(self.sums, new, strict=True)))


class Tally:
    """Counts what a worker does.

    Args:
        now_s: monotonic time.
    """

    def __init__(self, now_s: float) -> None:
        self.received = 0
        self.redelivered = 0
        self.answered = 0
        self.failed = 0
        self._queued_ms: float | None = None
        self._token_budget: int | None = None
        self._since_s = now_s
        self._new = Sums()
        self._recent = Fading(RECENT_S)
        self._loaded = Fading(SPEED_S)

    def ended(self, jobs: int, figures: Figures) -> None:
        """A dispatch of so many jobs came back."""
        self.answered += jobs
        self.failed += figures.failed
        self._queued_ms = figures.queued_ms
        self._token_budget = figures.token_budget
        new = self._new
        self._new = Sums(
            0.0,
            new.dispatches + 1,
            new.jobs + jobs,
            new.texts + figures.texts,
            new.rows + figures.rows,
            new.tokens + figures.tokens,
            new.area + figures.area,
        )

    def beat(self, now_s: float, *, loaded: bool) -> None:
        """Close the time since the last beat.

        Args:
            now_s: monotonic time.
            loaded: whether there was work at both ends of it: only then does what was done tell
                how fast the worker is, rather than how much it was given.
        """
        new = self._new._replace(seconds=max(0.0, now_s - self._since_s))
        self._since_s, self._new = now_s, Sums()
        self._recent.add(new)
        if loaded:
            self._loaded.add(new)

    def told(self) -> dict[str, Any]:
        """The figures by their names in `golem_tasks.backlog.WorkerStats`."""
        recent, loaded = self._recent.sums, self._loaded.sums
        seconds = recent.seconds or 1.0
        told: dict[str, Any] = {
            "received": self.received,
            "redelivered": self.redelivered,
            "answered": self.answered,
            "failed": self.failed,
            "jobs_per_s": round(recent.jobs / seconds, 2),
            "texts_per_s": round(recent.texts / seconds, 2),
            "tokens_per_s": round(recent.tokens / seconds, 1),
            "queued_ms": self._queued_ms,
        }
        if self._token_budget is not None:
            told["token_budget"] = self._token_budget
        if recent.dispatches > _NOTHING:
            told["rows_per_dispatch"] = round(recent.rows / recent.dispatches, 2)
        if recent.area > _NOTHING:
            told["padding_share"] = round(1 - recent.tokens / recent.area, 4)
        if loaded.jobs > _NOTHING:
            told["full_jobs_per_s"] = round(loaded.jobs / loaded.seconds, 3)
            told["full_texts_per_s"] = round(loaded.texts / loaded.seconds, 3)
        return told


_NOTHING = 1e-9  # what has faded this far is an hour old, and soon too small to divide by

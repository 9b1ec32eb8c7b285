"""How far a bulk submit has got, and how fast it goes: counts only, no I/O."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

__all__ = ["Progress", "Tally"]

_WINDOW_S = 60.0
_LEAST_ENDED = 10


@dataclass(frozen=True, slots=True)
class Progress:
    """The jobs of a bulk submit, counted at one moment."""

    total: int
    """Jobs in all."""
    done: int
    """Jobs that have ended, well or badly."""
    failed: int
    """Those of them that ended badly: failed, expired or were cancelled."""
    rate: float
    """Jobs that ended per second, over the last minute or the last ten jobs, whichever is longer;
    0 until two looks have seen it change."""
    eta_s: float | None
    """Seconds until all have ended, at this rate; None if it isn't known, 0 if they have."""

    def __str__(self) -> str:
        eta = "" if self.eta_s is None else f", {self.eta_s:,.0f} s left"
        return (
            f"{self.done:,} of {self.total:,} done, {self.failed:,} failed, {self.rate:,.1f}/s{eta}"
        )


class Tally:
    """Counts the jobs of one bulk submit as they end. Thread-safe.

    Args:
        total: jobs in all.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._failed = 0
        self._samples: deque[tuple[float, int]] = deque()
        """Moments, and how many were done then: the first is what the rate is reckoned from."""
        self._lock = threading.Lock()

    def add(self, now_s: float, *, failed: bool) -> None:
        """Count a job that has ended, as it turned out at this moment."""
        with self._lock:
            self._done += 1
            self._failed += failed
            if self._done == self._total:
                self._sample(now_s)

    def sample(self, now_s: float) -> None:
        """Note what is done at this moment. Time in which nothing had ended yet doesn't count."""
        with self._lock:
            self._sample(now_s)

    def progress(self) -> Progress:
        """Return the counts, and the rate between the samples."""
        with self._lock:
            rate, left = self._rate(), self._total - self._done
            eta_s = left / rate if rate else None if left else 0.0
            return Progress(self._total, self._done, self._failed, rate, eta_s)

    def _sample(self, now_s: float) -> None:
        samples, new = self._samples, (now_s, self._done)
        if samples and samples[-1][1] == self._total:
            return  # all had ended by then
        if not samples or samples[0][1] == self._done:
            self._samples = deque([new])
            return
        if len(samples) > 1 and samples[-2][1] == samples[-1][1] == self._done:
            samples.pop()  # it stands still: a night of it is two samples
        samples.append(new)
        while len(samples) > 2 and _enough(samples[1], new):  # noqa: PLR2004 - first and last
            samples.popleft()

    def _rate(self) -> float:
        if not self._samples:
            return 0.0
        (began_s, before), (ended_s, after) = self._samples[0], self._samples[-1]
        return (after - before) / (ended_s - began_s) if ended_s > began_s else 0.0


def _enough(first: tuple[float, int], last: tuple[float, int]) -> bool:
    """Whether a rate reckoned from this sample on says enough."""
    return last[0] - first[0] >= _WINDOW_S and last[1] - first[1] >= _LEAST_ENDED

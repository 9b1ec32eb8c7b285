"""The figures of a soak: flatness, recovery after each kind of fault, and what came when."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.book import Book, recoveries
from benchmarks.faults import Injected
from benchmarks.procfs import Usage
from benchmarks.report import Figure, percentile, significant

__all__ = ["Sample", "answered_over_time", "flatness", "job_times", "over_time", "recovery_times"]

_KEPT = 120
"""Points of a series: what a picture shows."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A worker at one moment."""

    at_s: float
    parent: Usage
    models: Usage


_GAUGES: dict[str, Callable[[Sample], float]] = {
    "parent_rss_mib": lambda sample: sample.parent.rss_mib,
    "parent_fds": lambda sample: float(sample.parent.fds),
    "child_rss_mib": lambda sample: sample.models.rss_mib,
    "child_fds": lambda sample: float(sample.models.fds),
}


def flatness(samples: Sequence[Sample]) -> dict[str, Figure]:
    """Memory and files in the second quarter of the run and in its last, and the difference.

    The first quarter is left out: caches and allocators fill in it.
    """
    quarter = max(1, len(samples) // 4)
    early, late = samples[quarter : 2 * quarter] or samples[:1], samples[-quarter:]
    found: dict[str, Figure] = {}
    for name, pick in _GAUGES.items():
        before = Figure.of([pick(each) for each in early])
        after = Figure.of([pick(each) for each in late])
        found[f"{name}_early"], found[f"{name}_late"] = before, after
        growth = significant(after.median - before.median)
        found[f"{name}_growth"] = Figure(growth, growth, growth)
    return found


def over_time(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Every gauge over time, thinned out to what a picture shows."""
    kept = samples[:: max(1, len(samples) // _KEPT)]
    series = {name: [significant(pick(each)) for each in kept] for name, pick in _GAUGES.items()}
    return {"at_s": [significant(each.at_s) for each in kept]} | series


def answered_over_time(book: Book) -> dict[str, list[float]]:
    """Jobs answered a second, in stretches of equal length up to the last answer."""
    times = [at_s for at_s in book.answered_s if at_s < math.inf]
    if not times:
        return {"at_s": [], "per_s": []}
    width_s = max(times) / _KEPT or 1.0
    counted = Counter(min(_KEPT - 1, int(at_s / width_s)) for at_s in times)
    return {
        "at_s": [significant((number + 0.5) * width_s) for number in range(_KEPT)],
        "per_s": [significant(counted[number] / width_s) for number in range(_KEPT)],
    }


def job_times(book: Book) -> dict[str, float]:
    """Jobs answered a second, and from submit to answer as the harness saw it, ten times a second.

    Empty if nothing was answered.
    """
    pairs = zip(book.sent_s, book.answered_s, strict=True)
    waits_s = [answered_s - sent_s for sent_s, answered_s in pairs if answered_s < math.inf]
    if not waits_s:
        return {}
    last_s = max(at_s for at_s in book.answered_s if at_s < math.inf)
    return {
        "answered_per_s": len(waits_s) / last_s,
        "p50_s": percentile(waits_s, 0.5),
        "p99_s": percentile(waits_s, 0.99),
        "longest_s": max(waits_s),
    }


def recovery_times(done: Sequence[Injected], book: Book) -> dict[str, dict[str, Any]]:
    """By kind of fault: how often, and seconds until the jobs sent before it were answered.

    ``all`` and ``own`` are those of `benchmarks.book.Recovery`; ``never`` counts the faults of
    which a job is still open, left out of median and max.
    """
    taken = recoveries([each.at_s for each in done], book.sent_s, book.answered_s)
    found: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(each.fault for each in done):
        of_kind = [
            recovery for each, recovery in zip(done, taken, strict=True) if each.fault is kind
        ]
        found[kind.value] = {
            "count": len(of_kind),
            "all_s": _middle_and_most([each.all_s for each in of_kind]),
            "own_s": _middle_and_most([each.own_s for each in of_kind]),
        }
    return found


def _middle_and_most(values_s: Sequence[float]) -> dict[str, float | None]:
    ended = [value for value in values_s if value < math.inf]
    return {
        "median": significant(statistics.median(ended)) if ended else None,
        "max": significant(max(ended)) if ended else None,
        "never": len(values_s) - len(ended),
    }

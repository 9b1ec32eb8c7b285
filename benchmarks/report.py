"""What a benchmark prints: one JSON object on stdout; progress goes to stderr.

::

    {"benchmark": ..., "machine": {...}, "versions": {...}, "settings": {...},
     "results": {contender: {figure: {"median", "min", "max"}}}, "ratios": {"golem/celery": ...}}
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = [
    "Figure",
    "Report",
    "Round",
    "machine",
    "percentile",
    "progress",
    "publish",
    "ratio",
    "significant",
    "summarise",
    "versions",
]

Round = Mapping[str, float]
"""One round's figures of one contender, by name; the unit is in the name."""

_PACKAGES = ("golem-tasks", "celery", "kombu", "billiard", "redis", "celery-batches", "torch")
_DIGITS = 4  # two rounds of the same thing differ by far more than that

_begun_s = time.monotonic()


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure over all rounds."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """Summarise the rounds' values.

        Raises:
            ValueError: there is none.
        """
        if not values:
            raise ValueError("a figure needs at least one round")
        middle = statistics.median(values)
        return cls(significant(middle), significant(min(values)), significant(max(values)))


@dataclass(frozen=True, slots=True)
class Report:
    """The one JSON object."""

    benchmark: str
    settings: dict[str, Any]
    """What was asked for: counts, rounds, seeds; enough to run it again."""
    results: dict[str, dict[str, Any]]
    """By contender; a figure is median, min and max over the rounds."""
    ratios: dict[str, float]
    """Of medians within this run; ``a/b`` is a's figure over b's."""
    notes: dict[str, str] = field(default_factory=dict)
    """What a reader has to know, such as why a contender is missing."""

    def as_json(self) -> dict[str, Any]:
        """Return the object, with the machine and the versions it was measured on."""
        own = asdict(self)
        head = {"benchmark": own.pop("benchmark"), "machine": machine(), "versions": versions()}
        return head | own


def significant(value: float) -> float:
    """Round to four significant digits."""
    return float(f"{value:.{_DIGITS}g}")


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of the values don't exceed.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("a percentile needs at least one value")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]


def summarise(rounds: Sequence[Round]) -> dict[str, Figure]:
    """Summarise each figure over the rounds that have it, in the order they first appear."""
    names = dict.fromkeys(name for each in rounds for name in each)
    return {name: Figure.of([each[name] for each in rounds if name in each]) for name in names}


def ratio(over: Figure | None, under: Figure | None) -> float | None:
    """The ratio of two medians; None where one is missing or there is nothing to divide by."""
    if over is None or under is None or not under.median:
        return None
    return significant(over.median / under.median)


def machine() -> dict[str, Any]:
    """The hardware and how busy it is; nothing that names the machine or its user."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory_gib": round(memory_bytes / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load_1min": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """What is installed of the packages that matter."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def progress(text: str) -> None:
    """Tell the person at the terminal, on stderr, with the seconds since the start."""
    sys.stderr.write(f"[{time.monotonic() - _begun_s:7.1f} s] {text}\n")
    sys.stderr.flush()


def publish(report: Report, arguments: argparse.Namespace) -> None:
    """Print the JSON object; draw the picture if one was asked for."""
    content = report.as_json()
    sys.stdout.write(json.dumps(content, indent=2) + "\n")
    sys.stdout.flush()
    if arguments.plot is not None:
        from benchmarks.plots import draw  # noqa: PLC0415 - matplotlib is an extra

        draw(content, Path(arguments.plot))
        progress(f"drew {arguments.plot}")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()

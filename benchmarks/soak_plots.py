"""The pictures of a soak."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.plot_style import COLOURS, Results, legend

__all__ = ["SOAK"]

_S_PER_MIN = 60
_LINES = {"parent": "-", "child": "--"}


def _gauge(gauge: str, unit: str) -> Callable[[Any, Results], None]:
    def panel(axis: Any, results: Results) -> None:
        for name, figures in results.items():
            series = figures["over_time"]
            minutes = [at_s / _S_PER_MIN for at_s in series["at_s"]]
            for part, style in _LINES.items():
                axis.plot(
                    minutes, series[f"{part}_{gauge}"], style, color=COLOURS[name],
                    label=f"{name} {part}",
                )  # fmt: skip
        axis.set_ylim(bottom=0)
        axis.set_xlabel("minutes")
        axis.set_ylabel(unit)
        axis.set_title(f"{unit} during the soak")
        legend(axis)

    return panel


def _answered(axis: Any, results: Results) -> None:
    """Jobs answered a second; a tick below for each fault."""
    for name, figures in results.items():
        minutes = [at_s / _S_PER_MIN for at_s in figures["answered"]["at_s"]]
        axis.plot(minutes, figures["answered"]["per_s"], color=COLOURS[name], label=name)
    for figures in results.values():
        for at_s, *_ in figures["faults"]:
            axis.axvline(at_s / _S_PER_MIN, ymax=0.03, color="#dc2626", linewidth=1)
        break  # the others had the same faults
    axis.set_ylim(bottom=0)
    axis.set_xlabel("minutes; a red tick is a fault")
    axis.set_ylabel("jobs/s")
    axis.set_title("Jobs answered a second")
    legend(axis)


def _recovery(axis: Any, results: Results) -> None:
    """Bars to the median, whiskers to the longest."""
    kinds = sorted({kind for figures in results.values() for kind in figures["recovery"]})
    width = 0.8 / len(results)
    for number, (name, figures) in enumerate(results.items()):
        found = [figures["recovery"].get(kind, {}).get("own_s") or {} for kind in kinds]
        middle = [each.get("median") or 0.0 for each in found]
        most = [each.get("max") or 0.0 for each in found]
        above = [longest - median for longest, median in zip(most, middle, strict=True)]
        at = [
            position + (number - (len(results) - 1) / 2) * width for position in range(len(kinds))
        ]
        axis.barh(
            at, middle, 0.9 * width, xerr=[[0.0] * len(at), above], capsize=3,
            color=COLOURS[name], label=name,
        )  # fmt: skip
    axis.set_yticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds])
    axis.grid(axis="x")
    axis.set_xlabel("s until jobs sent since the last fault are answered; whisker: longest")
    axis.set_title("Recovery")
    legend(axis)


SOAK: tuple[Callable[[Any, Results], None], ...] = (
    _answered,
    _recovery,
    _gauge("rss_mib", "RSS, MiB"),
    _gauge("fds", "Open files"),
)
"""The panels, from left to right."""

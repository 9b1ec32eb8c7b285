"""A picture of a benchmark's JSON object, by matplotlib (``pip install "golem-tasks[bench]"``).

Bars and points are medians over the rounds, whiskers reach from the least to the most.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import engine_plot
from benchmarks.plot_style import COLOURS, Results, legend
from benchmarks.soak_plots import SOAK
from golem_tasks.errors import ConfigurationError

__all__ = ["draw"]

_INK = "#1f2937"
_PARTS = ("queued", "forward", "rest")
_PART_COLOURS = ("#94a3b8", "#0f766e", "#fbbf24")


def draw(content: dict[str, Any], file: Path) -> None:
    """Draw the JSON object of a benchmark into a PNG (or whatever the file's suffix says).

    Raises:
        ConfigurationError: matplotlib isn't installed, or there is no picture of this benchmark.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an extra
    except ImportError:
        text = "A picture needs matplotlib: pip install 'golem-tasks[bench]', or leave --plot away."
        raise ConfigurationError(text) from None
    mpl.use("agg")
    mpl.rcParams.update(_STYLE)
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the backend is chosen

    panels = _PANELS.get(content["benchmark"])
    if panels is None:
        raise ConfigurationError(f"There is no picture of benchmark {content['benchmark']!r}.")
    figure, axes = plt.subplots(1, len(panels), figsize=(5.4 * len(panels), 4.4), squeeze=False)
    for panel, axis in zip(panels, axes[0], strict=True):
        panel(axis, content["results"])
    machine, versions = content["machine"], content["versions"]
    figure.suptitle(f"Golem benchmark: {content['benchmark']}", x=0.01, ha="left", weight="bold")
    figure.text(
        0.01,
        0.01,
        f"{machine['cpu']}, {machine['cores']} cores shared with the server; "
        f"celery {versions.get('celery', '?')}, kombu {versions.get('kombu', '?')}",
        fontsize=8,
        color="#6b7280",
    )
    figure.tight_layout(rect=(0, 0.03, 1, 0.97))
    figure.savefig(file, dpi=150)
    plt.close(figure)


_STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9ca3af",
    "axes.labelcolor": _INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "font.size": 9.5,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
}


def _median(figure: dict[str, float] | None) -> float:
    return 0.0 if figure is None else figure["median"]


def _whiskers(figures: Sequence[dict[str, float]]) -> list[list[float]]:
    """Distances of least and most from the median, as matplotlib takes them."""
    below = [figure["median"] - figure["min"] for figure in figures]
    above = [figure["max"] - figure["median"] for figure in figures]
    return [below, above]


def _bars(axis: Any, labels: Sequence[str], figures: Sequence[dict[str, float]], unit: str) -> None:
    colours = [COLOURS.get(label.split()[0], "#475569") for label in labels]
    values = [_median(figure) for figure in figures]
    positions = range(len(labels))
    axis.bar(positions, values, yerr=_whiskers(figures), color=colours, capsize=4, width=0.62)
    for position, figure in zip(positions, figures, strict=True):
        value = figure["median"]
        axis.annotate(
            f"{value:,.0f}" if value >= 10 else f"{value:.3g}",  # noqa: PLR2004 - for the eye
            (position, figure["max"]), xytext=(0, 6), textcoords="offset points", ha="center",
            weight="bold",
        )  # fmt: skip
    axis.set_xticks(list(positions), [label.replace(" ", "\n", 1) for label in labels])
    axis.set_ylabel(unit)
    axis.margins(y=0.15)


def _plumbing_rate(axis: Any, results: Results) -> None:
    names = [name for name in COLOURS if name in results]
    _bars(axis, names, [results[name]["jobs_per_s"] for name in names], "jobs/s")
    axis.set_title("Single-text jobs, model that costs nothing")


def _plumbing_texts(axis: Any, results: Results) -> None:
    figures = {"golem single": results["golem"]["jobs_per_s"]} | {
        f"{name} messages": results[name]["texts_per_s_in_messages"]
        for name in ("golem", "celery")
        if name in results
    }
    _bars(axis, list(figures), list(figures.values()), "texts/s")
    axis.set_title("Texts in classify_many messages")


def _plumbing_cpu(axis: Any, results: Results) -> None:
    names = [name for name in COLOURS if name in results]
    bottom = [0.0] * len(names)
    for part, colour in zip(("parent", "child", "redis"), _PART_COLOURS, strict=True):
        values = [_median(results[name][f"{part}_cpu_ms_per_job"]) for name in names]
        axis.bar(names, values, bottom=bottom, label=part, color=colour, width=0.62)
        bottom = [low + value for low, value in zip(bottom, values, strict=True)]
    axis.set_ylabel("CPU ms per job")
    axis.set_title("Where the CPU goes")
    legend(axis)


def _numbered(results: Results, pattern: str) -> list[tuple[int, dict[str, Any]]]:
    found = [
        (int(match[1]), figures)
        for name, figures in results.items()
        if (match := re.fullmatch(pattern, name))
    ]
    return sorted(found, key=lambda pair: pair[0])


def _line(axis: Any, points: Sequence[tuple[float, dict[str, float]]], **look: Any) -> None:
    if not points:
        return
    figures = [figure for _, figure in points]
    axis.errorbar(
        [x for x, _ in points],
        [figure["median"] for figure in figures],
        yerr=_whiskers(figures),
        marker="o",
        capsize=3,
        **look,
    )


def _growth_cost(axis: Any, results: Results) -> None:
    for name in ("golem", "celery"):
        points = _numbered(results, rf"{name} (\d+) jobs")
        costs = [(jobs, each["cpu_ms_per_job"]) for jobs, each in points]
        _line(axis, costs, color=COLOURS[name], label=name)
    axis.set_xscale("log")
    axis.set_ylim(bottom=0)
    axis.set_xlabel("jobs waiting")
    axis.set_ylabel("CPU ms per job, parent and child")
    axis.set_title("Cost per job as the backlog grows")
    legend(axis)


def _growth_memory(axis: Any, results: Results) -> None:
    points = _numbered(results, r"golem (\d+) jobs")
    for name in ("parent", "child"):
        peaks = [(jobs, each[f"{name}_peak_rss_mib"]) for jobs, each in points]
        _line(axis, peaks, label=name, color=_PART_COLOURS[name == "parent"])
    axis.set_xscale("log")
    axis.set_ylim(bottom=0)
    axis.set_xlabel("jobs waiting")
    axis.set_ylabel("peak RSS, MiB")
    axis.set_title("Memory as the backlog grows")
    legend(axis)


def _growth_workers(axis: Any, results: Results) -> None:
    found = (re.search(r"b=\S+ us", name) for name in results)
    for gpu in dict.fromkeys(match[0] for match in found if match):
        points = _numbered(results, rf"golem (\d+) workers, {re.escape(gpu)}")
        _line(axis, [(count, each["efficiency"]) for count, each in points], label=gpu)
    axis.axhline(1.0, color="#9ca3af", linestyle="--", linewidth=1)
    axis.set_ylim(0, 1.15)
    axis.set_xlabel("workers on simulated GPUs, sharing the machine's cores")
    axis.set_ylabel("share of linear speed")
    axis.set_title("Speed as workers are added")
    legend(axis)


_CAPACITIES = ("golem capacity", "celery capacity")


def _latency_pairs(axis: Any, results: Results) -> None:
    """The same jobs at the same rate: bars to the median, whiskers to the 99th percentile."""
    rates = ("20 %", "50 %", "80 %")
    labels = ["one at\na time", *(f"{rate} of\nCelery's\ncapacity" for rate in rates)]
    names = {
        "golem": ["one at a time", *(f"at {rate} of celery's capacity" for rate in rates)],
        "celery": ["one at a time", *(f"at {rate} of its capacity" for rate in rates)],
    }
    for number, (contender, rows) in enumerate(names.items()):
        at = [position + (number - 0.5) * 0.38 for position in range(len(rows))]
        found = [results[f"{contender} {row}"] for row in rows]
        middle = [_median(each["p50_ms"]) for each in found]
        above = [_median(each["p99_ms"]) - p50 for each, p50 in zip(found, middle, strict=True)]
        axis.bar(
            at, middle, 0.36, yerr=[[0.0] * len(at), above], capsize=3,
            color=COLOURS[contender], label=contender,
        )  # fmt: skip
        for x, p50 in zip(at, middle, strict=True):
            axis.annotate(
                f"{p50:.3g}", (x, p50), xytext=(0, -11), textcoords="offset points",
                ha="center", color="white", fontsize=8,
            )  # fmt: skip
    axis.set_yscale("log")
    axis.set_ylim(bottom=0.4 * axis.get_ylim()[0])
    axis.set_xticks(range(len(labels)), labels)
    axis.set_ylabel("ms from submit to answer")
    axis.set_title("At the same rate: median, whisker to p99")
    legend(axis)


def _latency_own(axis: Any, results: Results) -> None:
    """Golem at shares of its own, larger capacity."""
    loads = (20, 50, 80)
    for share, style in (("p50", "-"), ("p95", "--"), ("p99", ":")):
        figures = [results[f"golem at {load} % of its capacity"][f"{share}_ms"] for load in loads]
        points = list(zip(loads, figures, strict=True))
        _line(axis, points, color=COLOURS["golem"], linestyle=style, label=share)
    rate = _median(results["golem capacity"]["jobs_per_s"])
    axis.set_ylim(bottom=0)
    axis.set_xlabel(f"load, % of golem's capacity ({rate:,.0f} jobs/s)")
    axis.set_ylabel("ms from submit to answer")
    axis.set_title("Golem as it fills up")
    legend(axis)


def _latency_parts(axis: Any, results: Results) -> None:
    names = [name for name in results if name not in _CAPACITIES]
    left = [0.0] * len(names)
    for part, colour in zip(_PARTS, _PART_COLOURS, strict=True):
        values = [_median(results[name][f"{part}_p50_ms"]) for name in names]
        axis.barh(names, values, left=left, label=part, color=colour)
        left = [low + value for low, value in zip(left, values, strict=True)]
    axis.invert_yaxis()
    axis.grid(axis="x")
    axis.set_xlabel("ms, median of each part")
    axis.set_title("Where the time goes")
    legend(axis)


def _resets_ledger(axis: Any, results: Results) -> None:
    kinds = ("lost", "stranded", "wrong", "failed", "duplicates")
    width = 0.38
    for number, name in enumerate(results):
        figures = [results[name][kind] for kind in kinds]
        at = [position + (number - 0.5) * width for position in range(len(kinds))]
        values = [_median(figure) for figure in figures]
        axis.bar(at, values, width, yerr=_whiskers(figures), color=COLOURS[name], label=name)
        for x, figure in zip(at, figures, strict=True):
            axis.annotate(
                f"{figure['median']:g}",
                (x, figure["max"]),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
            )
    axis.set_xticks(range(len(kinds)), kinds)
    axis.set_ylabel("jobs")
    axis.set_title("Jobs after the resets")
    axis.margins(y=0.15)
    legend(axis)


_PANELS: dict[str, tuple[Callable[[Any, Results], None], ...]] = {
    "plumbing": (_plumbing_rate, _plumbing_texts, _plumbing_cpu),
    "growth": (_growth_cost, _growth_memory, _growth_workers),
    "engine": engine_plot.panels,
    "latency": (_latency_pairs, _latency_own, _latency_parts),
    "resets": (_resets_ledger,),
    "soak": SOAK,
}

"""The picture of `benchmarks.engine`: texts per second as a share of the length-sorted loop's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["panels"]

_BARS = {
    "end_to_end": ("through Redis, default", "#0f766e"),
    "limit_processes": ("length-sorted loop in processes", "#1f2937"),
    "default": ("without a queue, default", "#5eead4"),
    "float32": ("one process, float32", "#99f6e4"),
    "padded": ("padded loop, default dtype", "#fbbf24"),
    "pipeline_best": ("pipeline, its best batch size", "#d97706"),
    "pipeline_64": ("pipeline, batches of 64", "#64748b"),
}
_WIDTH = 0.8 / len(_BARS)


def _panel(model: str) -> Callable[[Any, dict[str, dict[str, Any]]], None]:
    def panel(axis: Any, results: dict[str, dict[str, Any]]) -> None:
        limits = {
            key.removeprefix(f"limit {model} "): figures["texts_per_s"]["median"]
            for key, figures in results.items()
            if key.startswith(f"limit {model} ")
        }
        for number, (contender, (label, colour)) in enumerate(_BARS.items()):
            if not results.keys() >= {f"{contender} {model} {name}" for name in limits}:
                continue  # it wasn't asked for
            shares = [
                results[f"{contender} {model} {name}"]["texts_per_s"]["median"] / limit
                for name, limit in limits.items()
            ]
            positions = [place + number * _WIDTH for place in range(len(limits))]
            axis.bar(positions, shares, width=_WIDTH, label=label, color=colour, align="edge")
        axis.axhline(1.0, color="#1f2937", linewidth=1)
        ticks = [f"{name}\n{limit:,.0f} texts/s" for name, limit in limits.items()]
        axis.set_xticks([place + 0.4 for place in range(len(limits))], ticks)
        axis.set_ylabel("share of the length-sorted loop")
        axis.set_title(f"{model}: texts/s against the limit")
        if limits:
            axis.legend(fontsize=8)

    return panel


panels = (_panel("base"), _panel("mini"))

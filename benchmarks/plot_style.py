"""What all pictures share."""

from __future__ import annotations

from typing import Any

__all__ = ["COLOURS", "Results", "legend"]

COLOURS = {"golem": "#0f766e", "celery": "#d97706", "celery-batches": "#64748b"}

Results = dict[str, dict[str, Any]]
"""The results of a report, by contender or by contender and case."""


def legend(axis: Any) -> None:
    """Explain the colours, where there is something to explain."""
    if axis.get_legend_handles_labels()[0]:  # a run may have left a panel empty
        axis.legend()

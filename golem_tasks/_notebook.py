"""How an answer looks in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from itertools import islice

__all__ = ["prediction_html"]

_MOST_ROWS = 20

_ROW = (
    '<tr><td style="text-align:left;font-weight:{weight}">{label}</td>'
    '<td style="width:12em">{bar}</td><td style="text-align:right">{score}</td></tr>'
)
# The text's own colour, so that it shows on light and on dark.
_BAR = '<div style="width:{percent:.1f}%;height:0.8em;background:currentColor;opacity:0.6"></div>'


def prediction_html(label: str, scores: Mapping[str, float], model: str) -> str:
    """Return a table with a bar for each label, at most 20 of them, the answer's in bold.

    Args:
        label: the answer.
        scores: label to probability, 0 to 1, highest first; a raw value beyond that has no bar.
        model: name of the model.
    """
    rows = [
        _row(name, score, bold=name == label) for name, score in islice(scores.items(), _MOST_ROWS)
    ]
    more = len(scores) - len(rows)
    caption = escape(model) + (f", {more} labels more" if more > 0 else "")
    return f"<table><caption>{caption}</caption><tbody>{''.join(rows)}</tbody></table>"


def _row(label: str, score: float, *, bold: bool) -> str:
    share = 0.0 <= score <= 1.0
    return _ROW.format(
        weight="bold" if bold else "normal",
        label=escape(label),
        bar=_BAR.format(percent=100 * score) if share else "",
        score=f"{100 * score:.1f} %" if share else f"{score:.4g}",
    )

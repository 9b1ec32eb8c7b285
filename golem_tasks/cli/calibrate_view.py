"""What ``golem calibrate`` shows: figures, bars and the reliability diagram."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from golem_tasks.errors import ConfigurationError

if TYPE_CHECKING:
    from worker.calibration import Bin
    from worker.fitting import Fitted

__all__ = ["draw", "require_picture", "require_place", "show"]

_BAR_CHARS = 16


def require_place(file: Path) -> None:
    """Make sure that a file can be written, without making it.

    Raises:
        ConfigurationError: its folder isn't there, or it can't be written.
    """
    if not file.parent.is_dir():
        raise ConfigurationError(
            f"{file} can't be written: there is no folder {file.parent}; make it, or name another."
        )
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        reason = "it is a folder" if file.is_dir() else "this user may not write there"
        raise ConfigurationError(f"{file} can't be written: {reason}; name another place.")


def show(fitted: Fitted, target: Path, console: Console) -> None:
    """Print what was found."""
    table = Table("", "before", "after", box=SIMPLE_HEAD)
    rows = (
        ("log-likelihood, negative", "nll"),
        ("calibration error", "ece"),
        ("accuracy", "accuracy"),
    )
    for title, name in rows:
        table.add_row(title, *(f"{getattr(q, name):.4f}" for q in (fitted.before, fitted.after)))
    console.print(table)
    bins = Table("score", "texts", "right, before", "right, after", box=SIMPLE_HEAD)
    for before, after in zip(fitted.bins_before, fitted.bins_after, strict=True):
        if before.count or after.count:
            counts = f"{before.count} / {after.count}"
            bins.add_row(f"{before.low:.1f}-{before.high:.1f}", counts, _bar(before), _bar(after))
    console.print(bins)
    found = fitted.calibration
    console.print(
        f"temperature {found.temperature:.4f}, fitted on {found.texts} texts, judged on "
        f"{fitted.judged_on} others; kept in {target}"
    )


def _bar(each: Bin) -> str:
    """The share that is right, and a mark where it should end: at the mean score."""
    if not each.count:
        return ""
    marks = ["█" if place < each.accuracy * _BAR_CHARS else " " for place in range(_BAR_CHARS)]
    marks[min(_BAR_CHARS - 1, int(each.score * _BAR_CHARS))] = "│"
    return f"{''.join(marks)} {each.accuracy:.2f}"


def require_picture(file: Path) -> None:
    """Make sure that `draw` can draw, and write its picture.

    Raises:
        ConfigurationError: matplotlib isn't installed, or doesn't know the ending, or the file
            can't be written.
    """
    try:
        mpl = importlib.import_module("matplotlib")
    except ImportError:
        raise ConfigurationError(
            "A picture needs matplotlib: pip install 'golem-tasks[bench]', or leave --plot away."
        ) from None
    mpl.use("agg")
    backends = importlib.import_module("matplotlib.backend_bases")
    known = backends.FigureCanvasBase.get_supported_filetypes()
    if file.suffix[1:].lower() not in known:
        raise ConfigurationError(
            f"{file} can't be drawn: its ending isn't one of a picture's; name it .png or .svg."
        )
    require_place(file)


def draw(fitted: Fitted, file: Path) -> None:
    """Draw the reliability diagram, before and after; see `require_picture`."""
    plt = importlib.import_module("matplotlib.pyplot")
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.4), sharey=True)
    panels: Any = zip(
        axes,
        ("before", "after"),
        (fitted.bins_before, fitted.bins_after),
        (fitted.before, fitted.after),
        strict=True,
    )
    for axis, name, bins, judged in panels:
        full = [each for each in bins if each.count]
        axis.bar(
            [each.low for each in full], [each.accuracy for each in full],
            width=1 / len(bins), align="edge", color="#0f766e", edgecolor="white", label="right",
        )  # fmt: skip
        scores = [each.score for each in full]
        axis.plot(scores, scores, "o--", color="#d97706", label="score")
        axis.set(title=f"{name}: ECE {judged.ece:.3f}", xlabel="score", ylabel="share", xlim=(0, 1))
        axis.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=150)
    plt.close(figure)

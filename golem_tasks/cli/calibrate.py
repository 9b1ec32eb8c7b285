"""``golem calibrate``: scores that mean what they say. The model runs here, without Redis."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from golem_tasks.cli.common import (
    Command,
    json_option,
    note,
    print_json,
    require_model_side,
    stderr,
    stdout,
)
from golem_tasks.contract import Limits
from golem_tasks.errors import ConfigurationError
from golem_tasks.settings import load
from golem_tasks.textfiles import open_texts

if TYPE_CHECKING:
    from worker.calibration import Bin
    from worker.fitting import Fitted

__all__ = ["command", "label_indexes", "read_labelled"]

_BAR_CHARS = 16


@click.command(
    "calibrate",
    cls=Command,
    examples="""
golem calibrate --file dev.csv
golem calibrate --file dev.tsv --column sentence --label-column label --model ./my-model
golem calibrate --file dev.jsonl --out calibration.json --plot reliability.png
""",
)
@click.option(
    "--file", "file", required=True, metavar="FILE", type=click.Path(path_type=Path),
    help="Labelled texts the model wasn't trained on: CSV, JSONL or Parquet.",
)  # fmt: skip
@click.option("--column", metavar="NAME", help="Field of the text; text if unset.")
@click.option("--label-column", metavar="NAME", default="label", show_default=True)
@click.option("--model", metavar="MODEL", help="Hub id, folder or golem-mini. [GOLEM_MODEL]")
@click.option("--model-revision", metavar="REV", help="Branch, tag or commit of a hub model.")
@click.option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps. [GOLEM_DEVICE]")
@click.option("--dtype", metavar="DTYPE", help="auto, float32, bfloat16 ... [GOLEM_DTYPE]")
@click.option(
    "--out", metavar="FILE", type=click.Path(path_type=Path),
    help="Where the calibration goes; unset: into the model's folder.",
)  # fmt: skip
@click.option(
    "--plot", metavar="FILE.png", type=click.Path(path_type=Path),
    help="Draw the reliability diagram, too; needs matplotlib.",
)  # fmt: skip
@json_option("Print the result as one JSON object.")
def command(
    *,
    file: Path,
    column: str | None,
    label_column: str,
    out: Path | None,
    plot: Path | None,
    as_json: bool,
    **dials: str | None,
) -> None:
    """Fit the temperature that makes a model's scores mean what they say.

    Half of the labelled texts, drawn at random, fit it; the other half tells the expected
    calibration error before and after. A worker that finds the file in its model's folder, or by
    GOLEM_CALIBRATION, divides logits by the temperature; labels stay what they were, and every
    prediction says so in its model's temperature.
    """
    require_model_side()
    from worker.settings import WorkerSettings  # noqa: PLC0415 - the worker's, only needed here

    settings = load(WorkerSettings, **dials)
    texts, names = read_labelled(file, column, label_column, settings.limits)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in a worker's processes
    with stderr().status(f"Loading {settings.model} ..."):
        from worker import calibration, fitting, whitebox  # noqa: PLC0415 - loads torch: seconds

        loaded = whitebox.open_model(settings).engine
    target = out or _beside(Path(loaded.source.location), is_folder=loaded.source.is_folder)
    truth = label_indexes(names, loaded.info.labels)
    with Progress(console=stderr(), transient=True) as bar:
        task = bar.add_task("Classifying", total=len(texts))
        fitted = fitting.fit(loaded, texts, truth, progress=lambda n: bar.advance(task, n))
    fitted.calibration.save(target / calibration.FILE_NAME if target.is_dir() else target)
    if plot is not None:
        _draw(fitted, plot)
    if as_json:
        print_json({**dataclasses.asdict(fitted), "file": str(target)})
    else:
        _show(fitted, target, stdout())


def read_labelled(
    file: Path, column: str | None, label_column: str, limits: Limits
) -> tuple[list[str], list[str]]:
    """The texts a worker would take, and their labels as they are written.

    Raises:
        ConfigurationError: the file can't be read, or has no such column.
    """
    texts, labels, refused = [], [], 0
    with (
        open_texts(file, column=column, limits=limits) as sentences,
        open_texts(file, column=label_column) as marks,
    ):
        for text, label in zip(sentences.lines, marks.lines, strict=True):
            if text.error is None:
                texts.append(text.text)
                labels.append(label.text.strip())  # a JSON number has an error and is a label
            else:
                refused += 1
    if refused:
        note(f"{refused} lines of {file} hold no text a worker takes, and are left out.")
    return texts, labels


def label_indexes(names: Sequence[str], labels: Sequence[str]) -> list[int]:
    """Each label's index in the model, given by name, in any case, or by the index itself.

    Raises:
        ConfigurationError: one is neither.
    """
    known = {str(index): index for index in range(len(labels))}
    known |= {label.casefold(): index for index, label in enumerate(labels)}
    known |= {label: index for index, label in enumerate(labels)}
    found = [known.get(name, known.get(name.casefold(), -1)) for name in names]
    if -1 in found:
        raise ConfigurationError(
            f"Label {names[found.index(-1)]!r} isn't one of the model's ({', '.join(labels)}, or 0 "
            f"to {len(labels) - 1}): name the right column with --label-column, or rename it."
        )
    return found


def _beside(folder: Path, *, is_folder: bool) -> Path:
    if not is_folder:
        raise ConfigurationError(
            "A hub model has no folder of its own to keep the calibration in: name a file with "
            "--out, and set GOLEM_CALIBRATION to it."
        )
    return folder


def _show(fitted: Fitted, target: Path, console: Console) -> None:
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


def _draw(fitted: Fitted, file: Path) -> None:
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigurationError(
            "A picture needs matplotlib: pip install 'golem-tasks[bench]', or leave --plot away."
        ) from None
    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the backend is chosen

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

"""``golem calibrate``: scores that mean what they say. The model runs here, without Redis."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.progress import Progress

from golem_tasks.cli import calibrate_view
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
    from worker.source import Source

__all__ = ["command", "label_indexes", "read_labelled"]

_WHOLE_FLOAT = re.compile(r"(\d+)\.0*")
"""An index as a column of floats writes it."""


@click.command(
    "calibrate",
    cls=Command,
    examples="""
golem calibrate --file dev.csv --model ./my-model
golem calibrate --file dev.tsv --column sentence --label-column sentiment --out temperature.json
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
    help="Where the calibration goes; unset: into the model's own folder, if it has one.",
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
    from worker.machine import set_environment  # noqa: PLC0415 - the worker's, only needed here

    set_environment()  # before torch is loaded
    # Whatever can't be had is told before the texts are classified, which may take hours.
    if plot is not None:
        calibrate_view.require_picture(plot)
    with stderr().status(f"Loading {settings.model} ..."):
        from worker import engine, fitting, source  # noqa: PLC0415 - loads torch

        target = _target(out, source.find_source(settings))
        # An old calibration needn't fit, nor the file exist that GOLEM_CALIBRATION may name. Not
        # compiled: for one pass over the texts that doesn't pay. All cores are this process's,
        # however many would share them in a worker.
        plain = settings.model_copy(update={"compile": False, "processes": 1})
        loaded = engine.build(plain, 0, calibrated=False)
    fitting.require_softmax(loaded.info)
    truth = label_indexes(names, loaded.info.labels)
    with Progress(console=stderr(), transient=True) as bar:
        task = bar.add_task("Classifying", total=len(texts))
        fitted = fitting.fit(loaded, texts, truth, progress=lambda n: bar.advance(task, n))
    fitted.calibration.save(target)
    if plot is not None:
        calibrate_view.draw(fitted, plot)
    if fitted.remark is not None:
        note(fitted.remark)
    if as_json:
        print_json({**dataclasses.asdict(fitted), "file": str(target)})
    else:
        calibrate_view.show(fitted, target, stdout())


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
    """Each label's index in the model, given by name, in any case, or by the index, 1 or 1.0.

    Raises:
        ConfigurationError: one is neither.
    """
    known = {str(index): index for index in range(len(labels))}
    known |= {label.casefold(): index for index, label in enumerate(labels)}
    known |= {label: index for index, label in enumerate(labels)}
    found = [next((known[form] for form in _forms(name) if form in known), -1) for name in names]
    if -1 in found:
        raise ConfigurationError(
            f"Label {names[found.index(-1)]!r} isn't one of the model's ({', '.join(labels)}, or 0 "
            f"to {len(labels) - 1}): name the right column with --label-column, or rename it."
        )
    return found


def _forms(label: str) -> tuple[str, ...]:
    """A label as it is written, and as it may be meant."""
    return label, label.casefold(), _WHOLE_FLOAT.sub(r"\1", label)


def _target(out: Path | None, source: Source) -> Path:
    """The file the calibration goes to.

    Raises:
        ConfigurationError: none may be written there.
    """
    from worker.calibration import FILE_NAME  # noqa: PLC0415 - the worker's
    from worker.source import EMBEDDED_FOLDER  # noqa: PLC0415 - the worker's

    if out is None:
        out = Path(source.location)
        if not source.is_folder:
            reason = f"{source.name} is a hub model, without a folder of its own"
        elif out.resolve() == EMBEDDED_FOLDER.resolve():
            reason = f"{source.name} lies in the installed package, for every worker that uses it"
        else:
            reason = None
        if reason is not None:
            raise ConfigurationError(
                f"{reason}: name a file for the calibration with --out, and set GOLEM_CALIBRATION "
                "to it."
            )
    file = out / FILE_NAME if out.is_dir() else out
    calibrate_view.require_place(file)
    return file

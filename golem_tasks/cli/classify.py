"""``golem classify``: texts from the command line, a pipe or a file of any length."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from golem_tasks.cli.common import (
    Command,
    client_settings,
    json_option,
    leaving_on_signals,
    queue_options,
)
from golem_tasks.contract import OnLong
from golem_tasks.settings import ClientSettings
from golem_tasks.textfiles import Format, TextSource, checked, open_texts

__all__ = ["command"]

_TEXT_PATIENCE_S = 60.0
_FILE_PATIENCE_S = 600.0
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the command line asks for."""

    texts: tuple[str, ...]
    file: Path | None
    kind: Format | None
    column: str | None
    out: Path | None
    as_json: bool
    timeout_s: float | None
    window_texts: int
    top_k: int | None
    logits: bool
    on_long: OnLong

    @property
    def from_stream(self) -> bool:
        """Whether the texts come from standard input."""
        return self.file is None and self.texts in ((), ("-",))

    @property
    def is_bulk(self) -> bool:
        """Whether it may be long: it then travels on the bulk lane, many texts to a message."""
        return self.file is not None or self.from_stream

    @property
    def patience_s(self) -> float:
        """Seconds without an answer after which to give up."""
        return self.timeout_s or (_FILE_PATIENCE_S if self.is_bulk else _TEXT_PATIENCE_S)


@click.command(
    "classify",
    cls=Command,
    examples="""
golem classify "I love this" "What a waste of two hours"
golem classify --file reviews.csv --column review --out answers.jsonl
zcat comments.txt.gz | golem classify --json | jq .label
""",
)
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option(
    "--file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Texts from a .txt, .csv, .tsv, .jsonl (each also .gz, .bz2, .xz) or .parquet file; "
    "- is standard input.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice([each.value for each in Format]),
    help="What FILE is, where its ending doesn't tell; standard input is txt.",
)
@click.option("--column", metavar="NAME", help="Field with the text. [the only one, else text]")
@click.option(
    "--out",
    metavar="FILE.jsonl",
    type=click.Path(path_type=Path),
    help="Where the answers go, in the order of the input. If it is there already, the run goes "
    "on where it stopped.",
)
@json_option("Print JSON: a line for each text, or with --out the summary.")
@click.option("--top-k", metavar="N", type=click.IntRange(min=1), help="Only the N best scores.")
@click.option("--logits", is_flag=True, help="The raw logits too (in JSON).")
@click.option(
    "--on-long",
    type=click.Choice(["truncate", "error", "window"]),
    default="truncate",
    show_default=True,
    help="A text longer than the model takes: cut it, fail it, or average windows over it.",
)
@queue_options
@click.option(
    "--timeout",
    "timeout_s",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    help=f"Give up after so long without any answer. [{_TEXT_PATIENCE_S:g}; for a file "
    f"{_FILE_PATIENCE_S:g}]",
)
@click.option(
    "--window",
    "window_texts",
    metavar="N",
    type=click.IntRange(min=1),
    default=2_000,
    show_default=True,
    help="Texts of a file that are under way at any time.",
)
def command(
    *, broker_url: str | None, result_backend: str | None, queue: str | None, **given: Any
) -> None:
    """Classify texts, or a whole file of them, through the queue.

    A line that can't be answered (empty, too long, not UTF-8) fails alone: its line of the output
    says why, FILE.failed.jsonl collects them, and the exit code is 1. However a run with --out
    ends, the same command again goes on from there.
    """
    asked = _asked(given)
    settings = client_settings(broker_url, result_backend, queue)
    with leaving_on_signals(), _source(asked, settings) as source:
        _run(asked, settings, source)


def _asked(given: dict[str, Any]) -> _Asked:
    """Check what the options ask for together."""
    kind = given.pop("kind")
    if given["file"] == Path("-"):
        given["file"], given["texts"] = None, (*given["texts"], "-")
    asked = _Asked(**given, kind=Format(kind) if kind else None)
    if asked.file is not None and asked.texts:
        raise click.UsageError("Give either texts or --file, not both.")
    if asked.from_stream and not asked.texts and sys.stdin.isatty():
        raise click.UsageError("There is no text: give some, or --file FILE, or pipe them in.")
    if asked.out is not None and asked.out.suffix.lower() in _COMPRESSED:
        raise click.UsageError("--out isn't compressed, since it is gone on with: name a .jsonl.")
    return asked


@contextmanager
def _source(asked: _Asked, settings: ClientSettings) -> Iterator[TextSource]:
    if asked.is_bulk:
        path = sys.stdin.buffer if asked.file is None else asked.file
        with open_texts(
            path, kind=asked.kind, column=asked.column, limits=settings.limits
        ) as source:
            yield source
    else:
        lines = checked(asked.texts, settings.limits)
        yield TextSource("the command line", lines, None)


def _run(asked: _Asked, settings: ClientSettings, source: TextSource) -> None:
    # Imported here: they load Celery, which --help needn't.
    from golem_tasks.cli.bulk import Bulk  # noqa: PLC0415 - see above
    from golem_tasks.cli.outfile import OutFile  # noqa: PLC0415 - see above
    from golem_tasks.cli.report import FileReport, Report, TextReport  # noqa: PLC0415 - see above
    from golem_tasks.client import Golem, SubmitOptions  # noqa: PLC0415 - see above

    with ExitStack() as stack:
        report: Report
        if asked.out is None:
            report = TextReport(as_json=asked.as_json, summary=asked.is_bulk)
        else:
            out = stack.enter_context(OutFile(asked.out))
            report = to_file = FileReport(out, source, as_json=asked.as_json)
            to_file.skip_finished()
        stack.enter_context(report)
        golem = stack.enter_context(Golem(settings=settings))
        options = SubmitOptions(
            top_k=asked.top_k, logits=asked.logits, on_long=asked.on_long, bulk=asked.is_bulk
        )
        bulk = Bulk(
            golem,
            options,
            window_texts=asked.window_texts,
            patience_s=asked.patience_s,
            notice=report.notice,
        )
        outcomes = stack.enter_context(closing(bulk.outcomes(source.lines)))
        for some in outcomes:
            report.write(some)
        report.finish()
    if report.tally.failed:
        raise click.exceptions.Exit(1)

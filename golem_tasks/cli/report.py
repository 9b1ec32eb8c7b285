"""What a person or a program sees of ``golem classify`` while it runs and when it is done."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from golem_tasks.cli.common import duration, label_style, note, one_line, print_json, stderr, stdout
from golem_tasks.cli.outfile import Outcome, OutFile, Tally, entry_of
from golem_tasks.contract import ItemError
from golem_tasks.textfiles import TextSource

__all__ = ["FileReport", "Report", "TextReport"]

_NOTICE_EVERY_S = 30.0
_LABEL_CHARS = 12
_SHOWN_LABELS = 20


class Report(ABC):
    """Where outcomes go; the two kinds differ in what they do with them."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._noticed_s = -_NOTICE_EVERY_S

    @property
    @abstractmethod
    def tally(self) -> Tally:
        """What has come out so far."""

    @abstractmethod
    def write(self, outcomes: Sequence[Outcome]) -> None:
        """Take some more, in order."""

    @abstractmethod
    def finish(self) -> None:
        """Say how it went; every line is done."""

    def notice(self, sentence: str) -> None:
        """Say what it is waiting for, now and then; empty: for nothing any more."""
        now_s = time.monotonic()
        if sentence and now_s - self._noticed_s >= _NOTICE_EVERY_S:
            self._noticed_s = now_s
            note(sentence)

    def __enter__(self) -> Self:
        return self

    def __exit__(  # noqa: B027 - one that draws no bar has nothing to close
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def _summary(self, lines_now: int, failed_in: str) -> list[str]:
        """Lines of the summary: how many, how fast, and the labels by number."""
        elapsed_s = time.monotonic() - self._began_s
        tally, rate = self.tally, lines_now / elapsed_s
        head = f"{tally.lines:,} lines: {tally.answered:,} answered"
        if tally.failed:
            head += f", {tally.failed:,} failed{failed_in}"
        if lines_now != tally.lines:
            head += f"; {lines_now:,} of them now"
        shown = [f"{head}, in {duration(elapsed_s)} ({rate:,.0f} lines/s)."]
        for label, count in tally.labels.most_common(_SHOWN_LABELS):
            share = 100 * count / tally.answered
            shown.append(f"  {one_line(label):<{_LABEL_CHARS}} {count:>12,}  {share:5.1f} %")
        if (rest := len(tally.labels) - _SHOWN_LABELS) > 0:
            shown.append(f"  and {rest} labels more")
        return shown


class TextReport(Report):
    """Prints each answer: JSON, columns with tabs in a pipe, or coloured lines in a terminal.

    Args:
        as_json: whether a program reads it.
        summary: whether one follows, on stderr.
    """

    def __init__(self, *, as_json: bool, summary: bool) -> None:
        super().__init__()
        self._tally = Tally()
        self._as_json = as_json
        self._with_summary = summary and not as_json
        self._console = stdout()

    @property
    def tally(self) -> Tally:
        """See `Report`."""
        return self._tally

    def write(self, outcomes: Sequence[Outcome]) -> None:
        """See `Report`."""
        for outcome in outcomes:
            entry = entry_of(outcome)
            self._tally.add(entry)
            if self._as_json:
                print_json(entry)
            elif self._console.is_terminal:
                self._console.print(_coloured(outcome), no_wrap=True, overflow="ellipsis")
            else:
                sys.stdout.write("\t".join(_cells(outcome)) + "\n")
        sys.stdout.flush()

    def finish(self) -> None:
        """See `Report`."""
        if self._with_summary and self._tally.lines:
            for line in self._summary(self._tally.lines, ""):
                click.echo(line, err=True)
        elif self._with_summary:
            note("there was no text in it.")


class FileReport(Report):
    """Writes answers to a file and shows a progress bar on stderr, if that is a terminal.

    Args:
        out: the file.
        source: where the texts come from.
        as_json: whether the summary is for a program.
    """

    def __init__(self, out: OutFile, source: TextSource, *, as_json: bool) -> None:
        super().__init__()
        self._out = out
        self._source = source
        self._as_json = as_json
        self._skipped = 0
        self._finished = False
        console = stderr()
        self._bar = _Bar(console, source.size) if console.is_terminal else None

    @property
    def tally(self) -> Tally:
        """See `Report`."""
        return self._out.tally

    def skip_finished(self) -> None:
        """Pass over the lines whose answers the file has already.

        Raises:
            ConfigurationError: see `OutFile.skip_finished`.
        """
        self._skipped = self._out.skip_finished(self._source.lines)
        if self._skipped:
            note(f"{self._out.path} has {self._skipped:,} lines already; going on behind them.")
        self._began_s = time.monotonic()

    def write(self, outcomes: Sequence[Outcome]) -> None:
        """See `Report`."""
        self._out.write(outcomes)
        if self._bar is not None and outcomes:
            rate = (self.tally.lines - self._skipped) / (time.monotonic() - self._began_s)
            self._bar.advance(outcomes[-1].line.position, self.tally.lines, rate)

    def finish(self) -> None:
        """See `Report`."""
        self._finished = True
        self._close_bar()
        if self._as_json:
            print_json(self._as_dict())
            return
        now = self.tally.lines - self._skipped
        for line in self._summary(now, f" (see {self._out.failed_path})"):
            click.echo(line, err=True)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start(self._skipped)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close_bar()
        if not self._finished and self.tally.lines:
            note(
                f"stopped after {self.tally.lines:,} lines, which are in {self._out.path}; "
                "the same command goes on behind them."
            )

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _as_dict(self) -> dict[str, Any]:
        elapsed_s = time.monotonic() - self._began_s
        return {
            "lines": self.tally.lines,
            "answered": self.tally.answered,
            "failed": self.tally.failed,
            "skipped": self._skipped,
            "elapsed_s": round(elapsed_s, 3),
            "labels": dict(self.tally.labels.most_common()),
            "models": sorted(self.tally.models),
            "out": str(self._out.path),
            "failed_out": str(self._out.failed_path) if self.tally.failed else None,
        }


class _Bar:
    """A progress bar by bytes read, so that nobody has to count the lines first."""

    def __init__(self, console: Console, size: int | None) -> None:
        self._size = size
        columns = [
            TextColumn("{task.percentage:>3.0f} %"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[lines]:,} lines"),
            TextColumn("{task.fields[rate]:,.0f}/s"),
            TimeRemainingColumn(compact=True),
        ]
        if size is None:
            del columns[-1], columns[0]
        self._progress = Progress(*columns, console=console, transient=True, expand=True)
        self._task: TaskID | None = None

    def start(self, lines: int) -> None:
        """Show it; `lines` were done in an earlier run."""
        self._task = self._progress.add_task("", total=self._size, lines=lines, rate=0.0)
        self._progress.start()

    def advance(self, position: int, lines: int, rate: float) -> None:
        """Show how far it is."""
        if self._task is not None:
            self._progress.update(self._task, completed=position, lines=lines, rate=rate)

    def stop(self) -> None:
        """Take it away."""
        self._progress.stop()


def _cells(outcome: Outcome) -> tuple[str, str, str]:
    result = outcome.result
    if isinstance(result, ItemError):
        return result.type, "-", one_line(result.message)
    return one_line(result.label), f"{result.score:.4f}", one_line(outcome.line.text)


def _coloured(outcome: Outcome) -> Text:
    label, score, text = _cells(outcome)
    failed = isinstance(outcome.result, ItemError)
    style = "yellow" if failed else label_style(label)
    return Text.assemble(
        (f"{label:<{_LABEL_CHARS}}", style), " ", (f"{score:>6}", "bold"), "  ", text
    )

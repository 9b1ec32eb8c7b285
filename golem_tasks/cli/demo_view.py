"""How the demo looks: a line for each answer as it arrives, then the figures.

The lines scroll, so that the table may be longer than the terminal, and are the same in a pipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from golem_tasks.cli.common import label_style, one_line
from golem_tasks.contract import Prediction
from golem_tasks.errors import JobError

__all__ = ["Arrival", "Figures", "figures_of", "heading", "result_lines", "row", "step"]

_MOST_WIDTH = 110
_LABEL, _SCORE, _ROWS, _LATENCY = 11, 5, 4, 8  # cells
_NAME = 13
_SAID = 26
_GAP = "  "
_BAR_CHARS = 28


@dataclass(frozen=True, slots=True)
class Arrival:
    """One job's outcome, when it came."""

    text: str
    outcome: Prediction | JobError
    latency_ms: float
    """From its submit to its answer."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What the demo measured."""

    jobs: int
    failed: int
    micro_batches: int
    mean_rows: float
    padding_share: float
    """Of all token positions the model computed, 0 to 1."""
    together_s: float
    """From the first submit to the last answer, all jobs in the queue at once."""
    apart_s: float
    """The same valid texts, each sent when the one before it was answered."""

    @property
    def answered(self) -> int:
        """Jobs with an answer, which are those both times are about."""
        return self.jobs - self.failed

    @property
    def speedup(self) -> float:
        """How many times as fast they were together."""
        return self.apart_s / self.together_s


def figures_of(arrivals: Sequence[Arrival], together_s: float, apart_s: float) -> Figures:
    """Count micro-batches and padding out of what each answer says of its own."""
    answers = [each.outcome for each in arrivals if isinstance(each.outcome, Prediction)]
    batches: dict[tuple[float, int, float], int] = {}  # tokens by micro-batch
    for answer in answers:
        timing = answer.timing
        # Whoever shared a forward pass has its very time.
        key = (timing.forward_ms, timing.batch_rows, timing.padding_share)
        batches[key] = batches.get(key, 0) + answer.tokens
    area = sum(tokens / (1 - padding) for (_, _, padding), tokens in batches.items())
    return Figures(
        jobs=len(arrivals),
        failed=len(arrivals) - len(answers),
        micro_batches=len(batches),
        mean_rows=len(answers) / len(batches) if batches else 0.0,
        padding_share=1 - sum(batches.values()) / area if area else 0.0,
        together_s=together_s,
        apart_s=apart_s,
    )


def step(name: str, said: str) -> Text:
    """A line that says what has been started."""
    return Text.assemble((f"{name:<{_NAME}}", "bold"), said)


def heading(console: Console) -> Text:
    """The table's first lines."""
    cells = ("text", "label", "score", "rows", "latency")
    columns = _columns(console, Text(cells[0]), Text(cells[1]), *cells[2:])
    return Text("\n").join([columns, Text("─" * _width(console), style="dim")])


def row(console: Console, arrival: Arrival) -> Text:
    """One job's line; a failed one has its reason below."""
    text = Text(one_line(arrival.text))
    latency = f"{arrival.latency_ms:.0f} ms"
    outcome = arrival.outcome
    if isinstance(outcome, Prediction):
        label = Text(one_line(outcome.label), style=label_style(outcome.label))
        rows = str(outcome.timing.batch_rows)
        return _columns(console, text, label, f"{outcome.score:.3f}", rows, latency)
    label = Text(type(outcome).__name__, style="yellow")
    columns = _columns(console, text, label, "-", "-", latency)
    return Text("\n").join([columns, Text(f"  {one_line(str(outcome))}", style="yellow")])


def result_lines(figures: Figures) -> Text:
    """The figures, and the two speeds drawn to scale."""
    failed = f", {figures.failed} failed alone" if figures.failed else ""
    facts = (
        ("jobs", f"{figures.answered} answered{failed}"),
        ("batches", f"{figures.micro_batches} micro-batches, {figures.mean_rows:.1f} rows each"),
        ("padding", f"{100 * figures.padding_share:.1f} % of what the model computed"),
    )
    lines = [step(name, said) for name, said in facts]
    lines.append(step("speed", f"{figures.speedup:.1f} times as fast as one by one"))
    fastest = max(figures.answered / figures.together_s, figures.answered / figures.apart_s)
    times = (("all at once", figures.together_s, "green"), ("one by one", figures.apart_s, "red"))
    for name, seconds, style in times:
        speed = figures.answered / seconds
        bar = "█" * max(1, round(_BAR_CHARS * speed / fastest))
        said = f"{speed:,.0f} texts/s in {seconds:.2f} s"
        lines.append(Text.assemble(step(name, f"{said:<{_SAID}}"), (bar, style)))
    return Text("\n").join(lines)


def _columns(
    console: Console, text: Text, label: Text, score: str, rows: str, latency: str
) -> Text:
    fixed = _LABEL + _SCORE + _ROWS + _LATENCY + 4 * len(_GAP)
    text.truncate(_width(console) - fixed, overflow="ellipsis", pad=True)
    label.truncate(_LABEL, overflow="ellipsis", pad=True)
    numbers = _GAP.join([f"{score:>{_SCORE}}", f"{rows:>{_ROWS}}", f"{latency:>{_LATENCY}}"])
    return Text(_GAP).join([text, label, Text(numbers)])


def _width(console: Console) -> int:
    return min(console.width, _MOST_WIDTH)

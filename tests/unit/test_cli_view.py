"""How the commands show things: widths, figures, log lines, hostile text."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from golem_tasks.cli.common import duration, label_style, one_line
from golem_tasks.cli.demo_view import Arrival, Figures, figures_of, heading, result_lines, row
from golem_tasks.cli.local_worker import last_sentence
from golem_tasks.contract import Model, Prediction, Timing
from golem_tasks.errors import InvalidJob

MODEL = Model(name="test", revision=None, dtype="float32")


def answer(tokens: int, rows: int, forward_ms: float, padding: float = 0.0) -> Prediction:
    """A prediction of a micro-batch of this kind."""
    timing = Timing(queued_ms=1.0, forward_ms=forward_ms, batch_rows=rows, padding_share=padding)
    return Prediction(
        label="POSITIVE", score=0.75, scores={"POSITIVE": 0.75}, tokens=tokens, truncated=False,
        model=MODEL, timing=timing,
    )  # fmt: skip


def console(width: int) -> Console:
    """A console that writes nowhere."""
    return Console(width=width, file=io.StringIO())


@given(st.text(), st.sampled_from([60, 80, 120, 200]))
def test_every_row_fits_the_width(text: str, width: int) -> None:
    """Whatever a text holds, its line neither wraps nor leaves its columns."""
    shown = row(console(width), Arrival(text, answer(5, 3, 1.0), 12.3))
    head = heading(console(width)).plain.splitlines()
    assert len(shown.plain.splitlines()) == 1
    assert cell_len(shown.plain) == cell_len(head[0]) == min(width, 110)


def test_a_failed_job_has_its_reason_below() -> None:
    """The row names the class, the line under it the sentence."""
    error = InvalidJob.because("text", "is empty")
    lines = row(console(80), Arrival("", error, 5.0)).plain.splitlines()
    assert "InvalidJob" in lines[0]
    assert lines[1] == "  The job is invalid: text is empty."


def test_the_figures_are_those_of_the_micro_batches() -> None:
    """Rows of one forward pass are one micro-batch; padding is weighed by area."""
    arrivals = [
        Arrival("a", answer(10, 2, 1.5, 0.25), 1.0),  # 10 + 5 tokens in 2 x 10
        Arrival("b", answer(5, 2, 1.5, 0.25), 1.0),
        Arrival("c", answer(80, 1, 2.5), 1.0),
        Arrival("d", InvalidJob.because("text", "is empty"), 1.0),
    ]
    figures = figures_of(arrivals, together_s=1.0, apart_s=4.0)
    assert (figures.jobs, figures.answered, figures.failed) == (4, 3, 1)
    assert (figures.micro_batches, figures.mean_rows) == (2, 1.5)
    assert figures.padding_share == pytest.approx(0.05)
    assert figures.speedup == 4.0


def test_the_two_speeds_are_drawn_to_scale() -> None:
    """Four times as fast is a bar four times as long."""
    figures = Figures(
        jobs=41, failed=1, micro_batches=4, mean_rows=10.0, padding_share=0.1,
        together_s=1.0, apart_s=4.0,
    )  # fmt: skip
    lines = result_lines(figures).plain.splitlines()
    bars = [line.count("█") for line in lines if "texts/s" in line]
    assert bars == [28, 7]
    assert max(map(cell_len, lines)) <= 80


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("", "it said nothing."),
        ("golem: GOLEM_DEVICE can't be used.\n", "GOLEM_DEVICE can't be used."),
        (
            "[2026-01-01 00:00:00,000: CRITICAL/Main] The worker can't start. No model.\n[x] bye\n",
            "The worker can't start. No model.",
        ),
        ("Traceback:\n  x\nValueError: why\n", "ValueError: why"),
    ],
)
def test_the_last_sentence_of_a_log_is_what_went_wrong(log: str, said: str) -> None:
    """An error's line without Celery's prefix, else the last line."""
    assert last_sentence(log) == said


@given(st.text())
def test_one_line_is_one_line_a_terminal_obeys_nothing_of(text: str) -> None:
    """No line ends, no escapes, nothing that can't be encoded."""
    shown = one_line(text)
    assert len(shown.splitlines()) <= 1
    assert "\x1b" not in shown
    shown.encode()


def test_durations_read_as_a_person_says_them() -> None:
    """Seconds, minutes, hours."""
    assert [duration(s) for s in (0.04, 8.25, 59.9, 245, 3723)] == [
        "0.0 s", "8.2 s", "59.9 s", "4:05", "1:02:03",
    ]  # fmt: skip


def test_labels_have_the_colours_of_their_words() -> None:
    """Good is green, bad is red, what is neither is cyan."""
    assert [label_style(label) for label in ("POSITIVE", "negative", "LABEL_3")] == [
        "green", "red", "cyan",
    ]  # fmt: skip

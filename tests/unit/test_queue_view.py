"""How a backlog looks: every figure in its place, whatever the width and whoever named things."""

import io
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from golem_tasks.backlog import Backlog, Held, LaneBacklog, ProcessMemory, WorkerStats
from golem_tasks.cli.queue_view import facts, lanes_table, remarks, speed, workers_table


def worker(**changes: Any) -> WorkerStats:
    """A worker with work, but for `changes`."""
    fields: dict[str, Any] = {
        "name": "celery@gpu-1", "at_s": 999.0, "model": "reviews", "dtype": "bfloat16",
        "device": "cuda:0,cuda:1", "processes": 2, "interactive": Held(reserved=3, in_flight=4),
        "bulk": Held(reserved=1000, in_flight=200), "received": 5000, "answered": 4000,
        "failed": 12, "jobs_per_s": 90.0, "texts_per_s": 1234.4, "tokens_per_s": 56789.0,
        "full_jobs_per_s": 100.0, "full_texts_per_s": 1300.0, "rows_per_dispatch": 61.5,
        "padding_share": 0.12, "queued_ms": 840.0, "token_budget": 8192, "token_ceiling": 8192,
        "process_memory": (
            ProcessMemory(pid=11, rss_mib=900.0, pss_mib=620.0, private_mib=500.0),
            ProcessMemory(pid=12, rss_mib=895.0, pss_mib=615.0, private_mib=495.0),
        ),
    }  # fmt: skip
    return WorkerStats(**{**fields, **changes})


def backlog(*workers: WorkerStats, waiting: int = 0) -> Backlog:
    """A backlog with these workers, and so much waiting in the interactive lane."""
    held = [Held(), Held()]
    for each in workers:
        held = [each.interactive, each.bulk]
    lanes = [
        LaneBacklog(queue, count, of.reserved, of.in_flight)
        for queue, count, of in zip(("golem", "golem.bulk"), (waiting, 0), held, strict=True)
    ]
    return Backlog(lanes[0], lanes[1], workers, 1000.0)


def shown(what: RenderableType, width: int = 132) -> list[str]:
    """The lines it makes on a terminal of this width."""
    console = Console(width=width, file=io.StringIO(), highlight=False)
    with console.capture() as captured:
        console.print(what)
    return captured.get().splitlines()


def cells(lines: list[str], name: str) -> list[str]:
    """The words of the line that begins with this name."""
    return next(line.split() for line in lines if line.split()[:1] == [name])


def test_a_lane_is_a_line_with_its_numbers_and_its_wait() -> None:
    """Waiting, reserved, in flight, total; the interactive lane doesn't wait for bulk."""
    lines = shown(lanes_table(backlog(worker(), waiting=1293)))
    assert cells(lines, "golem") == ["golem", "1,293", "3", "4", "1,300", "15.0", "s"]
    assert cells(lines, "golem.bulk") == ["golem.bulk", "0", "1,000", "200", "1,200", "25.0", "s"]


def test_a_worker_is_a_line_with_what_it_is_and_does() -> None:
    """Model, type, device, processes; texts, tokens, rows, padding, held, waited, failed, MiB."""
    lines = shown(workers_table(backlog(worker())))
    assert cells(lines, "celery@gpu-1") == [
        "celery@gpu-1", "reviews", "bfloat16", "cuda:0,cuda:1", "x2",
        "1,234", "56,789", "61.5", "12%", "1,207", "840", "ms", "12", "1,235",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_figures_stay_whole_on_a_narrow_terminal(width: int) -> None:
    """Names are cut or wrapped there; a number that is cut would be a lie."""
    lines = shown(workers_table(backlog(worker(name="celery@" + "x" * 90))), width)
    assert all(cell_len(line) <= width for line in lines)
    text = " ".join(lines)
    for figure in ("1,234", "56,789", "61.5", "12%", "1,207", "840 ms", "1,235"):
        assert figure in text


def test_what_is_not_known_is_a_dash() -> None:
    """A worker without a dispatch, a backlog without a worker."""
    new = worker(rows_per_dispatch=None, padding_share=None, queued_ms=None)
    assert cells(shown(workers_table(backlog(new))), "celery@gpu-1").count("-") == 3
    assert cells(shown(lanes_table(backlog(waiting=5))), "golem")[-1] == "-"


def test_a_hostile_name_cannot_speak_to_the_terminal() -> None:
    """Whoever may write to Redis names workers: no escape sequence and no markup gets through."""
    evil = worker(name="\x1b[2J[red]evil[/red]", model="\x1b]0;x\x07")
    text = "\n".join([*shown(workers_table(backlog(evil))), *remarks(backlog(evil))])
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]evil" in text


def test_the_speed_is_said_in_a_sentence() -> None:
    """None there, none known, known; in jobs too where a job isn't a text."""
    assert "start one with golem worker" in speed(backlog(waiting=3))
    assert speed(backlog(worker(full_jobs_per_s=None))) == (
        "1 worker; how fast under load isn't known yet."
    )
    assert speed(backlog(worker(), waiting=793)) == (
        "1 worker; under load 1,300 texts/s (100 jobs/s), all answered in 20.0 s."
    )
    idle = worker(full_texts_per_s=100.0, interactive=Held(), bulk=Held())
    assert speed(backlog(idle, idle)) == "2 workers; under load 200 texts/s."


def test_what_is_out_of_the_ordinary_has_a_line() -> None:
    """Redeliveries, a budget that fell, jobs with a countdown; else nothing."""
    assert remarks(backlog(worker())) == []
    odd = worker(redelivered=7, token_budget=1024, scheduled=3)
    text = "\n".join(remarks(backlog(odd)))
    assert "until their countdown is over: 3 jobs" in text
    assert "7 of 5,000 jobs were delivered before" in text
    assert "lowered its token budget to 1,024 of 8,192" in text


def test_a_program_gets_everything() -> None:
    """Lanes with totals and waits, rates, and each worker's own words."""
    told = facts(backlog(worker(), waiting=93))
    assert (told["total"], told["drain_s"], told["jobs_per_s"]) == (1300, 13.0, 100.0)
    assert [lane["total"] for lane in told["lanes"]] == [100, 1200]
    assert told["workers"][0]["interactive"] == {"reserved": 3, "in_flight": 4}

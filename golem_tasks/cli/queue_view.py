"""How a backlog and its workers look, for ``golem queue`` and ``golem top``."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from golem_tasks.backlog import STATS_TTL_S, Backlog, Held, WorkerStats
from golem_tasks.cli.common import duration, one_line, stdout

__all__ = ["console", "facts", "lanes_table", "remarks", "speed", "workers_table"]

_PIPE_COLUMNS = 132
_UNKNOWN = "-"


def console() -> Console:
    """A console for tables; in a pipe they are as wide as they need to be."""
    made = stdout()
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = _PIPE_COLUMNS
    return made


def facts(backlog: Backlog) -> dict[str, Any]:
    """What a program gets."""
    return {
        "at_s": backlog.at_s,
        "total": backlog.total,
        "drain_s": backlog.drain_s,
        "jobs_per_s": backlog.jobs_per_s,
        "texts_per_s": backlog.texts_per_s,
        "scheduled": backlog.scheduled,
        "lanes": [
            {**asdict(lane), "total": lane.total, "wait_s": backlog.wait_s(lane.queue)}
            for lane in backlog.lanes
        ],
        "workers": [worker.model_dump() for worker in backlog.workers],
    }


def lanes_table(backlog: Backlog) -> Table:
    """What each lane holds, and how long a job sent to it now would wait."""
    table = _table("queue", "waiting", "reserved", "in flight", "total", "wait now")
    for lane in backlog.lanes:
        numbers = (lane.waiting, lane.reserved, lane.in_flight, lane.total)
        wait = _time(backlog.wait_s(lane.queue))
        table.add_row(Text(lane.queue), *(f"{number:,}" for number in numbers), wait)
    return table


def workers_table(backlog: Backlog) -> Table:
    """What each worker is and does."""
    table = _table(
        "worker",
        "model",
        "texts/s",
        "tokens/s",
        "rows",
        "padding",
        "held",
        "waited",
        "failed",
        "MiB",
    )
    for column in table.columns[:2]:  # these give way on a narrow terminal, the figures don't
        column.justify, column.overflow, column.no_wrap = "left", "ellipsis", False
    for worker in backlog.workers:
        table.add_row(
            Text(one_line(worker.name)),
            Text(_model(worker)),
            f"{worker.texts_per_s:,.0f}",
            f"{worker.tokens_per_s:,.0f}",
            _or_unknown(worker.rows_per_dispatch, "{:.1f}"),
            _or_unknown(worker.padding_share, "{:.0%}"),
            f"{_jobs(worker.interactive) + _jobs(worker.bulk):,}",
            _wait(worker.queued_ms),
            f"{worker.failed:,}",
            _or_unknown(worker.memory_mib, "{:,.0f}"),
        )
    return table


def speed(backlog: Backlog) -> str:
    """One sentence: how many workers there are, how fast they are, and when they will be done."""
    count = len(backlog.workers)
    if not count:
        return (
            f"No worker has told of itself for {STATS_TTL_S} s: start one with golem worker, and "
            "see that its queue has the same name."
        )
    workers = "1 worker" if count == 1 else f"{count} workers"
    if not backlog.jobs_per_s:
        return f"{workers}; how fast under load isn't known yet."
    texts, jobs = backlog.texts_per_s or 0.0, backlog.jobs_per_s
    rate = f"{texts:,.0f} texts/s" + (
        f" ({jobs:,.0f} jobs/s)" if round(texts) != round(jobs) else ""
    )
    drained = f", all answered in {_time(backlog.drain_s)}" if backlog.total else ""
    return f"{workers}; under load {rate}{drained}."


def remarks(backlog: Backlog) -> list[str]:
    """What else is worth a line."""
    said = []
    if backlog.scheduled:
        said.append(f"In workers until their countdown is over: {backlog.scheduled:,} jobs.")
    for worker in backlog.workers:
        name = one_line(worker.name)
        if worker.redelivered:
            said.append(
                f"{name}: {worker.redelivered:,} of {worker.received:,} jobs were delivered before."
            )
        if worker.token_budget < worker.token_ceiling:
            said.append(
                f"{name}: out of memory lowered its token budget to {worker.token_budget:,} of "
                f"{worker.token_ceiling:,}."
            )
    return said


def _table(*headings: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column(headings[0], no_wrap=True)
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _model(worker: WorkerStats) -> str:
    processes = f" x{worker.processes}" if worker.processes != 1 else ""
    return one_line(f"{worker.model} {worker.dtype} {worker.device}{processes}")


def _jobs(held: Held) -> int:
    return held.reserved + held.in_flight


def _time(seconds: float | None) -> str:
    return _UNKNOWN if seconds is None else duration(seconds)


def _wait(waited_ms: float | None) -> str:
    if waited_ms is not None and waited_ms < 1000:  # noqa: PLR2004 - a second
        return f"{waited_ms:.0f} ms"
    return _time(None if waited_ms is None else waited_ms / 1000)


def _or_unknown(value: float | None, form: str) -> str:
    return _UNKNOWN if value is None else form.format(value)

"""``golem top``: a queue and its workers, live."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from golem_tasks.cli.common import Command, client_settings, leaving_on_signals, queue_options
from golem_tasks.cli.queue_view import console, lanes_table, remarks, speed, workers_table
from golem_tasks.errors import BrokerUnavailable
from golem_tasks.settings import ClientSettings, mask_url

if TYPE_CHECKING:
    from golem_tasks.backlog import Backlog
    from golem_tasks.client import Golem

__all__ = ["command"]


@click.command(
    "top",
    cls=Command,
    examples="""
golem top
golem top --once
golem top --broker-url redis://redis.internal/0 --queue reviews --every 5
""",
)
@queue_options
@click.option(
    "--every",
    "every_s",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="Print one frame and leave, as in a pipe.")
def command(
    *,
    broker_url: str | None,
    result_backend: str | None,
    queue: str | None,
    every_s: float,
    once: bool,
) -> None:
    """Watch a queue and its workers, until Ctrl-C.

    For each worker: its model, data type and device, texts and tokens a second, rows in a dispatch,
    how much of what it computed was padding, jobs it holds, how long the job of its latest dispatch
    that was sent first had waited, failures since it started, and the memory its model processes
    take together. Rates are of the last seconds.
    """
    from golem_tasks.client import Golem  # noqa: PLC0415 - loads Celery, which --help needn't

    settings = client_settings(broker_url, result_backend, queue)
    with Golem(settings=settings) as golem:
        first = golem.backlog()  # a Redis that isn't there is an error; one that goes away isn't
        out = console()
        if once or not out.is_terminal:
            out.print(_frame(settings, first))
            return
        live = Live(_frame(settings, first), console=out, screen=True, auto_refresh=False)
        # Ctrl-C is how one leaves, so it is no failure.
        with leaving_on_signals(), suppress(KeyboardInterrupt), live:
            _watch(live, golem, first, every_s)


def _watch(live: Live, golem: Golem, last: Backlog, every_s: float) -> None:
    while True:
        time.sleep(every_s)
        trouble = ""
        try:
            last = golem.backlog()
        except BrokerUnavailable as exc:
            trouble = str(exc)
        live.update(_frame(golem.settings, last, trouble), refresh=True)


def _frame(settings: ClientSettings, backlog: Backlog, trouble: str = "") -> RenderableType:
    # The time of the figures themselves, by Redis's clock: in an outage it stands still.
    counted = datetime.fromtimestamp(backlog.at_s).astimezone()
    parts: list[RenderableType] = [
        Text(f"Queue {settings.queue} at {mask_url(settings.broker)}, {counted:%H:%M:%S}"),
    ]
    if trouble:
        parts.append(Text(trouble, style="red"))
    parts += [lanes_table(backlog), Text(speed(backlog))]
    if backlog.workers:
        parts.append(workers_table(backlog))
    parts += [Text(remark, style="yellow") for remark in remarks(backlog)]
    return Group(*parts)

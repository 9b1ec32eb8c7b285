"""``golem queue``: what waits, what is being worked on, and how long it will take."""

from __future__ import annotations

import click

from golem_tasks.cli.common import Command, client_settings, json_option, print_json, queue_options
from golem_tasks.cli.queue_view import console, facts, lanes_table, remarks, speed
from golem_tasks.settings import mask_url

__all__ = ["command"]


@click.command(
    "queue",
    cls=Command,
    examples="""
golem queue
golem queue --json | jq .drain_s
golem queue --broker-url redis://redis.internal/0 --queue reviews
""",
)
@queue_options
@json_option("Print one JSON object: lanes, total, rates, workers.")
def command(
    *, broker_url: str | None, result_backend: str | None, queue: str | None, as_json: bool
) -> None:
    """Count the jobs without an answer, by lane, and say how long they will take.

    Waiting is what Redis holds, on all priorities; reserved and in flight is what the workers say
    they have in their buffers and models, at most a quarter of a second ago. "Wait now" is how long
    a job sent now would wait. It costs Redis the same whether ten or a million jobs wait.
    """
    from golem_tasks.client import Golem  # noqa: PLC0415 - loads Celery, which --help needn't

    settings = client_settings(broker_url, result_backend, queue)
    with Golem(settings=settings) as golem:
        backlog = golem.backlog()
    if as_json:
        print_json({"queue": settings.queue, **facts(backlog)})
        return
    out = console()
    out.print(f"Queue {settings.queue} at {mask_url(settings.broker)}", markup=False)
    out.print(lanes_table(backlog))
    for sentence in (speed(backlog), *remarks(backlog)):
        out.print(sentence, markup=False)

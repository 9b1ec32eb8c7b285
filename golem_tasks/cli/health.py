"""``golem health``: a classification through the queue is the only answer that counts."""

from __future__ import annotations

import time
from typing import Any

import click

from golem_tasks.cli.common import (
    Command,
    client_settings,
    json_option,
    note,
    print_json,
    queue_options,
)
from golem_tasks.errors import GolemError, JobError, ResultTimeout
from golem_tasks.settings import ClientSettings, mask_url

__all__ = ["command"]

_PROBE = "Are you there?"


@click.command(
    "health",
    cls=Command,
    examples="""
golem health
golem health --timeout 3 --json
golem health --broker-url redis://redis.internal/0 --queue reviews
""",
)
@queue_options
@click.option(
    "--timeout",
    "timeout_s",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="How long a worker may take.",
)
@json_option("Print one JSON object, also when nobody answers.")
def command(
    *,
    broker_url: str | None,
    result_backend: str | None,
    queue: str | None,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Ask through the queue whether a worker really answers.

    Sends one text to be classified and exits with 0 only if its answer comes back; with 1 if not,
    and one sentence about the cause and the remedy.
    """
    settings = client_settings(broker_url, result_backend, queue)
    try:
        told = _probe(settings, timeout_s)
    except GolemError as exc:
        if as_json:
            print_json({"ok": False, "error": type(exc).__name__, "message": str(exc)})
        else:
            note(str(exc))
        raise click.exceptions.Exit(1) from exc
    if as_json:
        print_json(told)
    else:
        model = told["model"]
        click.echo(
            f"A worker answers on queue {settings.queue!r}: {model['name']} ({model['dtype']}), "
            f"in {told['ms']:.0f} ms."
        )


def _probe(settings: ClientSettings, timeout_s: float) -> dict[str, Any]:
    from golem_tasks.client import Golem  # noqa: PLC0415 - loads Celery, which --help needn't

    with Golem(settings=settings) as golem:
        begun_s = time.monotonic()
        # It expires, so that the probes of an hour without a worker don't greet the next one.
        job = golem.submit(_PROBE, expires_s=timeout_s, max_backlog=None)
        try:
            prediction = job.result(timeout_s)
        except ResultTimeout as exc:
            raise _no_worker(settings, timeout_s, exc) from exc
        except JobError as exc:
            raise JobError(f"A worker took the job and failed to answer it: {exc}") from exc
        elapsed_ms = (time.monotonic() - begun_s) * 1000
    return {
        "ok": True,
        "ms": round(elapsed_ms, 1),
        "forward_ms": prediction.timing.forward_ms,
        "model": prediction.model.model_dump(),
        "queue": settings.queue,
        "label": prediction.label,
    }


def _no_worker(settings: ClientSettings, timeout_s: float, late: ResultTimeout) -> ResultTimeout:
    where = f"queue {settings.queue!r} at {mask_url(settings.broker)}"
    if late.queue_length > 1:
        cause = f"{late.queue_length} jobs wait in it"
        remedy = "start a worker on it, or more of them, or ask with a longer --timeout"
    else:
        cause = "Redis itself is there"
        remedy = "start one with golem worker, and see that its queue has the same name"
    return ResultTimeout(
        f"No worker answered within {timeout_s:g} s on {where} ({cause}): {remedy}.",
        *late.args[1:],
    )

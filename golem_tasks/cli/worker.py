"""``golem worker``: Celery's worker of ``worker.celery``, in this process, its dials as options.

The options are the fields of `worker.settings.WorkerSettings` and are put into this process's
environment, where its children find them as well: ``golem worker --model X`` means the same as
``GOLEM_MODEL=X celery -A worker worker``.
"""

from __future__ import annotations

import os
import typing
from typing import Any

import click
from pydantic import SecretStr

from golem_tasks.cli.common import Command, require_model_side
from golem_tasks.settings import ENV_PREFIX, load

__all__ = ["command"]

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_FIRST = ("broker_url", "result_backend", "queue", "model", "model_revision", "device", "dtype")
_DEFAULT_ENGINE = "worker.engine:load"


class _WorkerCommand(Command):
    """Reads the settings class for its options when it is asked for them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params[:0] = _settings_options()


def _settings_options() -> list[click.Parameter]:
    # Imported here: light, but the worker's all the same.
    from worker.settings import WorkerSettings  # noqa: PLC0415 - see above

    fields = WorkerSettings.model_fields
    order = [*_FIRST, *(name for name in fields if name not in _FIRST)]
    options: list[click.Parameter] = []
    for name in order:
        field = fields[name]
        flag = "--" + name.replace("_", "-")
        silent = field.default is None or field.default is False or field.default == ""
        default = "" if silent else f" [{_shown(field.default)}]"
        switch = field.annotation is bool
        options.append(
            click.Option(
                [f"{flag}/--no-{flag[2:]}" if switch else flag],
                default=None,
                metavar=None if switch else _metavar(field.annotation),
                help=f"{field.description}{default}",
                hidden=name == "engine",
            )
        )
    return options


def _shown(default: Any) -> str:
    return default.get_secret_value() if isinstance(default, SecretStr) else str(default)


def _metavar(annotation: Any) -> str:
    choices = typing.get_args(annotation)
    if choices and all(isinstance(choice, str) for choice in choices):
        return f"[{'|'.join(choices)}]"
    kinds = {int: "N", float: "X"}
    for kind in (annotation, *choices):
        if kind in kinds:
            return kinds[kind]
    return "TEXT"


@click.command(
    "worker",
    cls=_WorkerCommand,
    examples="""
golem worker
golem worker --broker-url redis://redis.internal/0 --device cuda --processes 2
golem worker --model distilbert/distilbert-base-uncased-finetuned-sst-2-english
golem worker --queue reviews -- --hostname reviews@%h -E
""",
)
@click.option(
    "--loglevel",
    type=click.Choice(_LEVELS, case_sensitive=False),
    default="INFO",
    show_default=True,
    help="How much Celery's log says.",
)
@click.argument("celery_arguments", nargs=-1, type=click.UNPROCESSED)
def command(*, loglevel: str, celery_arguments: tuple[str, ...], **dials: Any) -> None:
    """Run a worker: a model that answers what is queued.

    It is an ordinary Celery worker. Every option can be set in the environment instead, as GOLEM_
    and its name (GOLEM_BROKER_URL, GOLEM_MAX_ROWS). A password belongs there: everybody on the
    machine can read a command line, so one given as an option is moved there as soon as the command
    runs. Arguments after -- are Celery's own.
    """
    for name, value in dials.items():
        if value is not None:
            os.environ[ENV_PREFIX + name.upper()] = str(value)
    from worker.settings import WorkerSettings  # noqa: PLC0415 - only this command needs it

    settings = load(WorkerSettings)  # before Celery is loaded, which would say it less well
    if settings.engine == _DEFAULT_ENGINE:
        require_model_side()
    from celery.bin.celery import celery  # noqa: PLC0415 - as above

    # Not app.start(), which drops the exit code of a worker that couldn't start; and with the app
    # loaded by Celery, after it has read BROKER_URL, which mustn't go before GOLEM_BROKER_URL.
    arguments = ["--app", "worker", "worker", "--loglevel", loglevel, *celery_arguments]
    code = celery.main(arguments, standalone_mode=False)
    if code:
        raise click.exceptions.Exit(code)

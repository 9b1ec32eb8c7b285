"""What the subcommands share: options, consoles, and how a number or a label looks."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import click
from rich.console import Console

from golem_tasks.errors import ConfigurationError
from golem_tasks.settings import ClientSettings, load

__all__ = [
    "CONTEXT_SETTINGS",
    "Command",
    "Debug",
    "Group",
    "client_settings",
    "debug_option",
    "duration",
    "json_option",
    "label_style",
    "leaving_on_signals",
    "note",
    "one_line",
    "print_json",
    "queue_options",
    "redis_options",
    "require_model_side",
    "stderr",
    "stdout",
]

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

_MODEL_SIDE = ("torch", "transformers", "safetensors")
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029\ud800-\udfff]+")
_LEAVING = (signal.SIGTERM, signal.SIGHUP)
_FunctionT = TypeVar("_FunctionT", bound=Callable[..., Any])
_GOOD = ("pos", "good", "entail", "joy", "love", "true", "yes", "accept")
_BAD = ("neg", "bad", "contradict", "anger", "sad", "fear", "false", "not_", "no")


@dataclass(slots=True)
class Debug:
    """Whether a person wants the traceback; set while the options are read."""

    on: bool = False


def debug_option() -> click.Option:
    """The option every command takes, before or after the subcommand's name."""

    def switch(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
        if wanted and isinstance(debug := ctx.find_object(Debug), Debug):
            debug.on = True

    return click.Option(
        ["--debug"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=switch,
        help="Show the traceback of an error.",
    )


def _epilog(examples: str) -> str:
    """Examples, one on each line, as click ends a help with them."""
    shown = "\n".join(f"  {line}" for line in examples.strip().splitlines())
    return f"\b\nExamples:\n{shown}"


class Command(click.Command):
    """A subcommand: takes ``--debug`` too, and ends its help with examples.

    Args:
        examples: command lines, one on each line.
    """

    def __init__(self, *args: Any, examples: str, **kwargs: Any) -> None:
        kwargs["epilog"] = _epilog(examples)
        kwargs["context_settings"] = {**CONTEXT_SETTINGS, **kwargs.get("context_settings", {})}
        super().__init__(*args, **kwargs)
        self.params.append(debug_option())


class Group(click.Group):
    """A subcommand with subcommands of its own; see `Command`."""

    def __init__(self, *args: Any, examples: str, **kwargs: Any) -> None:
        super().__init__(
            *args, epilog=_epilog(examples), context_settings=CONTEXT_SETTINGS, **kwargs
        )
        self.params.append(debug_option())


def redis_options(function: _FunctionT) -> _FunctionT:
    """Options that say where Redis is."""
    for option in (
        click.option(
            "--result-backend",
            metavar="URL",
            help="Redis with the answers. [GOLEM_RESULT_BACKEND, else the broker's]",
        ),
        click.option(
            "--broker-url",
            metavar="URL",
            help="Redis with the queues. [GOLEM_BROKER_URL, else redis://127.0.0.1:6379/0]",
        ),
    ):
        function = option(function)
    return function


def queue_options(function: _FunctionT) -> _FunctionT:
    """Options of a command that talks to the queue; read them with `client_settings`."""
    queue = click.option(
        "--queue", metavar="NAME", help="Queue of the workers. [GOLEM_QUEUE, else golem]"
    )
    return redis_options(queue(function))


def json_option(text: str) -> Callable[[_FunctionT], _FunctionT]:
    """Build the option for output that a program reads."""
    return click.option("--json", "as_json", is_flag=True, help=text)


def client_settings(
    broker_url: str | None, result_backend: str | None, queue: str | None
) -> ClientSettings:
    """Read the settings; an option goes before the environment.

    Raises:
        ConfigurationError: one of them can't be used.
    """
    return load(ClientSettings, broker_url=broker_url, result_backend=result_backend, queue=queue)


def require_model_side() -> None:
    """Make sure of the packages a model needs, without loading them.

    Raises:
        ConfigurationError: one isn't installed.
    """
    missing = [name for name in _MODEL_SIDE if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"The model's side isn't installed (there is no {' and no '.join(missing)}): "
            "pip install 'golem-tasks[worker]'."
        )


def stdout() -> Console:
    """A console for results; rich sees to NO_COLOR, a pipe and the terminal's width."""
    return Console(highlight=False)


def stderr() -> Console:
    """A console for progress and remarks."""
    return Console(stderr=True, highlight=False)


@contextmanager
def leaving_on_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise SystemExit with the shell's code, so that we clean up."""

    def leave(number: int, _frame: Any) -> NoReturn:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in _LEAVING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def note(sentence: str) -> None:
    """Say something on stderr that isn't a result."""
    click.echo(f"golem: {sentence}", err=True)


def one_line(text: str) -> str:
    """Return the text without line ends, tabs and what a terminal might obey."""
    return _UNPRINTABLE.sub(" ", text).strip()


def print_json(value: Any) -> None:
    """Print one JSON value on one line, at once."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def label_style(label: str) -> str:
    """A colour for a label, by the words models use for good and bad."""
    lowered = label.lower()
    if lowered.startswith(_GOOD):
        return "green"
    if lowered.startswith(_BAD):
        return "red"
    return "cyan"


def duration(seconds: float) -> str:
    """Seconds as a person says them: ``8.3 s``, ``4:05``, ``1:02:03``."""
    if seconds < 60:  # noqa: PLR2004 - a minute
        return f"{seconds:.1f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest_s:02}" if hours else f"{minutes}:{rest_s:02}"

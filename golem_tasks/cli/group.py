"""The command's entry: finds the subcommand, and turns whatever it raises into an exit code.

====  ==========================================================================================
exit  meaning
====  ==========================================================================================
0     it did what was asked
1     it didn't: a job failed, no worker answered, Redis can't be reached
2     it was asked wrongly: an option, a setting, a file that isn't there, an extra not installed
130   Ctrl-C (128 + the signal's number; SIGTERM is 143)
141   whoever read the output has gone (``golem classify ... | head``)
====  ==========================================================================================
"""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata

import click

from golem_tasks.cli.common import CONTEXT_SETTINGS, Debug, debug_option, note
from golem_tasks.cli.hiding import hide
from golem_tasks.errors import ConfigurationError, GolemError

__all__ = ["run"]

_COMMANDS = {
    "demo": "Watch sentences travel through a queue, a batch and a model.",
    "worker": "Run a worker: a model that answers what is queued.",
    "classify": "Classify texts, or a whole file of them, through the queue.",
    "inspect": "Look inside the model at one text, stage by stage.",
    "queue": "Count what waits and what is worked on; say how long it will take.",
    "top": "Watch a queue and its workers, live.",
    "calibrate": "Fit the temperature that makes scores mean what they say.",
    "dead": "List, show, requeue or drop the jobs that were given up.",
    "health": "Ask through the queue whether a worker really answers.",
}

_SIGPIPE_EXIT = 128 + signal.SIGPIPE
_SIGINT_EXIT = 128 + signal.SIGINT

_EPILOG = """\b
Try it:
  golem demo
  golem worker --broker-url redis://127.0.0.1:6379/0
  golem classify "I love this"
"""


class _Lazy(click.Group):
    """Imports the module of a subcommand when that one is run, not for the list of all of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"golem_tasks.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; name those that were perhaps meant where there is none."""
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-"):
            close = difflib.get_close_matches(name, _COMMANDS)
            meant = f" Did you mean {' or '.join(close)}?" if close else ""
            raise click.UsageError(f"No such command {name!r}.{meant}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


def _version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    try:
        version = metadata.version("golem-tasks")
    except metadata.PackageNotFoundError:
        version = "(a source tree that isn't installed)"
    click.echo(f"golem {version}")
    ctx.exit()


@click.group(cls=_Lazy, context_settings=CONTEXT_SETTINGS, epilog=_EPILOG, no_args_is_help=True)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version and leave.",
)
def golem() -> None:
    """Micro-batched text classification on Celery and Redis: every job gets its own answer."""


golem.params.append(debug_option())


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see the table in this module's docstring."""
    debug = Debug()
    try:
        if argv is None:
            hide()
        # Not click's own main(): that one answers a broken pipe with SystemExit.
        arguments = list(sys.argv[1:] if argv is None else argv)
        with golem.make_context("golem", arguments, obj=debug) as context:
            golem.invoke(context)
        sys.stdout.flush()  # here, where a reader that has gone is still ours to handle
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except BrokenPipeError:
        _silence_stdout()
        return _SIGPIPE_EXIT
    except (KeyboardInterrupt, click.Abort):
        return _SIGINT_EXIT
    except Exception as exc:  # noqa: BLE001 - whatever it is, a person reads a sentence
        if debug.on:
            traceback.print_exc()
        return _explain(exc, debug)
    return 0


def _explain(exc: Exception, debug: Debug) -> int:
    """Say what went wrong and return the exit code."""
    if isinstance(exc, click.ClickException):
        exc.show()
        return exc.exit_code
    if isinstance(exc, GolemError):
        note(str(exc))
        return 2 if isinstance(exc, ConfigurationError) else 1
    hint = "" if debug.on else "; run it again with --debug to see where"
    note(f"internal error: {type(exc).__name__}: {exc}{hint}.")
    return 1


def _silence_stdout() -> None:
    # The interpreter flushes stdout once more at its end, and would complain.
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

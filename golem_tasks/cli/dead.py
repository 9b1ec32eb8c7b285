"""``golem dead``: the jobs that were given up, and what is to become of them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from golem_tasks.cli.common import (
    Command,
    Group,
    client_settings,
    json_option,
    note,
    one_line,
    print_json,
    redis_options,
    stdout,
)
from golem_tasks.errors import DeadLetterError

if TYPE_CHECKING:
    from golem_tasks.dead import DeadLetter, DeadLetters

__all__ = ["command"]

_SHOWN_CHARS = 2_000


@click.group(
    "dead",
    cls=Group,
    examples="""
golem dead list
golem dead show 5f1c6a52-9f5e-4d0b-8d1b-0c7f6a0e1a52
golem dead requeue --all
golem dead list --json | jq -r 'select(.queue == "golem").id' | xargs golem dead drop
""",
)
def command() -> None:
    """Look at the jobs that were given up; send them again or throw them away.

    A job that ended its model process twice, or was delivered too often, fails as PoisonJob and is
    kept here with its message, as is a message no worker could read. All queues of one Redis share
    one list.
    """


@command.command(
    "list",
    cls=Command,
    examples="""
golem dead list
golem dead list --json | jq -r .id
""",
)
@redis_options
@json_option("Print one JSON object for each, on a line of its own.")
def _list(*, broker_url: str | None, result_backend: str | None, as_json: bool) -> None:
    """List them, the latest first. Shows nothing of the texts."""
    with _open(broker_url, result_backend) as dead:
        letters = dead.all()
    if as_json:
        for letter in letters:
            print_json(_facts(letter))
    elif letters:
        stdout().print(_table(letters))
    else:
        click.echo("There are no dead letters.")


@command.command(
    "show",
    cls=Command,
    examples="""
golem dead show 5f1c6a52-9f5e-4d0b-8d1b-0c7f6a0e1a52
golem dead show --json envelope-0d6f1f2ab1c95d3e
""",
)
@click.argument("letter_id", metavar="ID")
@redis_options
@json_option("Print everything as one JSON object, the whole message included.")
def _show(
    *, letter_id: str, broker_url: str | None, result_backend: str | None, as_json: bool
) -> None:
    """Show all that is known of one of them, its text included."""
    with _open(broker_url, result_backend) as dead:
        letter, message = dead.get(letter_id), dead.message(letter_id)
    if as_json:
        print_json({**_facts(letter), "message": _parsed(message)})
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    shown = {**_facts(letter), **_parts(message)}
    for name, value in shown.items():
        if value not in (None, ""):
            said = Text(_cut(one_line(_said(name, value))))
            table.add_row(Text(name.removesuffix("_s"), style="bold"), said)
    stdout().print(table)


@command.command(
    "requeue",
    cls=Command,
    examples="""
golem dead requeue 5f1c6a52-9f5e-4d0b-8d1b-0c7f6a0e1a52
golem dead requeue --all
""",
)
@click.argument("letter_ids", metavar="[ID...]", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All of them that a worker could read.")
@redis_options
def _requeue(
    *,
    letter_ids: tuple[str, ...],
    everything: bool,
    broker_url: str | None,
    result_backend: str | None,
) -> None:
    """Send jobs again, as if they had never been delivered.

    Each goes to the queue it came from, its failure is taken away, and whoever waits for its id
    again gets the new answer. Exits with 1 if one of them couldn't be requeued.
    """
    from golem_tasks.dead import UNREADABLE  # noqa: PLC0415 - loads Celery, which --help needn't

    with _open(broker_url, result_backend) as dead:
        chosen = _chosen(
            letter_ids, everything, lambda: [x.id for x in dead.all() if x.reason != UNREADABLE]
        )
        _each(chosen, dead.requeue, "requeued")


@command.command(
    "drop",
    cls=Command,
    examples="""
golem dead drop envelope-0d6f1f2ab1c95d3e
golem dead drop --all
""",
)
@click.argument("letter_ids", metavar="[ID...]", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All of them.")
@redis_options
def _drop(
    *,
    letter_ids: tuple[str, ...],
    everything: bool,
    broker_url: str | None,
    result_backend: str | None,
) -> None:
    """Throw letters away, with their texts. Exits with 1 if one of them wasn't there."""
    with _open(broker_url, result_backend) as dead:
        chosen = _chosen(letter_ids, everything, lambda: [letter.id for letter in dead.all()])
        _each(chosen, dead.drop, "dropped")


def _open(broker_url: str | None, result_backend: str | None) -> DeadLetters:
    from golem_tasks.dead import DeadLetters  # noqa: PLC0415 - loads Celery, which --help needn't

    return DeadLetters(settings=client_settings(broker_url, result_backend, None))


def _chosen(
    letter_ids: Sequence[str], everything: bool, all_ids: Callable[[], list[str]]
) -> Sequence[str]:
    if everything == bool(letter_ids):
        raise click.UsageError("Give either ids or --all.")
    return all_ids() if everything else letter_ids


def _each(letter_ids: Sequence[str], act: Callable[[str], None], done: str) -> None:
    """Do it to each, whatever becomes of the others, and say how many it worked for."""
    failed = 0
    for letter_id in letter_ids:
        try:
            act(letter_id)
        except DeadLetterError as exc:
            failed += 1
            note(one_line(str(exc)))
    count = len(letter_ids) - failed
    click.echo(f"{count} dead {'letter' if count == 1 else 'letters'} {done}.")
    if failed:
        raise click.exceptions.Exit(1)


def _facts(letter: DeadLetter) -> dict[str, Any]:
    """A letter as JSON shows it; how Redis files it is left out."""
    hidden = ("list_name", "delivery_tag")
    facts = {name: value for name, value in asdict(letter).items() if name not in hidden}
    return {**facts, "queue": letter.queue}


def _table(letters: Sequence[DeadLetter]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("id", no_wrap=True, overflow="ignore")  # to be copied whole
    table.add_column("queue", overflow="fold")
    table.add_column("reason", no_wrap=True)
    table.add_column("given up", no_wrap=True)
    for letter in letters:
        count = letter.crashes if letter.reason == "crash" else letter.deliveries
        reason = f"{letter.reason} x{count}" if count else letter.reason
        when = f"{_local(letter.died_s):%m-%d %H:%M}" if letter.died_s else "-"
        cells = (letter.id, letter.queue or "-", reason, when)
        table.add_row(*(Text(one_line(cell)) for cell in cells))
    return table


def _said(name: str, value: Any) -> str:
    if name.endswith("_s"):
        return _local(value).isoformat(" ", "seconds")
    return value if isinstance(value, str) else json.dumps(value)


def _local(unix_s: float) -> datetime:
    return datetime.fromtimestamp(unix_s).astimezone()


def _cut(text: str) -> str:
    rest = len(text) - _SHOWN_CHARS
    return (
        f"{text[:_SHOWN_CHARS]} ... {rest:,} more characters; --json has all" if rest > 0 else text
    )


def _parsed(message: str) -> Any:
    """A message as the object it is, or as its text where it is none."""
    try:
        return json.loads(message)
    except (ValueError, RecursionError):
        return message


def _parts(message: str) -> dict[str, Any]:
    """The parts of a message a person reads; the body decoded if it is plain text."""
    parsed = _parsed(message)
    if not isinstance(parsed, dict):
        return {"message": message}
    headers, properties = parsed.get("headers"), parsed.get("properties")
    body, compressed = parsed.get("body"), isinstance(headers, dict) and headers.get("compression")
    encoded = isinstance(properties, dict) and properties.get("body_encoding") == "base64"
    if encoded and isinstance(body, str) and not compressed:
        with suppress(ValueError):  # then it is shown as it came
            body = base64.b64decode(body).decode("utf-8", "backslashreplace")
    return {"headers": headers, "properties": properties, "body": body}

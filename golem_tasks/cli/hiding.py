"""Secrets leave the command line, which everybody on the machine can read while a process runs.

An option that holds one goes into the environment, which only the same user can read, and the
command starts over without it, under the same process id.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence

from golem_tasks.settings import ENV_PREFIX, mask_url

__all__ = ["hide", "split"]

_URLS = ("--broker-url", "--result-backend")
_SECRETS = ("--sentinel-password",)


def hide() -> None:
    """Start this command over without secrets in its arguments; return if there are none.

    Except for ``golem demo``, which looks at no environment: it starts a server of its own unless
    an option names one.
    """
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    kept, moved = split(sys.orig_argv)
    if moved and command != "demo":
        os.environ.update(moved)
        os.execv(sys.executable, [sys.executable, *kept[1:]])  # noqa: S606 - our own arguments


def split(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Arguments without the options that hold a secret, and the environment that replaces these.

    Of an option given twice the last one counts, as for click. What follows ``--`` is Celery's and
    stays.
    """
    found = list(_options(argv))
    moved = {name: value for name, _, value in found if name}
    held = {name for name, _, value in found if name in _SECRETS or "**" in mask_url(value)}
    kept = [word for name, words, _ in found if name not in held for word in words]
    return kept, {_variable(name): moved[name] for name in held if name}


def _options(argv: Sequence[str]) -> Iterator[tuple[str, list[str], str]]:
    """The words in order, those of one of our options together: its name, words and value."""
    words = iter(argv)
    for word in words:
        name, joined, value = word.partition("=")
        if word == "--":
            yield "", [word, *words], ""
        elif name not in (*_URLS, *_SECRETS):
            yield "", [word], ""
        elif joined:
            yield name, [word], value
        else:
            rest = [value for value in [next(words, None)] if value is not None]
            yield name, [word, *rest], "".join(rest)


def _variable(option: str) -> str:
    return ENV_PREFIX + option.removeprefix("--").replace("-", "_").upper()

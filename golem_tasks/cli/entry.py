"""The first lines that run. Light, so that even a Ctrl-C during the imports ends without a word."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `golem` command and return its exit code; see `golem_tasks.cli.group`."""
    with _dying_on_ctrl_c():
        from golem_tasks.cli.group import run  # noqa: PLC0415 - see this module's docstring
    try:
        return run(argv)
    except KeyboardInterrupt:  # in the instant before or after its own handling
        return 128 + signal.SIGINT


@contextmanager
def _dying_on_ctrl_c() -> Iterator[None]:
    """Let a Ctrl-C end the process as the kernel does.

    As an exception it would pass through half-made modules, and those in C or Rust don't bear it:
    pydantic's core makes a panic of it, which nobody takes for a Ctrl-C any more.
    """
    try:
        python = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if python:  # neither ignored, as in a shell's background, nor an embedding program's own
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    except ValueError:  # not in the main thread, which gets the signals
        python = False
    try:
        yield
    finally:
        if python:
            signal.signal(signal.SIGINT, signal.default_int_handler)

"""The first lines that run. Light, so that even a Ctrl-C during the imports ends without a word."""

from __future__ import annotations

import signal
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `golem` command and return its exit code; see `golem_tasks.cli.group`."""
    try:
        from golem_tasks.cli.group import run  # noqa: PLC0415 - see this module's docstring
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return run(argv)

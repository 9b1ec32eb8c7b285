"""Run a command that must not outlive the process that started it, however that one dies.

``python -m golem_tasks.guard COMMAND ...`` starts the command in a session of its own (so a Ctrl-C
in the terminal reaches the starter, which decides the order of leaving) and waits on its own
standard input. The starter holds the other end: when it closes it, or is killed -9 and the kernel
does, the command gets SIGTERM, and SIGKILL if it is still there after ``--grace`` seconds.
On Linux the command also dies with this guard.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import IO

__all__ = ["guarded", "main"]

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_GRACE_S = 10.0


def guarded(
    command: Sequence[str],
    *,
    grace_s: float = _GRACE_S,
    env: dict[str, str] | None = None,
    output: IO[bytes] | int | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command` under a guard; the guard's stdin, closed, ends it within `grace_s` seconds.

    The guard exits with the command's own code, and its pid is the one to wait for.
    """
    call = [sys.executable, "-m", "golem_tasks.guard", str(grace_s), *command]
    return subprocess.Popen(  # noqa: S603 - the command is our caller's own
        call,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT if output is not None else None,
        env=env,
        start_new_session=True,
    )


def _die_with_parent() -> None:
    # Runs between fork and exec in the guard, which is single-threaded.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(argv: Sequence[str]) -> int:
    """Run ``argv[1:]`` until it or standard input ends; ``argv[0]`` is the grace in seconds."""
    grace_s, command = float(argv[0]), argv[1:]
    child = subprocess.Popen(  # noqa: S603 - the command is our caller's own
        command,
        stdin=subprocess.DEVNULL,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 - see there
        process_group=0,
    )
    # A signal to the guard's session ends the wait below; the command's fate follows from that.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: child.terminate())
    while child.poll() is None:
        readable, _, _ = select.select([0], [], [], 0.1)
        if readable and not os.read(0, 4096):
            break
    child.terminate()
    try:
        return child.wait(grace_s)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

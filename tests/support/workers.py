"""Real worker processes for the tests: started, watched through their log, stopped by pid."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from golem_tasks.guard import guarded
from tests.support.waiting import wait_until

READY = " ready."  # Celery's own line: "celery@host ready."


class WorkerProcess:
    """One worker under a guard, so that it dies with the test session. Its log is a file.

    Args:
        folder: where the log goes.
        env: settings, such as ``GOLEM_BROKER_URL``, put over this process's environment.
        app: Celery app of the worker.
        arguments: more arguments of ``celery worker``.
        sociable: whether it talks to other workers, as Celery's does by default.
    """

    def __init__(
        self,
        folder: Path,
        env: dict[str, str],
        *,
        app: str = "worker",
        arguments: Sequence[str] = (),
        name: str = "w1",
        sociable: bool = False,
    ) -> None:
        self.log = folder / f"{name}.log"
        self.name = name
        # Never the user's own: what one test's worker learns of its memory isn't the next one's.
        # Nor does each of them measure for seconds how fast the model is, or load it for each core.
        ours = {
            "GOLEM_STATE_DIR": str(folder / "state"),
            "GOLEM_TOKEN_BUDGET": "1024",
            "GOLEM_PROCESSES": "1",
        }
        self._env = {**os.environ, **ours, **env}
        self._command = [
            sys.executable, "-m", "celery", "-A", app, "worker", "--loglevel", "INFO",
            *([] if sociable else ["--without-gossip", "--without-mingle"]),
            "--hostname", f"{name}@test", *arguments,
        ]  # fmt: skip
        self._guard: subprocess.Popen[bytes] | None = None
        self._said_before = 0

    @property
    def text(self) -> str:
        """The log so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def pid(self) -> int:
        """The worker's main process."""
        assert self._guard is not None
        children = Path(f"/proc/{self._guard.pid}/task/{self._guard.pid}/children").read_text()
        return int(children.split()[0])

    @property
    def children(self) -> list[int]:
        """The model processes (spawn's resource tracker isn't one)."""
        pids = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(pid) for pid in pids if b"spawn_main" in _cmdline(pid)]

    def start(self, *, wait: bool = True) -> Self:
        """Start it; by default return once it is ready to take jobs."""
        self._said_before = len(self.text)  # another of its name may have been ready
        with self.log.open("ab") as output:
            self._guard = guarded(self._command, env=self._env, output=output, grace_s=30)
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self, timeout_s: float = 180) -> None:
        """Return once the worker's log says ready; fail with the log if it ended instead."""

        def ready() -> bool:
            return READY in self.text[self._said_before :]

        wait_until(lambda: ready() or not self.alive, "the worker to start", timeout_s=timeout_s)
        assert ready(), self.text[-4000:]

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._guard is not None and self._guard.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the worker's main process."""
        os.kill(self.pid, number)

    def wait(self, timeout_s: float = 180) -> int:
        """Wait for its end and return its exit code."""
        assert self._guard is not None
        code = self._guard.wait(timeout_s)
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        return code

    def stop(self) -> int:
        """SIGTERM, and return the exit code; SIGKILL by the guard after 30 s."""
        assert self._guard is not None
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        return self._guard.wait(60)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def running(pid: int) -> bool:
    """Whether a process runs: it exists and isn't one that has ended and waits to be reaped."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def _cmdline(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""

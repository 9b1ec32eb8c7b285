"""A worker of our own for as long as the demo lasts; it doesn't outlive us, however we end."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import golem_tasks
from golem_tasks.errors import GolemError
from golem_tasks.guard import guarded

__all__ = ["LocalWorker", "last_sentence"]

_READY = " ready."  # Celery's own line: "celery@host ready."
_MODEL = re.compile(r"Model process \d+ is ready: (.*? labels)")
_PREFIX = re.compile(r"^\[[^]]*: (?P<level>[A-Z]+)/[^]]*\] ")
_GRACE_S = 10.0
_POLL_S = 0.05


class LocalWorker:
    """One ``golem worker`` under a guard, with its log in a folder of its own.

    Args:
        arguments: of ``golem worker``.
        env: its environment.
    """

    def __init__(self, arguments: list[str], env: dict[str, str]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="golem-demo-"))
        self._log = self._folder / "worker.log"
        self._arguments = arguments
        # Whatever it leaves behind when it is stopped half-way goes with our folder.
        self._env = {**env, **_same_code(), "TMPDIR": str(self._folder)}
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """All it has said so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def about(self) -> str:
        """What it says of its model: name, dtype, device, labels."""
        found = _MODEL.search(self.log)
        return found[1] if found else "a model"

    def start(self) -> None:
        """Start it; `wait_ready` says when it takes jobs."""
        command = [
            sys.executable, "-m", "golem_tasks.cli", "worker", *self._arguments,
            "--", "--without-gossip", "--without-mingle",
        ]  # fmt: skip
        with self._log.open("ab") as output:
            self._guard = guarded(command, env=self._env, output=output, grace_s=_GRACE_S)

    def wait_ready(self, waiting: Callable[[float], None]) -> None:
        """Return once it takes jobs; `waiting` is told the seconds passed, now and then.

        Raises:
            GolemError: it ended instead; with the last sentence of its log.
        """
        begun_s = time.monotonic()
        while _READY not in (log := self.log):
            if self._guard is None or self._guard.poll() is not None:
                raise GolemError(f"The worker didn't start: {last_sentence(log)}")
            waiting(time.monotonic() - begun_s)
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End it, within ten seconds, and remove its folder."""
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            self._guard.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def last_sentence(log: str) -> str:
    """Of a log, the last line that says what is wrong; else the last line of all."""
    lines = [line for line in log.splitlines() if line.strip()]
    levels = [(_PREFIX.match(line), line) for line in lines]
    wrong = [line for found, line in levels if found and found["level"] in ("ERROR", "CRITICAL")]
    last = (wrong or lines or ["it said nothing."])[-1]
    return _PREFIX.sub("", last).removeprefix("golem: ").strip()


def _same_code() -> dict[str, str]:
    """Environment in which Python finds the packages we are, not one in the working directory.

    Somebody who tries the demo may well stand in a project with a ``worker.py`` of its own.
    """
    ours = str(Path(golem_tasks.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [ours, os.environ.get("PYTHONPATH", "")]))
    return {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}

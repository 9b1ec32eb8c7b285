"""The workers that are compared: how each is started, watched and stopped."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from celery import Celery

from benchmarks.procfs import Usage, children, command, usage
from golem_tasks.embedded import EmbeddedServer
from golem_tasks.errors import ConfigurationError, GolemError
from golem_tasks.guard import guarded

__all__ = ["CELERY", "GOLEM", "Contender", "RunningWorker", "backend_url", "celery_batches"]

ROOT = Path(__file__).resolve().parents[1]
QUEUE = "golem"
_BATCHES = "celery-batches==0.11"
_START_S = 300.0
_LOG_TAIL = 2_000


@dataclass(frozen=True, slots=True)
class Contender:
    """One kind of worker."""

    name: str
    app: str
    """The argument of ``celery -A``."""
    pythonpath: tuple[Path, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


GOLEM = Contender("golem", "worker")
CELERY = Contender("celery", "benchmarks.stock_app")


def celery_batches() -> Contender:
    """celery-batches, from a folder of its own.

    It declares celery<5.7 although it runs on it, so it is installed without its requirements.

    Raises:
        ConfigurationError: it is not installed and can't be fetched.
    """
    contender = Contender("celery-batches", "benchmarks.batches_app")
    if importlib.util.find_spec("celery_batches") is not None:
        return contender
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "golem-benchmarks" / _BATCHES.replace("==", "-")
    install = f"pip install --no-deps --target {folder} {_BATCHES}"
    if not (folder / "celery_batches").is_dir():
        arguments = install.split()[1:]
        done = subprocess.run(  # noqa: S603 - a fixed command
            [sys.executable, "-m", "pip", "--quiet", *arguments], check=False, capture_output=True
        )
        if done.returncode:
            raise ConfigurationError(f"celery-batches can't be fetched: run `{install}`.")
    return Contender(contender.name, contender.app, pythonpath=(folder,))


def backend_url(server: EmbeddedServer) -> str:
    """Database 1 holds the answers and nothing else, so that its size counts them."""
    return server.url.removesuffix("/0") + "/1"


class RunningWorker:
    """One worker under a guard, so that it dies with the benchmark.

    Args:
        contender: which kind.
        server: broker and result backend.
        folder: where its log goes, and what workers remember of the machine.
        engine: value of ``GOLEM_ENGINE``; unset takes the real model.
        name: its name, unique among the workers of a run.
        env: more settings.
    """

    def __init__(
        self,
        contender: Contender,
        server: EmbeddedServer,
        folder: Path,
        *,
        engine: str | None = None,
        name: str = "w1",
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.contender = contender
        self.name = f"{name}@bench"
        self.log = folder / f"{contender.name}-{name}.log"
        self._server = server
        # Not the user's: what a run learns must neither come from there nor displace it.
        ours = {"GOLEM_STATE_DIR": str(folder / "state"), **(env or {})}
        self._env = _environment(contender, server, engine, ours)
        self._guard: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> Self:
        """Start it and, unless told not to, return once it takes jobs.

        Raises:
            GolemError: it ended instead; the text has its last lines.
        """
        arguments = [
            sys.executable, "-m", "celery", "-A", self.contender.app, "worker",
            "--loglevel", "WARNING", "--hostname", self.name,
            "--without-gossip", "--without-mingle", "--without-heartbeat",
        ]  # fmt: skip
        with self.log.open("ab") as output:
            self._guard = guarded(arguments, env=self._env, output=output, grace_s=40)
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Return once the worker answers a ping, which it does when it consumes.

        Raises:
            GolemError: it ended, or didn't answer within 300 s.
        """
        deadline_s = time.monotonic() + _START_S
        app = Celery(broker=self._server.url, set_as_current=False)
        # A connection of its own: kombu's pool may still hold one that a fault run has cut.
        with app.connection_for_write() as connection:
            while self.alive and time.monotonic() < deadline_s:
                given = {"destination": [self.name], "timeout": 0.5, "limit": 1}
                if app.control.ping(**given, connection=connection):
                    return
        tail = self.log.read_text(errors="replace")[-_LOG_TAIL:]
        raise GolemError(f"The {self.contender.name} worker didn't start: {tail}")

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._guard is not None and self._guard.poll() is None

    @property
    def pid(self) -> int | None:
        """Its main process; None while there is none."""
        found = children(self._guard.pid) if self._guard is not None else []
        return found[0] if found else None

    @property
    def models(self) -> list[int]:
        """Its pool processes."""
        parent = self.pid
        if parent is None:
            return []
        # Not what tracks semaphores, nor a tool that an import asks, nor what has ended.
        told = {pid: command(pid) for pid in children(parent)}
        return [
            pid
            for pid, said in told.items()
            if b"spawn_main" in said or (b"celery" in said and b"_tracker" not in said)
        ]

    def parent_usage(self) -> Usage:
        """What the main process uses now."""
        pid = self.pid
        return usage() if pid is None else usage(pid)

    def model_usage(self) -> Usage:
        """What the pool processes use now, added up."""
        return usage(*self.models)

    def stop(self) -> int | None:
        """SIGTERM, SIGKILL after 40 s; return the exit code."""
        guard, self._guard = self._guard, None
        if guard is None:
            return None
        if guard.stdin is not None:
            guard.stdin.close()
        return guard.wait()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _environment(
    contender: Contender, server: EmbeddedServer, engine: str | None, more: Mapping[str, str]
) -> dict[str, str]:
    # A setting of the terminal's must not reach one contender and not the other.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GOLEM_")}
    paths = [str(ROOT), *map(str, contender.pythonpath), os.environ.get("PYTHONPATH", "")]
    env |= {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "GOLEM_BROKER_URL": server.url,
        "GOLEM_RESULT_BACKEND": backend_url(server),
        "GOLEM_QUEUE": QUEUE,
        "GOLEM_PROCESSES": "1",
        "GOLEM_DEVICE": "cpu",
    }
    if engine is not None:
        env["GOLEM_ENGINE"] = engine
    return {**env, **contender.env, **more}

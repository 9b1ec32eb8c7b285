"""Engines without a model, for ``GOLEM_ENGINE``: one that costs nothing, one that only sleeps.

Both answer each text by a hash of it, so that whoever sent the text can tell a right answer from
another text's (`expected`). Set by the environment, since they live in a worker's child:

- ``BENCH_LAUNCH_MS``, ``BENCH_TOKEN_US``: the simulated GPU takes a + b x padded tokens.
- ``BENCH_ROW_TOKENS``: tokens of every text on it.
- ``BENCH_DEVICE``: a file that stands for the simulated GPU; the processes that name the same one
  share it, and it does one micro-batch at a time. Unset: a GPU for each process.
- ``BENCH_LOG``: a file to which each micro-batch is appended once it is done, see `Run`.

A text that begins with `POISON` ends the process that launches it by a segmentation fault.
"""

from __future__ import annotations

import fcntl
import math
import os
import signal
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from golem_tasks.contract import OnLong, TextItem
from golem_tasks.errors import JobError
from worker.interfaces import Activation, Encoded, ModelInfo, Row
from worker.settings import WorkerSettings

__all__ = [
    "GPU",
    "NOOP",
    "POISON",
    "Run",
    "expected",
    "fingerprint",
    "noop",
    "read_runs",
    "simulated_gpu",
]

NOOP = "benchmarks.engines:noop"
GPU = "benchmarks.engines:simulated_gpu"

POISON = "poison "
LABELS = ("NEGATIVE", "POSITIVE")
_POISON_MARK = -1  # no text's fingerprint
_SPAN = 4.0  # logits lie between -4 and 4, as a sentiment model's do


def fingerprint(text: str) -> int:
    """64 bits that tell texts apart."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())


def expected(text: str) -> tuple[str, float]:
    """The label and score of the right answer to a text."""
    logit = _logit(fingerprint(text))
    return LABELS[logit > 0], 1.0 / (1.0 + math.exp(-2.0 * abs(logit)))


def _mark(text: str) -> int:
    return _POISON_MARK if text.startswith(POISON) else fingerprint(text)


def _logit(mark: int) -> float:
    return _SPAN * (2.0 * (mark / 2**64) - 1.0)


@dataclass(frozen=True, slots=True)
class Run:
    """A finished micro-batch as its engine logged it: pid, two times and the texts' hashes."""

    pid: int
    begun_s: float
    """Unix time, as `ended_s`."""
    ended_s: float
    fingerprints: tuple[int, ...]


def read_runs(log: Path) -> list[Run]:
    """Read what the engines logged; a line cut short by a kill is left out."""
    if not log.exists():
        return []
    lines = log.read_text(encoding="ascii").splitlines(keepends=True)
    return [_parsed(line) for line in lines if line.endswith("\n")]


def _parsed(line: str) -> Run:
    pid, begun_s, ended_s, *marks = line.split()
    return Run(int(pid), float(begun_s), float(ended_s), tuple(int(mark, 16) for mark in marks))


class _Log:
    """Appends a line for each micro-batch; O_APPEND keeps the lines of several processes whole."""

    def __init__(self, path: str | None) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._file = None if path is None else os.open(path, flags, 0o644)

    def write(self, begun_s: float, ended_s: float, rows: Sequence[Row]) -> None:
        if self._file is None:
            return
        marks = " ".join(f"{row.ids[0]:x}" for row in rows)
        os.write(self._file, f"{os.getpid()} {begun_s:.6f} {ended_s:.6f} {marks}\n".encode())


class _Device:
    """What a simulated GPU is busy with, shared by all processes that name its file."""

    _FORMAT = struct.Struct("d")

    def __init__(self, path: str | None) -> None:
        self._file = None if path is None else os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._free_s = 0.0

    def take(self, cost_s: float) -> tuple[float, float]:
        """Queue work of so many seconds; when it begins and ends, in monotonic seconds."""
        if self._file is None:
            begun_s = max(time.monotonic(), self._free_s)
            self._free_s = begun_s + cost_s
            return begun_s, self._free_s
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            raw = os.pread(self._file, self._FORMAT.size, 0)
            free_s = self._FORMAT.unpack(raw)[0] if raw else 0.0
            begun_s = max(time.monotonic(), free_s)
            os.pwrite(self._file, self._FORMAT.pack(begun_s + cost_s), 0)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        return begun_s, begun_s + cost_s


@dataclass(frozen=True, slots=True)
class _Launched:
    rows: Sequence[Row]
    begun_s: float
    """Monotonic time at which the device takes it up, as `ready_s`."""
    ready_s: float
    log: _Log

    @property
    def took_s(self) -> float:
        """See `worker.interfaces.Launched`."""
        return self.ready_s - self.begun_s

    def logits(self) -> list[list[float]]:
        """Wait for the simulated device; (B, 2)."""
        if (wait_s := self.ready_s - time.monotonic()) > 0:
            time.sleep(wait_s)
        # Not at launch: a micro-batch that a kill cut short has answered nobody.
        to_unix_s = time.time() - time.monotonic()
        self.log.write(self.begun_s + to_unix_s, self.ready_s + to_unix_s, self.rows)
        logits = [_logit(row.ids[0]) for row in self.rows]
        return [[-logit, logit] for logit in logits]


class HashEngine:
    """Answers by hash after `launch_s` + `token_s` x padded tokens, on a simulated device.

    Args:
        info: the model it says it is.
        max_rows: most rows of a micro-batch.
        token_budget: most padded tokens of a micro-batch.
        row_tokens: tokens of every text.
        launch_s: seconds each micro-batch takes, however small.
        token_s: seconds for each padded token.
    """

    def __init__(
        self,
        info: ModelInfo,
        *,
        max_rows: int,
        token_budget: int,
        row_tokens: int = 1,
        launch_s: float = 0.0,
        token_s: float = 0.0,
    ) -> None:
        self.info = info
        self.max_rows = max_rows
        self.token_budget = token_budget
        self._padding = [0] * (row_tokens - 1)
        self._launch_s = launch_s
        self._token_s = token_s
        self._device = _Device(os.environ.get("BENCH_DEVICE"))
        self._log = _Log(os.environ.get("BENCH_LOG"))

    def encode(
        self,
        items: Sequence[TextItem],
        on_long: Sequence[OnLong],  # noqa: ARG002 - no text is too long for a hash
    ) -> list[Encoded | JobError]:
        """Hash each text."""
        tokens = 1 + len(self._padding)
        rows = [Row([_mark(item.text), *self._padding]) for item in items]
        return [Encoded((row,), tokens, truncated=False) for row in rows]

    def launch(self, rows: Sequence[Row]) -> _Launched:
        """Queue a micro-batch on the device, which runs one after the other."""
        if any(row.ids[0] == _POISON_MARK for row in rows):
            os.kill(os.getpid(), signal.SIGSEGV)
        padded = len(rows) * max(row.length for row in rows)
        begun_s, ready_s = self._device.take(self._launch_s + self._token_s * padded)
        return _Launched(rows, begun_s, ready_s, self._log)

    def release_memory(self) -> None:
        """Nothing is held in reserve."""

    def warm_up(self, token_budget: int) -> None:
        """Nothing gets faster by use."""


def noop(settings: WorkerSettings, index: int) -> HashEngine:  # noqa: ARG001 - a loader's signature
    """The engine that costs nothing: what remains is the plumbing."""
    info = ModelInfo("no-op", None, "none", "cpu", LABELS, Activation.SOFTMAX, 512)
    return HashEngine(info, max_rows=settings.most_rows, token_budget=2**30)


def simulated_gpu(settings: WorkerSettings, index: int) -> HashEngine:
    """The engine that sleeps a + b x tokens and uses no CPU, as a GPU's host does."""
    device = f"simulated:{index}"  # anything but "cpu": launches are asynchronous
    info = ModelInfo("simulated", None, "none", device, LABELS, Activation.SOFTMAX, 512)
    return HashEngine(
        info,
        max_rows=settings.most_rows,
        token_budget=budget if isinstance(budget := settings.token_budget, int) else 2**30,
        row_tokens=int(os.environ.get("BENCH_ROW_TOKENS", "24")),
        launch_s=float(os.environ.get("BENCH_LAUNCH_MS", "5")) / 1e3,
        token_s=float(os.environ.get("BENCH_TOKEN_US", "100")) / 1e6,
    )

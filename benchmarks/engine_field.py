"""Who runs in `benchmarks.engine`: each way of running one model, made ready."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self, TypeAlias

from benchmarks.backlog import Bench
from benchmarks.contenders import GOLEM, RunningWorker
from benchmarks.crew import Crew
from benchmarks.loops import (
    BUDGET_TOKENS,
    Case,
    GolemLoop,
    Loop,
    PaddedLoop,
    PipelineLoop,
    Ran,
    SortedLoop,
    timed,
)
from benchmarks.runtimes import RUNTIMES, runtime_loops
from golem_tasks.errors import GolemError, ModelLoadError
from worker.processes import count
from worker.settings import WorkerSettings

__all__ = ["BATCH_SIZES", "BEST", "CONTENDERS", "END_TO_END", "Field", "Run"]

Run: TypeAlias = Callable[[], tuple[Ran, float]]
"""One contender's way through one workload: what it made of the texts, and the seconds it took."""

END_TO_END = "end_to_end"
BEST = "pipeline_best"
BATCH_SIZES = (1, 8, 32, 64, 256)
_REFERENCE = 64
_IN_CREW = {"default": "golem", "limit_processes": "sorted"}
_INT8, _COMPILED = "int8", "compiled"

CONTENDERS = (
    # Those that are compared run right after each other.
    "limit", END_TO_END, "limit_processes", "default", "one_process",
    _INT8, _COMPILED,
    "limit_float32", "float32", BEST, f"pipeline_{_REFERENCE}", "padded", *RUNTIMES,
)  # fmt: skip


class Queue:
    """The way through Redis: a worker that is up, and backlogs for it."""

    def __init__(self, bench: Bench, worker: RunningWorker, max_tokens: int) -> None:
        self._bench = bench
        self._worker = worker
        self._max_tokens = max_tokens
        self._ids: dict[str, Sequence[str]] = {}

    def prepare(self, name: str, texts: Sequence[str]) -> None:
        """Publish a backlog and lay it by; while the worker isn't up."""
        self._ids[name] = self._bench.prepare(name, texts)

    def run(self, name: str) -> tuple[Ran, float]:
        """Let the worker answer a backlog.

        Raises:
            GolemError: an answer is missing.
        """
        self._bench.answers.flushdb()
        ids = self._ids[name]
        drained = self._bench.drain(name, len(ids), [self._worker])
        raw: Any = self._bench.answers.mget([f"celery-task-meta-{each}" for each in ids])
        metas = [json.loads(value) for value in raw if value is not None]
        if any(meta["status"] != "SUCCESS" for meta in metas) or len(metas) != len(ids):
            raise GolemError(f"Not every text of {name} was answered; see the worker's log.")
        answers = [meta["result"] for meta in metas]
        lengths = [min(answer["tokens"], self._max_tokens) for answer in answers]
        # A text's part of its micro-batch, padding included; added up, they are all micro-batches.
        padded = sum(
            length / (1 - answer["timing"]["padding_share"])
            for length, answer in zip(lengths, answers, strict=True)
        )
        labels = [answer["label"] for answer in answers]
        return Ran(labels, sum(lengths), round(padded)), drained.wall_s


class Field:
    """The contenders for one model; a context manager.

    Args:
        folder: the model's.
        scratch: an empty folder of one's own.
        wanted: who shall run, of `CONTENDERS`.
        backlogs: all texts there will be, by the name of their workload.
    """

    def __init__(
        self,
        folder: Path,
        scratch: Path,
        wanted: Sequence[str],
        backlogs: Mapping[str, Sequence[str]],
    ) -> None:
        self.float32 = Case.of(folder, "float32")
        self.one = Case.of(folder, "auto")
        self.pipelines = {size: PipelineLoop(self.float32, size) for size in BATCH_SIZES}
        self.loops: dict[str, Loop] = {
            "limit": SortedLoop(self.one),
            "one_process": GolemLoop(self.one),
            "limit_float32": SortedLoop(self.float32),
            "float32": GolemLoop(self.float32),
            f"pipeline_{_REFERENCE}": self.pipelines[_REFERENCE],
            "padded": PaddedLoop(self.one),
        }
        self.processes = count(
            WorkerSettings.model_validate({"device": "cpu", "model": str(folder)})
        )
        """Of a worker with default settings."""
        self.wanted = wanted
        self._folder = folder
        self._scratch = scratch
        self._backlogs = backlogs
        self._queue: Queue | None = None
        self._failed: dict[str, str] = {}
        self._running = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as running:
            if _INT8 in self.wanted:
                self.loops[_INT8] = GolemLoop(Case.of(self._folder, "int8"))
            if _COMPILED in self.wanted:
                self._compile()
            if not set(self.wanted).isdisjoint(RUNTIMES):
                self.loops |= runtime_loops(self.float32, self._scratch)
            if not set(self.wanted).isdisjoint(_IN_CREW):
                crew = Crew(self._folder, "auto", self.processes, self._scratch / "state")
                running.enter_context(crew)
                self.loops |= {name: crew.loop(kind) for name, kind in _IN_CREW.items()}
            if END_TO_END in self.wanted:
                self._queue = self._worker(running)
            self._running = running.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    @property
    def missing(self) -> dict[str, str]:
        """Contenders that were asked for and can't run here, and why."""
        asked = [name for name in RUNTIMES if name in self.wanted and name not in self.loops]
        return {**dict.fromkeys(asked, "isn't installed"), **self._failed}

    def runs(self, name: str, best: Loop | None) -> dict[str, Run]:
        """What each contender does with a workload, in the order they should run.

        Args:
            name: of the workload.
            best: the pipeline at the batch size that suits it; None if it doesn't take part.
        """
        loops = self.loops if best is None else {**self.loops, BEST: best}
        texts = self._backlogs[name]
        found: dict[str, Run] = {}
        for contender in CONTENDERS:
            if contender not in self.wanted:
                continue
            if contender in loops:
                found[contender] = _timed(loops[contender], texts)
            elif contender == END_TO_END and (queue := self._queue) is not None:
                found[contender] = lambda queue=queue: queue.run(name)  # type: ignore[misc]
        return found

    def _compile(self) -> None:
        try:
            self.loops[_COMPILED] = GolemLoop(Case.of(self._folder, "auto", compiled=True))
        except ModelLoadError as exc:  # there is no C++ compiler, say
            self._failed[_COMPILED] = str(exc)

    def _worker(self, running: ExitStack) -> Queue:
        bench = running.enter_context(Bench())
        env = {
            "GOLEM_MODEL": str(self._folder),
            "GOLEM_TOKEN_BUDGET": str(BUDGET_TOKENS),
            "GOLEM_PROCESSES": str(self.processes),
        }
        worker = RunningWorker(GOLEM, bench.server, bench.folder, env=env)
        queue = Queue(bench, worker, self.one.engine.info.max_tokens)
        for name, texts in self._backlogs.items():
            queue.prepare(name, texts)
        running.enter_context(worker)
        bench.warm_up(50)
        return queue


def _timed(loop: Loop, texts: Sequence[str]) -> Run:
    return lambda: timed(loop, texts)

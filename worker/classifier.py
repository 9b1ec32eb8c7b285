"""Texts in, one outcome for each out: encode, pack, forward, decode, whatever goes wrong.

Batch-mates share a forward pass and nothing else. What raises is halved until the culprit stands
alone, and only that one fails; out of memory lowers the budget and the same work runs again in
smaller pieces. Celery, Redis and torch are unknown here.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from golem_tasks.contract import Options, TextItem
from golem_tasks.errors import InferenceError, JobError, OutOfMemory
from worker.decoding import Decoder, MicroBatch
from worker.interfaces import Encoded, Engine, Launched, Row
from worker.packing import pack, padded_area

__all__ = ["Classified", "Classifier", "MicroBatch", "Work", "is_out_of_memory"]

logger = logging.getLogger(__name__)

Outcome: TypeAlias = "dict[str, Any] | JobError"

_CAUSE_CHARS = 300  # torch appends C++ stack traces; a person needs the first line
_CLEAN_BEFORE_GROWTH = 64  # micro-batches without trouble before a lowered budget grows
_GROWTH = 1.25
_MEMORY_SIGNS = ("out of memory", "not enough memory", "can't allocate memory")


@dataclass(frozen=True, slots=True)
class Work:
    """One text to be classified."""

    item: TextItem
    options: Options
    queued_ms: float
    """Milliseconds it waited before it came here; only reported in the answer."""


@dataclass(frozen=True, slots=True)
class Classified:
    """What became of a dispatch."""

    outcomes: list[Outcome]
    """A prediction or the reason there is none, for each work, in order."""
    micro_batches: list[MicroBatch]
    """Every forward pass that succeeded, in the order they were run."""


@dataclass(slots=True)
class _Line:
    """One row on its way: which work it belongs to and what came back for it."""

    work: int
    row: Row
    logits: list[float] | None = None
    batch: MicroBatch | None = None


@dataclass(frozen=True, slots=True)
class _Pending:
    """A micro-batch still to be run."""

    lines: list[_Line]
    budget_before: int | None = None
    """The budget before its first out of memory; None if it had none."""

    @property
    def area(self) -> int:
        return padded_area([line.row.length for line in self.lines])


@dataclass(frozen=True, slots=True)
class _InFlight:
    pending: _Pending
    launched: Launched
    started_s: float


@dataclass(slots=True)
class _Run:
    """One dispatch: what is still to be done and what has come of it."""

    works: Sequence[Work]
    encoded: list[Encoded | None]
    failed: dict[int, JobError]
    lines: list[list[_Line]]
    queue: deque[_Pending] = field(default_factory=deque)
    micro_batches: list[MicroBatch] = field(default_factory=list)


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether this is a failed allocation: Python's own, or torch's on any device."""
    if isinstance(exc, MemoryError):
        return True
    text = str(exc).lower()
    return isinstance(exc, RuntimeError) and any(sign in text for sign in _MEMORY_SIGNS)


class Classifier:
    """Classifies dispatches with one engine. Not thread-safe: one model, one caller.

    Args:
        engine: the loaded model.
        passthrough: exceptions that are the caller's own, such as a time limit's: never taken for
            a text's failure. What isn't an `Exception` always passes.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        passthrough: tuple[type[BaseException], ...] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._engine = engine
        self._passthrough = passthrough
        self._clock = clock
        self._decoder = Decoder(engine.info)
        # A second micro-batch in flight keeps a GPU busy while the first one's answers are read;
        # a CPU computes during the launch itself.
        self._depth = 1 if engine.info.device == "cpu" else 2
        self._budget = engine.token_budget
        self._clean = 0

    @property
    def token_budget(self) -> int:
        """The padded area a micro-batch may have now: the engine's, or less after trouble."""
        return self._budget

    def classify(self, works: Sequence[Work]) -> Classified:
        """Classify texts; each gets an outcome.

        Raises:
            BaseException: only what passes through (see the class) and `DeviceLost`.
        """
        run = _Run(works, [None] * len(works), {}, [[] for _ in works])
        budget_s_before = self._budget
        self._encode(run, range(len(works)))
        self._plan(run)
        self._forward(run)
        if self._budget < budget_s_before:
            logger.warning(
                "The device ran out of memory: micro-batches of %s are now held to %d padded "
                "tokens instead of %d, and grow again after %d without trouble. No job failed by "
                "it that fits the device alone.",
                self._engine.info.name, self._budget, budget_s_before, _CLEAN_BEFORE_GROWTH,
            )  # fmt: skip
        outcomes = [self._outcome(run, index) for index in range(len(works))]
        return Classified(outcomes, run.micro_batches)

    def _encode(self, run: _Run, indexes: Sequence[int]) -> None:
        """Tokenize in one call; where that raises, in halves down to the culprit."""
        if not indexes:
            return
        try:
            items = [run.works[i].item for i in indexes]
            results = self._engine.encode(items, [run.works[i].options.on_long for i in indexes])
            _check_count(len(results), len(indexes), "texts")
        except self._passthrough:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever a tokenizer raises is one text's failure
            if len(indexes) == 1:
                run.failed[indexes[0]] = _failure("encode", exc)
                return
        else:
            for index, result in zip(indexes, results, strict=True):
                self._accept(run, index, result)
            return
        middle = len(indexes) // 2
        self._encode(run, indexes[:middle])
        self._encode(run, indexes[middle:])

    @staticmethod
    def _accept(run: _Run, index: int, result: Encoded | JobError) -> None:
        if isinstance(result, JobError):
            run.failed[index] = result
        elif not result.rows or not all(row.ids for row in result.rows):
            run.failed[index] = InferenceError.at("encode", "the tokenizer made no tokens of it")
        else:
            run.encoded[index] = result
            run.lines[index] = [_Line(index, row) for row in result.rows]

    def _plan(self, run: _Run) -> None:
        """Pack the rows of all works together: micro-batches don't care whose a row is."""
        lines = [line for of_work in run.lines for line in of_work]
        try:
            run.queue.extend(self._packed(lines, None))
        except self._passthrough:
            raise
        except Exception as exc:  # noqa: BLE001 - no job may stay without an outcome
            run.failed.update({line.work: _failure("pack", exc) for line in lines})

    def _packed(self, lines: list[_Line], budget_before: int | None) -> list[_Pending]:
        lengths = [line.row.length for line in lines]
        plan = pack(lengths, self._budget, self._engine.max_rows)
        return [_Pending([lines[i] for i in indexes], budget_before) for indexes in plan]

    def _forward(self, run: _Run) -> None:
        """Run every pending micro-batch, at most `_depth` on the device at a time."""
        in_flight: deque[_InFlight] = deque()
        free_s = 0.0  # when the device had last finished something
        while run.queue or in_flight:
            while run.queue and len(in_flight) < self._depth:
                self._launch_next(run, in_flight)
            if in_flight:
                free_s = self._collect(run, in_flight.popleft(), free_s)

    def _launch_next(self, run: _Run, in_flight: deque[_InFlight]) -> None:
        pending = run.queue.popleft()
        if len(pending.lines) > 1 and pending.area > self._budget:
            # The budget fell after this one was packed.
            run.queue.extendleft(reversed(self._packed(pending.lines, pending.budget_before)))
            return
        started_s = self._clock()
        try:
            launched = self._engine.launch([line.row for line in pending.lines])
        except self._passthrough:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever a model raises is one row's failure
            self._rescue(run, pending, exc)
        else:
            in_flight.append(_InFlight(pending, launched, started_s))

    def _collect(self, run: _Run, flight: _InFlight, free_s: float) -> float:
        lines = flight.pending.lines
        try:
            logits = flight.launched.logits()
            _check_count(len(logits), len(lines), "rows")
        except self._passthrough:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever a model raises is one row's failure
            self._rescue(run, flight.pending, exc)
            return self._clock()
        now_s = self._clock()
        lengths = [line.row.length for line in lines]
        forward_ms = round((now_s - max(flight.started_s, free_s)) * 1e3, 3)
        batch = MicroBatch(len(lines), max(lengths), sum(lengths), forward_ms)
        run.micro_batches.append(batch)
        for line, values in zip(lines, logits, strict=True):
            line.logits, line.batch = values, batch
        self._grow()
        return now_s

    def _rescue(self, run: _Run, pending: _Pending, exc: Exception) -> None:
        """Put a failed micro-batch back in smaller pieces, or blame the row that stands alone."""
        out_of_memory = is_out_of_memory(exc)
        if out_of_memory:
            self._clean = 0
            self._engine.release_memory()
        lines = pending.lines
        if len(lines) == 1:
            run.failed[lines[0].work] = _failure("forward", exc)
            if out_of_memory and pending.budget_before is not None:
                # It fails alone as well: the size of the micro-batches wasn't the cause.
                self._budget = pending.budget_before
        elif out_of_memory:
            before = pending.budget_before or self._budget
            self._budget = max(1, min(self._budget, pending.area // 2))
            run.queue.extendleft(reversed(self._packed(lines, before)))
        else:
            middle = len(lines) // 2
            halves = (_Pending(lines[:middle]), _Pending(lines[middle:]))
            run.queue.extendleft(reversed(halves))

    def _grow(self) -> None:
        if self._budget == self._engine.token_budget:
            return
        self._clean += 1
        if self._clean >= _CLEAN_BEFORE_GROWTH:
            self._clean = 0
            self._budget = min(self._engine.token_budget, int(self._budget * _GROWTH) + 1)

    def _outcome(self, run: _Run, index: int) -> Outcome:
        if index in run.failed:
            return run.failed[index]
        try:
            work, encoded = run.works[index], run.encoded[index]
            logits: list[list[float]] = []
            batches: list[MicroBatch] = []
            for line in run.lines[index]:
                if line.logits is not None and line.batch is not None:
                    logits.append(line.logits)
                    batches.append(line.batch)
            if encoded is None or len(logits) != len(encoded.rows):
                return InferenceError.at("decode", "the model never answered for this text")
            return self._decoder.decode(logits, encoded, work.options, work.queued_ms, batches)
        except self._passthrough:
            raise
        except JobError as exc:
            return exc.with_traceback(None)
        except Exception as exc:  # noqa: BLE001 - one text's answer can't be read; the others' can
            return _failure("decode", exc)


def _check_count(came: int, sent: int, what: str) -> None:
    if came != sent:
        raise RuntimeError(f"{came} answers came back for {sent} {what}")


def _failure(stage: str, exc: Exception) -> JobError:
    """The error of the one text that failed alone; it keeps no traceback, so no tensor either."""
    if is_out_of_memory(exc):
        return OutOfMemory(
            "This text alone doesn't fit the worker's memory: shorten it, or run it on a worker "
            "with a larger device."
        )
    lines = str(exc).strip().splitlines()
    cause = f"{type(exc).__name__}: {lines[0][:_CAUSE_CHARS]}" if lines else type(exc).__name__
    return InferenceError.at(stage, cause)

"""Texts in, one outcome for each out: encode, pack, forward, decode, whatever goes wrong.

Batch-mates share a forward pass and nothing else. What raises is halved until the culprit stands
alone, and only that one fails; out of memory lowers the budget (`worker.ceiling`) and the same work
runs again in smaller pieces. Celery, Redis and torch are unknown here.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from golem_tasks.contract import Options, TextItem
from golem_tasks.errors import InferenceError, JobError
from worker.ceiling import Ceiling, Trail
from worker.decoding import Decoder, MicroBatch
from worker.failures import failure, forget_frames, is_out_of_memory
from worker.interfaces import Encoded, Engine, Launched, Row
from worker.packing import overhead_of, pack, padded_area

__all__ = ["Classified", "Classifier", "MicroBatch", "Work"]

logger = logging.getLogger(__name__)

Outcome: TypeAlias = "dict[str, Any] | JobError"


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
    failures: tuple[int, ...] = ()
    """The times it was out of memory, in larger company, by their names in the trail."""
    alone: bool = False
    """Whether nothing else may be on the device beside it."""

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


class Classifier:
    """Classifies dispatches with one engine. Not thread-safe: one model, one caller.

    Args:
        engine: the loaded model.
        passes: tells the exceptions that are the caller's own, such as a time limit's, and never
            taken for a text's failure; by default those that aren't an `Exception`.
        ceiling: the token budget to begin with; the engine's own if unset.
        on_ceiling: called after a dispatch in which the token budget changed.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        passes: Callable[[BaseException], bool] = lambda exc: not isinstance(exc, Exception),
        ceiling: Ceiling | None = None,
        on_ceiling: Callable[[Ceiling], None] = lambda _: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._engine = engine
        self._passes = passes
        self._trail = Trail(ceiling or Ceiling.start(engine.token_budget))
        self._on_ceiling = on_ceiling
        self._clock = clock
        self._decoder = Decoder(engine.info)
        # A GPU is given the whole dispatch before anybody waits for the first of its answers, so
        # that it always has the next micro-batch; a CPU computes during the launch itself.
        self._launches_ahead = engine.info.device != "cpu"

    @property
    def token_budget(self) -> int:
        """The padded area a micro-batch may have now: the engine's, or less after trouble."""
        return self._trail.ceiling.tokens

    def classify(self, works: Sequence[Work]) -> Classified:
        """Classify texts; each gets an outcome.

        Raises:
            BaseException: only what passes through (see the class).
        """
        run = _Run(works, [None] * len(works), {}, [[] for _ in works])
        before = self.token_budget
        self._trail = Trail(self._trail.ceiling)
        self._encode(run, range(len(works)))
        lines = [line for of_work in run.lines for line in of_work]
        run.queue.extend(self._packed(run, lines, ()))
        self._forward(run)
        if self.token_budget != before:
            self._tell_ceiling(before)
        outcomes = [self._outcome(run, index) for index in range(len(works))]
        return Classified(outcomes, run.micro_batches)

    def _tell_ceiling(self, before: int) -> None:
        now, info = self._trail.ceiling, self._engine.info
        if now.tokens < before:
            logger.warning(
                "Out of memory on %s: micro-batches of %s are now held to %d padded tokens instead "
                "of %d (%d without the limit), and grow again after %d s without trouble. No job "
                "failed by it that fits the device alone.",
                info.device, info.name, now.tokens, before, now.full, now.calm_s,
            )  # fmt: skip
        else:
            logger.info("Micro-batches may have %d of %d tokens again.", now.tokens, now.full)
        self._on_ceiling(now)

    def _encode(self, run: _Run, indexes: Sequence[int]) -> None:
        """Tokenize in one call; where that raises, in halves down to the culprit."""
        if not indexes:
            return
        try:
            items = [run.works[i].item for i in indexes]
            results = self._engine.encode(items, [run.works[i].options.on_long for i in indexes])
            _check_count(len(results), len(indexes), "texts")
            for index, result in zip(indexes, results, strict=True):
                self._accept(run, index, result)
        except BaseException as exc:
            if self._passes(exc):
                raise
            if len(indexes) == 1:
                run.failed[indexes[0]] = failure("encode", exc)
                return
        else:
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

    def _packed(self, run: _Run, lines: list[_Line], failures: tuple[int, ...]) -> list[_Pending]:
        """Pack rows of all works together: micro-batches don't care whose a row is."""
        try:
            lengths = [line.row.length for line in lines]
            overhead = overhead_of(self.token_budget, self._engine.info.device)
            plan = pack(lengths, self.token_budget, self._engine.max_rows, overhead)
            return [_Pending([lines[i] for i in indexes], failures) for indexes in plan]
        except BaseException as exc:
            if self._passes(exc):
                raise
            if len(lines) == 1:
                run.failed[lines[0].work] = failure("pack", exc)
                return []
        left, right = _halves(lines)
        return self._packed(run, left, failures) + self._packed(run, right, failures)

    def _forward(self, run: _Run) -> None:
        """Run every pending micro-batch; answers are read in the order of the launches."""
        in_flight: deque[_InFlight] = deque()
        free_s = 0.0  # when the device had last finished something
        while run.queue or in_flight:
            while run.queue and self._has_room(run.queue[0], in_flight):
                self._launch_next(run, in_flight)
            if in_flight:
                free_s = self._collect(run, in_flight.popleft(), free_s)

    def _has_room(self, pending: _Pending, in_flight: Sequence[_InFlight]) -> bool:
        if pending.alone or (in_flight and in_flight[0].pending.alone):
            return not in_flight
        return self._launches_ahead or not in_flight

    def _launch_next(self, run: _Run, in_flight: deque[_InFlight]) -> None:
        pending = run.queue.popleft()
        if len(pending.lines) > 1 and pending.area > self.token_budget:
            # The budget fell after this one was packed.
            run.queue.extendleft(reversed(self._packed(run, pending.lines, pending.failures)))
            return
        started_s = self._clock()
        try:
            launched = self._engine.launch([line.row for line in pending.lines])
        except BaseException as exc:
            if self._passes(exc):
                raise
            self._rescue(run, pending, exc)
        else:
            in_flight.append(_InFlight(pending, launched, started_s))

    def _collect(self, run: _Run, flight: _InFlight, free_s: float) -> float:
        lines = flight.pending.lines
        try:
            logits = flight.launched.logits()
            _check_count(len(logits), len(lines), "rows")
        except BaseException as exc:
            if self._passes(exc):
                raise
            self._rescue(run, flight.pending, exc)
            return self._clock()
        now_s = self._clock()
        lengths = [line.row.length for line in lines]
        forward_ms = round((now_s - max(flight.started_s, free_s)) * 1e3, 3)
        batch = MicroBatch(len(lines), max(lengths), sum(lengths), forward_ms)
        run.micro_batches.append(batch)
        for line, values in zip(lines, logits, strict=True):
            line.logits, line.batch = values, batch
        self._trail.ran(flight.pending.area, now_s)
        if len(lines) > 1 and (doubtful := [line for line in lines if not _finite(line.logits)]):
            # One row's NaN can reach its mates, by a scale they share in a quantized model, say;
            # nobody is blamed for it before he made it alone.
            self._run_halves(run, doubtful)
        return now_s

    def _rescue(self, run: _Run, pending: _Pending, exc: BaseException) -> None:
        """Put a failed micro-batch back in smaller pieces, or blame the row that stands alone."""
        out_of_memory = is_out_of_memory(exc)
        lines = pending.lines
        if out_of_memory:
            forget_frames(exc)
            self._engine.release_memory()
        if len(lines) == 1:
            if out_of_memory and not pending.alone:
                # Before it is told so: once more, with the reserve given back and nothing beside.
                run.queue.appendleft(replace(pending, alone=True))
                return
            run.failed[lines[0].work] = failure("forward", exc)
            if out_of_memory:
                # It fails alone as well: the size of its micro-batches wasn't the cause. What
                # others ran into meanwhile, in flight beside it, still holds.
                self._trail.take_back(pending.failures)
        elif out_of_memory:
            failures = (*pending.failures, self._trail.failed(pending.area, self._clock()))
            run.queue.extendleft(reversed(self._packed(run, lines, failures)))
        else:
            self._run_halves(run, lines)

    @staticmethod
    def _run_halves(run: _Run, lines: list[_Line]) -> None:
        run.queue.extendleft(_Pending(half) for half in reversed(_halves(lines)) if half)

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
        except JobError as exc:
            return exc.with_traceback(None)
        except BaseException as exc:
            if self._passes(exc):
                raise
            return failure("decode", exc)


def _check_count(came: int, sent: int, what: str) -> None:
    if came != sent:
        raise RuntimeError(f"{came} answers came back for {sent} {what}")


def _halves(lines: list[_Line]) -> tuple[list[_Line], list[_Line]]:
    middle = len(lines) // 2
    return lines[:middle], lines[middle:]


def _finite(logits: list[float] | None) -> bool:
    try:
        # The sum of float32 values can't overflow, and shows a NaN or an infinity among them.
        return logits is None or math.isfinite(sum(logits))
    except (TypeError, OverflowError):
        return True  # no numbers at all: the decoder has the words for that

"""Texts in, one outcome for each out: encode, pack, forward, decode, whatever goes wrong.

Batch-mates share a forward pass and nothing else. What raises is halved until the culprit stands
alone, and only that one fails; out of memory lowers the budget (`worker.ceiling`) and the same work
runs again in smaller pieces. Celery, Redis and torch are unknown here.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from golem_tasks.errors import InferenceError, JobError
from worker.ceiling import Ceiling, Trail
from worker.chunking import Chunker
from worker.decoding import Decoder, MicroBatch
from worker.failures import failure, forget_frames, is_out_of_memory
from worker.interfaces import Encoded, Engine, Launched
from worker.packing import overhead_of, pack
from worker.rows import Outcome, Pending, Run, Work, doubtful, halves

__all__ = ["Classified", "Classifier", "MicroBatch", "Work"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Classified:
    """What became of a dispatch."""

    outcomes: list[Outcome]
    """A prediction or the reason there is none, for each work, in order."""
    micro_batches: list[MicroBatch]
    """Every forward pass that succeeded, in the order they were run."""


@dataclass(frozen=True, slots=True)
class _InFlight:
    pending: Pending
    launched: Launched
    started_s: float


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
        # that it always has the next micro-batch, and its first before the rest is tokenized; a CPU
        # computes during the launch itself, so that there one call tokenizes everything.
        self._launches_ahead = engine.info.device != "cpu"
        self._chunker = Chunker(engine.info.max_tokens, engine.max_rows)

    @property
    def token_budget(self) -> int:
        """The padded area a micro-batch may have now: the engine's, or less after trouble."""
        return self._trail.ceiling.tokens

    def classify(self, works: Sequence[Work]) -> Classified:
        """Classify texts; each gets an outcome.

        Raises:
            BaseException: only what passes through (see the class).
        """
        run = Run.of(works)
        before = self.token_budget
        self._trail = Trail(self._trail.ceiling)
        self._forward(run, self._chunks(run))
        if self.token_budget != before:
            self._tell_ceiling(before)
        return Classified(_outcomes(run), run.micro_batches)

    def _chunks(self, run: Run) -> Iterator[Sequence[int]]:
        """What is tokenized, packed and launched together, in turn."""
        if not self._launches_ahead:
            yield range(len(run.works))
            return
        yield from self._chunker.chunks(run.works, self.token_budget)
        self._chunker.learn(run.works, run.encoded)

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

    def _encode(self, run: Run, indexes: Sequence[int]) -> None:
        """Tokenize in one call; where that raises, in halves down to the culprit."""
        if not indexes:
            return
        try:
            items = [run.works[i].item for i in indexes]
            results = self._engine.encode(items, [run.works[i].options.on_long for i in indexes])
            _check_count(len(results), len(indexes), "texts")
            self._accept(run, indexes, results)
        except BaseException as exc:
            if self._passes(exc):
                raise
            if len(indexes) == 1:
                run.failed[indexes[0]] = failure("encode", exc)
                return
        else:
            return
        for half in halves(indexes):
            self._encode(run, half)

    @staticmethod
    def _accept(run: Run, indexes: Sequence[int], results: Sequence[Encoded | JobError]) -> None:
        for index, result in zip(indexes, results, strict=True):
            if isinstance(result, JobError):
                run.failed[index] = result
            elif result.rows and all([row.ids for row in result.rows]):  # noqa: C419 - mostly one
                run.encoded[index] = result
            else:
                cause = "the tokenizer made no tokens of it"
                run.failed[index] = InferenceError.at("encode", cause)

    def _packed(
        self, run: Run, rows: list[int], failures: tuple[int, ...], *, part: bool = False
    ) -> list[Pending]:
        """Pack rows of all works together: micro-batches don't care whose a row is."""
        try:
            lengths = run.lengths(rows)
            overhead = overhead_of(self.token_budget, self._engine.info.device)
            plan = pack(lengths, self.token_budget, self._engine.max_rows, overhead, part=part)
            return [
                Pending.of([rows[i] for i in places], [lengths[i] for i in places], failures)
                for places in plan
            ]
        except BaseException as exc:
            if self._passes(exc):
                raise
            if len(rows) == 1:
                run.failed[run.owners[rows[0]]] = failure("pack", exc)
                return []
        left, right = halves(rows)
        return self._packed(run, left, failures) + self._packed(run, right, failures)

    def _forward(self, run: Run, chunks: Iterator[Sequence[int]]) -> None:
        """Take chunk after chunk and run every micro-batch; answers are read in launching order.

        Each micro-batch is waited for by itself, so that its texts are decoded while the device
        computes those behind it. After one synchronisation for all of them the device would have
        nothing to do during the decoding; and to be waited for costs it nothing.
        """
        in_flight: deque[_InFlight] = deque()
        free_s = 0.0  # when the device had last finished something
        while True:
            while run.queue and self._has_room(run.queue[0], in_flight):
                self._launch_next(run, in_flight)
            if not run.queue and (chunk := next(chunks, None)) is not None:
                self._take(run, chunk)
            elif in_flight:
                free_s = self._collect(run, in_flight.popleft(), free_s)
            else:
                return

    def _take(self, run: Run, works: Sequence[int]) -> None:
        """Tokenize and pack these works, for the device to compute next."""
        self._encode(run, works)
        if rows := run.spread(works):
            part = len(works) < len(run.works)
            run.queue.extend(self._packed(run, rows, (), part=part))

    def _has_room(self, pending: Pending, in_flight: Sequence[_InFlight]) -> bool:
        if pending.alone or (in_flight and in_flight[0].pending.alone):
            return not in_flight
        return self._launches_ahead or not in_flight

    def _launch_next(self, run: Run, in_flight: deque[_InFlight]) -> None:
        pending = run.queue.popleft()
        if len(pending.rows) > 1 and pending.area > self.token_budget:
            # The budget fell after this one was packed.
            run.queue.extendleft(reversed(self._packed(run, pending.rows, pending.failures)))
            return
        started_s = self._clock()
        try:
            launched = self._engine.launch([run.rows[i] for i in pending.rows])
        except BaseException as exc:
            if self._passes(exc):
                raise
            self._rescue(run, pending, exc)
        else:
            in_flight.append(_InFlight(pending, launched, started_s))

    def _collect(self, run: Run, flight: _InFlight, free_s: float) -> float:
        pending = flight.pending
        try:
            logits = flight.launched.logits()
            _check_count(len(logits), len(pending.rows), "rows")
        except BaseException as exc:
            if self._passes(exc):
                raise
            self._rescue(run, pending, exc)
            return self._clock()
        now_s = self._clock()
        took_s = flight.launched.took_s
        if took_s is None:
            took_s = now_s - max(flight.started_s, free_s)
        forward_ms = round(took_s * 1e3, 3)
        batch = MicroBatch(len(pending.rows), pending.longest, pending.tokens, forward_ms)
        run.micro_batches.append(batch)
        self._trail.ran(pending.area, now_s)
        rows = pending.rows
        if len(rows) > 1 and (again := doubtful(rows, logits)):
            # One row's NaN can reach its mates, by a scale they share in a quantized model, say;
            # nobody is blamed for it before he made it alone.
            self._run_halves(run, again)
            asked_again = set(again)
            sound = [i for i, row in enumerate(rows) if row not in asked_again]
            rows, logits = [rows[i] for i in sound], [logits[i] for i in sound]
        self._decode(run, run.answer(rows, logits, batch))
        return now_s

    def _rescue(self, run: Run, pending: Pending, exc: BaseException) -> None:
        """Put a failed micro-batch back in smaller pieces, or blame the row that stands alone."""
        out_of_memory = is_out_of_memory(exc)
        rows = pending.rows
        if out_of_memory:
            forget_frames(exc)
            self._engine.release_memory()
        if len(rows) == 1:
            if out_of_memory and not pending.alone:
                # Before it is told so: once more, with the reserve given back and nothing beside.
                run.queue.appendleft(replace(pending, alone=True))
                return
            run.failed[run.owners[rows[0]]] = failure("forward", exc)
            if out_of_memory:
                # It fails alone as well: the size of its micro-batches wasn't the cause. What
                # others ran into meanwhile, in flight beside it, still holds.
                self._trail.take_back(pending.failures)
        elif out_of_memory:
            failures = (*pending.failures, self._trail.failed(pending.area, self._clock()))
            run.queue.extendleft(reversed(self._packed(run, rows, failures)))
        else:
            self._run_halves(run, rows)

    @staticmethod
    def _run_halves(run: Run, rows: list[int]) -> None:
        for half in reversed(halves(rows)):
            if half:
                run.queue.appendleft(Pending.of(half, run.lengths(half)))

    def _decode(self, run: Run, works: Sequence[int]) -> None:
        """Make the outcomes of works whose rows are all answered."""
        for index in works:
            if (encoded := run.encoded[index]) is not None:
                answers = run.answers(index, encoded)
                run.decoded[index] = self._decoded(run.works[index], encoded, *answers)

    def _decoded(
        self,
        work: Work,
        encoded: Encoded,
        logits: Sequence[list[float]],
        batches: Sequence[MicroBatch],
    ) -> Outcome:
        try:
            return self._decoder.decode(logits, encoded, work.options, work.queued_ms, batches)
        except JobError as exc:
            return exc.with_traceback(None)
        except BaseException as exc:
            if self._passes(exc):
                raise
            return failure("decode", exc)


def _outcomes(run: Run) -> list[Outcome]:
    outcomes = []
    for index in range(len(run.works)):
        outcome = run.failed.get(index) or run.decoded.get(index)
        if outcome is None:
            outcome = InferenceError.at("decode", "the model never answered for this text")
        outcomes.append(outcome)
    return outcomes


def _check_count(came: int, sent: int, what: str) -> None:
    if came != sent:
        raise RuntimeError(f"{came} answers came back for {sent} {what}")

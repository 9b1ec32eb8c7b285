"""Any number of texts through the queue, with a bounded number of them under way.

Texts travel in ``classify_many`` messages, which is far quicker than a message each; their answers
come back in the order of the input. A text that is refused fails alone: where a whole message
fails, its halves are sent again until the culprit stands alone. Redis may restart meanwhile, even
without its data: what is under way is sent again under the same ids, and a job that has its answer
isn't computed twice.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar
from uuid import uuid4

from golem_tasks.cli.outfile import Outcome
from golem_tasks.client import Golem, Job, SubmitOptions
from golem_tasks.contract import FailedItem, ItemError, Prediction, Predictions
from golem_tasks.errors import (
    BrokerUnavailable,
    GolemError,
    InferenceError,
    JobError,
    JobExpired,
    JobRevoked,
    QueueFull,
    ResultTimeout,
)
from golem_tasks.textfiles import Line

__all__ = ["Bulk"]

T = TypeVar("T")

_CHUNK_BYTES = 256 * 1024
_FIRST_LOOK_S = 5.0  # until the first look at whether what we wait for is still there
_MOST_LOOK_S = 120.0
_PAUSE_S = 0.5


@dataclass(slots=True)
class _Chunk:
    """Lines that travel together."""

    lines: list[Line]
    job: Job[Predictions] | None = None
    refused: JobError | None = None
    """Why it couldn't be sent."""
    id: str = field(default_factory=lambda: str(uuid4()))

    @property
    def texts(self) -> list[str]:
        """Those a worker has to see."""
        return [line.text for line in self.lines if line.error is None]


class Bulk:
    """Sends lines and yields what became of them.

    Args:
        golem: the client.
        options: of every job.
        chunk_texts: texts in one message.
        window_texts: texts under way at any time.
        patience_s: seconds without any answer after which it gives up.
        notice: is told, in a sentence, when something takes its time.
    """

    def __init__(
        self,
        golem: Golem,
        options: SubmitOptions,
        *,
        chunk_texts: int = 64,
        window_texts: int = 2_000,
        patience_s: float = 600.0,
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._golem = golem
        self._options = options
        self._chunk_texts = min(chunk_texts, golem.settings.max_texts)
        self._chunk_bytes = min(_CHUNK_BYTES, golem.settings.max_message_bytes // 2)
        self._window_texts = window_texts
        self._patience_s = patience_s
        self._notice = notice
        self._flight: deque[_Chunk] = deque()
        self._unsent: _Chunk | None = None
        """The next to be sent, if there was no room for it."""
        self._heard_s = time.monotonic()
        self._reached = False

    def outcomes(self, lines: Iterable[Line]) -> Generator[list[Outcome], None, None]:
        """Yield the outcome of every line, in order, a message's worth at a time.

        Whatever ends it early, also closing it, cancels what is under way.

        Raises:
            BrokerUnavailable: Redis wasn't there at the start, or stayed away too long.
            ResultTimeout: nothing came back for too long.
            QueueFull: there was no room for too long; ``GOLEM_MAX_BACKLOG`` bounds it.
        """
        chunks = self._chunks(lines)
        self._heard_s = time.monotonic()
        try:
            while True:
                self._refill(chunks)
                if not self._flight:
                    return
                outcomes = self._collect(self._flight[0])
                self._forget(self._flight.popleft())
                yield outcomes
        finally:
            self._cancel()

    def _refill(self, chunks: Iterator[_Chunk]) -> None:
        """Send until enough is under way, or until the queue is full: what comes back makes room.

        Raises:
            QueueFull: it is full of others' jobs, and stayed so for too long.
        """
        while self._under_way() < self._window_texts:
            chunk = self._unsent or next(chunks, None)
            if chunk is None:
                return
            self._unsent = chunk
            self._flight.append(chunk)  # before it is sent, so that it is cancelled too
            try:
                self._send(chunk)
            except QueueFull as exc:
                self._flight.pop()
                if self._flight:
                    return
                if time.monotonic() - self._heard_s >= self._patience_s:
                    raise
                self._notice(f"waiting for room in the queue ({exc})")
                time.sleep(_PAUSE_S)
            else:
                self._unsent = None

    def _under_way(self) -> int:
        return sum(len(chunk.lines) for chunk in self._flight)

    def _chunks(self, lines: Iterable[Line]) -> Iterator[_Chunk]:
        """Group lines by number and by the size of the message they make."""
        chunk: list[Line] = []
        size = 0
        for line in lines:
            line_bytes = len(json.dumps(line.text)) if line.error is None else 0
            if chunk and (len(chunk) >= self._chunk_texts or size + line_bytes > self._chunk_bytes):
                yield _Chunk(chunk)
                chunk, size = [], 0
            chunk.append(line)
            size += line_bytes
        if chunk:
            yield _Chunk(chunk)

    def _send(self, chunk: _Chunk, *, again: bool = False) -> None:
        """Put a chunk into the queue; what was there already, in whatever form, isn't refused.

        Raises:
            QueueFull: there is no room for a new one.
        """
        if not (texts := chunk.texts):
            return
        options = self._options.copy()
        if again:
            options["max_backlog"] = None
        try:
            chunk.job = self._patiently(
                lambda: self._golem.submit_batch(texts, task_id=chunk.id, **options)
            )
        except JobError as exc:
            chunk.refused = exc

    def _collect(self, chunk: _Chunk) -> list[Outcome]:
        """Wait for a chunk's answers and give each line its own."""
        try:
            results = self._wait(chunk)
        except (JobRevoked, JobExpired) as exc:
            return _outcomes(chunk, [_item_error(exc)] * len(chunk.texts))
        except JobError as exc:
            return self._apart(chunk, exc)
        if len(results) != len(chunk.texts):
            cause = f"{len(results)} answers came back for {len(chunk.texts)} texts"
            error = _item_error(InferenceError.at("decode", cause))
            return _outcomes(chunk, [error] * len(chunk.texts))
        return _outcomes(
            chunk, [each.error if isinstance(each, FailedItem) else each for each in results]
        )

    def _wait(self, chunk: _Chunk) -> list[Prediction | FailedItem]:
        look_s = _FIRST_LOOK_S
        while chunk.job is not None and chunk.refused is None:
            try:
                left_s = self._patience_s - (time.monotonic() - self._heard_s)
                look_s = min(look_s, max(_PAUSE_S, left_s))
                answer = self._patiently(partial(chunk.job.result, look_s))
            except ResultTimeout as late:
                self._still_waiting(late)
                look_s = min(2 * look_s, _MOST_LOOK_S)
            else:
                self._heard_s = time.monotonic()
                self._notice("")
                return answer.predictions
        if chunk.refused is not None:
            raise chunk.refused
        return []

    def _still_waiting(self, late: ResultTimeout) -> None:
        """Give up after a while; before that, make up for a Redis that came back empty."""
        waited_s = time.monotonic() - self._heard_s
        if waited_s >= self._patience_s:
            raise ResultTimeout(
                f"No answer for {waited_s:.0f} s ({late.queue_length} messages wait in the queue): "
                "see with golem health whether a worker runs on it, or wait longer with --timeout.",
                *late.args[1:],
            ) from late
        self._notice(f"no answer for {waited_s:.0f} s; is a worker running?")
        if late.queue_length == 0:
            # In a worker's hands, or lost with Redis's data, which look the same from here. Twice
            # in the queue is harmless: a worker passes over what has its answer.
            for chunk in self._flight:
                self._send(chunk, again=True)

    def _apart(self, chunk: _Chunk, error: JobError) -> list[Outcome]:
        """Find whose fault a failed message is: its halves are sent, each for itself."""
        if len(chunk.texts) == 1:
            return _outcomes(chunk, [_item_error(error)])
        middle = len(chunk.lines) // 2
        halves = [_Chunk(chunk.lines[:middle]), _Chunk(chunk.lines[middle:])]
        for half in halves:
            self._send(half, again=True)
        outcomes = [outcome for half in halves for outcome in self._collect(half)]
        for half in halves:
            self._forget(half)
        return outcomes

    def _patiently(self, action: Callable[[], T]) -> T:
        """Do it, again and again while Redis is away, once it was there at all."""
        while True:
            try:
                result = action()
            except BrokerUnavailable as exc:
                away_s = time.monotonic() - self._heard_s
                if not self._reached or away_s > self._patience_s:
                    raise
                self._notice(f"Redis is away, trying again ({exc})")
                time.sleep(_PAUSE_S)
            else:
                self._reached = True
                return result

    def _forget(self, chunk: _Chunk) -> None:
        if chunk.job is not None:
            with suppress(GolemError):  # they expire by themselves, but a night of them fills Redis
                self._golem.forget([chunk.job])

    def _cancel(self) -> None:
        jobs = [chunk.job for chunk in self._flight if chunk.job is not None]
        if jobs:
            with suppress(GolemError):  # they'd only be computed for nobody
                self._golem.cancel(jobs)


def _outcomes(chunk: _Chunk, results: Iterable[Prediction | ItemError]) -> list[Outcome]:
    """Give the lines that were sent their results, and the others their own errors."""
    answers = iter(results)
    return [
        Outcome(line, next(answers) if line.error is None else _item_error(line.error))
        for line in chunk.lines
    ]


def _item_error(error: JobError) -> ItemError:
    return ItemError(type=type(error).__name__, message=str(error))

"""Celery request in, batch out: the only file that knows Celery's worker internals.

A worker bootstep that requires Celery's ``Pool`` step replaces ``WorkController.process_task``
before the consumer is made, so all three ways into the pool (directly, by ETA, by rate limit) pass
here, with real `Request` objects and without a monkey-patch of Celery. The batcher lives on this
step, not on a task or a strategy: Celery makes those anew at every reconnect.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

from celery import bootsteps
from celery.utils.log import get_logger
from celery.worker import state

from golem_tasks.errors import ConfigurationError, InvalidJob, PoisonJob
from worker.batcher import Batcher, Lane, Waiting
from worker.dispatch import Dispatch, write_now
from worker.measuring import dispatch_tokens, limits, waiting
from worker.origin import origin
from worker.pace import Pace
from worker.patience import patience_s
from worker.processes import Report, check_pool
from worker.recording import RETRY_S, Recorder
from worker.requests import BatchedRequest
from worker.returning import Returning
from worker.settings import WorkerSettings
from worker.settlement import Settlement
from worker.tally import Tally
from worker.transport import Room
from worker.trials import Trials
from worker.window import Window

__all__ = ["Intake"]

logger = get_logger(__name__)


class Intake(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery ships no types
    """Owns the batcher, decides when to ask it, and hands its batches to the pool."""

    requires = ("celery.worker.components:Pool",)
    label = "Intake"

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self.worker = worker
        self.settings: WorkerSettings = worker.app.golem_settings
        self.batcher: Batcher[BatchedRequest] = Batcher(limits(self.settings))
        self.dispatches: set[Dispatch] = set()
        """Batches the pool has, until they are settled."""
        self.recorder = worker.app.golem_recorder = Recorder(self._call_soon)
        self.settlement = Settlement(self)
        self.tally = Tally(time.monotonic())
        self._notes = Recorder(self._call_soon)
        self.trials = Trials(self.settings, self._notes)
        self.returning = Returning(self)
        self.max_tokens = 512
        """Tokens of the longest text the model sees; the processes report the real figure."""
        self._others: Callable[[Any], Any] | None = None
        self._wake_at_s = 0.0
        self._window = Window()
        rows, tokens = self.settings.max_rows, self.settings.max_dispatch_tokens
        self._pace = Pace(None if rows == "auto" else rows, None if tokens == "auto" else tokens)

    def create(self, worker: Any) -> None:
        """Take the place of Celery's hand-over to the pool.

        Raises:
            SystemExit: the worker was started with a pool or an option that can't batch.
        """
        try:
            check_pool(worker)
        except ConfigurationError as exc:
            raise SystemExit(f"golem: {exc}") from None
        self._others = worker.process_task
        worker.process_task = self.accept
        worker.intake = self

    def register_with_event_loop(self, worker: Any, hub: Any) -> None:  # noqa: ARG002 - Celery's
        """Ask the batcher once per turn of the loop, after the turn's messages came in."""
        hub.on_tick.add(self.pump)
        self.returning.register_with_event_loop(hub)

    def accept(self, request: Any) -> None:
        """Buffer a request if it is ours; any other goes to the pool as in stock Celery."""
        if not isinstance(request, BatchedRequest):
            if self._others is not None:
                self._others(request)
            return
        try:
            if held := self._held(request):
                # Its lease ran out in an outage. The first copy's settlement acknowledges both,
                # if it does so where the second one was delivered.
                held.message.channel = request.message.channel
                state.task_ready(request)
                return
            deliveries = getattr(request.message, "deliveries", 1)
            self.tally.received += 1
            self.tally.redelivered += deliveries > 1
            self.trials.judge(request, deliveries, partial(self._judged, request, deliveries))
        except Exception as exc:  # noqa: BLE001 - whatever a hostile message makes us raise
            # An exception out of this hook would go up the event loop and end the worker.
            self._unusable(request, exc)

    def _judged(self, request: BatchedRequest, deliveries: int, poison: bool) -> None:
        """Buffer a job, or fail one that was delivered too often."""
        if poison:
            message = f"The job was delivered {deliveries} times without being settled."
            self.settlement.fail(request, PoisonJob(message, "deliveries", deliveries))
            return
        try:
            job = waiting(request, self.settings, self.max_tokens)
            if self.trials.due(deliveries):
                job = replace(job, trial=True)
            self._window.came(job.rows)
            self.batcher.add(job)
        except Exception as exc:  # noqa: BLE001 - as above
            self._unusable(request, exc)

    def _unusable(self, request: BatchedRequest, exc: Exception) -> None:
        logger.error("Job %s can't be buffered: %s", request.id, origin(exc))
        self.settlement.fail(request, InvalidJob.because("message", f"is unusable: {exc}"))

    def pump(self) -> None:
        """Dispatch while a process is idle and a batch is ripe."""
        while len(self.batcher) and self.open and (idle := self.idle) > self.trials.beginning:
            now_s = time.monotonic()
            taken = self.batcher.next_batch(
                now_s,
                idle=idle,
                busy=self.ready - idle,
                worth_tokens=self._pace.worth_tokens,
                trying=self._trying,
            )
            if not taken:
                ripe_at_s = self.batcher.ripe_at_s()
                if ripe_at_s is not None and ripe_at_s > now_s:
                    self._wake_later(ripe_at_s, now_s)
                return
            batch = [job for job in taken if self._alive(job)]
            if batch and batch[0].trial:
                self.trials.begin(batch[0].request, partial(self._try, batch[0]))
            elif batch:
                self._dispatch(batch)

    def _try(self, job: Waiting[BatchedRequest], noted: bool) -> None:
        """Run a job whose trial is noted; at once, for it would be blamed for what ends us."""
        if noted and self.open and self._alive(job):
            self._dispatch([job])
            return
        self.trials.end(job.request)  # it may be noted though no reply came
        self.take_back([job] if not job.request.settled else [])
        if self.trials.paused:
            self.worker.hub.call_later(RETRY_S, _wake)

    def finish(self) -> None:
        """End what is still to be stored or noted, within seconds; a worker that leaves calls it.

        A note that stayed would blame the job of a trial that did no harm.
        """
        if not state.should_terminate:
            self.recorder.finish()
        for _ in range(2):  # what ends a trial that was still to begin comes after its beginning
            self._notes.finish()

    def take_back(self, jobs: list[Waiting[BatchedRequest]]) -> None:
        """Buffer jobs again that were dispatched but didn't run."""
        for job in jobs:
            job.request.batch = None
        self.batcher.put_back(jobs)

    def window(self) -> Room:
        """What may be fetched now; jobs waiting for their ETA have a limit of their own."""
        if len(state.scheduled_requests) >= self.worker.app.conf.worker_eta_task_limit:
            return Room(0)
        ending = self.recorder.unfinished + self._notes.unfinished
        return self._window.room(self.batcher, self.ready, ending)

    def know(self, reports: Sequence[Report]) -> None:
        """Take in what the model processes tell of themselves, before the first job comes."""
        self.max_tokens = max(each.max_tokens for each in reports)
        max_tokens = dispatch_tokens(self.settings, reports)
        self.batcher.limits = replace(self.batcher.limits, max_tokens=max_tokens)

    def held(self) -> dict[Lane, tuple[int, int]]:
        """Jobs here by lane: in the buffer, and in the processes."""
        in_flight = dict.fromkeys(Lane, 0)
        for dispatch in self.dispatches:
            for job in dispatch.jobs:
                in_flight[job.lane] += 1
        return {lane: (count, in_flight[lane]) for lane, count in self.batcher.lengths().items()}

    def tags(self) -> set[str]:
        """Delivery tags of all jobs held here."""
        return {request.message.delivery_tag for request in self._requests()}

    def recover(self) -> None:
        """After a lost connection: take back what the pool dropped, tell Celery what is held.

        Celery flushes its pool then: a batch not yet accepted by a child vanishes without a
        callback, and of our requests only those that run stay in its registries.
        """
        cache = self.worker.pool._pool._cache
        for dispatch in list(self.dispatches):
            if dispatch.dropped(cache):
                self.dispatches.discard(dispatch)
                self.take_back(dispatch.jobs)
        for job in self.batcher:
            state.task_reserved(job.request)

    def forget(self, tags: Collection[str]) -> None:
        """Drop buffered jobs that another worker took over during a long outage."""
        for job in self.batcher.discard(lambda r: r.message.delivery_tag in tags):
            state.task_ready(job.request)

    @property
    def ready(self) -> int:
        """Processes that are up, model loaded."""
        pool = self.worker.pool._pool
        return len(pool._all_inqueues) if pool is not None else 0

    @property
    def idle(self) -> int:
        """Processes that are up and have nothing to do."""
        pool = self.worker.pool._pool
        return len(pool._all_inqueues) - len(pool._busy_workers) - len(pool.outbound_buffer)

    @property
    def open(self) -> bool:
        """Whether the worker takes and dispatches jobs; False once it is leaving."""
        running = self.worker.blueprint.state == bootsteps.RUN
        return running and state.should_stop is None and state.should_terminate is None

    @property
    def _trying(self) -> bool:
        """Whether no other trial may begin: one is in flight or about to be, or was refused."""
        running = any(dispatch.jobs[0].trial for dispatch in self.dispatches)
        return running or self.trials.beginning or self.trials.paused

    def _call_soon(self, callback: Callable[[], None]) -> None:
        self.worker.hub.call_soon(callback)  # the hub is made after this step

    def _alive(self, job: Waiting[BatchedRequest]) -> bool:
        """Whether the job still wants an answer; one revoked or expired is settled here."""
        request = job.request
        try:
            return not (request.settled or request.revoked())
        except Exception as exc:  # noqa: BLE001 - as above
            logger.error("Job %s can't be checked for revocation: %s", request.id, origin(exc))  # noqa: TRY400 - no trace: it may hold content
            # Does nothing for one that was found revoked: then that is being stored.
            self.settlement.fail(request, InvalidJob.because("headers", f"are unusable: {exc}"))
            return False

    def _held(self, request: BatchedRequest) -> BatchedRequest | None:
        """The request of the same message that is here already, if there is one."""
        if not request.delivery_info.get("redelivered"):
            return None
        tag = request.message.delivery_tag
        return next((r for r in self._requests() if r.message.delivery_tag == tag), None)

    def _requests(self) -> Iterator[BatchedRequest]:
        """All requests held here: buffered, in flight, and those whose end is being stored."""
        for job in chain(self.batcher, *(dispatch.jobs for dispatch in self.dispatches)):
            yield job.request
        yield from self.recorder.requests
        yield from self._notes.requests

    def _dispatch(self, batch: list[Waiting[BatchedRequest]]) -> None:
        dispatch = Dispatch(batch, self.settlement, self._ended, patience_s(batch, self.settings))
        try:
            sent = dispatch.start(self.worker.pool)
        except (pickle.PicklingError, RecursionError, TypeError) as exc:
            # JSON nested a thousand deep, say: it mustn't take its batch-mates with it.
            logger.warning(
                "A batch of %d jobs can't be sent to a process: %s", len(batch), origin(exc)
            )
            if len(batch) > 1:
                for job in batch:
                    self._dispatch([job])
            else:
                reason = f"can't be sent to a model process: {exc}"
                self.settlement.fail(batch[0].request, InvalidJob.because("message", reason))
            return
        if sent:
            self.dispatches.add(dispatch)
            write_now(self.worker.pool, self.worker.hub)
        else:
            if batch[0].trial:
                self.trials.end(batch[0].request)
            self.take_back(batch)

    def _ended(self, dispatch: Dispatch) -> None:
        """A process is idle again: give it the next batch before the last one is settled."""
        self.dispatches.discard(dispatch)
        if dispatch.figures is not None:
            self.tally.ended(len(dispatch.jobs), dispatch.figures)
            took_s = time.monotonic() - dispatch.started_s
            self._pace.ended(dispatch.figures.texts, dispatch.tokens, took_s)
            self.batcher.limits = replace(self.batcher.limits, max_rows=self._pace.rows)
        if dispatch.jobs[0].trial:
            self.trials.end(dispatch.jobs[0].request)
        self.pump()

    def _wake_later(self, at_s: float, now_s: float) -> None:
        if self._wake_at_s > now_s:
            return
        self._wake_at_s = at_s
        self.worker.hub.call_later(at_s - now_s, _wake)


def _wake() -> None:
    """Nothing: a timer that fires makes the event loop turn, and `Intake.pump` runs each turn."""

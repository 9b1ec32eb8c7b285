"""Celery request in, batch out: the only file that knows Celery's worker internals.

A worker bootstep that requires Celery's ``Pool`` step replaces ``WorkController.process_task``
before the consumer is made, so all three ways into the pool (directly, by ETA, by rate limit) pass
here, with real `Request` objects and without a monkey-patch of Celery. The batcher lives on this
step, not on a task or a strategy: Celery makes those anew at every reconnect.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from celery import bootsteps
from celery.app.task import Context
from celery.utils.log import get_logger
from celery.worker import state
from celery.worker import strategy as celery_strategy
from kombu.exceptions import KombuError

from golem_tasks.contract import CLASSIFY, CLASSIFY_MANY
from golem_tasks.errors import ConfigurationError, InvalidJob
from worker.batcher import Batcher, BatchLimits, Lane, TimeLimits, Waiting
from worker.dispatch import Dispatch, Settlement
from worker.requests import BatchedRequest
from worker.settings import WorkerSettings

__all__ = ["Intake", "measure", "strategy"]

logger = get_logger(__name__)

CHARS_PER_TOKEN = 4.0
"""English WordPiece text has about 4.2 characters a token; an estimate only bounds a dispatch."""
SPECIAL_TOKENS = 2


class Intake(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery ships no types
    """Owns the batcher, decides when to ask it, and hands its batches to the pool."""

    requires = ("celery.worker.components:Pool",)
    label = "Intake"

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self.worker = worker
        self.settings: WorkerSettings = worker.app.golem_settings
        self.batcher: Batcher[BatchedRequest] = Batcher(_limits(self.settings))
        self.settlement = Settlement(self)
        self.max_tokens = 512
        """Tokens of the longest text the model sees; the processes report the real figure."""
        self._others: Callable[[Any], Any] | None = None
        self._wake_at_s = 0.0

    def create(self, worker: Any) -> None:
        """Take the place of Celery's hand-over to the pool.

        Raises:
            SystemExit: the worker was started with a pool or an option that can't batch.
        """
        try:
            _check(worker)
        except ConfigurationError as exc:
            raise SystemExit(f"golem: {exc}") from None
        self._others = worker.process_task
        worker.process_task = self.accept
        worker.intake = self

    def register_with_event_loop(self, worker: Any, hub: Any) -> None:  # noqa: ARG002 - Celery's
        """Ask the batcher once per turn of the loop, after the turn's messages came in."""
        hub.on_tick.add(self.pump)

    def accept(self, request: Any) -> None:
        """Buffer a request if it is ours; any other goes to the pool as in stock Celery."""
        if not isinstance(request, BatchedRequest):
            if self._others is not None:
                self._others(request)
            return
        try:
            self.batcher.add(self._waiting(request))
        except Exception as exc:
            # An exception out of this hook would go up the event loop and end the worker.
            logger.exception("Job %s can't be buffered", request.id)
            self.settlement.fail(request, InvalidJob.because("message", f"is unusable: {exc}"))

    def pump(self) -> None:
        """Dispatch while a process is idle and a batch is ripe."""
        while len(self.batcher) and self._open and self.idle > 0:
            now_s = time.monotonic()
            batch = [job for job in self.batcher.next_batch(now_s) if self._alive(job.request)]
            if batch:
                self._dispatch(batch)
            elif len(self.batcher):
                ripe_at_s = self.batcher.ripe_at_s()
                if ripe_at_s is not None and ripe_at_s > now_s:
                    self._wake_later(ripe_at_s, now_s)
                    return

    def take_back(self, jobs: list[Waiting[BatchedRequest]]) -> None:
        """Buffer jobs again that were dispatched but didn't run."""
        for job in jobs:
            job.request.batch = None
        self.batcher.put_back(jobs)

    def room(self) -> int:
        """Messages the worker can use soon: enough for every process's next dispatch.

        What is in flight isn't counted, so a fetch made now has arrived when the first is done.
        """
        rows = self.ready * self.settings.max_rows - self.batcher.rows
        if self.batcher.tokens >= self.ready * self.settings.max_dispatch_tokens:
            return 0
        per_message = self.batcher.rows / len(self.batcher) if len(self.batcher) else 1.0
        return max(0, int(rows / per_message))

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
    def _open(self) -> bool:
        running = self.worker.blueprint.state == bootsteps.RUN
        return running and state.should_stop is None and state.should_terminate is None

    def _alive(self, request: BatchedRequest) -> bool:
        """Whether the request still wants an answer; one revoked or expired is settled here."""
        try:
            return not (request.settled or request.revoked())
        except Exception as exc:
            logger.exception("Job %s can't be checked for revocation", request.id)
            self.settlement.fail(request, InvalidJob.because("headers", f"are unusable: {exc}"))
            return False

    def _dispatch(self, batch: list[Waiting[BatchedRequest]]) -> None:
        dispatch = Dispatch(batch, self.settlement)
        if dispatch.start(self.worker.pool):
            # The pool writes on its own tick, which may have passed in this turn.
            self.worker.pool._pool.on_poll_start()
        else:
            self.take_back(batch)

    def _wake_later(self, at_s: float, now_s: float) -> None:
        if self._wake_at_s > now_s:
            return
        self._wake_at_s = at_s
        self.worker.hub.call_later(at_s - now_s, _wake)

    def _waiting(self, request: BatchedRequest) -> Waiting[BatchedRequest]:
        rows, tokens = measure(request, self.max_tokens)
        info = request.delivery_info
        priority = info.get("priority")
        bulk = self.settings.bulk_queue in (info.get("routing_key"), info.get("exchange"))
        return Waiting(
            request,
            rows=rows,
            tokens=tokens,
            since_s=time.monotonic(),
            lane=Lane.BULK if bulk else Lane.INTERACTIVE,
            priority=priority if isinstance(priority, int) else 0,
            time_limits=_time_limits(request),
        )


def measure(request: Any, max_tokens: int) -> tuple[int, int]:
    """Rows and estimated tokens of a request; a payload that breaks the contract counts as one."""
    args, kwargs = request.args, request.kwargs
    name = {CLASSIFY: "text", CLASSIFY_MANY: "texts"}.get(request.type, "")
    value = args[0] if args else kwargs.get(name)
    texts = value if isinstance(value, list) else [value]
    windows = kwargs.get("on_long") == "window"
    tokens = 0
    for text in texts:
        estimate = int(len(text) / CHARS_PER_TOKEN) if isinstance(text, str) else 0
        tokens += SPECIAL_TOKENS + (estimate if windows else min(estimate, max_tokens))
    return max(1, len(texts)), max(1, tokens)


def strategy(task: Any, app: Any, consumer: Any) -> Callable[..., None]:
    """Celery's default strategy, behind a check of what it would stumble over.

    Stock Celery ends the worker, or reconnects for ever, on a message whose body isn't a triple or
    that has no id. Such a message is refused here: the producer gets its FAILURE, the queue moves.
    """
    quiet = celery_strategy.logger
    level = quiet.level
    # A line per job says nothing that the line per batch doesn't, and costs more than the job.
    quiet.setLevel("WARNING")
    try:
        handle = celery_strategy.default(task, app, consumer)
    finally:
        quiet.setLevel(level)
    max_bytes = app.golem_settings.max_message_bytes

    def on_message(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> None:
        try:
            _check_message(message, max_bytes)
            handle(message, body, ack, reject, callbacks)
        except consumer.connection_errors as exc:
            if not isinstance(exc, KeyError):  # kombu counts KeyError among connection errors
                raise
            _refuse(task, message, InvalidJob.because("headers", f"lack {exc}"))
        except InvalidJob as exc:
            _refuse(task, message, exc)
        except (KombuError, ValueError, TypeError, AttributeError) as exc:
            _refuse(task, message, InvalidJob.because("message", f"can't be read: {exc}"))

    return on_message


def _check_message(message: Any, max_bytes: int) -> None:
    if len(message.body or "") > max_bytes:
        reason = f"has {len(message.body)} bytes, {max_bytes} are allowed"
        raise InvalidJob.because("message", reason)
    if not isinstance(message.headers.get("id"), str):
        raise InvalidJob.because("id", "must be a string in the message's headers")
    payload = message.payload
    if not isinstance(payload, list | tuple) or len(payload) != 3:  # noqa: PLR2004 - the protocol's
        raise InvalidJob.because("body", "must be [args, kwargs, embed], Celery's protocol 2")
    args, kwargs, embed = payload
    if not isinstance(args, list):
        raise InvalidJob.because("args", "must be a list")
    if not isinstance(kwargs, dict):
        raise InvalidJob.because("kwargs", "must be an object")
    if not isinstance(embed, dict | None):
        raise InvalidJob.because("embed", "must be an object")


def _refuse(task: Any, message: Any, error: InvalidJob) -> None:
    """Settle a message that can't even become a request."""
    task_id = message.headers.get("id") or message.properties.get("correlation_id")
    logger.warning("Refused a message of job %s: %s", task_id, error)
    if isinstance(task_id, str):
        context = Context(id=task_id, task=task.name, errbacks=None, chord=None)
        task.backend.mark_as_failure(task_id, error, request=context)
    message.ack_log_error(logger, ())


def _limits(settings: WorkerSettings) -> BatchLimits:
    return BatchLimits(
        max_rows=settings.max_rows,
        max_tokens=settings.max_dispatch_tokens,
        linger_s=settings.linger_ms / 1000,
        max_age_s=settings.max_age_ms / 1000,
    )


def _time_limits(request: Any) -> TimeLimits:
    """The request's own (hard, soft) limits in seconds, else the task's."""
    own = request.time_limits if isinstance(request.time_limits, list | tuple) else ()
    own_hard, own_soft = own if len(own) == 2 else (None, None)  # noqa: PLR2004 - a pair
    task = request.task
    return _seconds(own_hard) or task.time_limit, _seconds(own_soft) or task.soft_time_limit


def _seconds(value: Any) -> float | None:
    return value if isinstance(value, int | float) and value > 0 else None


def _check(worker: Any) -> None:
    if not worker.pool_cls.__module__.endswith("prefork"):
        raise ConfigurationError(
            "Golem runs its models in Celery's prefork pool: start the worker without --pool."
        )
    if worker.autoscale:
        raise ConfigurationError(
            "Autoscaling would start more processes than there are devices: leave --autoscale "
            "away, set GOLEM_PROCESSES, and scale by starting more workers."
        )


def _wake() -> None:
    """Nothing: a timer that fires makes the event loop turn, and `Intake.pump` runs each turn."""

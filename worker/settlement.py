"""The one place where jobs are settled: what becomes of each when its batch has ended, and how.

Whatever happens to a batch, each of its jobs ends in exactly one of three ways: settled by its own
outcome, taken back into the buffer to run again, or left unacknowledged for another worker because
this one is leaving. Only `Settlement` decides which, and only what it calls acknowledges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from billiard.einfo import ExceptionInfo
from billiard.exceptions import (
    SoftTimeLimitExceeded,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from celery import signals, states
from celery.utils.log import get_logger

from golem_tasks.errors import InferenceError, JobError, PoisonJob
from worker.batcher import Waiting
from worker.burial import Burial
from worker.origin import origin
from worker.recording import Recorder, store_failure
from worker.requests import BatchedRequest
from worker.runner import Settled
from worker.salvage import salvage, wait_gone

__all__ = ["Settlement", "TakesBack"]

logger = get_logger(__name__)

CRASHES_ALONE = 2
"""A job that ends its process this often, alone in it, is poison."""

KILLED_S = 2.0
"""Seconds a process whose time limit has passed is given to be gone."""

_LOST = (WorkerLostError, Terminated, SystemExit)
"""The process is gone, and with it what it was doing."""

_Left = tuple[list[dict[str, Any] | None], dict[str, Any]]
"""What of each job the backend has, and by job id the answers that were computed."""


class TakesBack(Protocol):
    """What `Settlement` needs of the intake."""

    worker: Any
    recorder: Recorder

    @property
    def open(self) -> bool:
        """Whether the worker takes and dispatches jobs; False once it is leaving."""

    def take_back(self, jobs: list[Waiting[BatchedRequest]]) -> None:
        """Buffer jobs again that were dispatched but got no outcome."""


class Settlement:
    """Ends jobs. Every method sees to it that one job's trouble doesn't reach the next."""

    def __init__(self, intake: TakesBack) -> None:
        self._intake = intake
        self._crashes: dict[str, int] = {}
        self._burial = Burial(intake.worker.app.golem_settings)

    def accepted(self, request: BatchedRequest, pid: int, time_accepted: float) -> None:
        """A child took the job."""
        try:
            request.on_accepted(pid, time_accepted)
        except Exception as exc:  # noqa: BLE001 - a handler of a signal may raise anything
            logger.error(  # noqa: TRY400 - a trace may hold content
                "Job %s: its start couldn't be recorded: %s", request.id, origin(exc)
            )

    def answered(self, jobs: Sequence[Waiting[BatchedRequest]], results: Sequence[Settled]) -> None:
        """The child settled every job in Celery's tracer; acknowledge each by its own outcome."""
        if len(results) != len(jobs):
            error = InferenceError.at("decode", f"{len(results)} answers for {len(jobs)} jobs")
            for job in jobs:
                self.fail(job.request, error)
            return
        for job, result in zip(jobs, results, strict=True):
            request = job.request
            self._crashes.pop(request.id, None)
            if request.settled:
                continue
            try:
                request.on_success(result)
            except BaseException as exc:  # noqa: BLE001 - MemoryError and SystemExit, too, are its own
                logger.error("Job %s couldn't be settled: %s", request.id, origin(exc))  # noqa: TRY400 - as above
                self.fail(request, InferenceError.at("decode", "the worker couldn't settle it"))

    def failed(self, jobs: list[Waiting[BatchedRequest]], cause: BaseException, pid: int) -> None:
        """The pool call in process `pid` ended without outcomes: sort out who is to blame."""
        open_jobs = [job for job in jobs if not (job.request.settled or job.request.cancelled)]
        # By what ran, not by what is left of it: a mate that was revoked may have been the culprit.
        alone = len(jobs) == 1
        # The pool tells of a time limit before it kills.
        gone_s = KILLED_S if isinstance(cause, TimeLimitExceeded) else 0.0
        if open_jobs and (gone_s or isinstance(cause, _LOST)):
            self._intake.recorder.put(
                open_jobs[0].request.id,
                partial(self._left_by, pid, [job.request.id for job in open_jobs], gone_s),
                lambda left: self._sort_out_left(open_jobs, left, cause, alone),
                [job.request for job in open_jobs],
                # If nobody can tell: the child looks before it runs one again.
                otherwise=lambda: ([None] * len(open_jobs), {}),
            )
        else:
            self._sort_out(open_jobs, cause, alone)

    def fail(self, request: BatchedRequest, error: Exception) -> None:
        """Settle one job as a FAILURE that the child didn't record: store it, then acknowledge.

        Poison goes to the dead letters before both. While any of it can't be stored, as when Redis
        is full, the job is kept and this tried again. An error that can't be stored by what it is
        gives way to one that can.
        """
        if request.settled:
            return
        request.failing = True
        try:
            raise error  # noqa: TRY301 - gives the error the traceback ExceptionInfo wants
        except Exception:  # noqa: BLE001 - the very one
            einfo = ExceptionInfo()
        crashes = self._crashes.get(request.id, 0)

        def write() -> None:
            if isinstance(error, PoisonJob):
                self._burial.bury(request, error, crashes)
            store_failure(
                request.task.backend,
                request.id,
                error,
                request._context,  # noqa: SLF001 - as Celery's own handlers do
                einfo.traceback,
            )

        def write_plainly() -> None:
            plain = InferenceError.at("decode", f"its {type(error).__name__} can't be stored")
            store_failure(request.task.backend, request.id, plain, request._context)  # noqa: SLF001 - as above

        recorded = partial(self._recorded, request, error, einfo)
        self._intake.recorder.put(
            request.id, write, lambda _: recorded(), [request], otherwise=write_plainly
        )

    def _recorded(self, request: BatchedRequest, error: Exception, einfo: ExceptionInfo) -> None:
        """The failure is stored: acknowledge, and tell who listens in this process."""
        self._crashes.pop(request.id, None)
        request.on_failure(einfo, return_ok=True)  # acknowledges; what it would store is stored
        signals.task_failure.send(
            sender=request.task,
            task_id=request.id,
            exception=error,
            args=request.args,
            kwargs=request.kwargs,
            traceback=einfo.traceback,
            einfo=einfo,
        )

    def _sort_out_left(
        self, jobs: list[Waiting[BatchedRequest]], left: _Left, cause: BaseException, alone: bool
    ) -> None:
        open_jobs = self._unfinished(jobs, *left)
        # Its time was over when its answer was there already. Once: what is run with its answer at
        # hand leaves none behind, and fails if it takes too long again.
        late = isinstance(cause, TimeLimitExceeded)
        if alone and late and any(job.request.id in left[1] for job in open_jobs):
            self._retry_alone(open_jobs)
        else:
            self._sort_out(open_jobs, cause, alone)

    def _sort_out(
        self, open_jobs: list[Waiting[BatchedRequest]], cause: BaseException, alone: bool
    ) -> None:
        if open_jobs and alone:
            self._settle_culprit(open_jobs[0], cause)
        elif open_jobs:
            logger.warning(
                "%d jobs of a batch ended without answers (%s); each runs again alone.",
                len(open_jobs),
                # The pool's own words quote nothing.
                cause if isinstance(cause, _LOST) else origin(cause),
            )
            self._retry_alone(open_jobs)

    def _settle_culprit(self, job: Waiting[BatchedRequest], cause: BaseException) -> None:
        if isinstance(cause, _LOST):
            self._crashed_alone(job, cause)
        elif isinstance(cause, TimeLimitExceeded | SoftTimeLimitExceeded | JobError):
            self.fail(job.request, cause)
        else:
            # Also MemoryError, which in Celery's own handler would end the worker.
            self.fail(job.request, InferenceError.at("forward", cause))

    def _crashed_alone(self, job: Waiting[BatchedRequest], cause: BaseException) -> None:
        request = job.request
        if not self._intake.open:
            return  # a shutdown's grace was over; the job stays unacknowledged, and isn't to blame
        crashes = self._crashes[request.id] = self._crashes.get(request.id, 0) + 1
        if crashes < CRASHES_ALONE:
            self._retry_alone([job])
            return
        message = f"The job ended its process {crashes} times, alone in it: {cause}"
        self.fail(request, PoisonJob(message, "crash", crashes))

    def _retry_alone(self, jobs: list[Waiting[BatchedRequest]]) -> None:
        self._intake.take_back([replace(job, suspect=True) for job in jobs])

    def _left_by(self, pid: int, task_ids: Sequence[str], gone_s: float) -> _Left:
        """Ask what a child had stored of these jobs when it died, and what it had computed."""
        wait_gone(pid, gone_s)
        backend = self._intake.worker.app.backend
        raw = backend.mget([backend.get_key_for_task(task_id) for task_id in task_ids])
        # Read once, and only after the backend answered: what it refuses is asked again.
        return [backend.decode_result(value) if value else None for value in raw], salvage(pid)

    def _unfinished(
        self,
        jobs: list[Waiting[BatchedRequest]],
        metas: Sequence[dict[str, Any] | None],
        computed: Mapping[str, Any],
    ) -> list[Waiting[BatchedRequest]]:
        """Acknowledge the jobs whose result is stored; return the others, with their answers."""
        open_jobs = []
        for job, meta in zip(jobs, metas, strict=True):
            if job.request.settled or job.request.cancelled:
                continue  # while the backend was asked
            if meta and meta["status"] == states.SUCCESS:
                job.request.on_success((0, "", 0.0))
            else:
                job.request.computed = computed.get(job.request.id, job.request.computed)
                open_jobs.append(job)
        return open_jobs

"""One batch on its way through the pool, until `worker.settlement` ends its jobs."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from celery.utils.log import get_logger

from worker.batcher import Waiting
from worker.patience import ended_by_alarm, took_too_long
from worker.requests import BatchedRequest
from worker.runner import Answered, Job, run_dispatch
from worker.settlement import Settlement
from worker.tally import Figures

__all__ = ["Dispatch", "write_now"]

logger = get_logger(__name__)

_PROTOCOL = pickle.HIGHEST_PROTOCOL


class Dispatch:
    """The jobs one pool call carries."""

    def __init__(
        self,
        jobs: Sequence[Waiting[BatchedRequest]],
        settlement: Settlement,
        on_end: Callable[[Dispatch], None],
        patience_s: float | None = None,
    ) -> None:
        self.jobs = list(jobs)
        self.tokens = sum(job.tokens for job in jobs)
        """An estimate, in the unit of what waits."""
        self.cancelled = False
        """Whether a cold shutdown has already signalled the child."""
        self.figures: Figures | None = None
        """What the child tells of it, once it has answered."""
        self._patience_s = patience_s
        self._settlement = settlement
        self._on_end = on_end
        self.started_s = time.monotonic()
        self._result: Any = None
        self._pid = 0

    def start(self, pool: Any) -> bool:
        """Hand the jobs to the pool; False if it is closed and took nothing.

        Raises:
            RecursionError, TypeError, pickle.PicklingError: a job can't be sent to a process.
        """
        # Pickled here, not in the pool, where a failure would leave a call open for ever.
        jobs = pickle.dumps([_job(waiting.request) for waiting in self.jobs], _PROTOCOL)
        for job in self.jobs:
            job.request.batch = self
        hard_s, soft_s = self.jobs[0].time_limits
        self._result = pool.apply_async(
            run_dispatch,
            args=(jobs, self._patience_s),
            accept_callback=self._accepted,
            callback=self._answered,
            error_callback=self._failed,
            timeout_callback=self._timed_out,
            timeout=hard_s,
            soft_timeout=soft_s,
            # A task's id here would let the pool drop the whole batch when that task is revoked.
            correlation_id=None,
        )
        return self._result is not None

    def dropped(self, cache: Mapping[int, Any]) -> bool:
        """Whether the pool forgot it before a child accepted it; `cache` holds its open calls."""
        result = self._result
        return not (result.accepted() or result.ready() or result._job in cache)  # noqa: SLF001 - the pool's only name for a call

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Let the pool's flush, in the block, pass over a call it has begun to write to a process.

        The process gets the rest of it and runs it, accepted or not. Forgotten by the pool, its
        answer would find nobody: the jobs would run again elsewhere, and when the worker leaves the
        process would wait half a minute for the answer to be read.
        """
        result = self._result
        if result is None or result.accepted() or result._write_to is None:  # noqa: SLF001 - as above
            yield
            return
        result._accepted = True  # noqa: SLF001 - what the flush asks
        try:
            yield
        finally:
            result._accepted = False  # noqa: SLF001 - its process hasn't said so yet
            if not result._write_to._is_alive():  # noqa: SLF001 - nor ever will
                result.discard()

    def _accepted(self, pid: int, time_accepted: float) -> None:
        self._pid = pid
        for job in self.jobs:
            self._settlement.accepted(job.request, pid, time_accepted)

    def _answered(self, answered: Answered) -> None:
        self.figures = answered.figures
        self._on_end(self)
        self._settlement.answered(self.jobs, answered.settled)

    def _failed(self, einfo: Any) -> None:
        cause = getattr(einfo.exception, "exc", einfo.exception)
        if self._patience_s is not None and ended_by_alarm(cause):
            cause = took_too_long(self._patience_s)
        self._on_end(self)
        self._settlement.failed(self.jobs, cause, self._pid)

    def _timed_out(self, soft: bool, timeout: float) -> None:
        # The outcome of a hard limit comes through `_failed` as well; it is settled there, once.
        kind = "Soft" if soft else "Hard"
        logger.warning(
            "%s time limit of %s s passed for a batch of %d jobs.", kind, timeout, len(self.jobs)
        )


def write_now(pool: Any, hub: Any) -> None:
    """Write to idle processes in this very turn, as the pool would at its next poll."""
    pool = pool._pool  # noqa: SLF001 - Celery has no other way to its processes
    pool.on_poll_start()
    idle = pool._all_inqueues - pool._busy_workers - pool._active_writes  # noqa: SLF001 - as above
    if idle:
        hub.consolidate_callback(list(idle))


def _job(request: BatchedRequest) -> Job:
    headers = {k: v for k, v in request.request_dict.items() if k not in ("args", "kwargs")}
    received_s, computed = request.received_s, request.computed
    return Job(request.type, request.id, headers, request.payload, received_s, computed)

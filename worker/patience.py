"""How long a model may take: the end of a process whose model doesn't come to one.

A time limit of the job's own, or Celery's ``task_time_limit``, is the pool's business: it counts
from the dispatch to its answer. Where neither is set, ``GOLEM_JOB_TIMEOUT_S`` counts, and only
while the model is at work: no job fails because its answer waited in the process for a Redis that
was away. So the clock is the process's own, and its alarm the kernel's, which ends the process even
in a loop of native code, where no Python signal handler would ever run.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded, WorkerLostError
from celery.utils.log import get_logger

from golem_tasks.errors import JobTimeout
from worker.batcher import Waiting
from worker.pace import DISPATCH_TOKENS
from worker.settings import WorkerSettings

__all__ = ["at_most", "ended_by_alarm", "patience_s", "took_too_long", "undisturbed"]

logger = get_logger(__name__)

_BY_ALARM = f"signal {signal.SIGALRM.value} "


def patience_s(jobs: Sequence[Waiting[Any]], settings: WorkerSettings) -> float | None:
    """Seconds the model may take for a dispatch; None where a hard limit of its own or none is set.

    It is set for `DISPATCH_TOKENS`, and grows with the most tokens the texts may have, lest an
    estimate end a job that is well: of Chinese, say, there are four times as many as of English of
    that length.
    """
    hard_s, _ = jobs[0].time_limits
    if hard_s or not settings.job_timeout_s:
        return None
    return settings.job_timeout_s * max(1.0, sum(job.most_tokens for job in jobs) / DISPATCH_TOKENS)


@contextmanager
def at_most(limit_s: float | None) -> Iterator[None]:
    """End this process, by SIGALRM, if the block takes longer; main thread only."""
    if limit_s is None:
        yield
        return
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a model's own handler would catch it
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold back the soft time limit's signal.

    The model is done; while the jobs are settled one by one the signal would hit an innocent.
    """
    signals = {signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        except SoftTimeLimitExceeded:
            logger.info("The soft time limit passed while the jobs were settled; all of them are.")


def ended_by_alarm(cause: BaseException) -> bool:
    """Whether the pool lost a process because its time was over."""
    # The pool tells the signal in words only.
    return isinstance(cause, WorkerLostError) and _BY_ALARM in str(cause)


def took_too_long(limit_s: float) -> JobTimeout:
    """Build the error of a job that was alone in the model for so long."""
    return JobTimeout(
        f"The model took more than {limit_s:g} s for this job alone, GOLEM_JOB_TIMEOUT_S for its "
        "length: send less text in a job, or raise it if the model really takes longer.",
        limit_s,
    )

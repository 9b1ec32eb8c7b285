"""What the worker's main process itself tells the result backend, told by a thread.

Most outcomes are stored by the child that came to them. A few are nobody's but the parent's: a time
limit, a poisonous job, a revocation, a message nobody can read; and after a crash it has to ask
which jobs had been answered. The backend may be away or hang while the broker is well, and an event
loop that waited for it would renew no lease, so that other workers would run again what this one
holds. So the loop hands the errand to `Recorder`, whose thread repeats it, and goes on with the job
only then. While Redis is away or takes nothing from anyone it is repeated, for as long as that
lasts. One that fails by what is in it is not (`is_servers_state`): it would keep its job for ever.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from celery import states
from celery.exceptions import BackendError, TaskRevokedError
from celery.utils.log import get_logger
from kombu.exceptions import OperationalError
from redis.exceptions import ClusterDownError, InvalidResponse, NoPermissionError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from golem_tasks.errors import BrokerUnavailable
from worker.origin import origin
from worker.results import refuses_for_now

__all__ = ["RETRY_S", "TRIES", "Recorder", "is_servers_state", "store_failure", "store_revocation"]

logger = get_logger(__name__)

RETRY_S = 2.0
"""Seconds between a try that failed by the server's state and the next."""
TRIES = 4
"""Tries of an errand that fails though Redis is well: by a value it refuses, or by our mistake."""
FINISH_S = 1.0
"""Seconds a shutdown waits for what is still to be stored; what isn't runs again elsewhere."""
PROMPT_S = 0.5
"""Seconds `Recorder.prompt` waits at most."""

_AWAY = (RedisConnectionError, RedisTimeoutError, OSError, BackendError, OperationalError)
_OPERATORS = (ClusterDownError, InvalidResponse, NoPermissionError)
"""Nothing is wrong with the errand; whoever runs Redis has to see to it."""


@dataclass(slots=True, eq=False)
class _Errand:
    job_id: str
    """The job, or the first of them."""
    requests: tuple[Any, ...]
    """Requests that stay unacknowledged until it is done."""
    write: Callable[[], Any]
    """Runs in the thread, again until it raises nothing; what it returns is for `then`."""
    otherwise: Callable[[], Any] | None
    """Takes the place of `write`, once, when that fails by itself."""
    then: Callable[[Any], None]
    """Runs in the event loop afterwards."""
    failures: int = 0
    """How often `write` has failed by itself."""


class Recorder:
    """Runs errands one after the other; all but its thread is used from the event loop's.

    Args:
        call_soon: makes the event loop call something soon; safe to use from another thread.
        retry_s: seconds between a try that failed by the server's state and the next.
    """

    def __init__(
        self, call_soon: Callable[[Callable[[], None]], Any], retry_s: float = RETRY_S
    ) -> None:
        self._call_soon = call_soon
        self._retry_s = retry_s
        self._todo: SimpleQueue[_Errand] = SimpleQueue()
        self._done: deque[tuple[_Errand, Any]] = deque()
        self._open: dict[_Errand, None] = {}
        self._changed = threading.Condition()
        self._unwritten = 0
        self._behind = False
        self._thread: threading.Thread | None = None

    @property
    def unfinished(self) -> int:
        """Errands still to be ended."""
        return len(self._open)

    @property
    def requests(self) -> Iterator[Any]:
        """Requests this worker holds for the sake of an errand."""
        for errand in tuple(self._open):
            yield from errand.requests

    def put(
        self,
        job_id: str,
        write: Callable[[], Any],
        then: Callable[[Any], None],
        requests: Sequence[Any] = (),
        otherwise: Callable[[], Any] | None = None,
    ) -> None:
        """Have `write` done by the thread, then `then` called, with what it returned, by the loop.

        Args:
            job_id: for the log.
            write: everything that talks to Redis; safe to do twice.
            then: settles the job. It is called in any case, once: with None if `write` (and
                `otherwise`) failed `TRIES` times though Redis is well.
            requests: stay this worker's until then.
            otherwise: a simpler `write`, for when that fails by what it writes.
        """
        errand = _Errand(job_id, tuple(requests), write, otherwise, then)
        self._open[errand] = None
        with self._changed:
            self._unwritten += 1
        self._todo.put(errand)
        if self._thread is None:
            # A daemon: an answer that can't be stored must not keep the process from ending.
            self._thread = threading.Thread(target=self._run, name="golem-recorder", daemon=True)
            self._thread.start()

    def prompt(self) -> None:
        """Wait a moment, unless the backend is in trouble, so that what was put is mostly stored.

        For who is told "done" by this worker and looks into the backend next.
        """
        if not self._behind and not self._written_within(PROMPT_S):
            self._behind = True

    def finish(self) -> None:
        """End what can be ended within `FINISH_S`; a worker that leaves calls it last."""
        if not self._written_within(FINISH_S):
            logger.warning(
                "The ends of %d jobs couldn't be stored; they stay in the queue.", len(self._open)
            )
        self._deliver()

    def _written_within(self, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._unwritten, timeout_s)

    def _run(self) -> None:
        while True:
            errand = self._todo.get()
            try:
                result = errand.write()
            except Exception as exc:  # noqa: BLE001 - whatever it is, the job must come to an end
                self._again(errand, exc)
            else:
                self._behind = False
                self._written(errand, result)

    def _written(self, errand: _Errand, result: Any) -> None:
        self._done.append((errand, result))
        with self._changed:
            self._unwritten -= 1
            self._changed.notify_all()
        self._call_soon(self._deliver)

    def _again(self, errand: _Errand, exc: Exception) -> None:
        by_server = is_servers_state(exc)
        errand.failures += not by_server
        if errand.failures >= TRIES:
            self._give_up(errand, exc)
            return
        self._behind = True
        pause_s = self._retry_s if by_server else 0.0  # else time cures nothing, and others wait
        logger.warning(
            "The end of job %.200r can't be stored (%s); the next try is in %g s.",
            errand.job_id,
            # A foreign error's words may quote the content.
            exc if by_server else type(exc).__name__,
            pause_s,
        )
        threading.Event().wait(pause_s)
        self._todo.put(errand)  # last, lest one that never succeeds hold up the others

    def _give_up(self, errand: _Errand, exc: Exception) -> None:
        """Go on with the job all the same: kept, it would be renewed and tried for ever."""
        kind, otherwise = type(exc).__name__, errand.otherwise
        if otherwise is not None:
            logger.error("The end of job %.200r can't be stored as it is: %s", errand.job_id, kind)
            errand.write, errand.otherwise, errand.failures = otherwise, None, 0
            self._todo.put(errand)
            return
        logger.error(
            "The end of job %.200r can't be stored (%s) and isn't tried again; who waits for it "
            "learns nothing.",
            errand.job_id,
            kind,
        )
        self._written(errand, None)

    def _deliver(self) -> None:
        while self._done:
            errand, result = self._done.popleft()
            del self._open[errand]
            try:
                errand.then(result)
            except Exception as exc:  # noqa: BLE001 - the other errands go on
                logger.error("Job %.200r couldn't be settled: %s", errand.job_id, origin(exc))  # noqa: TRY400 - no trace: it may hold content


def is_servers_state(error: BaseException) -> bool:
    """Whether an errand fails by the state Redis is in, and may succeed as it is later."""
    if isinstance(error, BrokerUnavailable) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, ResponseError) and not isinstance(error, _OPERATORS):
        return refuses_for_now(error)
    return isinstance(error, (*_AWAY, *_OPERATORS))


def store_failure(
    backend: Any,
    task_id: str,
    error: Exception,
    context: Any,
    traceback: Any = None,
    *,
    unread: bool = False,
) -> None:
    """Store a FAILURE, then tell the job's chord, chain and errbacks.

    What follows the job is the producer's own making: an errback that can't be called at all is
    logged and the job settled all the same, but one that Redis keeps from it is tried again.

    Args:
        backend: Celery's.
        task_id: the job.
        error: what its producer gets.
        context: Celery's, with what follows the job as far as it is known.
        traceback: of the error.
        unread: whether the job's body couldn't be read, so that its chord isn't known.

    Raises:
        redis.exceptions.RedisError, BackendError, OperationalError: Redis is away or refuses.
    """
    backend.store_result(task_id, error, states.FAILURE, traceback=traceback, request=context)
    if context.chord or context.errbacks or context.chain:
        _tell(task_id, lambda: backend.mark_as_failure(task_id, error, traceback, request=context))
    elif unread and context.group:
        # If the group is a chord's header, this counts it there as failed, and the last of its
        # mates, whose body names what follows, fails the chord.
        _tell(task_id, lambda: backend.on_chord_part_return(context, states.FAILURE, error))


def store_revocation(
    backend: Any, task_id: str, reason: str, context: Any, *, store_result: bool
) -> None:
    """Store a job as REVOKED, then count it in its chord; as `store_failure` otherwise.

    Raises:
        redis.exceptions.RedisError, BackendError, OperationalError: Redis is away or refuses.
    """
    error = TaskRevokedError(reason)
    if store_result:
        backend.store_result(task_id, error, states.REVOKED, traceback=None, request=context)
    if context.chord:
        _tell(task_id, lambda: backend.on_chord_part_return(context, states.REVOKED, error))


def _tell(task_id: str, call: Callable[[], Any]) -> None:
    """Call what follows a job; what can't be called at all mustn't be tried for ever."""
    try:
        call()
    except Exception as exc:
        if isinstance(exc, _AWAY) or (isinstance(exc, ResponseError) and refuses_for_now(exc)):
            raise
        # Without the cause's words, which may quote the content.
        kind = type(exc).__name__
        logger.warning("What follows job %.200r can't be called: %s", task_id, kind)

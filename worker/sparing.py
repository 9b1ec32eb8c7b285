"""Keeps the processes alive whatever a plain task raises, where stock Celery lets one of them end.

Golem's own tasks need none of it: their body only reports. But an app may run other tasks in the
same worker, and there

- a `MemoryError` is stored as the task's failure and then raised again in the worker's main
  process, which ends; the message comes back, and ends the next worker;
- a `SystemExit` or `KeyboardInterrupt` ends the model process, is taken for a crash, and the
  message comes back to the next process, and the next.

Both become ordinary failures here. A `SystemExit` that a signal brought is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from billiard.common import terminate_handler_fired
from celery import Celery, states
from celery.app import trace
from celery.utils.log import get_logger

from golem_tasks.contract import TASKS
from worker.origin import origin

__all__ = ["spare_processes"]

logger = get_logger(__name__)

_FATAL = (MemoryError, SystemExit, KeyboardInterrupt)


def spare_processes(app: Celery) -> None:
    """Wrap the tracers of all tasks that aren't ours; Celery has made them by now."""
    for name, task in app.tasks.items():
        if name not in TASKS:
            task.__trace__ = _sparing(task, task.__trace__)


def _sparing(task: Any, tracer: Callable[..., Any]) -> Callable[..., Any]:
    def trace_task(task_id: str, *args: Any, **kwargs: Any) -> Any:
        try:
            traced = tracer(task_id, *args, **kwargs)
        except _FATAL as exc:
            if isinstance(exc, SystemExit) and terminate_handler_fired():
                raise
            if task.backend.get_state(task_id) not in states.READY_STATES:
                raise _harmless(exc) from None
            # From a hook that came after the outcome, which stands.
            logger.error("Task %s raised after its outcome was stored: %s", task_id, origin(exc))  # noqa: TRY400 - no trace: it may hold content
            return trace.trace_ok_t(None, None, 0.0, "")
        if traced.info is not None:  # a failure, and its value an ExceptionInfo
            cause = getattr(traced.retval.exception, "exc", traced.retval.exception)
            if isinstance(cause, MemoryError):
                traced.retval.exception = _harmless(cause)
        return traced

    return trace_task


def _harmless(exc: BaseException) -> RuntimeError:
    return RuntimeError(f"{type(exc).__name__}: {exc}")

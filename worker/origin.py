"""What the log says of a foreign error: its kind and where it was raised, and not its words.

A model, a tokenizer or a serializer that fails may quote the very text it failed on, and no text of
a job is logged above DEBUG. Its producer gets the words, and at DEBUG so does the log.

Celery's own line of a failed task has the words, and passes the arguments on to handlers beside it
(``record.data``). So our tasks' tracer is built with `Traced` in the place of Celery's.
"""

from __future__ import annotations

import traceback
import warnings
from pathlib import Path
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from celery import signals
from celery.app import trace
from celery.utils.log import get_logger
from celery.utils.serialization import get_pickled_exception

__all__ = ["Traced", "log_internal_errors", "origin"]

logger = get_logger(__name__)


def origin(error: BaseException) -> str:
    """Class of an error, file and line that raised it; all there is to know goes to DEBUG."""
    logger.debug("The error that is named next", exc_info=error)
    kind = type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    return f"{kind} in {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else kind


class Traced(trace.TraceInfo):  # type: ignore[misc]  # Celery ships no types
    """What Celery's tracer makes of a failure, told without content."""

    def _log_error(self, task: Any, req: Any, einfo: Any) -> None:  # noqa: ARG002 - Celery's signature
        error = einfo.exception = get_pickled_exception(einfo.exception)
        if isinstance(error, ExceptionWithTraceback):
            error = einfo.exception = error.exc
        logger.info("Job %.200r ends as %s", req.id, type(error).__name__)
        logger.debug("Job %.200r: %s", req.id, error)


def log_internal_errors() -> None:
    """Tell of what Celery's tracer raises itself; its own way is a warning with all the words."""
    warnings.filterwarnings("ignore", "Exception raised outside body", RuntimeWarning)
    signals.task_internal_error.connect(_on_internal_error, weak=False, dispatch_uid="golem.origin")


def _on_internal_error(task_id: str = "", exception: Any = None, **_: Any) -> None:
    logger.error("Job %.200r failed outside of its task: %s", task_id, origin(exception))

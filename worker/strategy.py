"""Our tasks' strategy is Celery's, without its line per job (`worker.refusals` checks messages)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.worker import strategy as celery_strategy

__all__ = ["strategy"]


def strategy(task: Any, app: Any, consumer: Any) -> Callable[..., Any]:
    """Celery's default strategy, which asks once, here, whether it is to log each job."""
    quiet = celery_strategy.logger
    level = quiet.level
    # A line per job says nothing that the line per batch doesn't, and costs more than the job.
    quiet.setLevel("WARNING")
    try:
        handle: Callable[..., Any] = celery_strategy.default(task, app, consumer)
    finally:
        quiet.setLevel(level)
    return handle

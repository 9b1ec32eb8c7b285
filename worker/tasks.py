"""Our two tasks. Their bodies only report: the model ran before them, for the whole dispatch."""

from __future__ import annotations

from typing import Any

from celery import Celery, Task

from golem_tasks.contract import CLASSIFY, CLASSIFY_MANY
from golem_tasks.errors import JobError
from worker import runner

__all__ = ["ClassificationTask", "register"]


class ClassificationTask(Task):  # type: ignore[misc]  # Celery ships no types
    """What makes a task one of ours: its intake, its request class, its expected errors."""

    Strategy = "worker.strategy:strategy"
    Request = "worker.requests:BatchedRequest"
    abstract = True
    throws = (JobError,)  # the producer's news, not a worker's incident: logged without traceback
    typing = False  # the contract is checked per job, with better words than a TypeError
    resultrepr_maxsize = 1  # only events carry it, and making it was 13 % of the child's work


def register(app: Celery) -> None:
    """Add our tasks to the app."""

    def classify(self: ClassificationTask, *_args: Any, **_kwargs: Any) -> Any:
        return runner.active().outcome(self.request.id)

    for name in (CLASSIFY, CLASSIFY_MANY):
        app.task(classify, bind=True, base=ClassificationTask, name=name, shared=False)

"""What a producer needs: contract, clients, errors. Never torch, transformers or the worker.

The clients are loaded when first asked for: they bring Celery, which a worker's child, a settings
check or ``golem --help`` can do without.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from golem_tasks.backlog import Backlog, LaneBacklog, WorkerStats
from golem_tasks.contract import FailedItem, Limits, Options, Prediction, Predictions
from golem_tasks.errors import (
    BrokerUnavailable,
    ConfigurationError,
    DeadLetterError,
    GolemError,
    InferenceError,
    InvalidJob,
    JobError,
    JobExpired,
    JobRevoked,
    ModelLoadError,
    OutOfMemory,
    PoisonJob,
    QueueFull,
    ResultTimeout,
    SubmitIncomplete,
    TextTooLong,
)

if TYPE_CHECKING:
    from golem_tasks.aio import AsyncGolem, AsyncJob
    from golem_tasks.client import Golem, Job, SubmitOptions
    from golem_tasks.dead import DeadLetter, DeadLetters

__all__ = [
    "AsyncGolem",
    "AsyncJob",
    "Backlog",
    "BrokerUnavailable",
    "ConfigurationError",
    "DeadLetter",
    "DeadLetterError",
    "DeadLetters",
    "FailedItem",
    "Golem",
    "GolemError",
    "InferenceError",
    "InvalidJob",
    "Job",
    "JobError",
    "JobExpired",
    "JobRevoked",
    "LaneBacklog",
    "Limits",
    "ModelLoadError",
    "Options",
    "OutOfMemory",
    "PoisonJob",
    "Prediction",
    "Predictions",
    "QueueFull",
    "ResultTimeout",
    "SubmitIncomplete",
    "SubmitOptions",
    "TextTooLong",
    "WorkerStats",
]

_LAZY = {
    "AsyncGolem": "golem_tasks.aio",
    "AsyncJob": "golem_tasks.aio",
    "DeadLetter": "golem_tasks.dead",
    "DeadLetters": "golem_tasks.dead",
    "Golem": "golem_tasks.client",
    "Job": "golem_tasks.client",
    "SubmitOptions": "golem_tasks.client",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

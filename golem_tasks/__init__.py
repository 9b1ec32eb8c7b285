"""What a producer needs: contract, clients, errors. Never torch, transformers or the worker.

Every name is loaded when first asked for: the clients bring Celery, which a worker's child, a
settings check or ``golem --help`` can do without; and while pydantic is still being loaded, the
``golem`` command already knows what a Ctrl-C means.
"""

TYPE_CHECKING = False  # type checkers know it by its name; `typing` itself is slow to load
if TYPE_CHECKING:
    from typing import Any

    from golem_tasks.aio import AsyncGolem, AsyncJob
    from golem_tasks.aio_bulk import AsyncBulk
    from golem_tasks.backlog import Backlog, LaneBacklog, WorkerStats
    from golem_tasks.bulk import Bulk
    from golem_tasks.client import Golem, Job, SubmitOptions
    from golem_tasks.contract import FailedItem, Limits, Options, Prediction, Predictions
    from golem_tasks.dead import DeadLetter, DeadLetters
    from golem_tasks.errors import (
        BrokerUnavailable,
        BulkNotFound,
        ConfigurationError,
        DeadLetterError,
        GolemError,
        InferenceError,
        InvalidJob,
        JobError,
        JobExpired,
        JobRevoked,
        JobTimeout,
        ModelLoadError,
        OutOfMemory,
        PoisonJob,
        QueueFull,
        ResultTimeout,
        SubmitIncomplete,
        TextTooLong,
    )
    from golem_tasks.progress import Progress

__all__ = [
    "AsyncBulk",
    "AsyncGolem",
    "AsyncJob",
    "Backlog",
    "BrokerUnavailable",
    "Bulk",
    "BulkNotFound",
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
    "JobTimeout",
    "LaneBacklog",
    "Limits",
    "ModelLoadError",
    "Options",
    "OutOfMemory",
    "PoisonJob",
    "Prediction",
    "Predictions",
    "Progress",
    "QueueFull",
    "ResultTimeout",
    "SubmitIncomplete",
    "SubmitOptions",
    "TextTooLong",
    "WorkerStats",
]

_HOMES = {
    "aio": ("AsyncGolem", "AsyncJob"),
    "backlog": ("Backlog", "LaneBacklog", "WorkerStats"),
    "aio_bulk": ("AsyncBulk",),
    "bulk": ("Bulk",),
    "client": ("Golem", "Job", "SubmitOptions"),
    "contract": ("FailedItem", "Limits", "Options", "Prediction", "Predictions"),
    "dead": ("DeadLetter", "DeadLetters"),
    "progress": ("Progress",),
}
"""Where the names live; the rest are errors."""


def __getattr__(name: str) -> "Any":
    from importlib import import_module  # noqa: PLC0415 - see the docstring

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((home for home, names in _HOMES.items() if name in names), "errors")
    value = globals()[name] = getattr(import_module(f"golem_tasks.{home}"), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]

"""What a producer needs: contract, clients, errors. Never torch, transformers or the worker."""

from golem_tasks.contract import Limits, Options, Prediction, Predictions
from golem_tasks.errors import (
    BrokerUnavailable,
    ConfigurationError,
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

__all__ = [
    "BrokerUnavailable",
    "ConfigurationError",
    "GolemError",
    "InferenceError",
    "InvalidJob",
    "JobError",
    "JobExpired",
    "JobRevoked",
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
    "TextTooLong",
]

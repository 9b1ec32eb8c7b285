"""Every error a user of Golem can meet.

::

    GolemError
    ├── JobError                  a job ended without an answer; `.get()` raises it in the producer
    │   ├── InvalidJob            the payload breaks the contract (producer)
    │   │   └── TextTooLong       a text is longer than allowed (producer)
    │   ├── InferenceError        the model failed on this very job (worker)
    │   ├── OutOfMemory           this text alone doesn't fit the device (worker)
    │   ├── JobTimeout            the model took longer for it than it may (worker)
    │   ├── PoisonJob             the job killed its process, or was delivered too often (worker)
    │   ├── JobRevoked            the job was cancelled before it was answered (producer)
    │   └── JobExpired            the job's deadline passed before it was answered (producer)
    ├── ResultTimeout             the wait ended before the job did (nobody; the job goes on)
    ├── QueueFull                 the backlog would exceed the producer's own limit (producer)
    ├── BrokerUnavailable         Redis can't be reached (broker)
    │   └── SubmitIncomplete      Redis went away half-way through a bulk submit (broker)
    ├── BulkNotFound              there is no record of a bulk submit, or none any more (producer)
    ├── DeadLetterError           a dead letter isn't there, or can't be requeued (operator)
    ├── ConfigurationError        a setting can't be used (operator)
    └── ModelLoadError            the model can't be loaded (operator)

Celery's JSON result backend stores an exception as its class and its ``args`` and builds it again
in the producer by calling the class with them. So every argument of a `JobError` is positional,
JSON-able and kept in ``args``, the message first.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "BrokerUnavailable",
    "BulkNotFound",
    "ConfigurationError",
    "DeadLetterError",
    "GolemError",
    "InferenceError",
    "InvalidJob",
    "JobError",
    "JobExpired",
    "JobRevoked",
    "JobTimeout",
    "ModelLoadError",
    "OutOfMemory",
    "PoisonJob",
    "QueueFull",
    "ResultTimeout",
    "SubmitIncomplete",
    "TextTooLong",
]

_SHOWN_CHARS = 80  # a hostile payload names its own fields; an error stays one sentence


class GolemError(Exception):
    """Root of the tree. The first argument is the sentence a person reads."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else type(self).__name__


class JobError(GolemError):
    """Raised when a job ended without an answer; stored as the job's FAILURE."""


class InvalidJob(JobError):
    """Raised when a payload breaks the contract. The producer is at fault; a retry fails again.

    Args:
        message: the whole sentence.
        field: the offending argument, such as ``text`` or ``texts[3]``.
        reason: what is wrong with it.
    """

    def __init__(self, message: str, field: str = "", reason: str = "") -> None:
        super().__init__(message, field, reason)
        self.field = field
        self.reason = reason

    @classmethod
    def because(cls, field: str, reason: str) -> InvalidJob:
        """Build the error from the offending field and the reason."""
        shown = field if len(field) <= _SHOWN_CHARS else field[:_SHOWN_CHARS] + "..."
        return cls(f"The job is invalid: {shown} {reason}.", shown, reason)


class TextTooLong(InvalidJob):
    """Raised when a text exceeds a limit: characters, or tokens under ``on_long="error"``."""


class InferenceError(JobError):
    """Raised when the model failed on this very job. The worker or the model is at fault.

    Args:
        message: the whole sentence.
        stage: one of ``read``, ``encode``, ``pack``, ``forward``, ``decode``.
        cause: the class and text of the original exception.
    """

    def __init__(self, message: str, stage: str = "", cause: str = "") -> None:
        super().__init__(message, stage, cause)
        self.stage = stage
        self.cause = cause

    @classmethod
    def at(cls, stage: str, cause: BaseException | str) -> InferenceError:
        """Build the error from the stage that failed and its cause."""
        text = cause if isinstance(cause, str) else f"{type(cause).__name__}: {cause}"
        return cls(f"The model failed on this job at stage {stage!r}: {text}", stage, text)


class OutOfMemory(JobError):
    """Raised when this text alone doesn't fit the device's memory. Worker: a larger device."""


class JobTimeout(JobError):
    """Raised when the model took longer for a job, alone, than the worker allows.

    A job with a hard time limit of its own gets Celery's ``TimeLimitExceeded`` instead.

    Args:
        message: the whole sentence.
        limit_s: seconds it was given.
    """

    def __init__(self, message: str, limit_s: float = 0.0) -> None:
        super().__init__(message, limit_s)
        self.limit_s = limit_s


class PoisonJob(JobError):
    """Raised when a job killed its process when alone, or was delivered too often.

    Args:
        message: the whole sentence.
        reason: ``crash`` or ``deliveries``.
        count: how often it happened.
    """

    def __init__(self, message: str, reason: str = "", count: int = 0) -> None:
        super().__init__(message, reason, count)
        self.reason = reason
        self.count = count


class JobRevoked(JobError):
    """Raised when a job was cancelled (``Job.cancel``, ``revoke``) before it was answered."""


class JobExpired(JobError):
    """Raised when a job's ``expires`` passed before it was answered."""


class ResultTimeout(GolemError, TimeoutError):
    """Raised when a wait ended before the job did. The job itself goes on; wait again if you like.

    Args:
        message: the whole sentence.
        job_id: the id waited for.
        state: its Celery state when the wait ended.
        queue_length: jobs waiting in its queue then, or -1 where that couldn't be asked.
    """

    def __init__(
        self, message: str, job_id: str = "", state: str = "", queue_length: int = -1
    ) -> None:
        super().__init__(message, job_id, state, queue_length)
        self.job_id = job_id
        self.state = state
        self.queue_length = queue_length


class QueueFull(GolemError):
    """Raised at submit when the backlog would exceed the producer's limit. Nothing was sent.

    Args:
        message: the whole sentence.
        backlog: jobs waiting, reserved and in flight, in both lanes.
        limit: the limit that was passed.
        wait_s: seconds a job sent now would wait for its answer; None if no worker's speed is
            known.
    """

    def __init__(
        self, message: str, backlog: int = 0, limit: int = 0, wait_s: float | None = None
    ) -> None:
        super().__init__(message, backlog, limit, wait_s)
        self.backlog = backlog
        self.limit = limit
        self.wait_s = wait_s


class BrokerUnavailable(GolemError, ConnectionError):
    """Raised when Redis can't be reached or refuses. Never silently: what wasn't sent, says so."""


class SubmitIncomplete(BrokerUnavailable):
    """Raised when Redis went away half-way through a bulk submit.

    Args:
        message: the whole sentence.
        sent: ids that are in the queue.
        unsent: ids that certainly are not.
        uncertain: ids whose pipeline got no reply; resubmitting one may run it twice, harmlessly.
    """

    def __init__(
        self,
        message: str,
        sent: list[str] | None = None,
        unsent: list[str] | None = None,
        uncertain: list[str] | None = None,
    ) -> None:
        super().__init__(message, sent, unsent, uncertain)
        self.sent: list[str] = sent or []
        self.unsent: list[str] = unsent or []
        self.uncertain: list[str] = uncertain or []


class BulkNotFound(GolemError, LookupError):
    """Raised when there is no record of a bulk submit: expired, or never made in this Redis.

    Args:
        message: the whole sentence.
        bulk_id: the id asked for.
    """

    def __init__(self, message: str, bulk_id: str = "") -> None:
        super().__init__(message, bulk_id)
        self.bulk_id = bulk_id


class DeadLetterError(GolemError):
    """Raised when there is no such dead letter, or it can't be requeued; the message says why."""


class ConfigurationError(GolemError):
    """Raised when a setting can't be used. The operator is at fault; the message says which."""


class ModelLoadError(GolemError):
    """Raised when the model can't be loaded: names the model, the cause and the remedy."""

    @classmethod
    def of(cls, model: str, cause: Any, remedy: str) -> ModelLoadError:
        """Build the sentence from the model, the cause and the remedy."""
        return cls(f"The model {model!r} can't be loaded: {cause}. {remedy}")

"""Tasks that aren't Golem's, for a Golem worker to run beside its own (``--include``)."""

from typing import Any

from celery import Task, shared_task

from tests.support.fake_engine import EXCEPTIONS


@shared_task(name="plain.add")
def add(left: int, right: int) -> int:
    """Add two numbers."""
    return left + right


@shared_task(name="plain.fail")
def fail(message: str) -> None:
    """Fail with a message."""
    raise ValueError(message)


@shared_task(name="plain.label")
def label(prediction: dict[str, Any]) -> str:
    """Take the label out of a prediction."""
    return str(prediction["label"])


@shared_task(name="plain.labels")
def labels(predictions: list[dict[str, Any]]) -> list[str]:
    """Take the label out of each of many predictions."""
    return [label(prediction) for prediction in predictions]


class _Greedy(Task):  # type: ignore[misc]  # Celery ships no types
    """A task whose hook runs out of memory after it succeeded."""

    abstract = True

    def after_return(self, *_: Any) -> None:
        """Raise, as a hook that copies a large result might."""
        raise MemoryError("in a hook")


@shared_task(name="plain.throw")
def throw(name: str) -> None:
    """Raise one of the named exceptions."""
    raise EXCEPTIONS[name]


@shared_task(name="plain.second_try", bind=True)
def second_try(self: Task) -> int:
    """Ask for one retry; return the number of the try."""
    if not self.request.retries:
        raise self.retry(countdown=0)
    return int(self.request.retries) + 1


@shared_task(name="plain.greedy", base=_Greedy)
def greedy() -> str:
    """Succeed, after which the hook doesn't."""
    return "done"

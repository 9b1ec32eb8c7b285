"""Tasks that aren't Golem's, for a Golem worker to run beside its own (``--include``)."""

from typing import Any

from celery import shared_task


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

"""Tasks that aren't Golem's, for a Golem worker to run beside its own (``--include``)."""

from celery import shared_task


@shared_task(name="plain.add")
def add(left: int, right: int) -> int:
    """Add two numbers."""
    return left + right


@shared_task(name="plain.fail")
def fail(message: str) -> None:
    """Fail with a message."""
    raise ValueError(message)

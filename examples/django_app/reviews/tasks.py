"""To the model and back: a signature goes out, a callback task comes in.

The callbacks run in this project's own worker. Golem's delivers at least once, so both only write
what they are given: a second call changes nothing.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from celery import current_app, shared_task
from django.conf import settings
from kombu.exceptions import OperationalError

from golem_tasks import Golem, JobError
from reviews.models import Review

__all__ = ["classify", "store_answer", "store_failure"]

_STORED_WITHIN_S = 30


def classify(review: Review) -> None:
    """Send a saved review to be classified, or write into it that this isn't possible now."""
    # Named, since it is the Golem worker that sends them: its default queue isn't ours.
    ours = {"queue": settings.CELERY_TASK_DEFAULT_QUEUE}
    signature = current_app.signature("golem.classify", args=[review.text], queue="golem")
    try:
        signature.apply_async(
            link=store_answer.s(review.pk).set(**ours),
            link_error=store_failure.s(review.pk).set(**ours),
        )
    except OperationalError:
        Review.objects.filter(pk=review.pk).update(error="The queue can't be reached.")


@shared_task(ignore_result=True)
def store_answer(prediction: dict[str, Any], review_id: int) -> None:
    """Write a prediction into its review; one that was deleted meanwhile stays so."""
    Review.objects.filter(pk=review_id).update(
        label=prediction["label"], score=prediction["score"], error=""
    )


@shared_task(ignore_result=True)
def store_failure(job_id: str, review_id: int) -> None:
    """Write into a review why it has no label.

    Celery gives an errback that runs in another worker than the failed task the job's id alone.
    """
    try:
        _golem().job(job_id).result(timeout=_STORED_WITHIN_S)
    except JobError as error:
        Review.objects.filter(pk=review_id, label="").update(error=str(error))


@cache
def _golem() -> Golem:
    return Golem(settings.CELERY_BROKER_URL)  # opens nothing before it is asked

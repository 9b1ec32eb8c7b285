"""A producer's own Celery app, with tasks that come before and after a classification."""

import json
import os
from collections import Counter
from typing import Any

from celery import Celery

app = Celery(broker=os.environ.get("CALLBACKS_URL"), backend=os.environ.get("CALLBACKS_URL"))
app.conf.broker_connection_retry_on_startup = True
app.conf.result_expires = 600


@app.task(name="callbacks.write")
def write(subject: str) -> str:
    """Write a text to be classified."""
    return f"a text about {subject}"


@app.task(name="callbacks.label")
def label(prediction: dict[str, Any]) -> str:
    """Take the label out of a prediction."""
    return str(prediction["label"])


@app.task(name="callbacks.count")
def count(predictions: list[dict[str, Any]]) -> dict[str, int]:
    """Count the labels of many predictions."""
    return Counter(prediction["label"] for prediction in predictions)


@app.task(name="callbacks.note")
def note(prediction: dict[str, Any], key: str) -> None:
    """Note a label under a Redis key, once for each call."""
    _append(key, prediction["label"])


@app.task(name="callbacks.note_all")
def note_all(results: list[dict[str, Any]], key: str) -> None:
    """Note the labels of many predictions, or what else was returned, under a Redis key."""
    _append(key, json.dumps([result.get("label", result) for result in results]))


@app.task(name="callbacks.note_failure")
def note_failure(job_id: str, key: str) -> None:
    """Note which job failed, once for each call.

    An errback that runs in another worker than the failed task gets the id alone.
    """
    _append(key, f"{job_id} failed")


def _append(key: str, line: str) -> None:
    with app.connection_for_write() as connection:
        client = connection.default_channel.client
        client.rpush(key, line)
        client.expire(key, 600)

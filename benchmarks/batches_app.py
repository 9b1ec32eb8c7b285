"""celery-batches as its documentation shows it: flushed at 64 jobs or after 10 ms.

A batch task stores its jobs' results itself; there is no other way to answer them one by one.
"""

from __future__ import annotations

from typing import Any

from celery_batches import Batches

from benchmarks.peer_model import answer, make_app, queued_ms
from golem_tasks.contract import CLASSIFY

__all__ = ["app"]

FLUSH_EVERY = 64
FLUSH_INTERVAL_S = 0.01

app = make_app("batches")


@app.task(  # type: ignore[untyped-decorator]  # Celery ships no types
    base=Batches, name=CLASSIFY, flush_every=FLUSH_EVERY, flush_interval=FLUSH_INTERVAL_S
)
def classify(requests: list[Any]) -> None:
    """Answer a batch."""
    texts = [request.args[0] for request in requests]
    waited_ms = [queued_ms(request.request_dict or {}) for request in requests]
    for request, prediction in zip(requests, answer(texts, waited_ms), strict=True):
        app.backend.mark_as_done(request.id, prediction, request=request)

"""Stock Celery as most people run it: one text, one task, one forward pass.

``celery -A benchmarks.stock_app worker`` takes Golem's own messages from Golem's own queue, so
that both contenders are measured on the same bytes.
"""

from __future__ import annotations

from typing import Any

from benchmarks.peer_model import answer, make_app, queued_ms
from golem_tasks.contract import CLASSIFY, CLASSIFY_MANY

__all__ = ["app"]

app = make_app("stock")


@app.task(bind=True, name=CLASSIFY)  # type: ignore[untyped-decorator]  # Celery ships no types
def classify(self: Any, text: str) -> dict[str, Any]:
    """Answer one text."""
    return answer([text], [queued_ms(self.request.headers or {})])[0]


@app.task(bind=True, name=CLASSIFY_MANY)  # type: ignore[untyped-decorator]  # as above
def classify_many(self: Any, texts: list[str]) -> dict[str, Any]:
    """Answer a message's texts as one micro-batch, as a careful user would."""
    waited_ms = queued_ms(self.request.headers or {})
    return {"predictions": answer(texts, [waited_ms] * len(texts))}

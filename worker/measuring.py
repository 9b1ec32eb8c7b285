"""How much work a request is, before anybody tokenizes it: what the batcher counts with."""

from __future__ import annotations

import time
from typing import Any

from golem_tasks.contract import CLASSIFY, CLASSIFY_MANY
from worker.batcher import BatchLimits, Lane, TimeLimits, Waiting
from worker.requests import BatchedRequest
from worker.settings import WorkerSettings

__all__ = ["limits", "measure", "waiting"]

CHARS_PER_TOKEN = 4.0
"""English WordPiece text has about 4.2 characters a token; an estimate only bounds a dispatch."""
SPECIAL_TOKENS = 2
_DAY_S = 86_400


def limits(settings: WorkerSettings) -> BatchLimits:
    """What a dispatch and its wait may be, by these settings."""
    return BatchLimits(
        max_rows=settings.max_rows,
        max_tokens=settings.max_dispatch_tokens,
        linger_s=settings.linger_ms / 1000,
        max_age_s=settings.max_age_ms / 1000,
    )


def waiting(
    request: BatchedRequest, settings: WorkerSettings, max_tokens: int
) -> Waiting[BatchedRequest]:
    """The request as the batcher sees it; `max_tokens` is the longest text the model takes."""
    rows, tokens = measure(request, max_tokens)
    rows = min(rows, settings.max_texts)  # a job with more is refused before the model
    info = request.delivery_info
    priority = info.get("priority")
    bulk = settings.bulk_queue in (info.get("routing_key"), info.get("exchange"))
    return Waiting(
        request,
        rows=rows,
        tokens=tokens,
        since_s=time.monotonic(),
        lane=Lane.BULK if bulk else Lane.INTERACTIVE,
        priority=priority if isinstance(priority, int) else 0,
        time_limits=_time_limits(request),
    )


def measure(request: Any, max_tokens: int) -> tuple[int, int]:
    """Rows and estimated tokens of a request; a payload that breaks the contract counts as one."""
    args, kwargs = request.args, request.kwargs
    name = {CLASSIFY: "text", CLASSIFY_MANY: "texts"}.get(request.type, "")
    value = args[0] if args else kwargs.get(name)
    texts = value if isinstance(value, list) else [value]
    estimates = [int(len(text) / CHARS_PER_TOKEN) if isinstance(text, str) else 0 for text in texts]
    if kwargs.get("on_long") != "window" and max(estimates, default=0) > max_tokens:
        estimates = [min(estimate, max_tokens) for estimate in estimates]
    return max(1, len(texts)), max(1, SPECIAL_TOKENS * len(texts) + sum(estimates))


def _time_limits(request: Any) -> TimeLimits:
    """The request's own (hard, soft) limits in seconds, else the task's."""
    own = request.time_limits if isinstance(request.time_limits, list | tuple) else ()
    own_hard, own_soft = own if len(own) == 2 else (None, None)  # noqa: PLR2004 - a pair
    task = request.task
    return _seconds(own_hard) or task.time_limit, _seconds(own_soft) or task.soft_time_limit


def _seconds(value: Any) -> float | None:
    # More than a day is a day: an absurd number would overflow the pool's clock.
    return min(value, _DAY_S) if isinstance(value, int | float) and value > 0 else None

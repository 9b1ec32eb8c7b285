"""How much work a request is, before anybody tokenizes it: what the batcher counts with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from golem_tasks.contract import POSITIONAL
from worker.batcher import BatchLimits, Lane, TimeLimits, Waiting
from worker.pace import DISPATCH_TOKENS
from worker.packing import ENOUGH_BUDGETS
from worker.processes import Report
from worker.requests import BatchedRequest
from worker.settings import WorkerSettings
from worker.tuning import LAST

__all__ = ["Measure", "dispatch_tokens", "limits", "measure", "waiting"]

CHARS_PER_TOKEN = 4.0
"""English WordPiece text has about 4.2 characters a token; an estimate only bounds a dispatch."""
SPECIAL_TOKENS = 2
MOST_SPECIAL_TOKENS = 4
"""Of a pair, by RoBERTa's tokenizer."""
MOST_TOKENS_PER_CHAR = 4
"""Of text that isn't ASCII, by a tokenizer that falls back to UTF-8's bytes."""
MOST_OF_WINDOWS, MOST_OF_PAIRED_WINDOWS = 2, 6
"""Times a text counts that is read in windows: they overlap by a quarter, and the shorter text of a
pair, up to three quarters of a window, is in each."""
_GPUS = ("cuda", "mps")
"""As torch names them. An engine of somebody's own may run on whatever it calls otherwise."""
_DAY_S = 86_400


def limits(settings: WorkerSettings) -> BatchLimits:
    """What a dispatch and its wait may be, by these settings, before the devices are known."""
    return BatchLimits(
        max_rows=settings.rows,
        max_tokens=dispatch_tokens(settings),
        linger_s=settings.linger_ms / 1000,
        max_age_s=settings.max_age_ms / 1000,
    )


def dispatch_tokens(settings: WorkerSettings, reports: Sequence[Report] = ()) -> int:
    """Most tokens of a dispatch: as set, else a default that fills a GPU several times over.

    A GPU's micro-batch may be as large as the default, and little padding needs several of them to
    choose from (`worker.packing`), also once memory that was short is there again. A CPU's budget
    is at most an eighth of it, unless it was set: a larger dispatch would only make interactive
    jobs wait. So it does behind a budget beyond all that are measured, whoever set it.
    """
    if settings.max_dispatch_tokens != "auto":
        return settings.max_dispatch_tokens
    budgets = [each.token_ceiling for each in reports if each.device.startswith(_GPUS)]
    return max([DISPATCH_TOKENS, *(ENOUGH_BUDGETS * min(LAST, each) for each in budgets)])


def waiting(
    request: BatchedRequest, settings: WorkerSettings, max_tokens: int
) -> Waiting[BatchedRequest]:
    """The request as the batcher sees it; `max_tokens` is the longest text the model takes."""
    measured = measure(request, max_tokens)
    rows = min(measured.rows, settings.max_texts)  # a job with more is refused before the model
    info = request.delivery_info
    priority = info.get("priority")
    bulk = settings.bulk_queue in (info.get("routing_key"), info.get("exchange"))
    return Waiting(
        request,
        rows=rows,
        tokens=measured.tokens,
        most_tokens=measured.most_tokens,
        since_s=time.monotonic(),
        lane=Lane.BULK if bulk else Lane.INTERACTIVE,
        priority=priority if isinstance(priority, int) else 0,
        time_limits=_time_limits(request),
    )


class Measure(NamedTuple):
    """How much a request is."""

    rows: int
    tokens: int
    """An estimate."""
    most_tokens: int
    """What no tokenizer makes more of."""


def measure(request: Any, max_tokens: int) -> Measure:
    """Measure a request; a payload that breaks the contract counts as one row."""
    texts, pairs = (_texts(request, place) for place in (0, 1))
    texts = texts or [None]
    chars, most = list(map(_chars, texts)), list(map(_most_tokens, texts))
    for place, pair in enumerate(pairs[: len(texts)]):
        chars[place] += _chars(pair)
        most[place] += _most_tokens(pair)
    estimates = [int(each / CHARS_PER_TOKEN) for each in chars]
    most = [each + MOST_SPECIAL_TOKENS for each in most]
    if request.kwargs.get("on_long") != "window":
        estimates = [min(each, max_tokens) for each in estimates]
        most = [min(each, max_tokens) for each in most]
    elif max(most) > max_tokens:
        times = MOST_OF_PAIRED_WINDOWS if any(pairs) else MOST_OF_WINDOWS
        most = [times * each if each > max_tokens else each for each in most]
    tokens = SPECIAL_TOKENS * len(texts) + sum(estimates)
    return Measure(len(texts), tokens, sum(most))


def _texts(request: Any, place: int) -> list[Any]:
    """What the task takes at this place, one entry for each row."""
    if place < len(request.args):
        value = request.args[place]
    else:
        names = POSITIONAL.get(request.type, ())
        value = request.kwargs.get(names[place]) if names else None
    return value if isinstance(value, list) else [value]


def _chars(text: Any) -> int:
    return len(text) if isinstance(text, str) else 0


def _most_tokens(text: Any) -> int:
    if not isinstance(text, str):
        return 0
    return len(text) if text.isascii() else MOST_TOKENS_PER_CHAR * len(text)


def _time_limits(request: Any) -> TimeLimits:
    """The request's own (hard, soft) limits in seconds, else the task's."""
    own = request.time_limits if isinstance(request.time_limits, list | tuple) else ()
    own_hard, own_soft = own if len(own) == 2 else (None, None)  # noqa: PLR2004 - a pair
    task = request.task
    return _seconds(own_hard) or task.time_limit, _seconds(own_soft) or task.soft_time_limit


def _seconds(value: Any) -> float | None:
    # More than a day is a day: an absurd number would overflow the pool's clock.
    return min(value, _DAY_S) if isinstance(value, int | float) and value > 0 else None

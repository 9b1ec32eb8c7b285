"""Whether a submit may add to the backlog: the producer's own limit, checked before it sends.

Nothing is reserved by the check, so producers that submit at the same moment may together exceed
the limit by what they send at that moment; so may what workers fetched in the last quarter of a
second (`golem_tasks.backlog`). The limit bounds a queue's growth, not its length to the job.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from golem_tasks._requests import Planned
from golem_tasks.backlog import Backlog, Counted
from golem_tasks.errors import QueueFull

__all__ = ["admit", "admit_async"]


def admit(planned: Planned, count: Callable[[], Counted]) -> None:
    """Let a submit pass, for one count if it has a limit and none otherwise.

    Raises:
        QueueFull: with these jobs the backlog would be over the limit.
    """
    if planned.ids and planned.max_backlog is not None:
        _check(planned, planned.max_backlog, count())


async def admit_async(planned: Planned, count: Callable[[], Awaitable[Counted]]) -> None:
    """Let a submit pass, as `admit` does.

    Raises:
        QueueFull: with these jobs the backlog would be over the limit.
    """
    if planned.ids and planned.max_backlog is not None:
        _check(planned, planned.max_backlog, await count())


def _check(planned: Planned, limit: int, counted: Counted) -> None:
    room = limit - len(planned.ids)
    if counted.most <= room:
        return  # by far the most frequent case; what the workers say needn't be read
    backlog = counted.backlog()
    if backlog.total > room:
        raise _full(planned, limit, backlog)


def _full(planned: Planned, limit: int, backlog: Backlog) -> QueueFull:
    jobs, wait_s = len(planned.ids), backlog.wait_s(planned.queue)
    if jobs > limit:
        remedy = "so many never fit at once: send them in parts"
    elif wait_s is not None:
        remedy = f"a job sent now would wait about {wait_s:.3g} s: try again, or start more workers"
    elif backlog.workers:
        remedy = "how long it will take isn't known yet: try again, or start more workers"
    else:
        remedy = f"no worker runs on queue {backlog.interactive.queue!r}: start one"
    text = (
        f"The backlog is {backlog.total} jobs, and {jobs} more would exceed the limit of {limit} "
        f"(max_backlog, GOLEM_MAX_BACKLOG); {remedy}."
    )
    return QueueFull(text, backlog.total, limit, wait_s)

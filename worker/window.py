"""How much a worker fetches ahead of need. Pure, no I/O, no clock."""

from __future__ import annotations

import math
from typing import Any

from worker.batcher import Batcher, BatchLimits, Lane, Size
from worker.transport import Room

__all__ = ["Window"]

_SMOOTHING = 0.05  # weight of the newest job in the mean rows per job, by which messages count


class Window:
    """What can be used soon: enough for every process's next dispatch.

    What is in flight isn't counted, so what is fetched now is here when the first is done.
    """

    def __init__(self) -> None:
        self._rows_per_job = 1.0

    def came(self, rows: int) -> None:
        """Learn how many texts a message has."""
        self._rows_per_job += _SMOOTHING * (rows - self._rows_per_job)

    def room(self, batcher: Batcher[Any], processes: int, ending: int) -> Room:
        """Say what may be fetched now.

        Bulk jobs don't take an interactive one's room: with a dispatch of them buffered, it still
        comes here at once, and goes with the next dispatch instead of the one after.

        Args:
            batcher: what is buffered, and the bounds of a dispatch.
            processes: those that are up.
            ending: jobs whose end is still to be stored. They take room as well, or a flood of what
                is about to be failed would fill the memory.
        """

        def beside(held: Size) -> int:
            """Messages that make up, with what is held, a dispatch for every process."""
            limits: BatchLimits = batcher.limits
            rows = processes * limits.max_rows - held.rows - ending
            tokens = processes * limits.max_tokens - held.tokens
            return math.ceil(rows / self._rows_per_job) if rows > 0 and tokens > 0 else 0

        messages = beside(batcher.size())
        if messages > 0:
            return Room(messages)
        return Room(beside(batcher.size(Lane.INTERACTIVE)), bulk=False)

"""Every job of a soak over its whole time: when it was sent, when answered, and whether rightly."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from benchmarks.verify import Verdict, verdicts

__all__ = ["Book", "Recovery", "recoveries"]

_LOOK_JOBS = 4_000
"""Most jobs asked after in one look, so that looking costs the server little."""


class Recovery(NamedTuple):
    """Seconds from a fault until jobs sent before it were answered; infinite if one never was."""

    all_s: float
    """All of them, those included that wait for an earlier fault's end."""
    own_s: float
    """Those sent since the fault before."""


class Book:
    """The jobs, in the order they were sent. Times are seconds after the load began."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.sent_s: list[float] = []
        self.answered_s: list[float] = []
        """Infinite until an answer was seen."""
        self.judged: list[Verdict] = []
        self.uncertain: set[int] = set()
        """Positions of jobs whose producer was told that they may be in the queue."""
        self.refused = 0
        """Jobs whose producer was told that they aren't in the queue: never sent, nothing lost."""
        self._open: deque[int] = deque()

    def enter(
        self, ids: Sequence[str], texts: Sequence[str], at_s: float, *, uncertain: bool = False
    ) -> None:
        """Enter jobs whose submit has returned."""
        added = range(len(self.ids), len(self.ids) + len(ids))
        self.ids.extend(ids)
        self.texts.extend(texts)
        self.sent_s.extend([at_s] * len(ids))
        self.answered_s.extend([math.inf] * len(ids))
        self.judged.extend([Verdict.ABSENT] * len(ids))
        self._open.extend(added)
        if uncertain:
            self.uncertain.update(added)

    @property
    def open(self) -> int:
        """Jobs that have no answer yet."""
        return len(self._open)

    @property
    def certain_open(self) -> int:
        """Those of them that certainly were sent."""
        return sum(position not in self.uncertain for position in self._open)

    def look(self, client: Any, now_s: float) -> None:
        """Judge what has been answered since, of those not looked after for longest.

        Raises:
            redis.exceptions.RedisError: the server is away; nothing has changed.
        """
        asked = [self._open[number] for number in range(min(_LOOK_JOBS, len(self._open)))]
        ids, texts = [self.ids[i] for i in asked], [self.texts[i] for i in asked]
        found = list(verdicts(client, ids, texts))
        for position, verdict in zip(asked, found, strict=True):
            self._open.popleft()
            self.judged[position] = verdict
            if verdict is Verdict.ABSENT:
                self._open.append(position)
            else:
                self.answered_s[position] = now_s

    def audit(self, client: Any) -> None:
        """Judge every job anew: a later run may have overwritten an answer."""
        self.judged = list(verdicts(client, self.ids, self.texts))

    def forget_unsent(self, present: Collection[str]) -> int:
        """Strike out the uncertain jobs of which there is no trace; return how many.

        Args:
            present: ids of the messages that are still in Redis.
        """
        kept = [
            position
            for position, verdict in enumerate(self.judged)
            if position not in self.uncertain
            or verdict is not Verdict.ABSENT
            or self.ids[position] in present
        ]
        unsent = len(self.ids) - len(kept)
        self.ids = [self.ids[i] for i in kept]
        self.texts = [self.texts[i] for i in kept]
        self.sent_s = [self.sent_s[i] for i in kept]
        self.answered_s = [self.answered_s[i] for i in kept]
        self.judged = [self.judged[i] for i in kept]
        self.uncertain.clear()
        self._open.clear()
        return unsent


def recoveries(
    fault_s: Sequence[float], sent_s: Sequence[float], answered_s: Sequence[float]
) -> list[Recovery]:
    """How long it took after each fault until the jobs sent before it were answered.

    Args:
        fault_s: when each fault came, ascending.
        sent_s: when each job was sent, ascending.
        answered_s: when each was answered, in the same order.
    """
    latest_s = list(accumulate(answered_s, max))
    found: list[Recovery] = []
    first = 0
    for at_s in fault_s:
        end = bisect_right(sent_s, at_s)
        all_s = latest_s[end - 1] - at_s if end else 0.0
        own_s = max(answered_s[first:end], default=at_s) - at_s
        found.append(Recovery(max(0.0, all_s), max(0.0, own_s)))
        first = end
    return found

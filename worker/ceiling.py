"""The token budget that memory leaves: lowered by a failed allocation, raised again with care.

What a device has room for isn't known beforehand and changes: another process on the same GPU,
another job mix. So the budget is found by trying:

- A micro-batch that didn't fit lowers the budget to half its area, or to the largest area that has
  fitted since, if that is more.
- After `CALM_S` seconds without such trouble, and once a micro-batch has used more than half of the
  budget, the budget grows by a quarter; then again, until it is the engine's own.
- Growth that ends in trouble doubles the wait, up to `LONGEST_CALM_S`: where the ceiling is the
  device's, it is run into once an hour and not once a minute. An area that fits where one of its
  size had failed ends that.

- Trouble with a micro-batch says nothing if one of its texts doesn't fit the device by itself. That
  comes out later, after others have run or failed, so what happened in a dispatch is kept, in order
  (`Trail`), and the ceiling made anew without what is taken back.

Both are pure; what a ceiling is worth over a restart keeps `worker.budget_file`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from worker.failures import forget_frames, is_out_of_memory
from worker.interfaces import Engine

__all__ = ["CALM_S", "LONGEST_CALM_S", "Ceiling", "Trail", "warm_up"]

CALM_S = 60.0
LONGEST_CALM_S = 3600.0
_GROWTH = 1.25


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What is known of the room on the device; each event makes the next one."""

    full: int
    """The engine's own budget: padded tokens (longest x rows) of a micro-batch."""
    tokens: int
    """The budget now, 1 to `full`."""
    proven: int = 0
    """Largest area that has fitted, as far as it is known to fit still."""
    failed_at: int = 0
    """Area of the last micro-batch that didn't fit; 0 if none is known."""
    calm_s: float = CALM_S
    """Seconds without trouble before the budget grows."""
    due_s: float = 0.0
    """When it may grow, on the caller's clock."""
    grown: bool = False
    """Whether it has grown since the last trouble."""

    @classmethod
    def start(cls, full: int, remembered: int | None = None, now_s: float = 0.0) -> Ceiling:
        """The engine's budget, or what was learned on this device before, if that is less."""
        if remembered is None or remembered >= full:
            return cls(full, full)
        return cls(full, max(1, remembered), due_s=now_s + CALM_S)

    @property
    def lowered(self) -> bool:
        """Whether memory holds the budget below the engine's own."""
        return self.tokens < self.full

    def failed(self, area: int, now_s: float) -> Ceiling:
        """After a micro-batch of this area, of more than one row, didn't fit."""
        proven = self.proven if self.proven < area else 0  # what once fitted no longer does
        calm_s = min(LONGEST_CALM_S, self.calm_s * 2) if self.grown else self.calm_s
        return Ceiling(
            full=self.full,
            tokens=max(1, min(self.tokens, max(area // 2, proven))),
            proven=proven,
            failed_at=area,
            calm_s=calm_s,
            due_s=now_s + calm_s,
        )

    def ran(self, area: int, now_s: float) -> Ceiling:
        """After a micro-batch of this area was computed."""
        if not self.lowered:
            return self if area <= self.proven else replace(self, proven=area)
        after = self
        if area > self.proven:
            # What has room again is no longer the device's limit.
            calm_s = CALM_S if area >= self.failed_at else self.calm_s
            after = replace(self, proven=area, calm_s=calm_s)
        # Rows of any one length fill more than half of a budget; less says nothing about it.
        if now_s >= self.due_s and 2 * area > self.tokens:
            tokens = min(self.full, int(self.tokens * _GROWTH) + 1)
            due_s = now_s + after.calm_s
            after = replace(after, tokens=tokens, due_s=due_s, grown=True)
        return after


class Trail:
    """The ceiling over one dispatch, and how it came about.

    Args:
        start: the ceiling before it.
    """

    def __init__(self, start: Ceiling) -> None:
        self.ceiling = start
        """The ceiling now."""
        self._start = start
        self._events: list[Callable[[Ceiling], Ceiling]] = []

    def ran(self, area: int, now_s: float) -> None:
        """A micro-batch of this area was computed."""
        self._add(lambda ceiling: ceiling.ran(area, now_s))

    def failed(self, area: int, now_s: float) -> int:
        """A micro-batch of this area, of more than one row, didn't fit; returns what to call it."""
        self._add(lambda ceiling: ceiling.failed(area, now_s))
        return len(self._events) - 1

    def take_back(self, failures: Collection[int]) -> None:
        """Make the ceiling what it were without these failures, and with all the rest."""
        for failure in failures:
            self._events[failure] = lambda ceiling: ceiling
        self.ceiling = self._start
        for event in self._events:
            self.ceiling = event(self.ceiling)

    def _add(self, event: Callable[[Ceiling], Ceiling]) -> None:
        self._events.append(event)
        self.ceiling = event(self.ceiling)


def warm_up(engine: Engine, ceiling: Ceiling, clock: Callable[[], float]) -> Ceiling:
    """Warm the engine up with the largest micro-batch that fits.

    Raises:
        ModelLoadError: the model can't do its work.
    """
    while True:
        try:
            engine.warm_up(ceiling.tokens)
        except Exception as exc:
            if not is_out_of_memory(exc) or ceiling.tokens == 1:
                raise
            forget_frames(exc)
        else:
            return ceiling
        engine.release_memory()
        ceiling = ceiling.failed(ceiling.tokens, clock())

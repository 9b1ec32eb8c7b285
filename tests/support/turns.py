"""A recorder whose event loop is turned by the test."""

from collections.abc import Callable
from typing import Any

from tests.support.waiting import wait_until
from worker.recording import Recorder


class Loop:
    """An event loop's turns, one by one; its recorder pauses `retry_s` seconds between tries."""

    def __init__(self, retry_s: float = 0.0) -> None:
        self.calls: list[Callable[[], None]] = []
        self.recorder = Recorder(self.calls.append, retry_s)

    def turn(self, until: Callable[[], Any], what: str) -> None:
        """Run what was called for, until something has happened."""

        def turned() -> Any:
            while self.calls:
                self.calls.pop(0)()
            return until()

        wait_until(turned, what)

"""``python -m tests.support.transport_consumer URL FILE LEASE_S``: a consumer to be ill-treated.

It buffers messages, handles some per turn of its loop (writing each one's number to FILE, then
acknowledging it), and over a lost connection keeps what it holds, as Golem's worker does. SIGTERM
ends it in good order.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections import deque
from typing import Any, TextIO

import redis

from tests.support.consuming import Consuming, numbers
from worker.transport import Held, Room

BUFFER = 256
PER_TURN = 16


class Consumer:
    """One consumer process; `run` returns after SIGTERM."""

    def __init__(self, url: str, output: TextIO, lease_s: float) -> None:
        self._url = url
        self._options = {"lease_s": lease_s, "client_name": "consumer"}
        self._output = output
        self._buffer: deque[Any] = deque()
        self._stopping = False
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def run(self) -> None:
        """Consume until SIGTERM, over as many connections as it takes."""
        held: Held | None = None
        while not self._stopping:
            with contextlib.suppress(OSError, redis.exceptions.ConnectionError):  # away: try again
                held = self._over_one_connection(held)

    def _over_one_connection(self, held: Held | None) -> Held | None:
        consuming = Consuming(
            self._url,
            options=self._options,
            on_message=self._buffer.append,
            room=lambda: Room(BUFFER - len(self._buffer)),
            consume=False,
        )
        errors = consuming.connection.connection_errors
        try:
            if held is not None:
                taken = consuming.qos.adopt(held, {m.delivery_tag for m in self._buffer})
                for message in [m for m in self._buffer if m.delivery_tag in taken]:
                    self._buffer.remove(message)
                held = None
            consuming.consumer.consume()
            while not self._stopping:
                consuming.turn()
                consuming.got.clear()
                self._handle()
        except errors:
            later = consuming.die()
            if held is not None:
                held.absorb(later)
            return held or later
        self._buffer.clear()
        consuming.close()
        return None

    def _handle(self) -> None:
        for _ in range(min(PER_TURN, len(self._buffer))):
            message = self._buffer.popleft()
            self._output.write(f"{numbers([message])[0]}\n")
            self._output.flush()
            message.ack()


def main(url: str, path: str, lease_s: str) -> None:
    """Run a consumer with the command line's arguments."""
    with open(path, "a", encoding="ascii") as output:  # noqa: PTH123 - a plain file, appended to
        Consumer(url, output, float(lease_s)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])

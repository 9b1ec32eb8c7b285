"""Leases: until when a message is its holder's, by the Redis server's clock alone.

kombu scores a message in ``unacked_index`` with the time of its delivery, by its worker's clock,
and every worker takes what is older than *its own* visibility timeout, an hour by default. That is
long to wait for what a dead worker left, and a shorter one would rob living workers: stock ones
never renew. So each message is judged by what its holder promised:

- We score it with the end of its lease, in ``unacked_index`` and ``golem:leases`` alike, and keep
  moving that end. Once it is past, any Golem worker puts the message back.
- A score without its double was written by a stock worker: the visibility timeout must pass.
- Stock workers see ``unacked_index`` only. For them what we hold was delivered a moment ahead of
  now: however short their timeout, they let be what a living worker renews. And they still bring
  back what a dead one left if no Golem worker does.

A score is also a token: as long as it is the one we gave, the message is ours. If it isn't, another
worker has the message, and we neither renew nor put back what is its.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from time import time
from typing import Any

from kombu.log import get_logger

from worker.transport.fetcher import CONNECTION_LOST
from worker.transport.keys import LEASES_TTL_S
from worker.transport.messages import Message

__all__ = ["RENEWALS_PER_LEASE", "Leases", "Renewals", "Silence", "chunks"]

logger = get_logger(__name__)

RENEWALS_PER_LEASE = 4
CHUNK = 1_000


@dataclass
class Silence:
    """Whether leases may be judged: not soon after a time in which nobody could renew them.

    A server that hung, restarted or failed over meets its workers' renewals and their sweeps in any
    order. What had ended by then says nothing of the holders, so they get one lease to come back.
    All times are the server's, s.
    """

    lease_s: float
    heard_s: float | None = None
    """When the server last replied; None before its first reply, when no silence is known of."""
    until_s: float = 0.0

    def hear(self, now_s: float) -> None:
        """The server said what time it is."""
        if self.heard_s is not None and now_s - self.heard_s > self.lease_s / 2:
            self.until_s = now_s + self.lease_s
        # A clock set back must not prolong it.
        self.until_s = min(self.until_s, now_s + self.lease_s)
        self.heard_s = now_s

    def over(self, now_s: float) -> bool:
        """Whether leases may be judged at this time, at which the server replied."""
        self.hear(now_s)
        return now_s >= self.until_s


class Leases:
    """The leases of one channel's messages. Its methods may be called from any thread."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self.silence = Silence(channel.lease_s)
        self.lock = threading.Lock()
        """Held while scores change, so that what is put back is put back by its latest score."""
        self._noting = threading.Lock()
        self._released = False

    def release(self) -> None:
        """Renew no more: the messages are another channel's from now on, or nobody's."""
        with self._noting:
            self._released = True

    def renew(self, held: dict[str, Message]) -> set[str]:
        """Begin the leases of these messages, by tag, anew.

        Returns:
            Tags of messages another worker has by now.

        Raises:
            redis.exceptions.ConnectionError: the server couldn't be reached, twice in a row.
        """
        lost: set[str] = set()
        # With nothing held the server is still asked for the time, by one who judges leases.
        nothing: list[list[str]] = [[]] if self.silence.heard_s is not None else []
        with self.lock:
            for tags in chunks(held, CHUNK) if held else nothing:
                if not self._released:
                    lost |= self._renew({tag: held[tag] for tag in tags})
        return lost

    def _renew(self, held: dict[str, Message]) -> set[str]:
        if self._channel.stock_only:
            self._renew_as_stock(held)
            return set()
        known = [message.leased_until for message in held.values()]
        self._note(held.values(), "")  # unknown, until the reply is here
        try:
            now, until, *lost = self._send(held, known)
        except CONNECTION_LOST:
            # It may have arrived, so the scores aren't known any more: no comparing this time.
            now, until, *lost = self._send(held, [""] * len(held))
        self.silence.hear(float(now))
        tags = {tag.decode() for tag in lost}
        self._note((m for tag, m in held.items() if tag not in tags), until.decode())
        return tags

    def _note(self, messages: Iterable[Message], until: str) -> None:
        with self._noting:
            if not self._released:
                for message in messages:
                    message.leased_until = until

    def _send(self, held: dict[str, Message], known: Sequence[str]) -> Any:
        keys, lease_s = self._channel.keys, self._channel.lease_s
        pairs = [part for pair in zip(held, known, strict=True) for part in pair]
        return self._channel.run_leasing(
            "renew", [keys.index, keys.leases], [lease_s, LEASES_TTL_S, *pairs]
        )

    def _renew_as_stock(self, held: Iterable[str]) -> None:
        index, score = self._channel.keys.index, f"{time():.6f}"
        self._channel.pipeline([("ZADD", index, "XX", score, tag) for tag in held])

    def taken(self, messages: dict[str, Message]) -> set[str]:
        """Tags of messages that aren't ours any more, by their scores."""
        scores = self._channel.pipeline(
            [("ZSCORE", self._channel.keys.index, tag) for tag in messages]
        )
        return {
            tag
            for (tag, message), score in zip(messages.items(), scores, strict=True)
            # No score at all is no proof that another has it: a server may have lost its data.
            if score is not None and message.leased_until and score != float(message.leased_until)
        }


class Renewals:
    """A thread that renews, so that an event loop that is busy or blocked costs no lease.

    Celery blocks its loop while a result backend is away, in a soft shutdown and in any signal
    handler or callback that takes its time; the loop is over while a shutdown waits for batches.
    """

    def __init__(self, renew: Callable[[], None], every_s: float) -> None:
        self._renew = renew
        self._every_s = every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="golem-leases", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            try:
                self._renew()
            except Exception:
                logger.exception(
                    "Leases couldn't be renewed; the next try is in %g s", self._every_s
                )

    def stop(self) -> None:
        """End the thread; a renewal on its way ends with its connection."""
        self._ended.set()


def chunks(items: Iterable[str], size: int) -> Iterator[list[str]]:
    """Split into lists of at most so many."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk

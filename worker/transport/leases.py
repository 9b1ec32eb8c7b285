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
worker has the message, and we neither renew nor put back what is its. After a renewal whose reply
is lost the score is one of many, so it is read first (`Message.is_ours`) and never overwritten
unseen.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
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
        try:
            return self._begin(held)
        except CONNECTION_LOST:
            return self._begin(held)

    def _begin(self, held: dict[str, Message]) -> set[str]:
        """Begin leases anew, of messages that are ours; the tags of the others."""
        lost = self.taken({tag: m for tag, m in held.items() if m.slack_s}, urgent=True)
        mine = {tag: message for tag, message in held.items() if tag not in lost}
        if not self._doubt(mine.values()):
            return lost
        now, until, *others = self._send(mine)
        self.silence.hear(float(now))
        lost |= {tag.decode() for tag in others}
        self._note((m for tag, m in mine.items() if tag not in lost), until.decode())
        return lost

    def _doubt(self, messages: Iterable[Message]) -> bool:
        """Until we are told, the leases may have been begun anew; False if they mayn't be by us."""
        with self._noting:
            if not self._released:
                for message in messages:
                    message.slack_s = self._channel.lease_s
            return not self._released

    def _note(self, messages: Iterable[Message], until: str) -> None:
        with self._noting:
            if not self._released:
                for message in messages:
                    message.leased_until, message.slack_s = until, 0.0

    def _send(self, held: dict[str, Message]) -> Any:
        keys, lease_s = self._channel.keys, self._channel.lease_s
        pairs = [part for tag, message in held.items() for part in (tag, message.leased_until)]
        return self._channel.run_leasing(
            "renew", [keys.index, keys.leases], [lease_s, LEASES_TTL_S, *pairs]
        )

    def _renew_as_stock(self, held: Iterable[str]) -> None:
        index, score = self._channel.keys.index, f"{time():.6f}"
        self._channel.pipeline([("ZADD", index, "XX", score, tag) for tag in held])

    def taken(self, messages: dict[str, Message], *, urgent: bool = False) -> set[str]:
        """Tags of messages that aren't ours any more, by their scores; the others' are noted.

        Args:
            messages: by tag.
            urgent: ask on the connection that doesn't wait longer than leases last.

        Raises:
            redis.exceptions.ConnectionError: the server couldn't be reached, twice in a row.
        """
        keys, taken = self._channel.keys, set()
        commands = [("ZSCORE", key, tag) for tag in messages for key in (keys.index, keys.leases)]
        scores = iter(self._channel.pipeline(commands, urgent=urgent))
        for (tag, message), score, double in zip(messages.items(), scores, scores, strict=True):
            if not message.is_ours(score, double):
                taken.add(tag)
            elif score is not None and message.leased_until:
                self._note([message], repr(score))
        return taken


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

"""Unfit messages on their way to the dead letters: first their producers are told.

That may wait for a result backend that is away, and such a message then comes again each time its
lease ends. So each is told of once, and kept by its ends if it is large.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from kombu.log import get_logger

from worker.transport.envelope import UnfitError, kept

__all__ = ["Unfit"]

logger = get_logger(__name__)


class Unfit:
    """The unfit messages of a channel, by delivery tag, from their refusal to their burial."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._tags: set[str] = set()

    def __contains__(self, tag: str) -> bool:
        return tag in self._tags

    def refuse(self, reason: UnfitError, tag: str, raw: bytes) -> None:
        """Tell of a message no consumer will see; it is buried when that is safe, maybe later."""
        dead = self._channel.keys.dead
        logger.error("Message %s is refused: %s; it goes to %s", tag, reason, dead)
        reason.__traceback__ = None  # its frames hold all that was fetched
        bury = partial(self._bury, tag, kept(raw, self._channel.max_message_bytes))
        self._tags.add(tag)
        if not self._channel.connection.tell(reason, bury):
            self._tags.discard(tag)

    def _bury(self, tag: str, raw: bytes) -> None:
        self._tags.discard(tag)
        if self._channel.connection is not None:  # else it comes again on another
            self._channel.qos.bury([(tag, raw)])

"""The conversation on a channel's waiting connection: fetch, ask whether more is there, wait.

Fetch and question leave in one packet, and nothing here waits for a reply: the event loop calls
`read` when the socket has one. The question (EXISTS over all lists) arms the server's client
tracking in the same step in which it finds the lists empty, so the server tells the instant one of
them changes: a push on this connection, from whichever list, with nothing popped, for one
connection per worker. Should a push get lost all the same, the question is asked again each second.
Every answer is either "there is something" or "you will be told", so there is no state in which
nobody moves.

Beside it the blocking commands fall short: BRPOP pops before anything is recorded, and BLMOVE onto
itself watches a single list and writes to the append-only file at each look.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Callable, Sequence
from hashlib import sha1
from time import monotonic
from typing import Any
from uuid import uuid4

from kombu.log import get_logger
from redis import exceptions

from worker.transport.glimpse import END_BYTES
from worker.transport.keys import DEAD_ENTRIES, DELIVERIES_TTL_S, LEASES_TTL_S, Keys, script
from worker.transport.messages import Fetched, Room, parse_fetch

__all__ = ["CONNECTION_LOST", "Fetcher", "ServerRefusesError", "is_refusal", "receipt_ttl_s"]

logger = get_logger(__name__)

CONNECTION_LOST = (exceptions.ConnectionError, exceptions.TimeoutError, OSError)
"""What kombu calls connection errors, but for its KeyError, which would hide our mistakes."""
ASK_AGAIN_S = 1.0
POLL_S = (0.001, 0.01)
"""Shortest and longest pause between questions to a server that can't tell us."""
_REFUSALS = (
    "unknown command",
    "unknown subcommand",
    "acl failure",
    "can't run this command",
    "can't access at least one of the keys",
)
_PUSHED = object()


class ServerRefusesError(Exception):
    """Raised when the server won't run the fetch: an ACL, or a version without a command."""


class Expect(enum.Enum):
    """What the next reply answers."""

    SCRIPT = enum.auto()
    """SCRIPT LOAD, before the first fetch on a server."""
    TRACKING = enum.auto()
    """CLIENT TRACKING, first on each new socket."""
    FETCH = enum.auto()
    """fetch.lua: the messages themselves."""
    QUESTION = enum.auto()
    """EXISTS: in how many lists messages are waiting."""


class Fetcher:
    """State of one channel's conversation; the channel owns the connection and the messages.

    Args:
        keys: full names of the keys.
        lease_s: seconds after which the server may give an unrenewed message to another.
        most_bytes: of a message that is decoded by anybody.
        receive: called with every fetch's messages, all of them recorded by the server.
    """

    def __init__(
        self, keys: Keys, lease_s: float, most_bytes: int, receive: Callable[[Fetched], None]
    ) -> None:
        self._keys = keys
        self._most_bytes = most_bytes
        self._lease_s = lease_s
        self._receive = receive
        self._sha = sha1(script("fetch").encode(), usedforsecurity=False).hexdigest()
        self._expected: deque[Expect] = deque()
        self._sock: Any = None
        self._lists: list[str] = []
        self._sent_at_s = 0.0
        self._loaded = True  # most likely another worker loaded it; NOSCRIPT says if not
        self._tracking = True
        self._said_untold = False
        self._armed = False
        self._rest_until_s = 0.0
        self._pause_s = POLL_S[0]
        self._losses = 0
        self._complaint = ""
        self._noted = False
        self.lost_fetch = False
        """Whether the connection ended between a fetch and its reply."""
        self.receipt = keys.fetch + uuid4().hex
        """Key under which the server notes what our latest fetch popped."""

    @property
    def owed(self) -> bool:
        """Whether a reply is outstanding."""
        return bool(self._expected)

    @property
    def engaged(self) -> bool:
        """Whether a reply is outstanding or a push will come: `read` is due before `start`."""
        return self.owed or self._armed

    @property
    def fetching(self) -> bool:
        """Whether a fetch is outstanding, so that messages may be ours already."""
        return Expect.FETCH in self._expected

    def owns(self, connection: Any) -> bool:
        """Whether we talked on this very socket, so that whatever comes on it is ours."""
        return self._sock is not None and getattr(connection, "_sock", None) is self._sock

    @property
    def must_poll(self) -> bool:
        """Whether the next question is due sooner than the tick, since no push will come."""
        return self._armed and not self._tracking

    def due_in_s(self) -> float:
        """Seconds until `ask_again` has something to do."""
        if not self._armed:
            return max(0.0, self._rest_until_s - monotonic()) or ASK_AGAIN_S
        wait_s = ASK_AGAIN_S if self._tracking else self._pause_s
        return max(0.0, self._sent_at_s + wait_s - monotonic())

    def start(self, connection: Any, lists: Sequence[str], room: Room) -> None:
        """Send a fetch and the question, unless the server's last complaint is fresh.

        On a new socket, `disconnected` comes first.
        """
        if monotonic() < self._rest_until_s:
            return
        commands: list[tuple[Any, ...]] = []
        if not self.owns(connection):
            if connection.get_protocol() not in (3, "3"):
                self._untold("the connection is set to RESP2")
            else:
                connection._parser.set_invalidation_push_handler(_on_push)  # noqa: SLF001 - no public way
                self._expected.append(Expect.TRACKING)
                commands.append(("CLIENT", "TRACKING", "ON", "NOLOOP"))
        if not self._loaded:
            self._expected.append(Expect.SCRIPT)
            commands.append(("SCRIPT", "LOAD", script("fetch")))
        self._lists = list(lists)
        self._expected.append(Expect.FETCH)
        commands.append(self._fetch(room))
        self._send(connection, [*commands, self._question()])

    def ask_again(self, connection: Any) -> None:
        """Ask the question once more if the last answer is old enough."""
        if self._armed and not self.owed and self.due_in_s() <= 0:
            self._send(connection, [self._question()])

    def read(self, connection: Any) -> None:
        """Take in all that came; messages go to `receive`.

        Raises:
            ServerRefusesError: the server won't do it, now or later.
            redis.exceptions.ConnectionError: the connection ended.
        """
        while True:
            self._take(_next_reply(connection))
            self._losses = 0
            if not connection.can_read(timeout=0):
                return

    def disturb(self) -> None:
        """Forget the last answer: the lists to watch have changed."""
        self._armed = False

    def disconnected(self) -> None:
        """Forget the socket; a fetch that got no reply is remembered as lost."""
        self.lost_fetch = self.lost_fetch or self.fetching
        self._expected.clear()
        self._armed = False
        self._sock = None
        self._tracking = True

    def give_up(self) -> bool:
        """Count a connection that ended; True if it is the second without a reply in between."""
        self._losses += 1
        return self._losses > 1

    def spent_receipt(self) -> str | None:
        """The record of our latest fetch, once, if we have read all that it names."""
        spent = self._noted and not self.fetching and not self.lost_fetch
        self._noted = self._noted and not spent
        return self.receipt if spent else None

    def surrender(self) -> str | None:
        """Stop for good; the name of the record of what we may have popped and never seen."""
        unread = self.receipt if self.fetching or self.lost_fetch else None
        self.disconnected()
        self.recovered()
        return unread

    def recovered(self) -> None:
        """Start over under a new name: the lost fetch has been dealt with under the old one."""
        self.lost_fetch = False
        self.receipt = self._keys.fetch + uuid4().hex

    def _fetch(self, room: Room) -> tuple[Any, ...]:
        keys = self._keys
        names = [keys.unacked, keys.index, self.receipt, keys.dead, keys.leases, *self._lists]
        return (
            "EVALSHA", self._sha, len(names), *names, room.messages, room.bytes,
            receipt_ttl_s(self._lease_s), keys.deliveries, DELIVERIES_TTL_S, DEAD_ENTRIES,
            self._lease_s, LEASES_TTL_S, self._most_bytes, END_BYTES,
        )  # fmt: skip

    def _question(self) -> tuple[Any, ...]:
        self._expected.append(Expect.QUESTION)
        return ("EXISTS", *self._lists)

    def _send(self, connection: Any, commands: list[tuple[Any, ...]]) -> None:
        self._armed = False
        self._sent_at_s = monotonic()
        self._sock = connection._sock  # noqa: SLF001 - kombu's poller goes by it as well
        # A health check here would swallow a push while it waits for its PONG.
        connection.send_packed_command(connection.pack_commands(commands), check_health=False)

    def _take(self, reply: Any) -> None:
        if reply is _PUSHED or reply is None:  # redis-py returns None for pushes it knows better
            self._armed = False
            return
        expected = self._expected.popleft()
        if isinstance(reply, exceptions.ResponseError):
            self._refused(expected, reply)
        elif expected is Expect.SCRIPT:
            self._loaded = True
        elif expected is Expect.FETCH:
            self._complaint = ""
            fetched = parse_fetch(reply, self._lists, monotonic() - self._sent_at_s)
            if fetched.deliveries:
                self._pause_s = POLL_S[0]
                self._noted = True
            self._receive(fetched)
        elif expected is Expect.QUESTION:
            self._armed = reply == 0
            if not self._tracking:
                self._pause_s = min(2 * self._pause_s, POLL_S[1])

    def _refused(self, expected: Expect, error: exceptions.ResponseError) -> None:
        text = str(error)
        if isinstance(error, exceptions.ReadOnlyError):
            raise exceptions.ConnectionError(f"Redis is a read-only replica now: {text}")
        if expected is Expect.TRACKING:
            self._untold(text)
        elif isinstance(error, exceptions.NoScriptError):
            self._loaded = False
        elif is_refusal(error):
            raise ServerRefusesError(text)
        else:
            # Out of memory, a disk full, a script that blocks: such a server may recover.
            self._rest_until_s = monotonic() + ASK_AGAIN_S
            if text != self._complaint:
                self._complaint = text
                logger.warning("Redis can't hand out messages now, will ask each second: %s", text)

    def _untold(self, reason: str) -> None:
        self._tracking = False
        if not self._said_untold:
            self._said_untold = True
            logger.warning(
                "Redis doesn't tell this worker of new messages (%s), so an idle worker asks it up "
                "to every %d ms; allow CLIENT TRACKING over RESP3 to stop that.",
                reason, 1000 * POLL_S[1],
            )  # fmt: skip


def receipt_ttl_s(lease_s: float) -> int:
    """Whole seconds for which Redis keeps the record of what a fetch popped.

    Rounded down: who finds its messages there takes them for his and puts them back. Were the
    record there for a moment longer than their leases, another worker could have them by then, and
    be computing what is put back a second time. A record that is gone too soon only leaves them to
    the sweep. (Redis keeps nothing for 0 s, but a lease has at least one: see `WorkerSettings`.)
    """
    return max(1, math.floor(lease_s))


def _on_push(_: Any) -> object:
    return _PUSHED


def _next_reply(connection: Any) -> Any:
    try:
        return connection.read_response(push_request=True)
    except exceptions.ResponseError as exc:
        return exc


def is_refusal(error: exceptions.ResponseError) -> bool:
    """Whether an error means that the server won't do it, now or later."""
    return isinstance(error, exceptions.NoPermissionError) or any(
        refusal in str(error).lower() for refusal in _REFUSALS
    )

"""Composed messages sent in pipelines, and an exact account of what became of each.

Redis's reply to its command is the proof that a message is in the queue. Without it there are two
cases: the connection never carried the message (certainly not sent), or it broke after (uncertain).
Both are tried again until ``connect_timeout_s`` has passed: under the same id a second copy
computes the same answer, and delivery is at least once anyway. The copy of an uncertain one is
marked as redelivered, so that a worker that holds the first looks for it and drops the second. What
a server refuses is not tried again.

`Delivery` keeps the account and does no I/O; a thread and an event loop drive it alike.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import redis
from redis.exceptions import BusyLoadingError, ResponseError

from golem_tasks._redis import FAILED, Server, is_passing
from golem_tasks._wire import Message
from golem_tasks.errors import BrokerUnavailable, SubmitIncomplete

__all__ = ["AsyncPublisher", "Delivery", "Publisher", "chunks"]

_CHUNK_MESSAGES = 500
_CHUNK_BYTES = 1024 * 1024
_FIRST_PAUSE_S = 0.02
_MOST_PAUSE_S = 0.5


def chunks(messages: Iterable[Message]) -> Iterator[list[Message]]:
    """Split into pipelines of at most 500 messages and about 1 MiB; a larger one goes alone."""
    chunk: list[Message] = []
    size = 0
    for message in messages:
        if chunk and (len(chunk) >= _CHUNK_MESSAGES or size + len(message.payload) > _CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(message)
        size += len(message.payload)
    if chunk:
        yield chunk


class Delivery:
    """What is known of every message of one submit.

    Args:
        server: where they go.
        ids: every job of the submit, in order; other messages, such as its record, aren't counted.
    """

    def __init__(self, server: Server, ids: list[str]) -> None:
        self._server = server
        self._ids = ids
        self._sent: set[str] = set()
        self._uncertain: set[str] = set()
        self._todo: list[Message] = []
        self._deadline_s: float | None = None
        self._pause_s = _FIRST_PAUSE_S

    def begin(self, chunk: list[Message]) -> None:
        """Take the next pipeline's messages."""
        self._todo = chunk
        self._deadline_s = None
        self._pause_s = _FIRST_PAUSE_S

    @property
    def todo(self) -> list[Message]:
        """Messages of this pipeline that Redis hasn't confirmed."""
        return self._todo

    def packed(self, connection: Any) -> Any:
        """Encode what is left to send, as redis-py sends it."""
        return connection.pack_commands(
            (message.command, message.key, message.payload, *message.options)
            for message in self._todo
        )

    def account(self, replies: list[Any]) -> redis.exceptions.RedisError | None:
        """Account for one exchange, whole or broken off; return why Redis refused, if it did.

        Args:
            replies: of the first messages to do, in order: a length, or the server's error.
        """
        unproven: list[Message] = []
        refusal: redis.exceptions.RedisError | None = None
        for number, message in enumerate(self._todo):
            reply = replies[number] if number < len(replies) else None
            if reply is None:
                self._uncertain.add(message.id)
                unproven.append(_as_copy(message))
            elif isinstance(reply, ResponseError | BusyLoadingError):
                # An earlier try of it may still have gone through: uncertain stays uncertain.
                refusal = refusal or reply
                unproven.append(message)
            else:
                self._uncertain.discard(message.id)
                self._sent.add(message.id)
        self._todo = unproven
        return refusal

    def pause_s(self, error: BaseException) -> float:
        """Return how long to wait before the next try.

        Raises:
            BrokerUnavailable: there is none; with the ids, where some are or may be in the queue.
        """
        now = time.monotonic()
        if self._deadline_s is None:
            # The first failure may itself have waited that long already.
            spent = self._server.connect_timeout_s if _is_timeout(error) else 0.0
            self._deadline_s = now + self._server.connect_timeout_s - spent
        if not is_passing(error) or now >= self._deadline_s:
            raise self._failure(error) from error
        pause = min(self._pause_s, self._deadline_s - now)
        self._pause_s = min(self._pause_s * 2, _MOST_PAUSE_S)
        return pause

    def _failure(self, error: BaseException) -> BrokerUnavailable:
        plain = self._server.unavailable(error)
        sent = [id_ for id_ in self._ids if id_ in self._sent]
        uncertain = [id_ for id_ in self._ids if id_ in self._uncertain]
        if not sent and not uncertain:
            return plain
        known = self._sent | self._uncertain
        unsent = [id_ for id_ in self._ids if id_ not in known]
        text = (
            f"Of {len(self._ids)} jobs {len(sent)} are in the queue, {len(unsent)} are not and "
            f"{len(uncertain)} may be: {plain}"
        )
        return SubmitIncomplete(text, sent, unsent, uncertain)


class Publisher:
    """Sends from any number of threads.

    Args:
        server: the broker.
        pool: its connections.
    """

    def __init__(self, server: Server, pool: redis.ConnectionPool) -> None:
        self._server = server
        self._pool = pool

    def publish(self, ids: list[str], messages: Iterable[Message]) -> None:
        """Send every message; return once Redis has confirmed them all.

        Raises:
            BrokerUnavailable: nothing was sent.
            SubmitIncomplete: some are or may be in the queue; the error lists them.
        """
        delivery = Delivery(self._server, ids)
        for chunk in chunks(messages):
            delivery.begin(chunk)
            while delivery.todo:
                try:
                    self._exchange(delivery)
                except FAILED as exc:
                    time.sleep(delivery.pause_s(exc))

    def _exchange(self, delivery: Delivery) -> None:
        connection: Any = self._pool.get_connection()
        replies: list[Any] = []
        try:
            connection.send_packed_command(delivery.packed(connection))
            for _ in delivery.todo:
                try:
                    replies.append(connection.read_response())
                except ResponseError as exc:
                    replies.append(exc)
                except BusyLoadingError as exc:  # to redis-py a lost connection, but it is a no
                    replies.append(exc)
                    raise
        except BaseException:
            # Replies that are still to come must not be taken for the next command's.
            connection.disconnect()
            raise
        finally:
            refusal = delivery.account(replies)
            self._pool.release(connection)
        if refusal is not None:
            raise refusal


class AsyncPublisher:
    """Sends from one event loop.

    Args:
        server: the broker.
        pool: its asyncio connections.
    """

    def __init__(self, server: Server, pool: Any) -> None:
        self._server = server
        self._pool = pool

    async def publish(self, ids: list[str], messages: Iterable[Message]) -> None:
        """Send every message; return once Redis has confirmed them all.

        A pipeline's messages are composed in a thread, so that the loop goes on meanwhile.

        Raises:
            BrokerUnavailable: nothing was sent.
            SubmitIncomplete: some are or may be in the queue; the error lists them.
        """
        delivery = Delivery(self._server, ids)
        parts = chunks(messages)
        while (chunk := await _next_chunk(parts, threaded=len(ids) > 1)) is not None:
            delivery.begin(chunk)
            while delivery.todo:
                try:
                    await self._exchange(delivery)
                except FAILED as exc:
                    await asyncio.sleep(delivery.pause_s(exc))

    async def _exchange(self, delivery: Delivery) -> None:
        connection = await self._pool.get_connection()
        replies: list[Any] = []
        try:
            await connection.send_packed_command(delivery.packed(connection))
            for _ in delivery.todo:
                try:
                    replies.append(await connection.read_response())
                except ResponseError as exc:
                    replies.append(exc)
                except BusyLoadingError as exc:  # to redis-py a lost connection, but it is a no
                    replies.append(exc)
                    raise
        except BaseException:
            # Replies that are still to come must not be taken for the next command's.
            await connection.disconnect(nowait=True)
            raise
        finally:
            refusal = delivery.account(replies)
            await self._pool.release(connection)
        if refusal is not None:
            raise refusal


async def _next_chunk(parts: Iterator[list[Message]], *, threaded: bool) -> list[Message] | None:
    # One message is composed already; 500 are worth a thread.
    return await asyncio.to_thread(next, parts, None) if threaded else next(parts, None)


def _as_copy(message: Message) -> Message:
    """The message with the marks kombu gives to one it puts back; a bulk's record as it is."""
    if message.command != "LPUSH":
        return message
    content = json.loads(message.payload)
    content["headers"]["redelivered"] = True
    content["properties"]["delivery_info"]["redelivered"] = True
    return replace(message, payload=json.dumps(content))


def _is_timeout(error: BaseException) -> bool:
    return isinstance(error, redis.exceptions.TimeoutError | TimeoutError)

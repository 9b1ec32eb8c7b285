"""Jobs that were given up: look at them, send them again, throw them away.

::

    with DeadLetters("redis://127.0.0.1:6379/0") as dead:
        for letter in dead.all():
            print(letter.id, letter.reason, letter.error)
            dead.requeue(letter.id)

There are two kinds. A job that failed with `PoisonJob` goes by its own id. A message no worker
could read goes by ``envelope-`` and a digest of what it is; it can be looked at and dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import redis

from golem_tasks._asking import ask
from golem_tasks._dead import DeadLetter, Keys, script
from golem_tasks._redis import FAILED
from golem_tasks._wire import Wire
from golem_tasks.errors import DeadLetterError
from golem_tasks.settings import ClientSettings, load

__all__ = ["DeadLetter", "DeadLetters"]

UNREADABLE = "unreadable"
_ENVELOPE = "envelope-"
_DIGEST_CHARS = 16
_PAGE = 20  # envelopes read at once: each may be as large as Redis allows
_FAILURE = "FAILURE"


class DeadLetters:
    """An operator's view of the dead letters of one Redis, all queues together.

    Args:
        broker_url: Redis that holds the queues; unset: ``GOLEM_BROKER_URL``.
        result_backend: Redis that holds the answers; unset: ``GOLEM_RESULT_BACKEND``, else the
            broker's.
        settings: instead of these and of the environment.

    Raises:
        ConfigurationError: a setting can't be used.
    """

    def __init__(
        self,
        broker_url: str | None = None,
        result_backend: str | None = None,
        *,
        settings: ClientSettings | None = None,
    ) -> None:
        self.settings: ClientSettings = settings or load(
            ClientSettings, broker_url=broker_url, result_backend=result_backend
        )
        self._keys = Keys.of(self.settings.global_keyprefix)
        self._wire = Wire(self.settings)
        self._broker: Any = redis.Redis(connection_pool=self._wire.broker.pool())
        self._backend: Any = redis.Redis(connection_pool=self._wire.backend.pool())

    def all(self) -> list[DeadLetter]:
        """Every letter, the latest first, then the unreadable messages.

        Raises:
            BrokerUnavailable: the broker can't be asked.
        """
        jobs: list[DeadLetter] = ask(self._wire.broker, self._jobs)
        return [*jobs, *{letter.id: letter for letter, _ in self._envelopes()}.values()]

    def get(self, letter_id: str) -> DeadLetter:
        """One letter.

        Raises:
            DeadLetterError: there is none of this id.
            BrokerUnavailable: the broker can't be asked.
        """
        stored = ask(self._wire.broker, self._broker.hget, self._keys.facts, letter_id)
        return DeadLetter.load(stored) if stored else self._envelope(letter_id)[0]

    def message(self, letter_id: str) -> str:
        """The message of a letter, the job's text in it: as its producer sent it, in JSON.

        What was never JSON comes as the text it is, unprintable bytes escaped.

        Raises:
            DeadLetterError: there is none of this id.
            BrokerUnavailable: the broker can't be asked.
        """
        stored = ask(self._wire.broker, self._broker.hget, self._keys.messages, letter_id)
        raw: bytes = stored or self._envelope(letter_id)[1]
        return raw.decode("utf-8", "backslashreplace")

    def requeue(self, letter_id: str) -> None:
        """Send a job again: to the queue it came from, as if it had never been delivered.

        Under a new delivery tag, so whatever has become of the message that was given up, neither
        loses the other; a job that was answered meanwhile isn't computed again.

        Its FAILURE is taken away, so who waits for its id again waits for the new answer. A job
        that was cancelled meanwhile stays cancelled, and one whose ``expires`` has passed expires.

        Raises:
            DeadLetterError: there is none of this id, nobody can read it, or a worker still has it.
            BrokerUnavailable: Redis is away or refuses; look whether the letter is still there.
        """
        letter = self.get(letter_id)
        if letter.reason == UNREADABLE:
            raise DeadLetterError(
                f"{letter_id} can't be requeued, since no worker could read it: drop it, and have "
                "its producer send a Celery message."
            )
        job_id = letter_id
        failure = ask(self._wire.backend, self._backend.get, self._wire.result_key(job_id))
        done = self._requeue(letter)
        if done == b"held":
            raise DeadLetterError(
                f"{job_id} can't be requeued yet, since its message isn't acknowledged: try again "
                "in a moment, or, if its worker was killed, when its lease is over."
            )
        if done != b"requeued":
            raise _unknown(job_id)
        # Last: should it fail, the new answer overwrites the old one all the same.
        if failure and self._wire.read(failure)["status"] == _FAILURE:
            ask(self._wire.backend, self._forget, job_id, failure)

    def drop(self, letter_id: str) -> None:
        """Throw a letter away, with its message. The job's FAILURE stays until it expires.

        Raises:
            DeadLetterError: there is none of this id.
            BrokerUnavailable: the broker can't be asked.
        """
        if not self._once(self._drop, letter_id):
            _, raw = self._envelope(letter_id)
            self._once(self._broker.lrem, self._keys.envelopes, 0, raw)

    def close(self) -> None:
        """Close every connection."""
        self._broker.connection_pool.disconnect()
        self._backend.connection_pool.disconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _jobs(self) -> list[DeadLetter]:
        ids = self._broker.zrevrange(self._keys.index, 0, -1)
        stored = self._broker.hmget(self._keys.facts, ids) if ids else []
        return [DeadLetter.load(facts) for facts in stored if facts]

    def _requeue(self, letter: DeadLetter) -> bytes:
        keys, tag = self._keys, letter.delivery_tag
        names = [
            keys.index, keys.facts, keys.messages, keys.unacked, keys.deliveries + tag,
            keys.tried + tag, self.settings.global_keyprefix + letter.list_name,
        ]  # fmt: skip
        message = ask(self._wire.broker, self._broker.hget, keys.messages, letter.id)
        if message is None:
            return b"gone"
        arguments = [*names, letter.id, tag, _with_new_tag(message)]
        done: bytes = self._once(self._broker.eval, script("requeue"), len(names), *arguments)
        return done

    def _forget(self, job_id: str, failure: bytes) -> None:
        """Delete a job's stored failure, unless a newer answer has taken its place."""
        key = self._wire.result_key(job_id)

        def delete(pipe: Any) -> None:
            unchanged = pipe.get(key) == failure
            pipe.multi()
            if unchanged:
                pipe.delete(key)

        self._backend.transaction(delete, key)

    def _drop(self, job_id: str) -> bool:
        with self._broker.pipeline(transaction=True) as pipe:
            pipe.zrem(self._keys.index, job_id)
            pipe.hdel(self._keys.facts, job_id)
            pipe.hdel(self._keys.messages, job_id)
            return any(pipe.execute())

    def _once(self, call: Any, *args: Any) -> Any:
        """Call what can't be asked twice: the second reply wouldn't tell what the first one did."""
        try:
            return call(*args)
        except FAILED as exc:
            raise self._wire.broker.unavailable(exc) from exc

    def _envelope(self, letter_id: str) -> tuple[DeadLetter, bytes]:
        if letter_id.startswith(_ENVELOPE):
            for letter, raw in self._envelopes():
                if letter.id == letter_id:
                    return letter, raw
        raise _unknown(letter_id)

    def _envelopes(self) -> Iterator[tuple[DeadLetter, bytes]]:
        start = 0
        while page := self._page(start):
            yield from ((_read(raw), raw) for raw in page)
            start += _PAGE

    def _page(self, start: int) -> list[bytes]:
        page: list[bytes] = ask(
            self._wire.broker, self._broker.lrange, self._keys.envelopes, start, start + _PAGE - 1
        )
        return page


def _with_new_tag(message: bytes) -> str:
    """A job's message, under a delivery tag no other has; requeue.lua says why."""
    sent: dict[str, Any] = json.loads(message)
    sent["properties"]["delivery_tag"] = str(uuid4())
    return json.dumps(sent)


def _read(raw: bytes) -> DeadLetter:
    """What an unreadable message tells all the same."""
    digest = sha256(raw).hexdigest()[:_DIGEST_CHARS]
    message = _message(raw)
    headers, properties = _object(message.get("headers")), _object(message.get("properties"))
    info = _object(properties.get("delivery_info"))
    return DeadLetter(
        id=_ENVELOPE + digest,
        job_id=_text(headers.get("id")) or _text(properties.get("correlation_id")),
        task=_text(headers.get("task")),
        list_name=_text(info.get("routing_key")) or "",
        reason=UNREADABLE,
        message_bytes=len(raw),
    )


def _message(raw: bytes) -> dict[str, Any]:
    try:
        return _object(json.loads(raw))
    except (ValueError, RecursionError):
        return {}


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _unknown(letter_id: str) -> DeadLetterError:
    return DeadLetterError(
        f"There is no dead letter {letter_id!r}: see golem dead list, and GOLEM_BROKER_URL and "
        "GOLEM_GLOBAL_KEYPREFIX, which say where it looks."
    )

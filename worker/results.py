"""Result backend that reads and writes a whole dispatch in one round trip each.

Outside of a dispatch it is Celery's own Redis backend. Inside one (`dispatch`), the stored results
of all its jobs are read by one MGET before the model runs, and what Celery's tracer stores is
collected and written by one script call afterwards, which passes over a job that was cancelled
meanwhile (store.lua). Keys, values, TTLs and the message published for each are Celery's own.

A result that belongs to a chord isn't collected: counting the chord's last part may read the
results of the others, so it has to be there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.resources import files
from typing import Any

from celery import states
from celery.backends.redis import RedisBackend, SentinelBackend
from celery.utils.log import get_logger
from celery.utils.time import get_exponential_backoff_interval
from redis.exceptions import (
    ClusterDownError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from worker.rendering import render

__all__ = [
    "BatchedRedisBackend",
    "BatchedResults",
    "BatchedSentinelBackend",
    "backend_url",
    "refuses_for_now",
]

logger = get_logger(__name__)

CHUNK_BYTES = 4 * 1024 * 1024
"""Values sent in one call; a larger one would make Redis and this process hold it twice."""

_PASSING = (OutOfMemoryError, ReadOnlyError, ClusterDownError, TryAgainError, MasterDownError)
_PASSING_CODES = frozenset(
    ("OOM", "READONLY", "MISCONF", "NOREPLICAS", "BUSY", "LOADING", "MASTERDOWN", "TRYAGAIN")
)
_OF_PIPELINE = "of pipeline caused error: "

_PENDING = {"status": states.PENDING, "result": None}


def backend_url(url: str) -> str:
    """The URL that makes Celery use the batched backend for `url`."""
    name = "BatchedSentinelBackend" if url.startswith("sentinel://") else "BatchedRedisBackend"
    return f"{__name__}:{name}+{url}"


class BatchedResults(RedisBackend):  # type: ignore[misc]  # Celery ships no types
    """Collects the results of a dispatch; see the module's docstring."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._known: dict[bytes, Any] | None = None
        self._collected: list[tuple[bytes, Any, int | None]] = []

    @contextmanager
    def dispatch(self, task_ids: Sequence[str]) -> Iterator[dict[str, dict[str, Any]]]:
        """Collect what is stored inside the block and write it at its end.

        Yields:
            the stored meta of every job that has one, by id.
        """
        keys = [self.get_key_for_task(task_id) for task_id in task_ids]
        metas = self._read(keys)
        self._known = dict(zip(keys, metas, strict=True))
        try:
            yield {task_id: meta for task_id, meta in zip(task_ids, metas, strict=True) if meta}
        finally:
            self._known = None
            self._write()

    def revoked_of(self, task_ids: Sequence[str]) -> set[str]:
        """Ask which of these jobs are stored as REVOKED now."""
        metas = self._read([self.get_key_for_task(task_id) for task_id in task_ids])
        return {
            task_id
            for task_id, meta in zip(task_ids, metas, strict=True)
            if meta and meta["status"] == states.REVOKED
        }

    def _read(self, keys: list[bytes]) -> list[dict[str, Any] | None]:
        raw = self._persist(lambda: self.mget(keys)) if keys else []
        return [self.decode_result(value) if value else None for value in raw]

    def _get_task_meta_for(self, task_id: str) -> Any:
        key = self.get_key_for_task(task_id)
        if self._known is not None and key in self._known:
            return self._known[key] or _PENDING
        try:
            return super()._get_task_meta_for(task_id)
        except ResponseError as exc:
            if not str(exc).startswith("WRONGTYPE"):
                raise
            return dict(_PENDING)  # a list, say; as below

    def decode_result(self, payload: Any) -> dict[str, Any]:
        """Decode what is stored; what isn't a result, as another program's key, counts as none.

        Celery would try again for ever, in the main process too, and the job is to be answered.
        """
        try:
            meta: dict[str, Any] = super().decode_result(payload)
            return meta if meta.keys() >= _PENDING.keys() else dict(_PENDING)
        except Exception as exc:  # noqa: BLE001 - whatever decoding junk may raise
            # Not its words: some quote all that was to be decoded.
            logger.warning(
                "A stored result can't be read and counts as none: %s", type(exc).__name__
            )
            return dict(_PENDING)

    def store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Store a result now if it is a chord's, else with the rest of its dispatch."""
        known, chord = self._known, getattr(request, "chord", None)
        if chord:
            self._known = None
        try:
            return super().store_result(task_id, result, state, traceback, request, **kwargs)
        finally:
            self._known = known

    def encode(self, data: Any) -> Any:
        """Encode what is to be stored, a long list of predictions the quick way."""
        if self.serializer == "json" and not self.compression:
            payload = render(data)
            if payload is not None:
                return payload
        return super().encode(data)

    def set(self, key: bytes, value: Any, expires: int | None = None, **policy: Any) -> Any:
        """Collect a task's result inside a dispatch; write anything else at once."""
        if self._known is None or key not in self._known:
            return super().set(key, value, expires, **policy)
        self._collected.append((key, value, expires))
        return None

    def _write(self) -> None:
        """Write what was collected, in calls of about `CHUNK_BYTES`."""
        collected, self._collected = self._collected, []
        chunk: list[tuple[bytes, Any, int | None]] = []
        size_bytes = 0
        for entry in collected:
            chunk.append(entry)
            size_bytes += len(entry[1])
            if size_bytes >= CHUNK_BYTES:
                self._write_chunk(chunk)
                chunk, size_bytes = [], 0
        if chunk:
            self._write_chunk(chunk)

    def _write_chunk(self, chunk: list[tuple[bytes, Any, int | None]]) -> None:
        keys = [key for key, _, _ in chunk]
        values = [value for _, value, _ in chunk]
        ttls_s = [self.expires if ttl_s is None else ttl_s for _, _, ttl_s in chunk]
        self._persist(lambda: self._store(keys=keys, args=[*values, *(t or 0 for t in ttls_s)]))

    @cached_property
    def _store(self) -> Any:
        # Loaded again by redis-py when a restarted server doesn't know it.
        return self.client.register_script((files("worker") / "store.lua").read_text("utf-8"))

    def _persist(self, action: Callable[[], Any]) -> Any:
        """Run a Redis action until it succeeds: an outage mustn't turn an answer into a failure.

        The wait doubles up to ``result_backend_max_sleep_between_retries_ms``. The process stays
        killable; a job whose result was never written is still unacknowledged and runs again.
        """
        retries = 0
        while True:
            try:
                return action()
            except (*self.connection_errors, ResponseError) as exc:
                if isinstance(exc, ResponseError) and not refuses_for_now(exc):
                    raise
                if isinstance(exc, ReadOnlyError):
                    # A replica since a failover: connect again, to whoever is the master now.
                    self.client.connection_pool.disconnect()
                retries += 1
                wait_ms = get_exponential_backoff_interval(
                    self.base_sleep_between_retries_ms,
                    retries,
                    self.max_sleep_between_retries_ms,
                    full_jitter=True,
                )
                logger.warning(
                    "Results can't be stored (%s); the next try is in %d ms, nothing is lost.",
                    exc,
                    wait_ms,
                )
                time.sleep(wait_ms / 1000)


def refuses_for_now(error: ResponseError) -> bool:
    """Whether a server refuses for a reason that passes: full, read-only, disk trouble, busy."""
    # Only some have a class of their own; and redis-py puts what it was doing before the words.
    words = str(error).rpartition(_OF_PIPELINE)[2]
    return isinstance(error, _PASSING) or words.partition(" ")[0] in _PASSING_CODES


class BatchedRedisBackend(BatchedResults):
    """`BatchedResults` on ``redis://``, ``rediss://`` and Unix sockets."""


class BatchedSentinelBackend(BatchedResults, SentinelBackend):  # type: ignore[misc]  # no types
    """`BatchedResults` on ``sentinel://``."""

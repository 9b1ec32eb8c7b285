"""Answers as a worker stores them, for tests of the producer's side that need no model."""

import base64
import json
import threading
from contextlib import closing
from types import TracebackType
from typing import Any, Self

import celery
import redis
from celery import states

from golem_tasks.embedded import EmbeddedServer

QUEUES = ("golem", "golem.bulk")


def prediction(label: str) -> dict[str, Any]:
    """A prediction of the contract's shape."""
    return {
        "label": label,
        "score": 0.75,
        "scores": {label: 0.75, "OTHER": 0.25},
        "logits": None,
        "tokens": 3,
        "truncated": False,
        "model": {"name": "test", "revision": None, "dtype": "float32"},
        "timing": {"queued_ms": 1.0, "forward_ms": 2.0, "batch_rows": 1, "padding_share": 0.0},
    }


def messages(client: redis.Redis, queue: str = "golem") -> list[dict[str, Any]]:
    """The messages that wait in one list, the next one first."""
    return [json.loads(raw) for raw in reversed(client.lrange(queue, 0, -1))]  # type: ignore[arg-type]


def body(message: dict[str, Any]) -> Any:
    """A message's body: args, kwargs and what Celery calls embed."""
    return json.loads(base64.b64decode(message["body"]))


class Answers:
    """Stores results in the form, and under the keys, Celery's own Redis backend uses."""

    def __init__(self, server: EmbeddedServer, prefix: str = "") -> None:
        self._client = server.client()
        app = celery.Celery(set_as_current=False, backend=server.url)
        app.conf.result_backend_transport_options = {"global_keyprefix": prefix}
        self._backend = app.backend

    def store(self, job_id: str, result: Any, state: str = states.SUCCESS) -> None:
        """Store and publish one result; an exception is stored as Celery stores it."""
        self.store_all({job_id: result}, state)

    def store_all(self, results: dict[str, Any], state: str = states.SUCCESS) -> None:
        """Store and publish many, by job id, in one pipeline."""
        with self._client.pipeline(transaction=False) as pipe:
            for job_id, result in results.items():
                encoded = self._backend.encode_result(result, state)
                meta = self._backend._get_result_meta(encoded, state, None, None)
                key = self._backend.get_key_for_task(job_id)
                value = self._backend.encode({**meta, "task_id": job_id})
                pipe.set(key, value, ex=60)
                pipe.publish(key, value)
            pipe.execute()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def closing(self) -> "closing[Answers]":
        """Close it at the end of a with block."""
        return closing(self)


class Answerer:
    """A thread in a worker's place: it takes each job and answers with its own text as the label.

    It knows nothing of batches, models or acknowledgement; those have tests of their own.
    """

    def __init__(self, server: EmbeddedServer) -> None:
        self._answers = Answers(server)
        self._client = server.client()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._ending.is_set():
            # Waits for one, then takes what else is there: few round trips on a busy machine.
            first = self._client.blmpop(0.1, len(QUEUES), *QUEUES, direction="RIGHT", count=100)
            if first:
                self._answers.store_all(
                    {m["headers"]["id"]: _answer(m) for m in map(json.loads, first[1])}  # type: ignore[index]
                )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ending.set()
        self._thread.join()
        self._client.close()
        self._answers.close()


def _answer(message: dict[str, Any]) -> dict[str, Any]:
    texts = body(message)[0][0]
    if isinstance(texts, str):
        return prediction(texts)
    return {"predictions": [prediction(text) for text in texts]}

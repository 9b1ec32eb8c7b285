"""The peers' side of a fair comparison: the same engine, answers and Celery settings as Golem's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from celery import Celery, signals
from celery.utils.imports import symbol_by_name
from kombu.entity import Queue

from golem_tasks.contract import SENT_AT_HEADER, Options, TextItem
from golem_tasks.settings import load
from worker.decoding import Decoder, MicroBatch
from worker.interfaces import Encoded, Engine
from worker.settings import WorkerSettings

__all__ = ["PeerModel", "answer", "make_app", "queued_ms", "settings"]

settings = load(WorkerSettings)


class PeerModel:
    """The engine and decoder of one child, without Golem's packing and isolation."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._decoder = Decoder(engine.info)

    def answer(self, texts: Sequence[str], waited_ms: Sequence[float]) -> list[dict[str, Any]]:
        """Run the texts as one micro-batch; a prediction for each.

        Raises:
            JobError: a text can't be encoded.
        """
        items = [TextItem(text) for text in texts]
        encoded: list[Encoded] = []
        for each in self._engine.encode(items, ["truncate"] * len(items)):
            if not isinstance(each, Encoded):
                raise each
            encoded.append(each)
        begun_s = time.perf_counter()
        logits = self._engine.launch([each.rows[0] for each in encoded]).logits()
        forward_ms = 1e3 * (time.perf_counter() - begun_s)
        lengths = [each.rows[0].length for each in encoded]
        batch = MicroBatch(len(lengths), max(lengths), sum(lengths), forward_ms)
        return [
            self._decoder.decode([row], each, Options(), ms, [batch])
            for row, each, ms in zip(logits, encoded, waited_ms, strict=True)
        ]


_models: list[PeerModel] = []


def answer(texts: Sequence[str], waited_ms: Sequence[float]) -> list[dict[str, Any]]:
    """`PeerModel.answer` of this process."""
    return _models[0].answer(texts, waited_ms)


def queued_ms(headers: dict[str, Any]) -> float:
    """Milliseconds since the producer sent the job, by the header it puts on each."""
    sent_s = headers.get(SENT_AT_HEADER)
    since_s = sent_s if isinstance(sent_s, int | float) else time.time()
    return round(1e3 * max(0.0, time.time() - since_s), 3)


def _load_model(**_: Any) -> None:
    engine: Engine = symbol_by_name(settings.engine)(settings, 0)
    engine.warm_up(engine.token_budget)
    _models[:] = [PeerModel(engine)]


def make_app(name: str) -> Celery:
    """A Celery app with one prefork child and Golem's settings where they mean the same."""
    app = Celery(name, broker=settings.broker, backend=settings.backend, set_as_current=True)
    app.conf.update(
        task_queues=[Queue(settings.queue)],
        task_default_queue=settings.queue,
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_deduplicate_successful_tasks=True,
        worker_concurrency=1,
        worker_prefetch_multiplier=2 * settings.rows,
        worker_proc_alive_timeout=settings.load_timeout_s,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        task_track_started=False,
        result_expires=settings.result_expires_s,
        result_extended=False,
        result_backend_always_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": settings.visibility_timeout_s,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            "socket_timeout": settings.socket_timeout_s,
            "socket_connect_timeout": settings.connect_timeout_s,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
    )
    signals.worker_process_init.connect(_load_model, weak=False)
    return app

"""The Celery app of a worker: its configuration, with the reason beside each setting.

`build` makes it from the settings; `worker.celery` holds the one that ``celery -A worker`` finds.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from billiard import current_process
from celery import Celery, signals
from kombu.entity import Queue

from golem_tasks._redis import celery_url, sentinel_options
from golem_tasks.settings import describe
from worker import control  # noqa: F401 - registers its commands
from worker.intake import Intake
from worker.leaving import Leaving
from worker.processes import ModelProcesses, count
from worker.reconnect import Adoption
from worker.recording import Recorder
from worker.results import backend_url
from worker.settings import WorkerSettings
from worker.stats import Statistics
from worker.tasks import register

__all__ = ["SWEEPS_PER_LEASE", "GolemApp", "build", "configuration"]

SWEEPS_PER_LEASE = 6
"""Looks for what dead workers left; their jobs reappear within a lease and a sixth."""


class GolemApp(Celery):  # type: ignore[misc]  # Celery ships no types
    """A Celery app that knows its worker's settings."""

    golem_settings: WorkerSettings
    golem_recorder: Recorder
    """Set by the intake of a worker's main process."""

    def now(self) -> datetime:
        """The time in the app's zone; Celery's own way there is 6 % of a model process's work."""
        return datetime.now(self.timezone)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """Pickle as the way to build it again, for a spawned child with the same environment."""
        return _rebuild, (self.golem_settings.model_dump(), tuple(self.conf.include))


def _rebuild(values: dict[str, Any], include: tuple[str, ...]) -> GolemApp:
    app = build(WorkerSettings(**values))
    app.conf.include = include
    return app


def build(settings: WorkerSettings) -> GolemApp:
    """Make the app of a worker with these settings. Loads neither torch nor a model."""
    batched = settings.transport == "batched"
    app = GolemApp("golem", amqp="worker.transport:AMQP" if batched else None)
    app.golem_settings = settings
    app.conf.update(configuration(settings))
    app.steps["worker"].add(Intake)
    app.steps["worker"].add(ModelProcesses)
    app.steps["worker"].add(Statistics)
    app.steps["worker"].add(Leaving)
    app.steps["consumer"].add(Adoption)
    register(app)
    _connect_signals()
    return app


def configuration(settings: WorkerSettings) -> dict[str, Any]:
    """Celery's configuration for a worker with these settings."""
    return {
        **_broker(settings),
        **_results(settings),
        **_delivery(settings),
        **_processes(settings),
    }


def _broker(settings: WorkerSettings) -> dict[str, Any]:
    options = {
        "lease_s": settings.lease_s,
        # What a stock transport holds isn't renewed: a batch and its wait must fit into this.
        "visibility_timeout": settings.visibility_timeout_s,
        # Stock sweeps every 100 s; a dead worker's jobs should reappear soon after their lease.
        "unacked_restore_interval": settings.lease_s / SWEEPS_PER_LEASE,
        "unacked_restore_throttle": 1,
        # A sweeper that dies keeps the others from sweeping for so long; kombu's 5 minutes are many
        # leases, and two sweeps at once are harmless.
        "unacked_mutex_expire": max(5, round(settings.lease_s / 2)),
        # A server that hangs must not hang us: without it a publish or an ack waits for ever.
        "socket_timeout": settings.socket_timeout_s,
        "socket_connect_timeout": settings.connect_timeout_s,
        "socket_keepalive": True,
        "health_check_interval": 10,
        # Sending LPUSH again after a time-out would enqueue a callback twice.
        "retry_on_timeout": False,
        "max_connections": 20,
        # A compressed body larger than this is dropped unread; up to it, it is refused in words.
        "max_message_bytes": 2 * settings.max_message_bytes,
        "global_keyprefix": settings.global_keyprefix,
        **sentinel_options(settings),
        # The interactive queue before bulk, instead of one message from each in turn.
        "queue_order_strategy": "priority",
    }
    return {
        "broker_url": celery_url(settings.broker),
        "broker_transport_options": options,
        "broker_connection_timeout": settings.connect_timeout_s,
        "broker_connection_retry_on_startup": True,  # a worker may start before its Redis
        "broker_connection_max_retries": None,  # Redis comes back; the default gives up after 100
        "broker_channel_error_retry": True,  # a full or failing-over Redis will allow it again
        "task_serializer": "json",
        "accept_content": ["json"],  # a pickle in the queue would run code
        "task_queues": [Queue(settings.queue), Queue(settings.bulk_queue)],
        "task_default_queue": settings.queue,
    }


def _results(settings: WorkerSettings) -> dict[str, Any]:
    return {
        "result_backend": backend_url(celery_url(settings.backend)),
        "result_serializer": "json",
        "result_expires": settings.result_expires_s,  # the default day of answers fills Redis
        "result_extended": False,  # would store every text again beside its answer
        "result_backend_always_retry": True,  # else a blip turns a finished job into a FAILURE
        "result_backend_max_retries": float("inf"),
        "result_backend_max_sleep_between_retries_ms": 2_000,
        "result_backend_transport_options": {
            "global_keyprefix": settings.global_keyprefix,
            **sentinel_options(settings),
        },
        "task_ignore_result": False,
        "task_store_errors_even_if_ignored": True,  # an error nobody can see is the worst kind
        "redis_socket_timeout": settings.socket_timeout_s,
        "redis_socket_connect_timeout": settings.connect_timeout_s,
        "redis_socket_keepalive": True,
        "redis_backend_health_check_interval": 25,
        "redis_max_connections": 20,
    }


def _delivery(settings: WorkerSettings) -> dict[str, Any]:
    # The stock transport knows no window: a dispatch in flight and the next one buffered.
    prefetch = 2 * settings.rows if settings.transport == "stock" else 0
    return {
        "task_acks_late": True,  # a job of a dead worker is delivered again instead of lost
        "task_reject_on_worker_lost": True,
        "task_acks_on_failure": True,  # explicit, since the merged setting is deprecated
        "task_acks_on_timeout": True,
        "worker_deduplicate_successful_tasks": True,  # one lookup, for redelivered messages only
        "task_track_started": False,  # would write STARTED after the model ran
        "worker_prefetch_multiplier": prefetch,
        "worker_enable_prefetch_count_reduction": False,  # counts a batch as many active jobs
        "worker_disable_prefetch": False,  # would make every batch as small as the pool
        "worker_eta_task_limit": 10_000,  # jobs with a countdown sit in memory until it is over
    }


def _processes(settings: WorkerSettings) -> dict[str, Any]:
    return {
        "worker_pool": "prefork",
        "worker_pool_start_method": "spawn",  # neither CUDA nor a tokenizer survives a fork
        "worker_concurrency": count(settings),
        "worker_proc_alive_timeout": settings.load_timeout_s,  # 4 s kills every replacement child
        "worker_pool_putlocks": False,  # the semaphore counts requests, the pool runs batches
        "worker_max_tasks_per_child": None,  # a new child loads the model again
        "worker_max_memory_per_child": None,
        "worker_cancel_long_running_tasks_on_connection_loss": False,  # would kill the model
        "worker_soft_shutdown_timeout": 0,  # the warm shutdown is the normal one
        "worker_send_task_events": False,  # cost per job; switch on with -E
        "worker_hijack_root_logger": False,
        "worker_enable_remote_control": True,
        "worker_consumer": "worker.reconnect:SteadyConsumer",
    }


def _connect_signals() -> None:
    # A fixed dispatch_uid: building a second app in a process must not run them twice.
    signals.worker_process_init.connect(_on_process_init, weak=False, dispatch_uid="golem.child")
    signals.celeryd_after_setup.connect(_on_setup, weak=False, dispatch_uid="golem.settings")


def _on_process_init(sender: str | None = None, **_: Any) -> None:
    if current_process().name == "MainProcess":
        return  # a pool without processes of its own, which the intake is about to refuse
    from celery import current_app  # noqa: PLC0415 - the child's app, known only now

    from worker import child  # noqa: PLC0415 - loads the model's side, which the parent must not

    child.start(current_app._get_current_object(), sender or "")  # noqa: SLF001 - Celery's own way


def _on_setup(instance: Any = None, **_: Any) -> None:
    from celery.utils.log import get_logger  # noqa: PLC0415 - logging is set up by now

    settings = instance.app.golem_settings
    shown = " ".join(f"{name}={value}" for name, value in describe(settings).items())
    get_logger(__name__).info("Settings: %s", shown)

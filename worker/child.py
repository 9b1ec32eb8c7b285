"""What happens in a model process before its first dispatch: load, warm up, take the tracers over.

Celery starts it with the ``spawn`` method, a fresh interpreter: CUDA can't be initialised again
after a fork, and a tokenizer's threads don't survive one. Only here is torch loaded.
"""

from __future__ import annotations

import gc
import os
import resource
import time
from typing import Any

from billiard import current_process
from celery import Celery
from celery.app import trace
from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.imports import symbol_by_name
from celery.utils.log import get_logger

from golem_tasks.contract import TASKS
from golem_tasks.errors import GolemError, ModelLoadError
from worker import runner
from worker.classifier import Classifier
from worker.processes import EX_CONFIG, report, settle_garbage
from worker.runner import Runner, TracerClock
from worker.settings import WorkerSettings

__all__ = ["start"]

logger = get_logger(__name__)

_COLLECT_AFTER = 20_000  # containers, some hundred jobs' worth; Python's default is 700


def start(app: Celery, hostname: str) -> None:
    """Make this child ready for dispatches, or say why not and end it."""
    settings: WorkerSettings = app.golem_settings
    index = current_process().index
    begun_s = time.monotonic()
    # Read when torch is loaded. A CPU worker shares its cores with its parent, Redis and producers,
    # and threads that spin at a barrier then keep out the one they wait for: on two busy cores the
    # demo answered 42 to 138 texts/s with OpenMP's default, 240 to 313 with this.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        engine = symbol_by_name(settings.engine)(settings, index)
        engine.warm_up()
    except BaseException as exc:  # noqa: BLE001 - whatever a foreign model raises, the parent hears
        error = exc if isinstance(exc, GolemError) else _unexpected(settings, exc)
        report(index, ready=False, message=str(error))
        os._exit(EX_CONFIG)
    clock = TracerClock()
    _install_tracers(app, hostname, clock)
    classifier = Classifier(engine, passthrough=(SoftTimeLimitExceeded,))
    runner.use(Runner(classifier, app.backend, settings.limits, clock))
    info = engine.info
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    message = (
        f"{info.name} ({info.dtype}) on {info.device}, {len(info.labels)} labels, token budget "
        f"{engine.token_budget}, loaded in {time.monotonic() - begun_s:.1f} s, {peak_mib} MiB."
    )
    settle_garbage()
    # What a dispatch allocates dies with it, by its reference counts; looking sooner finds nothing.
    gc.set_threshold(_COLLECT_AFTER)
    report(
        index,
        ready=True,
        message=message,
        max_tokens=info.max_tokens,
        model=info.name,
        dtype=info.dtype,
        device=info.device,
        token_budget=engine.token_budget,
    )


def _unexpected(settings: WorkerSettings, exc: BaseException) -> GolemError:
    cause = f"{type(exc).__name__}: {str(exc).splitlines()[0] if str(exc) else 'no message'}"
    remedy = "Check GOLEM_MODEL, GOLEM_DEVICE and GOLEM_DTYPE."
    return ModelLoadError.of(settings.model, cause, remedy)


def _install_tracers(app: Celery, hostname: str, clock: TracerClock) -> None:
    """Trace our tasks with the dispatch's clock and without a log line for each success.

    Celery reads the level once, when a tracer is built; the dispatch's own line says it all.
    """
    quiet: Any = trace.logger
    level = quiet.level
    quiet.setLevel("WARNING")
    try:
        for name in TASKS:
            task = app.tasks[name]
            task.__trace__ = trace.build_tracer(
                name, task, app.loader, hostname, app=app, monotonic=clock
            )
    finally:
        quiet.setLevel(level)

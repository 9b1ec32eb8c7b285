"""What happens in a model process before its first dispatch: load, warm up, take the tracers over.

Celery starts it with the ``spawn`` method, a fresh interpreter: CUDA can't be initialised again
after a fork, and a tokenizer's threads don't survive one. Only here is torch loaded.
"""

from __future__ import annotations

import gc
import os
import resource
import time
from collections.abc import Callable
from typing import Any

from billiard import current_process
from billiard.common import terminate_handler_fired
from celery import Celery
from celery.app import trace
from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.imports import symbol_by_name
from celery.utils.log import get_logger

from golem_tasks.contract import TASKS
from golem_tasks.errors import ConfigurationError, GolemError, ModelLoadError
from worker import runner
from worker.budget_file import BudgetFile
from worker.ceiling import Ceiling, warm_up
from worker.classifier import Classifier
from worker.frames import spare_positions
from worker.interfaces import DeviceLost, Engine
from worker.machine import set_environment
from worker.origin import Traced, log_internal_errors
from worker.processes import EX_CONFIG, report, settle_garbage
from worker.runner import Runner, TracerClock
from worker.settings import WorkerSettings
from worker.sparing import spare_processes

__all__ = ["COLLECT_AFTER", "start"]

logger = get_logger(__name__)

_OF_THE_WORKER_EXTRA = ("huggingface_hub", "numpy", "safetensors", "torch", "transformers")

COLLECT_AFTER = 20_000
"""Containers made between two garbage collections, some hundred jobs' worth; Python has 700."""


def start(app: Celery, hostname: str) -> None:
    """Make this child ready for dispatches, or say why not and end it."""
    settings: WorkerSettings = app.golem_settings
    index = current_process().index
    begun_s = time.monotonic()
    set_environment()
    try:
        engine = _loader(settings.engine)(settings, index)
        remembered = BudgetFile(settings.state_dir, "ceilings", engine.info, **settings.conditions)
        ceiling = _warm_up(engine, remembered)
    except BaseException as exc:  # noqa: BLE001 - whatever a foreign model raises, the parent hears
        error = exc if isinstance(exc, GolemError) else _unexpected(settings, exc)
        report(index, ready=False, message=str(error))
        os._exit(EX_CONFIG)
    clock = TracerClock()
    _install_tracers(app, hostname, clock)
    log_internal_errors()
    spare_positions()
    spare_processes(app)
    classifier = Classifier(
        engine,
        passes=_passes,
        ceiling=ceiling,
        on_ceiling=lambda now: remembered.store(now.tokens if now.lowered else None),
    )
    runner.use(Runner(classifier, app.backend, settings.limits, clock))
    info = engine.info
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    message = (
        f"{info.name} ({info.dtype}) on {info.device}, {len(info.labels)} labels, token budget "
        f"{ceiling.tokens}, loaded in {time.monotonic() - begun_s:.1f} s, {peak_mib} MiB."
    )
    settle_garbage()
    # What a dispatch allocates dies with it, by its reference counts; looking sooner finds nothing.
    gc.set_threshold(COLLECT_AFTER)
    report(
        index,
        ready=True,
        message=message,
        max_tokens=info.max_tokens,
        model=info.name,
        dtype=info.dtype,
        device=info.device,
        token_budget=ceiling.tokens,
        token_ceiling=ceiling.full,
    )


def _loader(name: str) -> Callable[[WorkerSettings, int], Engine]:
    """Find the function that loads the engine.

    Raises:
        ConfigurationError: there is none, or a package it needs isn't installed.
    """
    try:
        found: Callable[[WorkerSettings, int], Engine] = symbol_by_name(name)
    except ModuleNotFoundError as exc:
        if exc.name in _OF_THE_WORKER_EXTRA:
            raise ConfigurationError(
                f"The model's side isn't installed (there is no {exc.name}): "
                "pip install 'golem-tasks[worker]'."
            ) from exc
        raise _no_engine(name, exc) from exc
    except (ImportError, AttributeError) as exc:
        raise _no_engine(name, exc) from exc
    return found


def _no_engine(name: str, exc: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"GOLEM_ENGINE={name} can't be used: {exc}; unset it for the engine of Golem's own, or "
        "name a function this worker can import, as module:function."
    )


def _warm_up(engine: Engine, remembered: BudgetFile) -> Ceiling:
    """Warm up within what is known of the device's memory; tell and keep what more is learned."""
    # The clock of `Classifier`, which goes on with this ceiling.
    before = Ceiling.start(engine.token_budget, remembered.recall(), time.perf_counter())
    ceiling = warm_up(engine, before, time.perf_counter)
    if ceiling.lowered:
        logger.warning(
            "Micro-batches of %s begin with %d padded tokens instead of %d: more didn't fit the "
            "memory of %s (%s).",
            engine.info.name, ceiling.tokens, ceiling.full, engine.info.device,
            "as remembered from an earlier run" if ceiling == before else "at the warm-up",
        )  # fmt: skip
    if ceiling != before:
        remembered.store(ceiling.tokens)
    return ceiling


def _passes(exc: BaseException) -> bool:
    """Whether this is meant for the process, and not the failure of a text that raised it."""
    if isinstance(exc, SystemExit):
        return bool(terminate_handler_fired())  # else a model's own, which ends no process
    return isinstance(exc, DeviceLost | SoftTimeLimitExceeded)


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
                name, task, app.loader, hostname, Info=Traced, app=app, monotonic=clock
            )
    finally:
        quiet.setLevel(level)

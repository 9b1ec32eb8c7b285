"""The app that ``celery -A worker`` finds, from the environment's settings."""

from __future__ import annotations

import os

from golem_tasks.errors import ConfigurationError
from golem_tasks.settings import load
from worker.app import GolemApp, build
from worker.settings import WorkerSettings

__all__ = ["app"]


def _build() -> GolemApp:
    """Build the app; ``celery -b`` and Celery's variables count where GOLEM_BROKER_URL is unset.

    Celery lets these two variables override whatever an app is configured with, so they must not
    stay: a worker would consume from another Redis than the one its settings name.
    """
    broker_url = os.environ.pop("CELERY_BROKER_URL", None)
    result_backend = os.environ.pop("CELERY_RESULT_BACKEND", None)
    if "GOLEM_BROKER_URL" in os.environ:
        return build(load(WorkerSettings))
    return build(load(WorkerSettings, broker_url=broker_url, result_backend=result_backend))


try:
    app = _build()
except ConfigurationError as exc:
    raise SystemExit(f"golem: {exc}") from None

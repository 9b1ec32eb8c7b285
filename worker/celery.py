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
    try:
        settings = load(WorkerSettings, broker_url=broker_url, result_backend=result_backend)
    except ConfigurationError as exc:
        raise ConfigurationError(_by_celerys_name(str(exc))) from None
    return build(settings)


def _by_celerys_name(sentence: str) -> str:
    """Name the variable that was set, where the sentence names ours, which wasn't."""
    for name in ("BROKER_URL", "RESULT_BACKEND"):
        if sentence.startswith(f"GOLEM_{name} ") and f"GOLEM_{name}" not in os.environ:
            said = f"CELERY_{name}, which counts because GOLEM_BROKER_URL is unset, "
            rest = sentence.removeprefix(f"GOLEM_{name} ")
            return said + rest.replace("in the call ", "in the environment ")
    return sentence


try:
    app = _build()
except ConfigurationError as exc:
    raise SystemExit(f"golem: {exc}") from None

"""The app that ``celery -A worker`` finds, from the environment's settings."""

from __future__ import annotations

from golem_tasks.errors import ConfigurationError
from golem_tasks.settings import load
from worker.app import build
from worker.settings import WorkerSettings

__all__ = ["app"]

try:
    app = build(load(WorkerSettings))
except ConfigurationError as exc:
    raise SystemExit(f"golem: {exc}") from None

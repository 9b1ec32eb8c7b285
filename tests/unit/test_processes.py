"""What the worker does about its model processes, decided without starting one."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from worker.app import build
from worker.processes import FOLDER, ModelProcesses, report
from worker.settings import WorkerSettings


def test_a_process_whose_worker_has_left_reports_to_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its folder is gone with the worker: no error, nothing is made anew."""
    monkeypatch.setenv(FOLDER, str(tmp_path / "gone"))
    report(0, ready=True, message="fake")
    assert list(tmp_path.iterdir()) == []


def test_the_pool_is_asked_every_second_to_replace_what_ended() -> None:
    """Celery misses an end whose pipe closes before the process can be reaped, for up to 5 s."""
    asked: list[str] = []
    pool = SimpleNamespace(
        maintain_pool=lambda: asked.append("maintain_pool"), _pool=SimpleNamespace(_pool=[])
    )
    ticks = []
    hub = SimpleNamespace(call_repeatedly=lambda every_s, call: ticks.append((every_s, call)))
    worker = SimpleNamespace(app=build(WorkerSettings()), pool=pool, steps=[])
    step = ModelProcesses(worker)
    step.register_with_event_loop(worker, hub)
    ((every_s, tick),) = ticks
    tick()
    assert (every_s, asked) == (1.0, ["maintain_pool"])

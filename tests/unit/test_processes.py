"""What the worker does about its model processes, decided without starting one."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from golem_tasks.settings import load as load_settings
from worker import processes
from worker.app import build
from worker.machine import available_cores, available_memory_bytes
from worker.processes import FOLDER, ModelProcesses, count, report
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


@pytest.mark.parametrize(
    ("cores", "gib", "given", "expected"),
    [
        (1, 64, {}, 1),
        (2, 64, {}, 2),
        (64, 64, {}, 4),
        (64, 5, {}, 2),
        (2, 1, {}, 1),
        (2, None, {}, 2),
        (8, 64, {"threads": 4}, 2),
        (2, 64, {"threads": 4}, 1),
        (2, 64, {"processes": 7}, 7),
        (2, 64, {"device": "mps"}, 1),
        (2, 64, {"engine": "tests.support.fake_engine:load"}, 1),
    ],
)
def test_on_a_cpu_there_is_a_process_for_each_core_that_memory_allows(
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    gib: int | None,
    given: dict[str, object],
    expected: int,
) -> None:
    """Four at most, fewer if each has several threads; what is set goes before all."""
    monkeypatch.setattr(processes, "available_cores", lambda: cores)
    memory_bytes = None if gib is None else gib * 2**30
    monkeypatch.setattr(processes, "available_memory_bytes", lambda: memory_bytes)
    asked = {"device": "cpu", **given}
    assert count(load_settings(WorkerSettings, **asked)) == expected


def test_gpus_are_counted_as_the_driver_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process for each; with one named there is one, and without any the CPU's rule holds."""
    monkeypatch.setattr(processes, "available_cores", lambda: 2)
    monkeypatch.setattr(processes, "available_memory_bytes", lambda: None)
    for visible, device, expected in (
        ("0,1,2", "auto", 3),
        ("0,1,2", "cuda", 3),
        ("0,1,2", "cuda:1", 1),
        ("", "cuda", 1),
        ("-1", "auto", 2),
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert count(load_settings(WorkerSettings, device=device)) == expected


def test_a_containers_limits_bound_what_a_worker_uses(tmp_path: Path) -> None:
    """One and a half cores make two threads at most, and no limit changes nothing."""
    limit = tmp_path / "limit"
    limit.write_text("100000 100000\n")
    assert available_cores(limit) == 1
    limit.write_text("max 100000\n")
    assert available_cores(limit) == available_cores(tmp_path / "none")
    limit.write_text(f"{2**20}\n")
    assert available_memory_bytes(limit) == 2**20
    limit.write_text("max\n")
    assert available_memory_bytes(limit) == available_memory_bytes(tmp_path / "none")

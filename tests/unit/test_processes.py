"""What the worker does about its model processes, decided without starting one."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from golem_tasks.settings import load as load_settings
from tests.support.checkpoints import header
from worker import gpus, processes
from worker.app import build
from worker.machine import available_cores, available_memory_bytes, cores_of, hardware
from worker.processes import FOLDER, MOST_ON_CPU, ModelProcesses, count, report
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
        (64, 7, {}, 4),
        (64, 4, {}, 2),
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


@pytest.mark.parametrize(
    ("million", "dtype", "gib", "expected"),
    [
        (67, "auto", 8, 4),
        (250, "auto", 8, 3),
        (800, "auto", 8, 1),
        (800, "bfloat16", 8, 2),
        (800, "auto", 2, 1),
        (None, "auto", 8, 4),
        (None, "auto", 5, 2),
    ],
)
def test_memory_has_room_for_each_processs_copy_of_the_weights(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    million: int | None,
    dtype: str,
    gib: int,
    expected: int,
) -> None:
    """Four that cast a large model at the same time would be killed; one always starts."""
    monkeypatch.setattr(processes, "available_cores", lambda: 8)
    monkeypatch.setattr(processes, "available_memory_bytes", lambda: gib * 2**30)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    model = "somebody/somewhere"
    if million is not None:
        model = str(tmp_path)
        (tmp_path / "config.json").write_text("{}")
        header(tmp_path / "model.safetensors", million * 1_000_000)
    asked = {"device": "cpu", "model": model, "dtype": dtype}
    assert count(load_settings(WorkerSettings, **asked)) == expected


@given(st.integers(1, 64), st.one_of(st.none(), st.integers(1, 64)))
def test_no_core_is_idle_and_none_is_fought_for(cores: int, asked: int | None) -> None:
    """Whatever the cores are divided by, unless there are more processes than cores."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(processes, "available_cores", lambda: cores)
        patched.setattr(processes, "available_memory_bytes", lambda: None)
        number = count(load_settings(WorkerSettings, device="cpu", processes=asked))
    threads = [cores_of(index, number, cores) for index in range(number)]
    assert sum(threads) == max(cores, number)
    assert max(threads) - min(threads) <= 1
    assert asked is not None or number == min(cores, MOST_ON_CPU)


@pytest.mark.parametrize(
    ("visible", "device", "expected"),
    [
        ("0,1,2", "auto", 3),
        ("0,1,2", "cuda", 3),
        ("0,1,2", "cuda:1", 1),
        ("", "cuda", 1),
        ("-1", "auto", 2),
    ],
)
def test_there_is_a_process_for_each_gpu(
    monkeypatch: pytest.MonkeyPatch, visible: str, device: str, expected: int
) -> None:
    """With one named there is one, and without any the CPU's rule holds."""
    monkeypatch.setattr(processes, "available_cores", lambda: 2)
    monkeypatch.setattr(processes, "available_memory_bytes", lambda: None)
    monkeypatch.setattr(gpus, "kinds_of_torch", lambda: ("cuda",))
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


def test_the_hardware_is_what_computes_and_not_the_machines_name(tmp_path: Path) -> None:
    """Two CPUs differ; one that tells nothing of itself is told by its cores and memory."""
    cpuinfo = tmp_path / "cpuinfo"
    told = set()
    for lines in (
        "model name\t: A 1\nmodel name\t: A 1\n",
        "model name\t: A 2\n",
        "CPU part: 0xd40",
    ):
        cpuinfo.write_text(lines)
        told.add(hardware(cpuinfo))
    told.add(hardware(tmp_path / "none"))
    assert len(told) == 4
    assert all("cores" in each and "GiB" in each for each in told)

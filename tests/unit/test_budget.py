"""The token budget a worker finds for itself."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from golem_tasks.errors import InferenceError
from tests.support.fake_engine import FakeEngine
from worker import budget, budget_file
from worker.budget import clock_for, find_budget
from worker.budget_file import BudgetFile


def test_it_is_measured_once_on_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first start measures and keeps it; the next takes what is kept."""
    first = find_budget(FakeEngine(token_budget=77), str(tmp_path))
    assert first in {256, 512, 1024, 2048, 4096}
    monkeypatch.setattr(budget, "measure", None)  # a second measurement would raise
    assert find_budget(FakeEngine(token_budget=77), str(tmp_path)) == first
    assert len(list((tmp_path / "speeds").iterdir())) == 1


def test_processes_that_load_together_measure_one_after_the_other(tmp_path: Path) -> None:
    """Who comes while another measures waits, and takes what that one found."""
    mate, found = FakeEngine(token_budget=78), []
    other = threading.Thread(target=lambda: found.append(find_budget(mate, str(tmp_path))))

    def on_forward(_: list[str]) -> None:
        if other.ident is None:
            other.start()

    first = find_budget(FakeEngine(token_budget=77, on_forward=on_forward), str(tmp_path))
    other.join()
    assert found == [first]
    assert mate.launched == []


def test_other_rows_are_another_measurement(tmp_path: Path) -> None:
    """A bound of the rows bounds what a micro-batch can fill."""
    find_budget(FakeEngine(max_rows=8), str(tmp_path))
    find_budget(FakeEngine(max_rows=16), str(tmp_path))
    assert len(list((tmp_path / "speeds").iterdir())) == 2


def test_other_threads_are_another_measurement(tmp_path: Path) -> None:
    """What suits one core needn't suit eight."""
    for threads in (1, 8):
        find_budget(FakeEngine(), str(tmp_path), threads=threads)
    assert len(list((tmp_path / "speeds").iterdir())) == 2


def test_another_device_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight GPUs are measured at the same time."""
    monkeypatch.setattr(budget_file, "TURN_S", 600)
    with BudgetFile(str(tmp_path), "speeds", FakeEngine(device="cuda:0").info).alone():
        find_budget(FakeEngine(device="cuda:1"), str(tmp_path))
    assert len(list((tmp_path / "speeds").iterdir())) == 1


@pytest.mark.parametrize(("device", "hardware", "turns"), [("cuda:0", "2", 2), ("cuda:1", "1", 1)])
def test_who_computes_on_the_same_hardware_takes_turns(
    tmp_path: Path, device: str, hardware: str, turns: int
) -> None:
    """CUDA_VISIBLE_DEVICES makes any GPU cuda:0, and gives one GPU two numbers."""
    first = replace(FakeEngine().info, device="cuda:0", hardware="1")
    second = replace(first, device=device, hardware=hardware)
    for info in (first, second):
        with BudgetFile(str(tmp_path), "speeds", info).alone():
            pass
    assert len(list(tmp_path.glob("speeds-*.lock"))) == turns


def test_a_process_that_never_ends_its_measurement_is_not_waited_for_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped process, or a network disk that lost a lock, keeps no worker from starting."""
    monkeypatch.setattr(budget_file, "TURN_S", 0.01)
    with BudgetFile(str(tmp_path), "speeds", FakeEngine().info).alone():
        find_budget(FakeEngine(), str(tmp_path))
    assert len(list((tmp_path / "speeds").iterdir())) == 1


def test_a_pass_takes_as_long_as_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundredth of a second whatever its size: the largest is the fastest."""
    now_s = 0.0

    def wait(_: list[str]) -> None:
        nonlocal now_s
        now_s += 0.01

    monkeypatch.setattr(budget, "clock_for", lambda _: lambda: now_s)
    assert find_budget(FakeEngine(on_forward=wait), str(tmp_path)) == 4096


def test_one_thread_is_timed_by_its_own_work_and_several_by_the_wall() -> None:
    """Others take nothing from the one; threads that wait for each other take time."""
    assert clock_for(1) is time.process_time
    assert clock_for(2) is clock_for(None) is time.perf_counter


def test_a_device_without_room_for_the_least_gets_the_least(tmp_path: Path) -> None:
    """The warm-up finds what fits below it; nothing is kept."""
    assert find_budget(FakeEngine(max_area=100), str(tmp_path)) == 256
    assert not (tmp_path / "speeds").exists()


def test_a_model_that_fails_keeps_its_budget_for_the_warm_up_to_tell(tmp_path: Path) -> None:
    """What is wrong with it is said there, in one sentence."""

    def broken(texts: list[str]) -> None:
        raise InferenceError.at("forward", f"broken for {len(texts)} texts")

    assert find_budget(FakeEngine(token_budget=77, on_forward=broken), str(tmp_path)) == 77
    assert not (tmp_path / "speeds").exists()

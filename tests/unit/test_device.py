"""Which device a model process takes, on machines with GPUs that torch only believes it sees."""

from types import SimpleNamespace

import pytest
import torch

from golem_tasks.errors import ConfigurationError
from golem_tasks.settings import load as load_settings
from worker import device
from worker.device import choose_device, hardware_of, set_threads
from worker.machine import hardware
from worker.settings import WorkerSettings


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with three GPUs, as far as torch can tell."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)


@pytest.mark.usefixtures("three_gpus")
@pytest.mark.parametrize("setting", ["auto", "cuda"])
def test_each_process_has_its_gpu(setting: str) -> None:
    """By its index, in turn when there are more processes; a replacement's index is the same."""
    chosen = [str(choose_device(setting, index)) for index in range(5)]
    assert chosen == ["cuda:0", "cuda:1", "cuda:2", "cuda:0", "cuda:1"]


@pytest.mark.usefixtures("three_gpus")
def test_a_gpu_that_is_named_is_every_processes() -> None:
    """Several processes may share one; one that isn't there is told."""
    assert {str(choose_device("cuda:2", index)) for index in range(3)} == {"cuda:2"}
    with pytest.raises(ConfigurationError, match="torch sees 3 CUDA devices"):
        choose_device("cuda:3", 0)


@pytest.mark.usefixtures("three_gpus")
def test_a_cpu_is_a_cpu_wherever_gpus_are() -> None:
    """The setting decides."""
    assert str(choose_device("cpu", 1)) == "cpu"


def test_a_gpu_is_told_by_its_name_and_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cuda:0 here may be another process's cuda:1; a CPU is told by the machine."""
    found = {
        index: SimpleNamespace(name="NVIDIA A100", uuid=f"GPU-{index + 4}") for index in range(2)
    }
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda asked: found[asked.index])
    assert hardware_of(torch.device("cuda", 1)) == "NVIDIA A100 GPU-5"
    assert hardware_of(torch.device("cpu")) == hardware()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"processes": 4}, [2, 2, 1, 1]), ({"processes": 2}, [3, 3]), ({"threads": 4}, [4])],
)
def test_the_processes_have_all_cores(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, int], expected: list[int]
) -> None:
    """Six of them: the first have what division leaves; a number that was set is taken as it is."""
    monkeypatch.setattr(device, "available_cores", lambda: 6)
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    before = torch.get_num_threads()
    try:
        asked = load_settings(WorkerSettings, **settings)
        cpu = torch.device("cpu")
        assert [set_threads(asked, cpu, index) for index in range(len(expected))] == expected
        assert torch.get_num_threads() == expected[-1]
    finally:
        torch.set_num_threads(before)

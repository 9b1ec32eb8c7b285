"""Which device a model process takes, on machines with GPUs that torch only believes it sees."""

import pytest
import torch

from golem_tasks.errors import ConfigurationError
from worker.device import choose_device


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

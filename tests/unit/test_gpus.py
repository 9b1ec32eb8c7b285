"""GPUs counted without torch, as the torch that is installed will see them."""

import sys
from pathlib import Path

import pytest

from worker import gpus
from worker.gpus import KINDS, count_gpus, kinds_of_torch


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without the driver's tools, and a torch that could use any GPU."""
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    can_use(monkeypatch, *KINDS)


def can_use(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> None:
    """Let torch be built for these."""
    monkeypatch.setattr(gpus, "kinds_of_torch", lambda: kinds)


def found(tmp_path: Path) -> int:
    """The GPUs of the machine that lies in the folder."""
    return count_gpus(tmp_path / "dev", tmp_path / "sys")


def has(tmp_path: Path, *nodes: str) -> None:
    """Put device nodes there."""
    for node in nodes:
        (tmp_path / "dev" / node).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "dev" / node).touch()


def has_amd(tmp_path: Path, number: int, gpu_id: str) -> None:
    """Put one of AMD's compute nodes there."""
    node = tmp_path / "sys" / "class/kfd/kfd/topology/nodes" / str(number)
    node.mkdir(parents=True)
    (node / "gpu_id").write_text(f"{gpu_id}\n")


def test_a_machine_without_a_gpu_has_none(tmp_path: Path) -> None:
    """Nor does one with a driver and nothing to drive."""
    assert found(tmp_path) == 0
    has(tmp_path, "nvidiactl", "nvidia-uvm", "nvidia-caps/nvidia-cap1")
    assert found(tmp_path) == 0


def test_a_container_without_the_drivers_tool_shows_its_gpus_nodes(tmp_path: Path) -> None:
    """The capability "compute" brings CUDA and no nvidia-smi."""
    has(tmp_path, "nvidia0", "nvidia3", "nvidia12", "nvidiactl", "nvidia-modeset")
    assert found(tmp_path) == 3


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'GPU 0: A (UUID: a)'\necho '  MIG 1g.5gb Device 0: (UUID: b)'", 1),
        ("echo 'No devices were found'", 0),
        ("exit 9", 2),
    ],
)
def test_the_drivers_tool_is_believed_if_it_works(
    tmp_path: Path, script: str, expected: int
) -> None:
    """Parts of a GPU aren't GPUs, since a process sees one of them; where it fails, nodes count."""
    has(tmp_path, "nvidia0", "nvidia1")
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    assert found(tmp_path) == expected


def test_amds_gpus_are_its_compute_nodes_without_the_cpus(tmp_path: Path) -> None:
    """One at least where there is a kfd; none without, whatever /sys shows."""
    for number, gpu_id in enumerate(("0", "51110", "8832")):
        has_amd(tmp_path, number, gpu_id)
    (tmp_path / "sys" / "class/kfd/kfd/topology/nodes/3/gpu_id").mkdir(parents=True)  # unreadable
    assert found(tmp_path) == 0
    has(tmp_path, "kfd")
    assert found(tmp_path) == 2
    assert count_gpus(tmp_path / "dev", tmp_path / "none") == 1


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("0,1", 2),
        ("2, 0", 2),
        ("GPU-a", 1),
        ("GPU-a,GPU-b,1", 2),
        ("GPU-a,GPU-b,GPU-c,GPU-d", 3),
        ("MIG-a,MIG-b", 1),
        ("", 0),
        ("-1", 0),
        ("0,-1,1", 1),
        ("0,0", 0),
        ("3", 0),
        ("0,3,1", 1),
        ("0,1,2,3", 3),
        ("NoDevFiles", 0),
        ("none", 0),
        ("void", 0),
    ],
)
def test_what_is_visible_bounds_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str, expected: int
) -> None:
    """As the driver reads the list: up to the first that isn't a GPU."""
    has(tmp_path, "nvidia0", "nvidia1", "nvidia2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert found(tmp_path) == expected


@pytest.mark.parametrize(
    ("visible", "expected"), [("0,1", 2), ("GPU-a", 1), ("MIG-a,MIG-b", 1), ("NoDevFiles", 0)]
)
def test_what_is_visible_is_believed_where_nothing_else_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str, expected: int
) -> None:
    """WSL has no device nodes of its GPUs."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert found(tmp_path) == expected


def test_amds_own_variable_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HIP reads CUDA's name too."""
    can_use(monkeypatch, "hip")
    has(tmp_path, "kfd")
    for number in range(3):
        has_amd(tmp_path, number, "51110")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    assert found(tmp_path) == 3
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "0,1")
    assert found(tmp_path) == 2


def test_a_torch_for_the_cpu_has_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine has, and whatever a variable names."""
    can_use(monkeypatch)
    has(tmp_path, "nvidia0", "kfd")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert found(tmp_path) == 0


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("cuda: Optional[str] = None\nhip: Optional[str] = None\n", ()),
        ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", ("cuda",)),
        ("cuda = None\nhip = '6.4.1'\n", ("hip",)),
        ("__version__ = '9'\n", KINDS),
        (None, KINDS),
    ],
)
def test_torch_tells_what_it_is_built_for_without_being_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str | None, expected: tuple[str, ...]
) -> None:
    """By a file that lies beside it; one that tells nothing may use any GPU."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise AssertionError")
    if version is not None:
        (tmp_path / "torch" / "version.py").write_text(version)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert kinds_of_torch() == expected


def test_the_installed_torch_is_read_rightly() -> None:
    """As torch itself says once it is loaded."""
    torch = pytest.importorskip("torch")
    built = {"cuda": torch.version.cuda, "hip": torch.version.hip}
    assert kinds_of_torch() == tuple(kind for kind in KINDS if built[kind] is not None)

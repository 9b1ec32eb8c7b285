"""Weights of which a machine holds one copy, however many processes use them."""

import multiprocessing
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402 - needs torch

from worker import sharing  # noqa: E402 - needs torch
from worker.sharing import is_mapped, share_weights  # noqa: E402 - needs torch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")

SIDE = 3_000  # squared, in bfloat16: 17 MiB, more than the least worth sharing


def model(seed: int) -> torch.nn.Module:
    """A layer in bfloat16, NaN among its weights."""
    torch.manual_seed(seed)
    layer = torch.nn.Linear(SIDE, SIDE, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight[0, 0] = torch.nan
    return layer.eval()


def share(layer: torch.nn.Module, state: Path, folder: Path | None = None) -> int:
    """Share its weights under one name."""
    return share_weights(layer, str(state), name="layer", revision=None, folder=folder)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether all weights are the same to the bit."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a.view(torch.int16), b.view(torch.int16)) for a, b in pairs)


def shared_share(file: Path) -> float:
    """Of this process's resident pages of the file, the share that another has as well."""
    kib = {"Rss": 0, "Shared_Clean": 0, "Shared_Dirty": 0}
    within = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            within = line.endswith(str(file))
        elif within and name[:-1] in kib:
            kib[name[:-1]] += int(rest[0])
    return (kib["Shared_Clean"] + kib["Shared_Dirty"]) / kib["Rss"]


def mate(state: str, pipe: Connection) -> None:
    """Another model process: loads, shares, uses the weights, and stays until it is told to go."""
    layer = model(1)
    pipe.send(share(layer, Path(state)))
    layer(torch.ones(1, SIDE, dtype=torch.bfloat16))
    pipe.recv()


def test_two_processes_hold_the_weights_once(tmp_path: Path) -> None:
    """The pages of the weights are the other process's, too; the answer is the private weights'."""
    layer, untouched = model(1), model(1)
    assert not is_mapped(layer.weight)
    size = share(layer, tmp_path)
    assert size == sum(each.nbytes for each in layer.parameters())
    assert is_mapped(layer.weight)
    assert same(layer, untouched)
    given = torch.ones(1, SIDE, dtype=torch.bfloat16)
    assert torch.equal(layer(given)[0, 1:], untouched(given)[0, 1:])
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=mate, args=(str(tmp_path), there))
    process.start()
    there.close()  # else the end of the other process isn't the end of the pipe
    try:
        assert here.poll(180)
        assert here.recv() == size
        (file,) = (tmp_path / "weights").glob("*.safetensors")
        assert same(layer, untouched)  # which reads every page
        assert shared_share(file) > 0.95
    finally:
        here.send("go")
        process.join()
    assert process.exitcode == 0


def test_other_weights_under_the_same_name_are_never_taken(tmp_path: Path) -> None:
    """A model that changed in its folder gets a file of its own; who has the old one keeps it."""
    first = model(1)
    share(first, tmp_path)
    (file,) = (tmp_path / "weights").glob("*.safetensors")
    before = file.stat().st_ino
    share(model(1), tmp_path)
    assert file.stat().st_ino == before  # used as it is
    second = model(2)
    share(second, tmp_path)
    assert file.stat().st_ino != before
    assert same(first, model(1))
    assert same(second, model(2))


def test_a_damaged_file_is_written_again(tmp_path: Path) -> None:
    """A disk that was full, say, leaves nothing that an answer could come from."""
    share(model(1), tmp_path)
    (file,) = (tmp_path / "weights").glob("*.safetensors")
    damaged = file.with_name("damaged")
    damaged.write_bytes(file.read_bytes()[:1000])
    damaged.replace(file)
    layer = model(1)
    share(layer, tmp_path)
    assert is_mapped(layer.weight)
    assert same(layer, model(1))


def test_another_checkpoint_in_the_same_folder_gets_another_file(tmp_path: Path) -> None:
    """Two workers, before and after a training, don't overwrite each other's file in turn."""
    checkpoint = tmp_path / "model.safetensors"
    for number in range(2):
        checkpoint.write_bytes(b"x" * number)
        share(model(number), tmp_path, folder=tmp_path)
    assert len(list((tmp_path / "weights").iterdir())) == 2


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    """A model's size each time, under our own name for it or safetensors', would fill the disk."""
    weights = tmp_path / "weights"
    weights.mkdir()
    for name in (".tmpAb3dE6", "0123.77.part"):
        (weights / name).write_bytes(b"half")
    share(model(1), tmp_path)
    (file,) = weights.iterdir()
    assert file.suffix == ".safetensors"


def test_what_a_disk_made_of_the_weights_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that reads otherwise than it was written; the weights stay private."""
    monkeypatch.setattr(
        sharing, "save_file", lambda given, to: save_file({k: w + 1 for k, w in given.items()}, to)
    )
    layer = model(1)
    assert share(layer, tmp_path) == 0
    assert not is_mapped(layer.weight)
    assert same(layer, model(1))


def test_whatever_goes_wrong_the_worker_starts(tmp_path: Path) -> None:
    """A checkpoint that vanished after it was loaded, for one: the weights stay private."""
    (tmp_path / "model.safetensors").symlink_to("nowhere")
    layer = model(1)
    assert share(layer, tmp_path, folder=tmp_path) == 0
    assert same(layer, model(1))


def test_where_nothing_can_be_written_the_weights_stay_private(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It costs memory, and one line in the log says so."""
    (tmp_path / "weights").write_text("in the way")
    layer = model(1)
    assert share(layer, tmp_path) == 0
    assert not is_mapped(layer.weight)
    assert same(layer, model(1))
    assert "GOLEM_STATE_DIR" in caplog.text


def test_small_weights_and_mapped_ones_are_not_written(tmp_path: Path) -> None:
    """A file would cost more than it saves."""
    small = torch.nn.Linear(8, 8)
    assert share(small, tmp_path) == 0
    layer = model(1)
    size = share(layer, tmp_path)
    (file,) = (tmp_path / "weights").glob("*.safetensors")
    file.unlink()
    assert share(layer, tmp_path) == size
    assert not file.exists()

"""What a model's files of weights tell before anything loads them."""

import os
from pathlib import Path

import pytest

from golem_tasks.settings import load as load_settings
from tests.support.checkpoints import header
from worker.checkpoint import fingerprint, weights_bytes
from worker.settings import WorkerSettings
from worker.source import EMBEDDED_FOLDER


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's, without weights."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "model"


def asked(model: str | Path, **settings: object) -> int | None:
    """The bytes of a worker's weights."""
    return weights_bytes(load_settings(WorkerSettings, model=str(model), **settings))


@pytest.mark.parametrize(
    ("dtype", "expected"), [("auto", 4000), ("float32", 4000), ("int8", 4000), ("bfloat16", 2000)]
)
def test_weights_are_as_large_as_the_cast_makes_them(
    folder: Path, dtype: str, expected: int
) -> None:
    """A file of halves becomes twice as large on a CPU that computes in float32."""
    header(folder / "model.safetensors", 1000, dtype="BF16")
    assert asked(folder, dtype=dtype) == expected


def test_shards_are_summed_unless_the_whole_is_there_too(folder: Path) -> None:
    """As transformers chooses between them."""
    for number in (1, 2):
        header(folder / f"model-0000{number}-of-00002.safetensors", 400)
    assert asked(folder) == 3200
    header(folder / "model.safetensors", 100)
    assert asked(folder) == 400


def test_a_hub_model_is_found_in_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its revision, without the network; None while it isn't there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert asked("somebody/model") is None
    kept = tmp_path / "hub" / "models--somebody--model"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("abc")
    (kept / "snapshots").mkdir()
    folder.rename(kept / "snapshots" / "abc")
    header(kept / "snapshots" / "abc" / "model.safetensors", 100)
    assert asked("somebody/model") == 400
    assert asked("somebody/model", model_revision="abc") == 400
    assert asked("somebody/model", model_revision="v2") is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"version https://git-lfs.github.com/spec/v1",
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"null",
        (8).to_bytes(8, "little") + b'{"a":{}}',
        (2).to_bytes(8, "little") + b"\xff\xfe",
        None,
    ],
)
def test_what_cant_be_read_isnt_known(folder: Path, content: bytes | None) -> None:
    """The model processes say what is wrong with it, in one sentence."""
    if content is not None:
        (folder / "model.safetensors").write_bytes(content)
    assert asked(folder) is None


def test_a_model_that_isnt_there_isnt_known(tmp_path: Path) -> None:
    """Nor is this the place to say so."""
    assert asked(tmp_path / "none") is None
    assert asked("not a hub id") is None


def test_the_model_that_ships_with_the_worker_is_known() -> None:
    """Its file is all weights, but for the header, and in half precision."""
    stored_bytes = (EMBEDDED_FOLDER / "model.safetensors").stat().st_size
    assert asked("golem-mini") == pytest.approx(2 * stored_bytes, rel=0.01)


def test_another_checkpoint_has_another_fingerprint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another folder, or other weights in the same; the same model has the same by any path."""
    header(folder / "model.safetensors", 100)
    first = fingerprint(folder)
    monkeypatch.chdir(tmp_path)
    assert fingerprint(Path("model")) == first
    (tmp_path / "link").symlink_to(folder)
    assert fingerprint(tmp_path / "link") == first
    os.utime(folder / "model.safetensors", ns=(0, 1))
    trained = fingerprint(folder)
    folder.rename(tmp_path / "other")
    assert len({first, trained, fingerprint(tmp_path / "other"), fingerprint(None)}) == 4

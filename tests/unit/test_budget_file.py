"""The remembered token budget: kept over restarts, and never a reason to fail."""

import json
import logging
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.fake_engine import FakeEngine
from worker.budget_file import KEPT_S, MAX_FILES, BudgetFile

INFO = FakeEngine().info


def only_file(folder: Path) -> Path:
    """The one file there is."""
    [file] = (folder / "ceilings").iterdir()
    return file


def test_what_is_stored_is_recalled_by_another_process(tmp_path: Path) -> None:
    """The next process on the same device begins where this one ended."""
    BudgetFile(str(tmp_path), "ceilings", INFO).store(700)
    assert BudgetFile(str(tmp_path), "ceilings", INFO).recall() == 700
    BudgetFile(str(tmp_path), "ceilings", INFO).store(None)
    assert BudgetFile(str(tmp_path), "ceilings", INFO).recall() is None


@pytest.mark.parametrize("field", ["name", "checkpoint", "revision", "device", "hardware", "dtype"])
def test_each_model_on_each_device_has_its_own(tmp_path: Path, field: str) -> None:
    """Another model, or another of its name; another device, or another of its number."""
    BudgetFile(str(tmp_path), "ceilings", INFO).store(700)
    assert BudgetFile(str(tmp_path), "ceilings", replace(INFO, **{field: "other"})).recall() is None


def test_each_condition_has_its_own(tmp_path: Path) -> None:
    """What a compiled model was found to need isn't an eager one's, nor the other way round."""
    BudgetFile(str(tmp_path), "ceilings", INFO, compile=1).store(700)
    assert BudgetFile(str(tmp_path), "ceilings", INFO).recall() is None
    assert BudgetFile(str(tmp_path), "ceilings", INFO, compile=1).recall() == 700


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"token_budget": 5}',
    ],
)
def test_a_damaged_file_counts_as_none(tmp_path: Path, content: bytes) -> None:
    """It is passed over, and written anew by what is learned next."""
    file = BudgetFile(str(tmp_path), "ceilings", INFO)
    file.store(700)
    only_file(tmp_path).write_bytes(content)
    assert file.recall() is None
    file.store(600)
    assert file.recall() == 600


@pytest.mark.parametrize("value", [0, -1, "many", None, 1.5])
def test_an_absurd_figure_counts_as_none(tmp_path: Path, value: object) -> None:
    """Nobody's typing error stops a worker."""
    file = BudgetFile(str(tmp_path), "ceilings", INFO)
    file.store(700)
    path = only_file(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "token_budget": value}))
    assert file.recall() is None


@pytest.mark.parametrize("age_s", [KEPT_S + 60, -3600, None])
def test_an_old_figure_is_no_longer_believed(tmp_path: Path, age_s: float | None) -> None:
    """Nor one from the future."""
    learned_at = "then" if age_s is None else time.time() - age_s
    file = BudgetFile(str(tmp_path), "ceilings", INFO)
    file.store(700)
    path = only_file(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "learned_at": learned_at}))
    assert file.recall() is None


def test_a_folder_that_cant_be_written_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A read-only disk costs the memory of it, not the work; no half-written file is left."""
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")
    file = BudgetFile(str(in_the_way), "ceilings", INFO)
    with caplog.at_level(logging.WARNING):
        file.store(700)
        file.store(600)
        file.store(None)
    assert [r.getMessage().count("GOLEM_STATE_DIR") for r in caplog.records] == [1]
    assert file.recall() is None
    assert list(tmp_path.iterdir()) == [in_the_way]


def test_the_folder_stays_small(tmp_path: Path) -> None:
    """The oldest figures go, and with them what a killed process left half-written."""
    for number in range(MAX_FILES + 5):
        BudgetFile(str(tmp_path), "ceilings", replace(INFO, name=f"model {number}")).store(
            number + 1
        )
        for file in (tmp_path / "ceilings").iterdir():
            os.utime(file, ns=(0, file.stat().st_mtime_ns - 10**9))
    assert len(list((tmp_path / "ceilings").iterdir())) == MAX_FILES
    assert BudgetFile(str(tmp_path), "ceilings", replace(INFO, name="model 0")).recall() is None
    assert BudgetFile(str(tmp_path), "ceilings", replace(INFO, name="model 68")).recall() == 69


def test_containers_on_one_cpu_take_turns(tmp_path: Path) -> None:
    """The limits of their memory differ, and with them what they tell of their hardware."""
    for gib in (4, 16):
        info = replace(INFO, device="cpu", hardware=f"x86_64, A 1, 8 cores, {gib} GiB")
        with BudgetFile(str(tmp_path), "speeds", info).alone():
            pass
    assert len(list(tmp_path.glob("speeds-*.lock"))) == 1


def test_it_lies_in_the_users_cache_unless_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XDG_CACHE_HOME counts, then the home."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    BudgetFile(None, "ceilings", INFO).store(700)
    assert only_file(tmp_path / "cache" / "golem").suffix == ".json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    BudgetFile("~/state", "ceilings", INFO).store(700)
    assert only_file(tmp_path / "home" / "state").suffix == ".json"

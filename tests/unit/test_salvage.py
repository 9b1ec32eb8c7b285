"""What a model process had computed when it was killed, read by who outlives it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worker.processes import FOLDER
from worker.salvage import Computed, salvage, wait_gone

ANSWERS = st.dictionaries(
    st.text(max_size=8),
    st.recursive(
        st.floats(allow_nan=False) | st.integers() | st.text(max_size=8) | st.booleans(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
        max_leaves=6,
    ),
    max_size=4,
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The worker's own."""
    monkeypatch.setenv(FOLDER, str(tmp_path))
    return tmp_path


def file(folder: Path) -> Path:
    """The one of this process."""
    return folder / f"{os.getpid()}.computed"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(records=st.lists(ANSWERS, max_size=3), kept=st.floats(0, 1))
def test_whatever_a_kill_tears_off_the_rest_is_whole(
    folder: Path, records: list[dict[str, Any]], kept: float
) -> None:
    """What is found are the first records, each of them whole; all of them if nothing is torn."""
    computed = Computed()
    computed.begin()
    expected: list[dict[str, Any]] = [{}]
    file(folder).touch()
    for record in records:
        computed.keep(record)
        expected.append(expected[-1] | record)
    content = file(folder).read_bytes()
    file(folder).write_bytes(content[: round(len(content) * kept)])
    found = salvage(os.getpid())
    assert found in expected
    assert found == expected[-1] or kept < 1


@given(noise=st.binary(max_size=64))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_a_damaged_file_is_no_answer(folder: Path, noise: bytes) -> None:
    """Behind a whole record, what has no checksum to it is left."""
    computed = Computed()
    computed.keep({"a": 1})
    with file(folder).open("ab") as appended:
        appended.write(b"\x01\x00\x00\x00\xff\xff\xff\xff" + noise)
    assert salvage(os.getpid()) == {"a": 1}


def test_it_holds_the_last_dispatch_and_is_read_once(folder: Path) -> None:
    """An id may come again with another text: only the dispatch that was lost counts."""
    computed = Computed()
    computed.keep({"a": 1})
    computed.begin()
    computed.keep({"b": 2})
    assert salvage(os.getpid()) == {"b": 2}
    assert salvage(os.getpid()) == {}
    assert not list(folder.iterdir())


@pytest.mark.parametrize("value", [object(), {"answer": Path()}])
def test_what_isnt_a_plain_value_is_left_out_and_stops_nobody(folder: Path, value: object) -> None:
    """An engine of somebody else's may answer with anything; its job runs again."""
    computed = Computed()
    computed.begin()
    computed.keep({"a": 1})
    computed.keep({"b": value})
    computed.keep({"c": 3})
    assert file(folder).is_file()
    assert salvage(os.getpid()) == {"a": 1, "c": 3}


def test_the_end_of_a_process_is_waited_for_within_bounds() -> None:
    """One that lives on isn't waited for longer than asked; one that has ended, not at all."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert not wait_gone(process.pid, 0.02)
        process.kill()
    assert wait_gone(process.pid, 60)


@pytest.mark.parametrize("variable", ["", "/nowhere/at/all"])
def test_without_a_folder_nothing_is_kept_and_nothing_fails(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """Out of a worker, and where the folder is gone since the worker left."""
    monkeypatch.setenv(FOLDER, variable)
    computed = Computed()
    computed.begin()
    computed.keep({"a": 1})
    assert salvage(os.getpid()) == {}

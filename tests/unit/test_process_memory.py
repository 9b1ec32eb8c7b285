"""What a process takes of memory, read from Linux's files."""

import os
import sys
from pathlib import Path

import pytest

from golem_tasks.backlog import ProcessMemory, WorkerStats
from worker.memory import memory_of

ROLLUP = """55d0c0a00000-7ffd5a9f1000 ---p 00000000 00:00 0                          [rollup]
Rss:              409600 kB
Pss:              204800 kB
Shared_Clean:     300000 kB
Shared_Dirty:          0 kB
Private_Clean:     10240 kB
Private_Dirty:     92160 kB
"""


def folder(proc: Path, **files: str) -> Path:
    """A /proc with process 7 and these files of it."""
    (proc / "7").mkdir()
    for name, text in files.items():
        (proc / "7" / name).write_text(text, encoding="ascii")
    return proc


def test_shared_and_private_pages_are_told_apart(tmp_path: Path) -> None:
    """Resident, proportional and private memory, in MiB."""
    found = memory_of(7, folder(tmp_path, smaps_rollup=ROLLUP))
    assert found == ProcessMemory(pid=7, rss_mib=400.0, pss_mib=200.0, private_mib=100.0)


@pytest.mark.parametrize("rollup", ["", "heading\n", "heading\nRss: many kB\n"])
def test_where_sharing_is_not_told_the_resident_size_is(tmp_path: Path, rollup: str) -> None:
    """An old kernel, or one that doesn't let us look, still tells how many pages there are."""
    pages = 50 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    found = memory_of(7, folder(tmp_path, smaps_rollup=rollup, statm=f"99999 {pages} 1 1 0 1 0\n"))
    assert found == ProcessMemory(pid=7, rss_mib=50.0)


def test_where_nothing_is_told_the_answer_is_none(tmp_path: Path) -> None:
    """No such process, or no Linux."""
    assert memory_of(7, tmp_path) is None
    assert memory_of(7, folder(tmp_path, statm="")) is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_this_process_is_found() -> None:
    """The real files are read as they are."""
    found = memory_of(os.getpid())
    assert found is not None
    assert 1 < found.rss_mib < 100_000
    if found.pss_mib is not None and found.private_mib is not None:
        assert 0 < found.private_mib <= found.pss_mib <= found.rss_mib


def test_what_processes_take_together_counts_shared_pages_once() -> None:
    """The sum of the proportional sizes; the resident one stands in for one that isn't known."""
    stats = WorkerStats(
        name="w",
        at_s=0.0,
        process_memory=(
            ProcessMemory(pid=1, rss_mib=400.0, pss_mib=250.0, private_mib=100.0),
            ProcessMemory(pid=2, rss_mib=300.0),
        ),
    )
    assert stats.memory_mib == 550.0
    assert WorkerStats.model_validate_json(stats.model_dump_json()) == stats
    assert WorkerStats(name="w", at_s=0.0).memory_mib is None

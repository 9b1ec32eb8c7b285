"""What a model process takes of the machine's memory, as Linux tells."""

from __future__ import annotations

import os
from pathlib import Path

from golem_tasks.backlog import ProcessMemory

__all__ = ["memory_of"]

_PROC = Path("/proc")
_KIB_PER_MIB = 1024


def memory_of(pid: int, proc: Path = _PROC) -> ProcessMemory | None:
    """The memory of a process; None where the system doesn't tell, or the process is gone."""
    try:
        return _from_maps(pid, (proc / str(pid) / "smaps_rollup").read_text(encoding="ascii"))
    except (OSError, ValueError, KeyError):
        pass  # an old kernel, or one that shows only root where pages are shared
    try:
        pages = int((proc / str(pid) / "statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return ProcessMemory(pid=pid, rss_mib=round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1))


def _from_maps(pid: int, text: str) -> ProcessMemory:
    """Read ``smaps_rollup``: a heading, then lines such as ``Rss:  1234 kB``."""
    kib = {}
    for line in text.splitlines()[1:]:
        name, value, *_ = line.split()
        kib[name.removesuffix(":")] = int(value)
    return ProcessMemory(
        pid=pid,
        rss_mib=_mib(kib["Rss"]),
        pss_mib=_mib(kib["Pss"]),
        private_mib=_mib(kib["Private_Clean"] + kib["Private_Dirty"]),
    )


def _mib(kib: int) -> float:
    return round(kib / _KIB_PER_MIB, 1)

"""What Linux says of a process: CPU time, memory, open files, children."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Usage", "children", "command", "pss_mib", "usage"]

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_KIB = 1024


@dataclass(frozen=True, slots=True)
class Usage:
    """One process, or several added up, at one moment."""

    cpu_ms: float
    """User and system time since it started, finished threads included."""
    rss_mib: float
    peak_rss_mib: float
    fds: int
    """Open file descriptors."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.cpu_ms + other.cpu_ms,
            self.rss_mib + other.rss_mib,
            self.peak_rss_mib + other.peak_rss_mib,
            self.fds + other.fds,
        )


NOTHING = Usage(0.0, 0.0, 0.0, 0)


def usage(*pids: int) -> Usage:
    """Add up what these processes use now; one that is gone counts as nothing."""
    total = NOTHING
    for pid in pids:
        try:
            total += _one(pid)
        except (OSError, KeyError):  # a zombie's status has no memory lines
            continue
    return total


def pss_mib(*pids: int) -> float:
    """Memory of these processes, pages that several share counted once; what is gone is nothing."""
    total_kib = 0
    for pid in pids:
        with suppress(OSError):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
            total_kib += sum(
                int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")
            )
    return total_kib / _KIB


def children(pid: int) -> list[int]:
    """The direct children of a process; none if it is gone."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(each) for each in text.split()]


def command(pid: int) -> bytes:
    """The command line of a process, NUL between arguments; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _one(pid: int) -> Usage:
    folder = Path(f"/proc/{pid}")
    # The command name, in parentheses, may hold spaces; what follows it doesn't.
    fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    user, system = int(fields[11]), int(fields[12])
    status = dict(
        line.split(":", 1)
        for line in (folder / "status").read_text(encoding="utf-8").splitlines()
        if line.startswith("Vm")
    )
    return Usage(
        cpu_ms=1000 * (user + system) / _TICKS_PER_S,
        rss_mib=int(status["VmRSS"].split()[0]) / _KIB,
        peak_rss_mib=int(status["VmHWM"].split()[0]) / _KIB,
        fds=len(os.listdir(folder / "fd")),  # noqa: PTH208 - a Path for each would be for nothing
    )

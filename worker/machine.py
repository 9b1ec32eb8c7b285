"""What this machine, or the container on it, lets a worker use. Without torch, for the parent."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

__all__ = ["available_cores", "available_memory_bytes"]

_CGROUP = Path("/sys/fs/cgroup")


def available_cores(cpu_max: Path = _CGROUP / "cpu.max") -> int:
    """Cores this process may use: its affinity, or its container's quota if that is less."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text().split()
    except (OSError, ValueError):
        return cores
    if quota == "max":
        return cores
    return max(1, min(cores, math.ceil(int(quota) / int(period))))


def available_memory_bytes(memory_max: Path = _CGROUP / "memory.max") -> int | None:
    """The machine's memory, or its container's limit if that is less; None if nobody tells.

    Not what is free now: a worker that is started again should be the same one.
    """
    found = []
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no such names off Unix
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError):  # no container, or "max"
        found.append(int(memory_max.read_text()))
    return min(found, default=None)

"""What this machine, or the container on it, lets a worker use, and what its libraries are told.

Without torch: for the parent, and for what has to be set before torch is loaded.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
from pathlib import Path

__all__ = [
    "CPU_ENVIRONMENT",
    "available_cores",
    "available_memory_bytes",
    "cores_of",
    "hardware",
    "set_environment",
]

_CGROUP = Path("/sys/fs/cgroup")
_CPU_LINES = ("model name", "CPU implementer", "CPU part")  # x86, arm, arm

CPU_ENVIRONMENT = {
    # A CPU worker shares its cores with its parent, Redis and producers, and threads that spin at a
    # barrier then keep out the one they wait for: on two busy cores the demo answered 42 to 138
    # texts/s with OpenMP's default, 240 to 313 with this.
    "OMP_WAIT_POLICY": "PASSIVE",
    # oneDNN keeps the kernels it compiled for the last 1,024 sizes, and micro-batches have ever new
    # ones: 400 of golem-mini's in bfloat16 took 800 MiB. `worker.bucketing` leaves a few dozen
    # sizes to the linear layers; the rest comes once and needs no keeping.
    "LRU_CACHE_CAPACITY": "16",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
}


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

    Not what is free now: a worker that is started again shouldn't differ by who else was there.
    """
    found = []
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no such names off Unix
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError):  # no container, or "max"
        found.append(int(memory_max.read_text()))
    return min(found, default=None)


def cores_of(index: int, processes: int, cores: int) -> int:
    """The cores of process number `index` of several: as many as the next, or one more.

    The first ones have what division leaves, so that no core is idle; at least 1.
    """
    return max(1, cores // processes + (index < cores % processes))


def hardware(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What makes this machine, or the container on it, as fast and as large as it is.

    Not its name: a container has a new one at each start.
    """
    names: set[str] = set()
    with contextlib.suppress(OSError):  # no Linux
        lines = cpuinfo.read_text(errors="replace").splitlines()
        names = {line.partition(":")[2].strip() for line in lines if line.startswith(_CPU_LINES)}
    cpu = ", ".join([platform.machine(), *sorted(names)])
    memory_gib = round((available_memory_bytes() or 0) / 2**30)
    return f"{cpu}, {os.cpu_count()} cores, {memory_gib} GiB"


def set_environment() -> None:
    """Set what torch reads when it is loaded, unless the operator has."""
    for name, value in CPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)

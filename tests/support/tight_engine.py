"""The real engine in a process that may hardly grow: its allocations really fail.

``GOLEM_ENGINE=tests.support.tight_engine:load``. The kernel refuses this process more address space
than it has plus ``TIGHT_LOADED_MIB`` once the model is loaded, and ``TIGHT_WARM_MIB`` once it is
warmed up. (Float32 only: in bfloat16 oneDNN ends the process where its own small buffers fail.)
"""

import ctypes
import os
import resource
from pathlib import Path

from worker import engine as real
from worker.engine import TorchEngine
from worker.settings import WorkerSettings

M_MMAP_THRESHOLD = -3  # malloc.h


def allow_mib(more: int) -> None:
    """Let this process grow by so much from now on."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def load(settings: WorkerSettings, index: int) -> TorchEngine:
    """Load it, and tighten the limits."""
    # Large tensors get pages of their own and give them back: no hole in the heap to use again.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)
    engine = real.load(settings, index)
    warm_up = engine.warm_up

    def warm_up_and_tighten(token_budget: int) -> None:
        warm_up(token_budget)
        allow_mib(int(os.environ["TIGHT_WARM_MIB"]))

    engine.warm_up = warm_up_and_tighten
    allow_mib(int(os.environ["TIGHT_LOADED_MIB"]))
    return engine

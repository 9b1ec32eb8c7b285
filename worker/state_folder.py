"""The folder for what a worker learns or makes on its machine, and a lock on what is in it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["one_at_a_time", "state_folder"]

_POLL_S = 0.05


def state_folder(state_dir: str | None) -> Path:
    """`GOLEM_STATE_DIR`; None: ``golem`` in the user's cache."""
    if state_dir is not None:
        return Path(os.path.expanduser(state_dir))  # noqa: PTH111 - Path's raises without a home
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - ditto
    return Path(cache, "golem")


@contextmanager
def one_at_a_time(path: Path, wait_s: float) -> Iterator[None]:
    """Wait until no other process is in here with the same path, which needn't be there.

    Raises:
        TimeoutError: one still was, `wait_s` seconds later.
        OSError: the lock's file beside the path can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    over_s = time.monotonic() + wait_s
    with path.with_suffix(".lock").open("ab") as lock:
        while not _locked(lock):
            if time.monotonic() > over_s:
                raise TimeoutError("another process has held it for too long")
            time.sleep(_POLL_S)
        yield


def _locked(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the file, and with the process
    except BlockingIOError:
        return False
    return True

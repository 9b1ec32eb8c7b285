"""The folder for what a worker learns or makes on its machine, and a lock on what is in it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["one_at_a_time", "state_folder"]


def state_folder(state_dir: str | None) -> Path:
    """`GOLEM_STATE_DIR`; None: ``golem`` in the user's cache."""
    if state_dir is not None:
        return Path(os.path.expanduser(state_dir))  # noqa: PTH111 - Path's raises without a home
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - ditto
    return Path(cache, "golem")


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other process is in here with the same folder, which needn't be there.

    Raises:
        OSError: the lock's file beside it can't be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the file, and with the process
        yield

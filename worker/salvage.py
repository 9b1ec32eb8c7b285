"""Answers a model process has computed and not yet stored, kept where they outlive it.

Between the forward pass of a batch and the storing of its results lie Celery's tracers, a few
tenths of a millisecond for each job. A process killed there would take a full batch of computed
answers with it. So it first writes them to a file in the worker's own folder, and the parent reads
the file of a process that died: its jobs run again with their answers at hand, without the model.

The file is a sequence of records, each a length, a CRC-32 (both unsigned, 4 bytes, little-endian)
and that many bytes of `marshal`, which this very Python wrote. What a kill tore off ends it.
"""

from __future__ import annotations

import marshal
import os
import struct
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from worker.processes import FOLDER

__all__ = ["Computed", "salvage", "wait_gone"]

_HEAD = struct.Struct("<II")
_POLL_S = 0.01


class Computed:
    """The file of this process; out of a worker's child there is none, and nothing is kept.

    Nor is it where the disk is full: then a kill costs a forward pass, as it would without.
    """

    def __init__(self) -> None:
        self._path = _path(os.getpid())

    def begin(self) -> None:
        """Forget the dispatch before."""
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    def keep(self, answers: Mapping[str, Any]) -> None:
        """Append answers by the id of their job; plain values, as JSON has them."""
        if self._path is not None and answers:
            with suppress(OSError, ValueError):  # a value that isn't a plain one
                record = marshal.dumps(dict(answers))
                with self._path.open("ab", buffering=0) as file:
                    file.write(_HEAD.pack(len(record), zlib.crc32(record)) + record)


def salvage(pid: int) -> dict[str, Any]:
    """Take what a process that is gone had computed of its last dispatch, by job id."""
    path = _path(pid)
    if path is None:
        return {}
    try:
        content = path.read_bytes()
        path.unlink()
    except OSError:
        return {}
    found: dict[str, Any] = {}
    at = 0
    while at + _HEAD.size <= len(content):
        length, checksum = _HEAD.unpack_from(content, at)
        at += _HEAD.size
        record = content[at : at + length]
        if zlib.crc32(record) != checksum:
            break
        found |= marshal.loads(record)  # noqa: S302 - written by a child of this very process
        at += length
    return found


def wait_gone(pid: int, wait_s: float) -> bool:
    """Wait until a process has ended and its parent has noticed; False if it hasn't by then."""
    over_s = time.monotonic() + wait_s
    while time.monotonic() < over_s:
        try:
            os.kill(pid, 0)
        except OSError:
            return True
        time.sleep(_POLL_S)
    return False


def _path(pid: int) -> Path | None:
    folder = os.environ.get(FOLDER)
    return Path(folder, f"{pid}.computed") if folder else None

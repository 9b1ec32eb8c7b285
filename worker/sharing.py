"""One copy of the weights for all model processes on a machine's CPU.

What is loaded in the checkpoint's own dtype stays mapped from its file, and the kernel keeps one
copy of such pages for all processes. A cast, as to bfloat16, makes a copy for each process. So
where there are several, the first one writes what came of the cast, and all of them map that::

    GOLEM_STATE_DIR/weights/<hash>.safetensors    the weights of one checkpoint in one dtype

A file is used only if every weight in it equals, to the bit, the one just loaded: whatever has
become of the model's folder or of the file meanwhile, answers don't change. What can't be written
is told and otherwise left as it was, for it costs memory and nothing else. Weights in int8 stay
private: torch keeps them in a form of its own, which no file can hold.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from celery.utils.log import get_logger
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from worker.checkpoint import stamps
from worker.state_folder import one_at_a_time, state_folder

__all__ = ["is_mapped", "share_weights"]

logger = get_logger(__name__)

LEAST_BYTES = 16 * 2**20
"""Private weights below this aren't worth a file."""
WRITTEN_S = 300.0
"""Seconds a process that writes is waited for: a large model may go to a slow disk."""
MAX_FILES = 4
"""Files in the folder; those used longest ago go first."""


def share_weights(
    model: torch.nn.Module,
    state_dir: str | None,
    *,
    name: str,
    revision: str | None,
    folder: Path | None = None,
) -> int:
    """Let the model's weights be pages that processes share; return the bytes that are so now.

    Args:
        model: on the CPU.
        state_dir: the folder, `GOLEM_STATE_DIR`; None: ``golem`` in the user's cache.
        name: of the model, as answers have it.
        revision: of a hub model.
        folder: of any other.
    """
    try:
        told = [name, revision, stamps(folder)]
        return _share(model, state_folder(state_dir) / "weights", told)
    except Exception as exc:  # noqa: BLE001 - it saves memory; nothing of it is worth a worker
        logger.debug("Weights aren't shared: %s: %s", type(exc).__name__, exc)
        return 0


def is_mapped(tensor: torch.Tensor) -> bool:
    """Whether the tensor lies in pages of a file; False where the system doesn't tell."""
    regions = _Regions.read()
    return regions is not None and regions.of_file(tensor.data_ptr())


def _share(model: torch.nn.Module, folder: Path, told: list[Any]) -> int:
    """Share by a file in the folder, whose name depends on what is told of the model."""
    regions = _Regions.read()
    if regions is None:
        return 0
    weights = {key: weight.detach() for key, weight in model.named_parameters()}
    private = {key: w for key, w in weights.items() if not regions.of_file(w.data_ptr())}
    shared_bytes = _bytes(weights) - _bytes(private)
    if _bytes(private) < LEAST_BYTES:
        return shared_bytes
    told = [*told, sorted({str(weight.dtype) for weight in private.values()})]
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    try:
        mapped = _mapped(folder / f"{digest[:32]}.safetensors", private)
    except (OSError, SafetensorError, RuntimeError) as exc:
        logger.warning(
            "Each model process keeps %d MiB of weights for itself, since %s can't be written: %s. "
            "GOLEM_STATE_DIR names another folder.",
            _bytes(private) // 2**20, folder, exc,
        )  # fmt: skip
        return shared_bytes
    for key, parameter in model.named_parameters():
        if key in mapped:
            parameter.data = mapped[key]
    weights.clear()
    private_bytes = _bytes(private)
    private.clear()
    _return_freed_memory()
    return shared_bytes + private_bytes


def _mapped(path: Path, wanted: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """These very weights, mapped from the file, which is written if it has others or isn't there.

    Raises:
        OSError, SafetensorError: it can't be written or read, or another process is at it for long.
        RuntimeError: weights overlap in a way that a file can't hold.
    """
    with one_at_a_time(path.parent, WRITTEN_S):
        with contextlib.suppress(OSError, SafetensorError):
            found = load_file(path)
            if _equal(found, wanted):
                with contextlib.suppress(OSError):
                    os.utime(path)  # used
                return found
        path.parent.mkdir(exist_ok=True)
        _sweep(path.parent)
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            save_file({key: weight.contiguous() for key, weight in wanted.items()}, part)
            part.replace(path)  # who has mapped the old one keeps it
        finally:
            part.unlink(missing_ok=True)
        _prune(path.parent)
        found = load_file(path)
        if not _equal(found, wanted):
            raise OSError("what was written reads otherwise")
        return found


def _equal(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(_same(found[key], wanted[key]) for key in found)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal to the bit; a NaN equals itself."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(*(each.contiguous().flatten().view(torch.uint8) for each in (one, other)))


def _bytes(weights: Mapping[str, torch.Tensor]) -> int:
    return sum(weight.nbytes for weight in weights.values())


def _sweep(folder: Path) -> None:
    """Remove what a killed process left half-written, under our name for it or safetensors'."""
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            with contextlib.suppress(OSError):
                file.unlink()


def _prune(folder: Path) -> None:
    with contextlib.suppress(OSError):  # another process is at it as well
        files = sorted(folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
        for file in files[:-MAX_FILES]:
            file.unlink(missing_ok=True)


def _return_freed_memory() -> None:
    """The private copies lay in the middle of the heap, which by itself gives little back."""
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)


class _Regions:
    """This process's mappings of files."""

    def __init__(self, spans: list[tuple[int, int]]) -> None:
        self._starts = [start for start, _ in spans]
        self._ends = [end for _, end in spans]

    @classmethod
    def read(cls, maps: Path = Path("/proc/self/maps")) -> _Regions | None:
        """Read them; None where the system doesn't tell."""
        try:
            lines = maps.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return None
        spans = []
        for line in lines:
            span, _, _, _, inode, *_ = line.split()
            start, end = span.split("-")
            if inode != "0":
                spans.append((int(start, 16), int(end, 16)))
        return cls(spans)  # the kernel lists them in order

    def of_file(self, address: int) -> bool:
        """Whether the address lies in one of them."""
        index = bisect_right(self._starts, address) - 1
        return index >= 0 and address < self._ends[index]

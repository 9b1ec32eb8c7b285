"""What a foreign exception becomes: a model, a tokenizer or an allocator may raise anything."""

from __future__ import annotations

import errno
import traceback

from golem_tasks.errors import InferenceError, JobError, OutOfMemory

__all__ = ["failure", "forget_frames", "is_out_of_memory"]

_CAUSE_CHARS = 300  # torch appends C++ stack traces; a person needs the first line
_MEMORY_SIGNS = (
    "out of memory",  # torch on CUDA, HIP and MPS, and CUDA itself
    "not enough memory",  # torch's CPU allocator on Windows
    "t allocate memory",  # the same on Linux: "can't", and libc's "cannot allocate memory"
    "alloc_failed",  # cuBLAS, cuDNN and hipBLAS, whose work space is allocated beside torch's
    "allocation_failed",  # cuDNN's newer names for it
    # cuBLAS, asked for its first handle on a device that is full. On one that is lost it says the
    # same; there giving memory back fails, with what tells the two apart (`TorchEngine`).
    "blas_status_not_initialized",
    "bad_alloc",  # C++, where it comes through as a RuntimeError
)


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether this is a failed allocation: Python's own, or torch's on any device."""
    if isinstance(exc, MemoryError):
        return True
    if isinstance(exc, OSError):
        return exc.errno == errno.ENOMEM
    if not isinstance(exc, RuntimeError):
        return False
    text = _text(exc).lower()
    return any(sign in text for sign in _MEMORY_SIGNS)


def failure(stage: str, exc: BaseException) -> JobError:
    """The error of the one text that failed alone; it keeps no traceback, so no tensor either."""
    if is_out_of_memory(exc):
        return OutOfMemory(
            "This text alone doesn't fit the worker's memory: shorten it, or run it on a worker "
            "with a larger device."
        )
    name, lines = type(exc).__name__, _text(exc).strip().splitlines()
    return InferenceError.at(stage, f"{name}: {lines[0][:_CAUSE_CHARS]}" if lines else name)


def forget_frames(exc: BaseException) -> None:
    """Let go of the tensors in the frames an exception went through, and those of its causes.

    While it is handled it would keep the very activations alive that didn't fit.
    """
    chain: list[BaseException | None] = [exc]
    seen: set[int] = set()
    while chain:
        each = chain.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        traceback.clear_frames(each.__traceback__)  # the frames still running stay as they are
        each.__traceback__ = None
        chain += [each.__cause__, each.__context__]


def _text(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:  # noqa: BLE001 - a foreign __str__ mustn't hide what it was to describe
        return ""

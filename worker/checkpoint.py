"""A model's files of weights, looked at without loading them: which they are, and how large.

Without torch, so that the parent can decide by it how many processes there is memory for.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from golem_tasks.errors import GolemError
from worker.settings import WorkerSettings
from worker.source import Source, find_source

__all__ = ["fingerprint", "stamps", "weights_bytes"]

_MAX_HEADER_BYTES = 100 * 2**20  # the format's own bound
_HALF = ("bfloat16", "float16")
_UNREADABLE = (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError)


def stamps(folder: Path | None) -> list[tuple[str, int, int]]:
    """Name, size in bytes and time of each file of weights: another checkpoint, another file."""
    found = []
    for file in sorted(folder.glob("*.safetensors")) if folder is not None else ():
        stat = file.stat()
        found.append((file.name, stat.st_size, stat.st_mtime_ns))
    return found


def fingerprint(folder: Path | None) -> str:
    """What tells the checkpoint in a folder from any other; "" for a hub model, whose commit does.

    The folder's real path and a hash of its `stamps`: ``./model`` is another one in each working
    directory, and one that was trained again is another one in the same place.
    """
    if folder is None:
        return ""
    try:
        told = json.dumps(stamps(folder))
    except OSError:  # a link to nowhere; whoever loads it will say so
        told = ""
    return f"{folder.resolve()} {hashlib.sha256(told.encode()).hexdigest()[:16]}"


def weights_bytes(settings: WorkerSettings) -> int | None:
    """Memory for one copy of the model's weights, in the widest dtype the settings may lead to.

    None if that isn't known without the network: a hub model that isn't in the cache yet, or a
    checkpoint that can't be read, of which the model processes tell.
    """
    try:
        source = find_source(settings)
        folder = source.folder or _cached(source)
        if folder is None:
            return None
        whole = folder / "model.safetensors"
        # Where both are, transformers takes the whole one and not the shards.
        files = [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
        numbers = sum(_numbers(file) for file in files)
    except (GolemError, *_UNREADABLE):
        return None
    return numbers * (2 if settings.dtype in _HALF else 4) or None


def _cached(source: Source) -> Path | None:
    """The folder in the hub's cache that holds the model already."""
    try:
        from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - only for hub models
    except ImportError:  # without the worker extra; the model processes tell
        return None
    config = try_to_load_from_cache(source.location, "config.json", revision=source.revision)
    return Path(config).parent if isinstance(config, str) else None


def _numbers(file: Path) -> int:
    """How many numbers a safetensors file holds, by its header.

    Raises:
        OSError: it can't be read.
        ValueError, TypeError, AttributeError, LookupError, RecursionError: it isn't one.
    """
    with file.open("rb") as opened:
        header_bytes = int.from_bytes(opened.read(8), "little")
        if header_bytes > _MAX_HEADER_BYTES:
            raise ValueError("not a safetensors file")
        header: dict[str, Any] = json.loads(opened.read(header_bytes))
    return sum(math.prod(each["shape"]) for key, each in header.items() if key != "__metadata__")

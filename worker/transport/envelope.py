"""Which messages no Celery worker may be shown: odd headers end it, a decompression bomb fills it.

Stock Celery looks a task up by whatever the headers name, a list too, and decompresses a body of
any size on arrival. Here such a message is told from the others before either happens.
"""

from __future__ import annotations

import bz2
import json
import lzma
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

from kombu import compression

from worker.transport.glimpse import END_BYTES, ends, glimpse
from worker.transport.messages import load

__all__ = ["MAX_MESSAGE_BYTES", "UnfitError", "check", "kept", "most_bytes", "read", "unread"]

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Most bytes of a decompressed body where the transport options say nothing."""
DICTIONARY_BYTES = 128 * 1024 * 1024
"""Memory xz may use; its highest preset needs half of that."""

_DECOMPRESSORS: dict[Any, Callable[[], Any]] = {
    zlib.decompress: zlib.decompressobj,
    bz2.decompress: bz2.BZ2Decompressor,
    lzma.decompress: partial(lzma.LZMADecompressor, memlimit=DICTIONARY_BYTES),
}
"""For each of kombu's decoders, one that can stop half-way."""
if hasattr(compression, "zstd"):  # kombu has it only where the package for it is installed
    _DECOMPRESSORS[compression.zstd.decompress] = compression.zstd.ZstdDecompressor


class UnfitError(ValueError):
    """Raised for a message that mustn't reach a consumer; says why, and nothing of its content."""

    payload: Any = None
    """What could be decoded of it: whoever it is from may still be told."""


def read(raw: bytes, channel: Any, max_bytes: int) -> Any:
    """Decode a message as kombu does, after `check` has found nothing wrong with it.

    Args:
        raw: the message as it came.
        channel: kombu's, which makes the message.
        max_bytes: allowed for a body once it is decompressed.

    Raises:
        UnfitError: `check` refuses it, or kombu can't read it.
    """
    payload = None
    if len(raw) > (most := most_bytes(max_bytes)):
        raise unread(raw, f"it has {len(raw)} bytes, {most} are read at most")
    try:
        payload = load(raw)
        check(payload, channel.decode_body, max_bytes)
        return channel.Message(payload, channel=channel)
    except UnfitError as exc:
        exc.payload = payload
        raise
    except Exception as exc:  # noqa: BLE001 - codecs raise anything; the text may quote the content
        unfit = UnfitError(f"it can't be decoded ({type(exc).__name__})")
        unfit.payload = payload
        raise unfit from None


def most_bytes(max_bytes: int) -> int:
    """Bytes of a message that is decoded at all: its body in base64, and room for its headers."""
    return 2 * (max_bytes + END_BYTES)


def kept(raw: bytes, max_bytes: int) -> bytes:
    """What is kept of a message that is refused: of one too large to be decoded both ends."""
    return ends(raw) if len(raw) > most_bytes(max_bytes) else raw


def unread(raw: bytes, reason: str) -> UnfitError:
    """Build the error of a message that isn't decoded, with what can be told of it all the same."""
    unfit = UnfitError(reason)
    unfit.payload = glimpse(raw)
    return unfit


def check(payload: Any, decode_body: Callable[[Any, Any], Any], max_bytes: int) -> None:
    """Refuse a message that would end the worker or fill its memory.

    Args:
        payload: the decoded message.
        decode_body: kombu's ``Channel.decode_body``.
        max_bytes: allowed for a body once it is decompressed.

    Raises:
        UnfitError: its headers or its task are no task's, or its body is no bounded text.
    """
    headers = payload.get("headers")
    if headers is None:
        headers = {}
    if not isinstance(headers, dict):
        raise UnfitError("its headers are no object")
    method = headers.get("compression")
    if not method and "task" in headers:
        _check_task(headers)
        return
    body = decode_body(payload.get("body"), payload["properties"].get("body_encoding"))
    if method:
        body = _decompressed(body, method, max_bytes)
    if "task" in headers:
        _check_task(headers)
    else:
        _check_protocol_1(body, max_bytes)


def _check_task(described: dict[str, Any]) -> None:
    for name in ("task", "id"):
        if not isinstance(described.get(name), str):
            raise UnfitError(f"its {name} is no string")


def _check_protocol_1(body: Any, max_bytes: int) -> None:
    """Celery's first protocol names the task in the body; what is no task of it is left alone."""
    if isinstance(body, str | bytes) and len(body) > max_bytes:
        raise UnfitError(f"its body has {len(body)} bytes and no task is named beside it")
    try:
        described = json.loads(body)
    except (TypeError, ValueError, RecursionError):
        return
    if isinstance(described, dict) and "task" in described:
        _check_task(described)


def _decompressed(body: Any, method: Any, max_bytes: int) -> bytes:
    """Decompress as kombu would, up to a bound."""
    try:
        decompressor = _DECOMPRESSORS[compression.get_decoder(method)]()
    except (KeyError, TypeError):
        raise UnfitError("its compression method isn't known here") from None
    try:
        text: bytes = decompressor.decompress(body, max_bytes + 1)
    except (TypeError, ValueError, OSError, zlib.error, lzma.LZMAError) as exc:
        raise UnfitError("its body can't be decompressed") from exc
    if len(text) > max_bytes:
        raise UnfitError(f"its body decompresses to more than {max_bytes} bytes")
    if not decompressor.eof or decompressor.unused_data:  # kombu would go on with a second stream
        raise UnfitError("its body isn't one compressed stream")
    return text

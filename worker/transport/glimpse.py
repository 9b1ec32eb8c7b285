"""What a message tells of itself without being decoded: the members at either end of its JSON.

A message that is too large to be decoded, or that no decoder takes as a whole, often names its job
all the same. kombu writes the body first, headers and properties last; others may do it the other
way round. So a bounded piece of each end is read, and only members that are complete there count.
"""

from __future__ import annotations

import json
from typing import Any

__all__ = ["END_BYTES", "ends", "glimpse"]

END_BYTES = 32 * 1024
"""Read of each end of a message; Celery's headers and properties take about one."""
TRIES = 8
"""Places of the last piece that are tried for the first of the members in it."""
_WANTED = ("headers", "properties")
_DECODER = json.JSONDecoder()


def glimpse(raw: bytes) -> dict[str, Any]:
    """The headers and properties of a message, as far as they can be told; never raises."""
    # What isn't text stays recognisable as such: an id with it in is none.
    first = raw[:END_BYTES].decode(errors="surrogateescape")
    last = raw[-END_BYTES:].decode(errors="surrogateescape")
    found = {**_leading(first), **_trailing(last)}
    return {name: found[name] for name in _WANTED if isinstance(found.get(name), dict)}


def ends(raw: bytes) -> bytes:
    """Both ends of a message, which `glimpse` reads as it reads the whole."""
    return raw if len(raw) <= 2 * END_BYTES else raw[:END_BYTES] + raw[-END_BYTES:]


def _leading(text: str) -> dict[str, Any]:
    """Members of the object that begins here, up to the first that isn't complete."""
    members: dict[str, Any] = {}
    rest = text.lstrip()
    mark = "{"
    while rest.startswith(mark):
        try:
            name, end = _DECODER.raw_decode(rest[1:].lstrip())
            rest = rest[1:].lstrip()[end:].lstrip()
            if not isinstance(name, str) or not rest.startswith(":"):
                break
            value, end = _DECODER.raw_decode(rest[1:].lstrip())
        except (RecursionError, ValueError):
            break
        rest = rest[1:].lstrip()[end:].lstrip()
        members[name] = value
        mark = ","
    return members


def _trailing(text: str) -> dict[str, Any]:
    """Members of the object that ends here, from the first place on at which one may begin.

    That the rest is an object's end, with one brace and no more, shows that they are its own, and
    no part of a member or of a text in it.
    """
    members: dict[str, Any] = {}
    at = len(text)
    for _ in range(TRIES):
        at = max(text.rfind(f'"{name}"', 0, at) for name in _WANTED)
        if at < 0:
            break
        try:
            members = json.loads("{" + text[at:])
        except (RecursionError, ValueError):
            continue
    return members

"""Hostile messages by the thousand, the same ones for the same seed.

Each carries `MARK` where its text would be, so that a log can be searched for it. The names of its
arguments and its task are no text: a log may show these.
"""

import base64
import bz2
import json
import pickle
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

__all__ = ["FORGED", "MARK", "Hostile", "flood"]

MARK = "confidential-text"
FORGED = "x\n[2026-01-01 00:00:00,000: CRITICAL/MainProcess] forged"
"""A name that would be a line of its own in a log."""
BOMB_BYTES = 64 * 1024 * 1024
_BOMB = zlib.compress(MARK.encode() + b" " * BOMB_BYTES, 9)
_JUNK: list[Any] = [None, True, -1, 1.5, "", "x" * 300, "\0", "\ud800", [], [[]], {}, {"a": [1]}]


@dataclass(frozen=True, slots=True)
class Hostile:
    """One message."""

    kind: str
    id: str | None
    """The job id a worker can read in it, if there is one."""
    raw: bytes


@dataclass
class _Draft:
    """A valid message, for a kind to spoil."""

    chance: random.Random
    id: str
    trap: Path
    body: Any = field(init=False)
    headers: dict[str, Any] = field(init=False)
    properties: dict[str, Any] = field(init=False)
    top: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.body = [[f"{MARK} {self.id}"], {}, {}]
        self.headers = {"lang": "py", "task": "golem.classify", "id": self.id}
        self.properties = {
            "correlation_id": self.id,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "golem"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(UUID(int=self.chance.getrandbits(128))),
        }
        self.top = {"content-type": "application/json", "content-encoding": "utf-8"}

    def junk(self) -> Any:
        return self.chance.choice(_JUNK)

    def raw(self) -> bytes:
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        parts = {"headers": self.headers, "properties": self.properties}
        return json.dumps({"body": base64.b64encode(body).decode(), **self.top, **parts}).encode()


class _Trap:
    """What a pickle of it does when it is opened: it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


# Each of these has an id a worker can read: its producer must hear of it.


def _arguments(draft: _Draft) -> None:
    draft.body[0] = [draft.junk() for _ in range(draft.chance.randint(0, 3))]


def _options(draft: _Draft) -> None:
    names = ("top_k", "logits", "on_long", "text", "texts", "self", "x")
    draft.body[1] = {draft.chance.choice(names): draft.junk() for _ in range(2)}


def _body_of_another_shape(draft: _Draft) -> None:
    draft.body = draft.chance.choice([draft.junk(), [draft.junk()], [1, 2, 3], {"task": MARK}])


def _embed(draft: _Draft) -> None:
    names = ("callbacks", "errbacks", "chain", "chord", "id", "task", "retries")
    draft.body[2] = {draft.chance.choice(names): draft.junk(), MARK: draft.junk()}


def _broken_json(draft: _Draft) -> None:
    draft.body = json.dumps(draft.body).encode()[: draft.chance.randint(1, 30)]


def _bytes(draft: _Draft) -> None:
    draft.body = MARK.encode() + draft.chance.randbytes(60)


def _nested(draft: _Draft) -> None:
    depth = draft.chance.choice([200, 5_000])
    draft.body = b'[["' + MARK.encode() + b'"], {"x": ' + b"[" * depth + b"]" * depth + b"}, {}]"


def _giant_number(draft: _Draft) -> None:
    draft.body = f'[["{MARK}"], {{"top_k": {"9" * 6_000}}}, {{}}]'.encode()


def _not_a_number(draft: _Draft) -> None:
    number = draft.chance.choice(["NaN", "Infinity", "-Infinity", "1e999"])
    draft.body = f'[["{MARK}"], {{"top_k": {number}}}, {{}}]'.encode()


def _text(draft: _Draft) -> None:
    texts = [f"{MARK}\0", f"\ud800{MARK}", "", " \n", MARK * 8_000]
    draft.body[0] = [draft.chance.choice(texts)]


def _unknown_task(draft: _Draft) -> None:
    draft.headers["task"] = draft.chance.choice(["golem.classfy", "", "os.system", FORGED, "\0"])


def _headers(draft: _Draft) -> None:
    names = ("eta", "expires", "retries", "timelimit", "group", "group_index", "root_id", "origin")
    for name in draft.chance.sample(names, 2):
        draft.headers[name] = draft.junk()


def _dates(draft: _Draft) -> None:
    dates = ["99999-01-01T00:00:00", "0001-01-01T00:00:00", "yesterday", MARK, -1e300, 10**30]
    draft.headers["expires"] = draft.chance.choice(dates)
    draft.headers["eta"] = draft.chance.choice(["99999-01-01T00:00:00", "soon", None, [MARK]])


def _pickle(draft: _Draft) -> None:
    draft.body = pickle.dumps(([MARK, _Trap(draft.trap)], {}, {}))
    draft.top = {"content-type": "application/x-python-serialize", "content-encoding": "binary"}


def _other_content(draft: _Draft) -> None:
    kinds = ["application/x-yaml", "application/x-msgpack", "text/plain", "", MARK, None, 7, [1]]
    draft.top["content-type"] = draft.chance.choice(kinds)
    draft.top["content-encoding"] = draft.chance.choice(["utf-16", "no-such", "binary", None, 3])


def _reply_to(draft: _Draft) -> None:
    draft.properties["reply_to"] = draft.junk()
    draft.body[1] = {"top_k": "many"}


def _compressed(draft: _Draft) -> None:
    text = json.dumps(draft.body).encode()
    draft.headers["compression"] = draft.chance.choice(["application/x-gzip", "x-bz2", MARK, 7])
    draft.body = draft.chance.choice([bz2.compress(text), zlib.compress(text)[:-4], text])


def _bomb(draft: _Draft) -> None:
    draft.headers["compression"] = "application/x-gzip"
    draft.body = _BOMB


# What these leave has no id, or is no Celery message at all: it belongs to the dead envelopes.


def _forged_names(draft: _Draft) -> None:
    draft.headers[draft.chance.choice(["id", "task"])] = draft.chance.choice([[], {}, 7, [MARK]])
    draft.properties["correlation_id"] = None


def _no_properties(draft: _Draft) -> None:
    draft.properties = draft.chance.choice([{}, {"delivery_tag": 7}, {"delivery_info": MARK}])


# Rarer, since they cost a model process time, or one of the 1,000 places of the dead envelopes.
_RARE: tuple[Callable[[_Draft], None], ...] = (
    _arguments, _options, _not_a_number, _nested, _text, _reply_to, _compressed,
)  # fmt: skip
_REFUSED: tuple[Callable[[_Draft], None], ...] = (
    _body_of_another_shape, _embed, _broken_json, _bytes, _giant_number, _unknown_task, _headers,
    _dates, _pickle, _other_content,
)  # fmt: skip
_DEAD: tuple[Callable[[_Draft], None], ...] = (_forged_names, _no_properties)


def flood(count: int, trap: Path, seed: int = 1) -> list[Hostile]:
    """So many messages: one in 25 unreadable, one in 500 a bomb, one in 50 a copy of another.

    Args:
        count: how many.
        trap: the file an opened pickle would make.
        seed: of the choice.
    """
    chance = random.Random(seed)  # noqa: S311 - test data
    made: list[Hostile] = []
    for number in range(count):
        if made and number % 50 == 0:
            made.append(chance.choice(made))
            continue
        draft = _Draft(chance, str(UUID(int=chance.getrandbits(128))), trap)
        if number % 25 == 1:
            made.append(_unreadable(draft))
            continue
        kinds = _RARE if number % 5 == 0 else _REFUSED
        spoil = _bomb if number % 500 == 2 else chance.choice(kinds)
        spoil(draft)
        made.append(Hostile(spoil.__name__, draft.id, draft.raw()))
    return made


def _unreadable(draft: _Draft) -> Hostile:
    spoil = draft.chance.choice(_DEAD)
    if draft.chance.random() < 0.5:
        cut = draft.raw()[: draft.chance.randint(0, 60)]
        return Hostile("cut off", None, draft.chance.choice([cut, draft.chance.randbytes(40)]))
    spoil(draft)
    return Hostile(spoil.__name__, None, draft.raw())

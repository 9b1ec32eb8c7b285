r"""Dead letters in Redis: what is kept of a job that was given up, and how it gets there.

=========================  ======  ===================================================  ===========
key                        type    content                                              TTL
=========================  ======  ===================================================  ===========
``golem:dead``             zset    job id, scored by the Unix time in seconds at which  none: at
                                   it was given up                                      most as many
``golem:dead:facts``       hash    job id -> a `DeadLetter` as JSON                     entries as
``golem:dead:messages``    hash    job id -> the message as its producer sent it; text  the setting
                                   of the job is in here only                           allows
``golem:dead:envelopes``   list    messages no worker could read, as they came, newest  none: at
                                   left; the worker's transport writes them             most 1,000
``unacked``                hash    Celery's own: messages a worker has and hasn't       none: queue
                                   acknowledged, by delivery tag
``golem:deliveries:{tag}`` string  the transport's: deliveries so far of a message      1 day
``golem:dead:tried:{tag}`` string  ``worker.trials``: a message is being run alone      1 day
=========================  ======  ===================================================  ===========
All of them have ``global_keyprefix`` before them and are in the broker's database.

A worker writes the letter first, then the job's FAILURE, and acknowledges the message last. Killed
in between, its message is delivered again and the letter, being kept by the job's id, overwritten.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from typing import Any

__all__ = ["PRIORITY_SEPARATOR", "DeadLetter", "Keys", "bury", "script"]

PRIORITY_SEPARATOR = "\x06\x16"
"""kombu's: between a queue's name and its priority step in the name of a list."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What is known of a job that was given up; its message is kept beside this."""

    id: str
    """What `golem_tasks.DeadLetters` takes: the job's id, or that of an unreadable message."""
    job_id: str | None = None
    """The job's id; None where a message doesn't tell."""
    task: str | None = None
    list_name: str = ""
    """The Redis list it came from, without the key prefix: its queue and priority step."""
    delivery_tag: str = ""
    reason: str = ""
    """``crash``, ``deliveries`` (see `golem_tasks.PoisonJob`), or ``unreadable``."""
    error: str = ""
    """The sentence its producer got."""
    deliveries: int = 0
    """How often it was handed to a worker."""
    crashes: int = 0
    """How often it ended its process, alone in it, in the worker that gave it up."""
    sent_s: float | None = None
    """Unix time at which its producer sent it; None if the producer didn't say."""
    received_s: float | None = None
    """Unix time at which the worker that gave it up received it."""
    died_s: float | None = None
    """Unix time at which it was given up."""
    worker: str | None = None
    """Node name of the worker that gave it up, such as ``celery@host``."""
    message_bytes: int = 0

    @property
    def queue(self) -> str:
        """The queue it came from; empty where that isn't known."""
        return self.list_name.partition(PRIORITY_SEPARATOR)[0]

    def dump(self) -> str:
        """As it is stored."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, stored: bytes | str) -> DeadLetter:
        """Read what `dump` wrote, by this version or another that tells more or less."""
        told: dict[str, Any] = json.loads(stored)
        known = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in told.items() if name in known})


@dataclass(frozen=True, slots=True)
class Keys:
    """Full names, the global key prefix included."""

    index: str
    facts: str
    messages: str
    envelopes: str
    unacked: str
    deliveries: str
    """Prefix of the delivery counts; the tag follows."""
    tried: str
    """Prefix of the notes of trials; the tag follows."""

    @classmethod
    def of(cls, prefix: str) -> Keys:
        """Build the names from the global key prefix."""
        return cls(
            index=prefix + "golem:dead",
            facts=prefix + "golem:dead:facts",
            messages=prefix + "golem:dead:messages",
            envelopes=prefix + "golem:dead:envelopes",
            unacked=prefix + "unacked",
            deliveries=prefix + "golem:deliveries:",
            tried=prefix + "golem:dead:tried:",
        )


def script(name: str) -> str:
    """Text of a Lua script of this package."""
    return (files("golem_tasks") / f"{name}.lua").read_text("utf-8")


def bury(
    evaluate: Callable[..., Any], keys: Keys, letter: DeadLetter, message: str, most: int
) -> None:
    """Keep a letter and its message, and of all letters the newest `most`; safe to do twice.

    Args:
        evaluate: ``eval`` of a client of the broker.
        keys: names of the keys.
        letter: what is known of the job; ``died_s`` is set.
        message: the message as its producer sent it.
        most: letters to keep.

    Raises:
        redis.exceptions.RedisError, OSError: the broker is away or refuses.
    """
    names = (keys.index, keys.facts, keys.messages)
    told = (letter.id, letter.died_s, letter.dump(), message, most)
    evaluate(script("bury"), len(names), *names, *told)

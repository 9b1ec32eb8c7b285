"""The keys the transport touches, by name; fetch.lua says what each of them holds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

__all__ = ["DEAD_ENTRIES", "DELIVERIES_TTL_S", "LEASES_TTL_S", "Keys", "script"]

DELIVERIES_TTL_S = 24 * 3600
DEAD_ENTRIES = 1_000
LEASES_TTL_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class Keys:
    """Full names, the global key prefix included."""

    unacked: str
    index: str
    mutex: str
    deliveries: str
    """Prefix of the delivery counts; the tag follows."""
    fetch: str
    """Prefix of the record of a channel's latest fetch; the channel's own id follows."""
    dead: str
    leases: str

    @classmethod
    def of(cls, prefix: str, unacked: str, index: str, mutex: str) -> Keys:
        """Build the names from the global key prefix and kombu's three configurable ones."""
        return cls(
            unacked=prefix + unacked,
            index=prefix + index,
            mutex=prefix + mutex,
            deliveries=prefix + "golem:deliveries:",
            fetch=prefix + "golem:fetch:",
            dead=prefix + "golem:dead:envelopes",
            leases=prefix + "golem:leases",
        )


@cache
def script(name: str) -> str:
    """Text of a Lua script of this package."""
    return (files(__package__) / f"{name}.lua").read_text("utf-8")

"""Why a Redis can't be used, in one sentence: what happened, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from redis import exceptions
from redis.sentinel import MasterNotFoundError

from golem_tasks._urls import mask_url

__all__ = ["sentence"]

_Sign: TypeAlias = Callable[[BaseException, str], bool]
"""Looks at an error and at its text."""

_PIPELINE = " of pipeline caused error: "  # redis-py puts the command, keys and all, before it


def _is(*kinds: type[BaseException]) -> _Sign:
    return lambda error, _: isinstance(error, kinds)


def _says(words: str) -> _Sign:
    return lambda error, text: isinstance(error, exceptions.RedisError) and words in text


# What happened and what to do. The first that fits counts: some classes are others' subclasses.
_SENTENCES: tuple[tuple[_Sign, str, str], ...] = (
    (
        _says("without any password configured"),
        "Redis at {where} refused the login ({cause})",
        "it has no password, so take yours out of {setting}, or set one there",
    ),
    (
        _is(
            exceptions.AuthenticationError,
            exceptions.AuthorizationError,
            exceptions.AuthenticationWrongNumberOfArgsError,
        ),
        "Redis at {where} refused the login ({cause})",
        "correct user and password in {setting}",
    ),
    (
        _is(exceptions.InvalidResponse),
        "What answers at {where} isn't Redis",
        "correct host and port in {setting}",
    ),
    (
        _is(exceptions.TimeoutError, TimeoutError),
        "Redis at {where} didn't answer in time ({cause})",
        "see to it{tls_in_vain}, or correct {setting}",
    ),
    (
        _is(MasterNotFoundError),
        "No Sentinel at {where} names a server for {master!r}",
        "start them, or correct GOLEM_SENTINEL_MASTER, GOLEM_SENTINEL_PASSWORD or {setting}",
    ),
    (
        _is(exceptions.OutOfMemoryError),
        "Redis at {where} is full ({cause})",
        "let workers empty it, or raise its maxmemory",
    ),
    (
        _is(exceptions.BusyLoadingError),
        "Redis at {where} is still reading its data from disk ({cause})",
        "try again when it has",
    ),
    (
        _is(exceptions.ReadOnlyError),
        "Redis at {where} is a read-only replica ({cause})",
        "name its primary in {setting}",
    ),
    (
        _is(exceptions.NoPermissionError),
        "Redis at {where} doesn't allow this user what Golem needs ({cause})",
        "grant it what the users in deploy/redis have, or name another one in {setting}",
    ),
    (
        _is(exceptions.ClusterError, exceptions.AskError, exceptions.ClusterCrossSlotError),
        "Redis at {where} is part of a Redis Cluster, which isn't supported ({cause})",
        "name one that stands alone, or has Sentinels, in {setting}",
    ),
    (
        _says("DB index is out of range"),
        "Redis at {where} has no database of that number ({cause}; by default there are 0 to 15)",
        "correct the end of {setting}",
    ),
    (
        _says("unknown command 'SENTINEL'"),
        "What answers at {where} isn't a Sentinel ({cause})",
        "correct host and port in {setting}, or begin it with redis://",
    ),
    (
        _says("unknown command"),
        "What answers at {where} doesn't know a command that Golem needs ({cause})",
        "name a Redis or Valkey server itself, no Sentinel, in {setting}",
    ),
    (
        _is(exceptions.ResponseError),
        "Redis at {where} refused a command ({cause})",
        "see to it, or correct {setting}",
    ),
    (
        lambda *_: True,
        "Redis at {where} can't be reached{by_tls} ({cause})",
        "start it, or correct {certificates}{setting}",
    ),
)


def sentence(error: BaseException, url: str, setting: str, sentinel_master: str) -> str:
    """Say what is wrong.

    Args:
        error: what redis-py raised.
        url: of the server, with its password; shown without.
        setting: the environment name an operator corrects.
        sentinel_master: the master's name, for a ``sentinel://`` URL.
    """
    text = str(error).strip().rpartition(_PIPELINE)[2].rstrip(".") or type(error).__name__
    tls = url.startswith("rediss:")
    what, remedy = next(rest for fits, *rest in _SENTENCES if fits(error, text))
    if "closed by server" in text and url.startswith("redis:"):
        text += "; if it speaks TLS, its URL begins with rediss://"
    certificates = "its address and certificates (ssl_ca_certs, ssl_certfile, ssl_keyfile) in "
    return f"{what}: {remedy}.".format(
        where=mask_url(url),
        cause=text,
        setting=setting,
        master=sentinel_master,
        by_tls=" by TLS" if tls else "",
        tls_in_vain=" and that it speaks TLS" if tls else "",
        certificates=certificates if tls else "",
    )

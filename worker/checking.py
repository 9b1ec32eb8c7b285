"""What is wrong with a message, told before Celery makes a request of it. Pure."""

from __future__ import annotations

from typing import Any

from celery.utils.time import maybe_iso8601, maybe_make_aware, timezone

from golem_tasks.errors import InvalidJob

__all__ = ["check", "encodable", "is_list", "is_triple"]

LISTS = ("callbacks", "errbacks", "chain")


def check(message: Any, max_bytes: int, app: Any) -> None:
    """Refuse what Celery would stumble over.

    Raises:
        InvalidJob: with the field and the reason, none of which quotes the content.
        ArithmeticError, AttributeError, TypeError, ValueError, KombuError: it can't be read.
    """
    if len(message.body or "") > max_bytes:
        reason = f"has {len(message.body)} bytes, {max_bytes} are allowed"
        raise InvalidJob.because("message", reason)
    _check_headers(message.headers, app)
    payload = message.payload
    if not isinstance(payload, list | tuple) or len(payload) != 3:  # noqa: PLR2004 - the protocol's
        raise InvalidJob.because("body", "must be [args, kwargs, embed], Celery's protocol 2")
    args, kwargs, embed = payload
    if not isinstance(args, list):
        raise InvalidJob.because("args", "must be a list")
    if not isinstance(kwargs, dict):
        raise InvalidJob.because("kwargs", "must be an object")
    if not isinstance(embed, dict | None):
        raise InvalidJob.because("embed", "must be an object")
    if embed:
        _check_embed(embed)


def _check_headers(headers: dict[str, Any], app: Any) -> None:
    task_id = headers.get("id")
    if not isinstance(task_id, str) or not encodable(task_id):
        raise InvalidJob.because("id", "must be a string in the message's headers")
    if not isinstance(headers.get("group"), str | None):
        raise InvalidJob.because("group", "must be a string")
    index = headers.get("group_index")
    if not isinstance(index, int | None) or isinstance(index, bool):
        raise InvalidJob.because("group_index", "must be an integer")  # Redis would refuse it
    if eta := headers.get("eta"):
        # Celery prints a job's arguments when no timer can be set for this.
        timezone.to_system(maybe_make_aware(maybe_iso8601(eta), app.timezone)).timestamp()


def _check_embed(embed: dict[str, Any]) -> None:
    """Leave in it only what is Celery's: all of it overrides the request, its id included."""
    for name in embed.keys() - {*LISTS, "chord"}:
        del embed[name]
    for name in LISTS:
        value = embed.get(name)
        if value is not None and not is_list(value):
            raise InvalidJob.because(name, "must be a list of Celery signatures")
    if not isinstance(embed.get("chord"), dict | None):
        raise InvalidJob.because("chord", "must be a Celery signature")


def is_list(value: Any) -> bool:
    """Whether it is a list of tables, as Celery's signatures are."""
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def is_triple(payload: Any) -> bool:
    """Whether it is a body of protocol 2: args, kwargs and embed."""
    return isinstance(payload, list) and len(payload) == 3  # noqa: PLR2004 - the protocol's


def encodable(text: str) -> bool:
    """Whether it can be part of a key in Redis."""
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which no key in Redis can hold
        return False
    return True

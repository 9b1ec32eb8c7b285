"""The record of a bulk submit: a group's, as Celery saves it, for any Celery client to restore.

============================  =======  ================================================  ========
key                           type     content                                           TTL
============================  =======  ================================================  ========
``celery-taskset-meta-{id}``  string   the jobs' ids, about 60 bytes for each            as the
                                                                                         answers'
============================  =======  ================================================  ========
It has ``global_keyprefix`` before it. Written once, before the first job of the submit is sent; a
submit that failed leaves one that nobody knows, until it expires.
"""

from __future__ import annotations

from collections.abc import Sequence

from celery.backends.base import KeyValueStoreBackend
from kombu.utils.json import dumps, loads

from golem_tasks._wire import Message
from golem_tasks.errors import BulkNotFound
from golem_tasks.settings import ClientSettings

__all__ = ["group_ids", "group_key", "group_record"]


def group_key(settings: ClientSettings, group_id: str) -> str:
    """Key of the record."""
    return f"{settings.global_keyprefix}{KeyValueStoreBackend.group_keyprefix}{group_id}"


def group_record(settings: ClientSettings, group_id: str, job_ids: Sequence[str]) -> Message:
    """Compose what ``GroupResult.save`` stores."""
    saved = {"result": [[group_id, None], [[[job_id, None], None] for job_id in job_ids]]}
    expiry = ("EX", str(settings.result_expires_s))
    text = dumps(saved)
    return Message(group_id, group_key(settings, group_id), text, len(text), "SET", expiry)


def group_ids(settings: ClientSettings, group_id: str, raw: bytes | None) -> list[str]:
    """Return the ids of a group's jobs, in order.

    Raises:
        BulkNotFound: nothing is recorded under this id, or what is isn't a group of jobs.
    """
    if raw is None:
        raise BulkNotFound(
            f"No bulk submit is known as {group_id}: either it was sent more than "
            f"{settings.result_expires_s} s ago (GOLEM_RESULT_EXPIRES_S) and is forgotten, or it "
            "went to another Redis or GOLEM_GLOBAL_KEYPREFIX.",
            group_id,
        )
    try:
        (_, results) = loads(raw)["result"]
        if any(children is not None for _, children in results):
            raise TypeError("a group is among its jobs")  # noqa: TRY301 - unreadable like the rest
        ids = list(dict.fromkeys(str(job_id) for (job_id, _), _ in results))
    except (KeyError, TypeError, ValueError) as exc:
        raise BulkNotFound(
            f"What is recorded as {group_id} isn't a group of jobs ({exc}): take the id of a bulk "
            "submit, or of a plain group that was saved by a Celery producer.",
            group_id,
        ) from exc
    return ids

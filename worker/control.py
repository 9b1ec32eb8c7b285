"""Remote control commands that Golem answers otherwise than stock Celery.

Importing this module registers them in the place of Celery's own of the same name.
"""

from __future__ import annotations

from typing import Any

from celery import states
from celery.utils.functional import maybe_list
from celery.utils.log import get_logger
from celery.worker import state as worker_state
from celery.worker.control import control_command, nok, ok

__all__ = ["pool_grow", "pool_shrink", "revoke", "terminate"]

logger = get_logger(__name__)

_WAITING = frozenset({states.PENDING, states.RECEIVED, states.RETRY, states.REJECTED})
_MOST_ID_CHARS = 10_000
"""Longer ones are taken for a mistake: they would be kept in memory, and named in the log."""
_NO_IDS = (
    "Refused: no job has such an id. Send the ids as texts of 1 to "
    f"{_MOST_ID_CHARS:,} characters that can be encoded as UTF-8."
)
_FIXED = (
    "Refused: each model process has its device and its share of the cores from the start. "
    "Set GOLEM_PROCESSES and restart, or scale by starting or stopping workers."
)


@control_command(variadic="task_id", signature="[id1 [id2 [... [idN]]]]")  # type: ignore[untyped-decorator]  # Celery ships no types
def revoke(
    state: Any, task_id: Any, terminate: bool = False, signal: Any = None, **_: Any
) -> dict[str, str]:
    """Revoke task by task id (or list of ids).

    Celery's own asks and writes the result backend from the event loop, for every id, and as long
    as that takes; here the recorder does it. With `terminate` jobs that are being computed are
    revoked as well; their batch goes on, and `signal` is only shown in their events.

    Ids no job can have are passed over, and refused if there is no other.
    """
    given = maybe_list(task_id) or []
    task_ids = {each for each in given if _is_id(each)}
    if given and not task_ids:
        return nok(_NO_IDS)  # type: ignore[no-any-return]
    worker_state.revoked.update(task_ids)
    running = {request.id for request in tuple(worker_state.active_requests)}
    if waiting := task_ids - running:
        recorder, backend = state.app.golem_recorder, state.app.backend
        recorder.put(min(waiting), lambda: _mark(backend, waiting), lambda _: None)
        recorder.prompt()
    if not terminate:
        logger.info("Tasks flagged as revoked: %s", ", ".join(task_ids))
        return ok(f"tasks {task_ids} flagged as revoked")  # type: ignore[no-any-return]
    held = [worker_state.requests[id_] for id_ in task_ids if id_ in worker_state.requests]
    for request in held:
        request.terminate(state.consumer.pool, signal=signal)
    named = ", ".join(request.id for request in held)
    return ok(f"terminate: {named}" if held else "terminate: tasks unknown")  # type: ignore[no-any-return]


@control_command(variadic="task_id", args=[("signal", str)], signature="<signal> [id1 [... [idN]]]")  # type: ignore[untyped-decorator]
def terminate(state: Any, signal: Any, task_id: Any, **_: Any) -> dict[str, str]:
    """Terminate task by task id (or list of ids)."""
    return revoke(state, task_id, terminate=True, signal=signal)  # type: ignore[no-any-return]


@control_command(args=[("n", int)], signature="[N=1]")  # type: ignore[untyped-decorator]
def pool_grow(state: Any, n: int = 1, **_: Any) -> dict[str, str]:  # noqa: ARG001 - Celery's signature
    """Refuse to start more processes than there are devices."""
    return nok(_FIXED)  # type: ignore[no-any-return]


@control_command(args=[("n", int)], signature="[N=1]")  # type: ignore[untyped-decorator]
def pool_shrink(state: Any, n: int = 1, **_: Any) -> dict[str, str]:  # noqa: ARG001 - as above
    """Refuse to end processes that nothing would start again."""
    return nok(_FIXED)  # type: ignore[no-any-return]


def _is_id(value: Any) -> bool:
    """Whether a job can have this id: a text with which Redis can have a key."""
    if not isinstance(value, str) or not 0 < len(value) <= _MOST_ID_CHARS:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return True


def _mark(backend: Any, task_ids: set[str]) -> None:
    """Store REVOKED for jobs that nobody has begun, as Celery 5.7 does; the others keep theirs."""
    for task_id in task_ids:
        if backend.get_state(task_id) in _WAITING:
            backend.mark_as_revoked(task_id, reason="revoked")

"""From a producer's call to messages: checked against the contract before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict
from uuid import uuid4

from golem_tasks._groups import group_record
from golem_tasks._wire import Envelope, Message, Wire
from golem_tasks.contract import CLASSIFY, CLASSIFY_MANY, OnLong, TextItem, parse_job
from golem_tasks.errors import InvalidJob

__all__ = ["Planned", "SubmitOptions", "batch", "check_id", "listed", "many", "single"]

_MOST_PRIORITY = 9
_MOST_SECONDS = 1_000_000_000  # thirty years: no date that a clock can't show
_JSON_BYTES_PER_CHAR = 12  # an astral character is two escapes of six
_MESSAGE_BYTES = 4_096  # a body without its texts is far smaller


class SubmitOptions(TypedDict, total=False):
    """The keyword options every submit takes."""

    top_k: int | None
    """How many labels ``scores`` lists, best first; None is all of them."""
    logits: bool
    """Whether the prediction carries the raw logits."""
    on_long: OnLong
    """A text over the model's maximum: ``truncate``, ``error`` or ``window``."""
    bulk: bool
    """Send to the bulk lane, which gets what the interactive lane leaves."""
    expires_s: float | None
    """Seconds from now after which the job is dropped with `JobExpired`."""
    countdown_s: float | None
    """Seconds from now before which it isn't computed."""
    priority: int
    """0, the highest and the default, to 9, within the lane."""
    max_backlog: int | None
    """Most jobs without an answer there may be, in both lanes and these among them: a submit that
    would exceed it sends nothing and raises `QueueFull`. None: any number; left away:
    ``GOLEM_MAX_BACKLOG``."""


@dataclass(frozen=True, slots=True)
class _Plan:
    options: dict[str, Any]
    envelope: Envelope
    max_backlog: int | None


@dataclass(frozen=True, slots=True)
class Planned:
    """Jobs that passed every check; of many, each is composed when its turn to be sent comes."""

    ids: list[str]
    queue: str
    messages: Iterable[Message]
    max_backlog: int | None
    """Most jobs the backlog may have with these; None for any number."""


def single(
    wire: Wire, text: str, text_pair: str | None, job_id: str | None, given: SubmitOptions
) -> Planned:
    """Compose the message of one ``golem.classify`` job.

    Raises:
        InvalidJob: naming the field and the reason.
    """
    plan = _plan(wire, given)
    args = [text] if text_pair is None else [text, text_pair]
    parsed = parse_job(CLASSIFY, args, plan.options, wire.settings.limits)
    message = _compose(wire, CLASSIFY, args, plan, _checked_id(job_id), _shown(parsed.items))
    return _one(message, plan)


def batch(
    wire: Wire,
    texts: Sequence[str],
    text_pairs: Sequence[str | None] | None,
    job_id: str | None,
    given: SubmitOptions,
) -> Planned:
    """Compose the message of one ``golem.classify_many`` job.

    Raises:
        InvalidJob: naming the field and the reason. A single bad text isn't one: it fails alone.
    """
    plan = _plan(wire, given)
    args = [listed("texts", texts)]
    if text_pairs is not None:
        args.append(listed("text_pairs", text_pairs))
    parsed = parse_job(CLASSIFY_MANY, args, plan.options, wire.settings.limits)
    message = _compose(wire, CLASSIFY_MANY, args, plan, _checked_id(job_id), _shown(parsed.items))
    return _one(message, plan)


def many(
    wire: Wire,
    texts: Sequence[str],
    text_pairs: Sequence[str | None] | None,
    given: SubmitOptions,
) -> tuple[Planned, Message]:
    """Check every text, so that a bad one means nothing is sent; compose while sending.

    Returns them and the record of the submit, whose id is the submit's.

    Raises:
        InvalidJob: naming the first bad text, such as ``texts[3]``, and the reason.
    """
    plan = _plan(wire, given)
    items = _checked(wire, texts, text_pairs, plan) if texts else []
    ids = [str(uuid4()) for _ in items]
    messages = (_compose_item(wire, item, plan, id_) for item, id_ in zip(items, ids, strict=True))
    planned = Planned(ids, plan.envelope.queue, messages, plan.max_backlog)
    return planned, group_record(wire.settings, str(uuid4()), ids)


def _checked(
    wire: Wire, texts: Sequence[str], text_pairs: Sequence[str | None] | None, plan: _Plan
) -> list[TextItem]:
    limits = wire.settings.limits.model_copy(update={"max_texts": len(texts)})
    parsed = parse_job(CLASSIFY_MANY, [texts, text_pairs], plan.options, limits)
    items: list[TextItem] = []
    for item in parsed.items:
        if isinstance(item, InvalidJob):
            raise item
        items.append(item)
    for item in items:
        if item.chars * _JSON_BYTES_PER_CHAR + _MESSAGE_BYTES > limits.max_message_bytes:
            _compose_item(wire, item, plan, "size check")
    return items


def listed(field: str, values: Any) -> list[Any]:
    """Return the texts as a list; a generator, or anything else that yields them, will do.

    Raises:
        InvalidJob: it is one text, whose letters would be classified each, or nothing of the kind.
    """
    one = isinstance(values, str | bytes | bytearray)
    if one or not isinstance(values, Iterable):
        kind = "a single string" if one else type(values).__name__
        raise InvalidJob.because(field, f"must be a list of strings, not {kind}")
    return list(values)


def check_id(job_id: Any, field: str = "job_id") -> None:
    """Make sure it is a job's id.

    Raises:
        InvalidJob: it is no string, or an empty one.
    """
    if not isinstance(job_id, str) or not job_id:
        kind = "an empty one" if isinstance(job_id, str) else type(job_id).__name__
        raise InvalidJob.because(field, f"must be a string, not {kind}")


def _one(message: Message, plan: _Plan) -> Planned:
    return Planned([message.id], plan.envelope.queue, [message], plan.max_backlog)


def _plan(wire: Wire, given: SubmitOptions) -> _Plan:
    options: dict[str, Any] = dict(given)
    for name in options.keys() - SubmitOptions.__annotations__.keys():
        known = ", ".join(SubmitOptions.__annotations__)
        raise InvalidJob.because(name, f"is not an option; the options are {known}")
    bulk = options.pop("bulk", False)
    if not isinstance(bulk, bool):
        raise InvalidJob.because("bulk", "must be True or False")
    expires_s = _seconds("expires_s", options.pop("expires_s", None))
    countdown_s = _seconds("countdown_s", options.pop("countdown_s", None))
    priority = options.pop("priority", 0)
    if (
        isinstance(priority, bool)
        or not isinstance(priority, int)
        or not 0 <= priority <= _MOST_PRIORITY
    ):
        raise InvalidJob.because("priority", f"must be 0 (the highest) to {_MOST_PRIORITY}")
    queue = wire.settings.bulk_queue if bulk else wire.settings.queue
    max_backlog = _limit(options.pop("max_backlog", wire.settings.max_backlog))
    return _Plan(options, Envelope(queue, priority, expires_s, countdown_s), max_backlog)


def _seconds(field: str, value: Any) -> float | None:
    if value is None:
        return None
    # Not "value <= 0": that lets a NaN through.
    fits = isinstance(value, int | float) and 0 < value <= _MOST_SECONDS
    if isinstance(value, bool) or not fits:
        raise InvalidJob.because(field, f"must be a number of seconds above 0, to {_MOST_SECONDS}")
    return float(value)


def _limit(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidJob.because("max_backlog", "must be a whole number of jobs above 0, or None")
    return value


def _checked_id(job_id: str | None) -> str:
    if job_id is None:
        return str(uuid4())
    check_id(job_id, "task_id")
    if not job_id.isprintable() or " " in job_id:
        raise InvalidJob.because("task_id", "must be printable text without blanks")
    return job_id


def _compose_item(wire: Wire, item: TextItem, plan: _Plan, job_id: str) -> Message:
    args = [item.text] if item.text_pair is None else [item.text, item.text_pair]
    return _compose(wire, CLASSIFY, args, plan, job_id, _shown((item,)))


def _compose(
    wire: Wire, task: str, args: Sequence[Any], plan: _Plan, job_id: str, shown: str
) -> Message:
    return wire.compose(
        task,
        args,
        _said(plan.options),
        job_id=job_id,
        envelope=plan.envelope,
        shown=shown,
    )


def _said(options: Mapping[str, Any]) -> dict[str, Any]:
    # What is left unsaid means the worker's default, in every version of it.
    return {name: value for name, value in options.items() if value is not None}


def _shown(items: Sequence[TextItem | InvalidJob]) -> str:
    chars = sum(item.chars for item in items if isinstance(item, TextItem))
    texts = "text" if len(items) == 1 else "texts"
    return f"<{len(items)} {texts}, {chars} characters>"

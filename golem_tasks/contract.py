"""Contract, version 1: what travels between producer and worker, and the rules it obeys.

Two tasks, ordinary Celery messages (protocol 2, JSON)::

    golem.classify(text, text_pair=None, *, top_k=None, logits=False, on_long="truncate")
        -> Prediction
    golem.classify_many(texts, text_pairs=None, *, top_k=None, logits=False, on_long="truncate")
        -> {"predictions": [Prediction | {"error": {"type", "message"}}, ...]}

A job that breaks the contract fails alone with `InvalidJob`; within ``classify_many`` a bad text
fails alone as well, as an item's error. Both sides call `parse_job`, so a producer that uses our
client learns at submit what another learns from the job's FAILURE.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from golem_tasks._notebook import prediction_html
from golem_tasks.errors import InvalidJob, TextTooLong

__all__ = [
    "BULK_SUFFIX",
    "CLASSIFY",
    "CLASSIFY_MANY",
    "DEFAULT_QUEUE",
    "POSITIONAL",
    "SENT_AT_HEADER",
    "TASKS",
    "FailedItem",
    "ItemError",
    "Limits",
    "Model",
    "OnLong",
    "Options",
    "ParsedJob",
    "Prediction",
    "Predictions",
    "TextItem",
    "Timing",
    "check_text",
    "parse_job",
]

CLASSIFY = "golem.classify"
CLASSIFY_MANY = "golem.classify_many"
TASKS = frozenset({CLASSIFY, CLASSIFY_MANY})

DEFAULT_QUEUE = "golem"
BULK_SUFFIX = ".bulk"
"""The bulk lane of queue ``q`` is ``q.bulk``; the worker fills a batch from ``q`` first."""

SENT_AT_HEADER = "golem_sent_at"
"""Optional message header: Unix time in seconds at which the producer sent the job."""

OnLong: TypeAlias = Literal["truncate", "error", "window"]


class _Frozen(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Answer(BaseModel):
    # A newer worker may tell more than an older producer knows: what is new is passed over.
    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="ignore", strict=True)


class Limits(_Frozen):
    """What a job may carry."""

    max_text_chars: Annotated[int, Field(ge=1)] = 100_000
    """Characters in one text (and in one text_pair)."""
    max_texts: Annotated[int, Field(ge=1)] = 1_000
    """Texts in one ``classify_many`` job."""
    max_message_bytes: Annotated[int, Field(ge=1_024)] = 4 * 1024 * 1024
    """Bytes of one encoded message body, checked before it is decoded."""


class Options(_Frozen):
    """The keyword options both tasks share."""

    top_k: Annotated[int, Field(ge=0)] | None = None
    """How many labels ``scores`` lists, best first; None is all of them. With 0 the answer is the
    label alone: no score is sent, nor computed, but for windows that differ in their best."""
    logits: bool = False
    """Whether the prediction carries the raw logits, in the model's own label order."""
    on_long: OnLong = "truncate"
    """A text over the model's maximum: cut it, fail with `TextTooLong`, or average windows."""


class Model(_Answer):
    """The model that answered."""

    name: str
    revision: str | None
    dtype: str
    temperature: float | None = None
    """What calibrated scores' logits were divided by; None where the model isn't calibrated."""


class Timing(_Answer):
    """Where the time went, and how full the batch was."""

    queued_ms: float
    """From the producer's `SENT_AT_HEADER`, else from the worker's receipt, to the encoding."""
    forward_ms: float
    """The model's time for the micro-batch this text was in."""
    batch_rows: int
    """Rows of that micro-batch."""
    padding_share: float
    """Share of that micro-batch's token positions that was padding, 0 to 1."""


class Prediction(_Answer):
    """One text's answer."""

    label: str
    """The one of the greatest logit, whatever ``top_k``; of windows, of the greatest average."""
    score: float = math.nan
    """Probability of ``label``; the raw value for a regression head; NaN with ``top_k=0``."""
    scores: dict[str, float] = {}
    """Label to probability, highest first, at most ``top_k`` of them."""
    logits: list[float] | None = None
    tokens: int
    """Tokens the text has, special tokens included, before any truncation."""
    truncated: bool
    model: Model
    timing: Timing

    def _repr_html_(self) -> str:
        return prediction_html(self.label, self.scores, self.model.name)


class ItemError(_Answer):
    """Why one text of a ``classify_many`` job has no prediction."""

    type: str
    """Name of a class in `golem_tasks.errors`."""
    message: str


class FailedItem(_Answer):
    """Takes the place of a prediction in `Predictions`."""

    error: ItemError


class Predictions(_Answer):
    """The answer of ``classify_many``, one item for each text, in order."""

    predictions: list[Prediction | FailedItem]


class TextItem(NamedTuple):
    """One text that passed validation, with its pair for pair models."""

    text: str
    text_pair: str | None = None

    @property
    def chars(self) -> int:
        """Characters of both texts."""
        return len(self.text) + len(self.text_pair or "")


@dataclass(frozen=True, slots=True)
class ParsedJob:
    """A job that obeys the contract; its items are texts, or the reason one of them is refused."""

    task: str
    items: tuple[TextItem | InvalidJob, ...]
    options: Options

    @property
    def many(self) -> bool:
        """Whether the answer is a list of items."""
        return self.task == CLASSIFY_MANY


POSITIONAL = {CLASSIFY: ("text", "text_pair"), CLASSIFY_MANY: ("texts", "text_pairs")}
"""What a task takes without a name, in order."""


def parse_job(task: str, args: Any, kwargs: Any, limits: Limits) -> ParsedJob:
    """Check a job's arguments against the contract.

    Raises:
        InvalidJob: naming the field and the reason.
        TextTooLong: when the one text of a ``golem.classify`` job has too many characters.
    """
    fields = _bind(task, args, kwargs)
    options = _options({k: v for k, v in fields.items() if k not in POSITIONAL[task]})
    items: tuple[TextItem | InvalidJob, ...]
    if task == CLASSIFY:
        items = (_item(fields.get("text"), fields.get("text_pair"), "", limits),)
    else:
        items = _items(fields.get("texts"), fields.get("text_pairs"), limits)
    return ParsedJob(task, items, options)


def check_text(value: Any, field: str, limits: Limits) -> str:
    """Return the text if a model may see it.

    Raises:
        InvalidJob: not a string, blank, or with a character no tokenizer accepts.
        TextTooLong: more than ``limits.max_text_chars`` characters.
    """
    if not isinstance(value, str):
        raise InvalidJob.because(field, f"must be a string, not {_kind(value)}")
    if len(value) > limits.max_text_chars:
        reason = f"has {len(value)} characters, {limits.max_text_chars} are allowed"
        raise TextTooLong.because(field, reason)
    if not value or value.isspace():
        raise InvalidJob.because(field, "is empty")
    if "\0" in value:
        raise InvalidJob.because(field, f"has a NUL at character {value.index(chr(0))}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            reason = f"has a lone surrogate at character {exc.start}"
            raise InvalidJob.because(field, reason) from None
    return value


def _bind(task: str, args: Any, kwargs: Any) -> dict[str, Any]:
    names = POSITIONAL[task]
    if not isinstance(args, Sequence) or isinstance(args, str):
        raise InvalidJob.because("args", f"must be a list, not {_kind(args)}")
    if not isinstance(kwargs, Mapping):
        raise InvalidJob.because("kwargs", f"must be an object, not {_kind(kwargs)}")
    if len(args) > len(names):
        reason = f"takes at most {len(names)} positional arguments, not {len(args)}"
        raise InvalidJob.because(task, reason)
    fields = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name in fields:
            raise InvalidJob.because(str(name), "is given twice")
        fields[name] = value
    if names[0] not in fields:
        raise InvalidJob.because(names[0], "is missing")
    return fields


def _options(given: dict[str, Any]) -> Options:
    if not given:
        return _DEFAULT_OPTIONS
    try:
        return Options.model_validate(given)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "options"
        if first["type"] == "extra_forbidden":
            reason = f"is not an option; the options are {', '.join(Options.model_fields)}"
        else:
            reason = f"is wrong: {first['msg'][0].lower()}{first['msg'][1:]}"
        raise InvalidJob.because(field, reason) from None


def _item(text: Any, pair: Any, index: str, limits: Limits) -> TextItem:
    """Check one text; `index` is its place in a list, such as ``s[3]``, for the error's field."""
    checked = check_text(text, "text" + index, limits)
    if pair is None:
        return TextItem(checked)
    return TextItem(checked, check_text(pair, "text_pair" + index, limits))


def _refusal(text: Any, pair: Any, index: str, limits: Limits) -> TextItem | InvalidJob:
    try:
        return _item(text, pair, index, limits)
    except InvalidJob as exc:
        return exc


def _items(texts: Any, pairs: Any, limits: Limits) -> tuple[TextItem | InvalidJob, ...]:
    if not isinstance(texts, list | tuple):
        raise InvalidJob.because("texts", f"must be a list of strings, not {_kind(texts)}")
    if not texts:
        raise InvalidJob.because("texts", "is empty")
    if len(texts) > limits.max_texts:
        reason = f"has {len(texts)} texts, {limits.max_texts} are allowed"
        raise InvalidJob.because("texts", reason)
    if pairs is None:
        if _all_fit(texts, limits):
            return tuple(map(TextItem, texts))
        pairs = [None] * len(texts)
    elif not isinstance(pairs, list | tuple):
        raise InvalidJob.because("text_pairs", f"must be a list, not {_kind(pairs)}")
    elif len(pairs) != len(texts):
        reason = f"has {len(pairs)} entries for {len(texts)} texts"
        raise InvalidJob.because("text_pairs", reason)
    items: list[TextItem | InvalidJob] = []
    for number, (text, pair) in enumerate(zip(texts, pairs, strict=True)):
        try:
            items.append(_item(text, pair, "s", limits))
        except InvalidJob:
            # Checked again for the error's sake: naming each text's place would cost every text.
            items.append(_refusal(text, pair, f"s[{number}]", limits))
    return tuple(items)


def _all_fit(texts: Sequence[Any], limits: Limits) -> bool:
    """Whether `check_text` has nothing to say of any of them, asked of all at once, so sooner."""
    if {*map(type, texts)} != {str} or max(map(len, texts)) > limits.max_text_chars:
        return False
    together = "".join(texts)
    if "\0" in together or "" in texts or any(map(str.isspace, texts)):
        return False
    try:
        return together.isascii() or bool(together.encode())
    except UnicodeEncodeError:
        return False


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "a boolean", dict: "an object", list: "a list"}
    return names.get(type(value), type(value).__name__)


_DEFAULT_OPTIONS = Options()

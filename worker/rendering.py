"""Results as JSON: what kombu's encoder writes, character for character, sooner.

An answer of ``classify_many`` is a long list of small dicts, all alike: the same keys, the same
model, one timing for most of them. The general encoder, which knows nothing of that, took a third
of all that a text costs in the model process. Here only what differs is written anew. Whatever
isn't an ordinary prediction, as one with logits or an item's error, is left to the general encoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from kombu.utils import json

__all__ = ["render"]

_META = ["status", "result"]  # what Celery's dict of a stored result begins with
_PREDICTION = ["label", "score", "scores", "tokens", "truncated", "model", "timing"]

_dumps: Callable[[Any], str] = json.dumps
_number: Callable[[float], str] = float.__repr__  # as the general encoder, and for floats alone


class _Quoted(dict[str, str]):
    """The JSON of each label."""

    def __missing__(self, label: str) -> str:
        if type(label) is not str:
            raise TypeError("as a key it would have to become a string first")
        self[label] = shown = _dumps(label)
        return shown


_quoted = _Quoted()


def render(meta: Any) -> str | None:
    """The JSON of what Celery stores of a job; None if its result isn't a list of predictions.

    None, too, if something in it isn't JSON: Celery has the error for that.
    """
    if type(meta) is not dict:
        return None  # an error's argument, by which Celery finds out whether it can be stored
    keys, result = [*meta], meta.get("result")
    if keys[:2] != _META or len(keys) == len(_META):
        return None
    if type(result) is not dict or [*result] != ["predictions"]:
        return None
    items = result["predictions"]
    if type(items) is not list or not items:
        return None
    shared: dict[int, str] = {}
    try:
        shown = ", ".join([_item(each, shared) for each in items])
        status, rest = _dumps(meta["status"]), _dumps({key: meta[key] for key in keys[2:]})
    except (TypeError, ValueError, RecursionError):
        return None
    return f'{{"status": {status}, "result": {{"predictions": [{shown}]}}, {rest[1:]}'


def _item(item: Any, shared: dict[int, str]) -> str:
    """One item; `shared` keeps the JSON of dicts that items have in common, by their identity."""
    if type(item) is not dict or [*item] != _PREDICTION:
        return _dumps(item)
    label, score, scores, tokens, truncated, model, timing = item.values()
    try:
        values = [*scores.values()]
        numbers = [*map(_number, values)]
        ordinary = type(tokens) is int and type(truncated) is bool and score is values[0]
        if not ordinary or not math.isfinite(sum(values)):
            return _dumps(item)
        listed = [f"{_quoted[name]}: {each}" for name, each in zip(scores, numbers, strict=True)]
        return (
            f'{{"label": {_quoted[label]}, "score": {numbers[0]}, '
            f'"scores": {{{", ".join(listed)}}}, '
            f'"tokens": {tokens}, "truncated": {"true" if truncated else "false"}, '
            f'"model": {shared.get(id(model)) or _keep(model, shared)}, '
            f'"timing": {shared.get(id(timing)) or _keep(timing, shared)}}}'
        )
    except (AttributeError, IndexError, OverflowError, TypeError):
        return _dumps(item)


def _keep(value: Any, shared: dict[int, str]) -> str:
    shown = shared[id(value)] = _dumps(value)
    return shown

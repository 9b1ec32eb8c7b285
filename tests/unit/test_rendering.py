"""Results as JSON, by the quick way and by kombu's encoder."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils.json import dumps

from golem_tasks.contract import Options
from worker.decoding import Decoder, MicroBatch
from worker.interfaces import Activation, Encoded, ModelInfo, Row
from worker.rendering import render

LABELS = st.lists(st.text(max_size=5), min_size=1, max_size=4, unique=True)
OPTIONS = st.builds(
    Options, top_k=st.none() | st.integers(0, 3), logits=st.booleans(), on_long=st.just("truncate")
)
BATCHES = [MicroBatch(4, 10, 30, 2.0), MicroBatch(1, 3, 3, 0.125)]
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
MODEL = {"name": "m", "revision": None, "dtype": "float32"}
ORDINARY = {
    "label": "a",
    "score": 0.75,
    "scores": {"a": 0.75, "b": 0.25},
    "tokens": 3,
    "truncated": False,
    "model": MODEL,
    "timing": {"queued_ms": 1.5},
}


def meta(*items: Any, **more: Any) -> dict[str, Any]:
    """What Celery stores of a job with this answer."""
    return {"status": "SUCCESS", "result": {"predictions": [*items]}, "traceback": None, **more}


@given(LABELS, st.data())
def test_whatever_the_decoder_makes_is_written_as_kombu_writes_it(
    labels: list[str], data: st.DataObject
) -> None:
    """Any labels, heads and options: the same characters, so the same answers."""
    activation = data.draw(st.sampled_from(Activation))
    decoder = Decoder(ModelInfo("m", None, "float32", "cpu", tuple(labels), activation, 512))
    width = len(labels)
    row = st.lists(st.floats(-1e4, 1e4), min_size=width, max_size=width)
    rows = data.draw(st.lists(st.tuples(row, OPTIONS, st.sampled_from(BATCHES)), min_size=1))
    encoded = Encoded((Row([1, 2, 3]),), 3, truncated=data.draw(st.booleans()))
    items = [
        decoder.decode([logits], encoded, options, 1.5, [batch]) for logits, options, batch in rows
    ]
    assert render(meta(*items)) == dumps(meta(*items))


@given(JSON, st.sampled_from([*ORDINARY]), JSON)
def test_anything_else_is_written_as_kombu_writes_it(other: Any, name: str, value: Any) -> None:
    """An item's error, a prediction with an odd field, and what no decoder makes."""
    odd = {**ORDINARY, name: value}
    stored = meta(ORDINARY, other, odd, ORDINARY, group_id="g", children=[["x", None]])
    assert render(stored) == dumps(stored)


@pytest.mark.parametrize(
    "odd",
    [
        {"score": 1, "scores": {"a": 1}},
        {"scores": {"a": math.nan}, "score": math.nan},
        {"scores": {"a": math.inf, "b": 0.25}},
        {"scores": {1: 0.75}},
        {"scores": {True: 0.75}},
        {"scores": {}},
        {"tokens": True},
        {"truncated": 1},
        {"label": 1},
        {"timing": {}},
    ],
)
def test_values_python_takes_for_one_another_stay_apart(odd: dict[str, Any]) -> None:
    """1, True and 1.0 are equal in Python, and three things in JSON; so are a NaN and a number."""
    item = {**ORDINARY, **odd}
    if "scores" in odd and "score" not in odd and odd["scores"]:
        item["score"] = next(iter(odd["scores"].values()))
    assert render(meta(ORDINARY, item)) == dumps(meta(ORDINARY, item))


@pytest.mark.parametrize(
    "result",
    [None, [], {}, {"predictions": []}, {"predictions": None}, {"predictions": [1], "more": 1}],
)
def test_what_isnt_a_list_of_predictions_is_left_to_kombu(result: Any) -> None:
    """A single prediction, a failure and a foreign task's result."""
    assert render({"status": "SUCCESS", "result": result}) is None
    assert render({"results": result}) is None


@given(JSON)
def test_what_isnt_a_stored_result_is_left_to_kombu(data: Any) -> None:
    """Celery encodes an error's arguments by themselves, too."""
    assert render(data) is None


@pytest.mark.parametrize("bad", [{"model": object()}, {"timing": {(1, 2): 3}}])
def test_what_isnt_json_is_left_to_kombu_which_refuses_it(bad: dict[str, Any]) -> None:
    """The job fails, by Celery's own rule, instead of storing what nobody can read."""
    assert render(meta({**ORDINARY, **bad})) is None

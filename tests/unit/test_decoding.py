"""Logits to predictions."""

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from golem_tasks.contract import Options, Prediction
from golem_tasks.errors import InferenceError
from worker.decoding import Decoder, MicroBatch, activation_for, sigmoid, softmax
from worker.interfaces import Activation, Encoded, ModelInfo, Row

FINITE = st.floats(-1e4, 1e4)
ROW = st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3)
"""Logits of three labels, float32 as a model's are."""
BATCH = MicroBatch(rows=4, longest=10, tokens=30, forward_ms=2.0)


def info(activation: Activation, *labels: str) -> ModelInfo:
    """A model with these labels."""
    return ModelInfo("m", "abc", "float32", "cpu", labels, activation, 512)


def encoded(*weights: int) -> Encoded:
    """A text of as many rows as there are weights."""
    rows = tuple(Row([1, 2, 3]) for _ in weights)
    return Encoded(rows, tokens=3, truncated=False, weights=weights)


def decode(
    logits: list[float], options: Options | None = None, activation: Activation = Activation.SOFTMAX
) -> Prediction:
    """One text of one row, through JSON as a producer would get it."""
    labels = [f"L{i}" for i in range(len(logits))]
    decoder = Decoder(info(activation, *labels))
    answer = decoder.decode([logits], encoded(1), options or Options(), 1.5, [BATCH])
    return Prediction.model_validate_json(json.dumps(answer))


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "expected"),
    [
        (None, 2, Activation.SOFTMAX),
        ("single_label_classification", 6, Activation.SOFTMAX),
        ("multi_label_classification", 6, Activation.SIGMOID),
        (None, 1, Activation.SIGMOID),
        ("regression", 1, Activation.NONE),
        ("regression", 3, Activation.NONE),
    ],
)
def test_the_activation_is_the_pipelines(
    problem_type: str | None, num_labels: int, expected: Activation
) -> None:
    """A single label that isn't declared a regression gets a sigmoid there, so here as well."""
    assert activation_for(problem_type, num_labels) is expected


@given(st.lists(FINITE, min_size=1, max_size=8))
def test_softmax_gives_probabilities_that_sum_to_1(logits: list[float]) -> None:
    """Whatever the logits' size, nothing overflows."""
    scores = softmax(logits)
    assert math.isclose(sum(scores), 1.0)
    assert all(0.0 <= score <= 1.0 for score in scores)


@given(FINITE)
def test_sigmoid_is_symmetric_and_never_overflows(logit: float) -> None:
    """sigmoid(-x) is 1 - sigmoid(x), for any x."""
    [plus], [minus] = sigmoid([logit]), sigmoid([-logit])
    assert math.isclose(plus + minus, 1.0)


@given(st.lists(FINITE, min_size=1, max_size=8), st.sampled_from(Activation))
def test_the_label_is_the_argmax_and_its_score_is_the_highest(
    logits: list[float], activation: Activation
) -> None:
    """Label, score and scores tell the same story, highest first, for every kind of head."""
    answer = decode(logits, activation=activation)
    scores = list(answer.scores.values())
    assert scores == sorted(scores, reverse=True)
    assert answer.label == next(iter(answer.scores))
    assert answer.score == scores[0]
    assert len(scores) == len(logits)
    assert int(answer.label.removeprefix("L")) == logits.index(max(logits))


@given(st.lists(FINITE, min_size=1, max_size=8), st.integers(1, 10))
def test_top_k_lists_as_many_labels_and_no_others(logits: list[float], top_k: int) -> None:
    """The best `top_k`, or all if there are fewer."""
    every, some = decode(logits).scores, decode(logits, Options(top_k=top_k)).scores
    assert list(some.items()) == list(every.items())[:top_k]


def test_logits_come_in_the_models_order_and_only_if_asked() -> None:
    """They are raw, so that a producer can do its own arithmetic."""
    assert decode([3.0, -1.0, 2.0]).logits is None
    assert decode([3.0, -1.0, 2.0], Options(logits=True)).logits == [3.0, -1.0, 2.0]


def test_a_regression_answers_its_raw_value() -> None:
    """No activation touches it."""
    assert decode([-3.25], activation=Activation.NONE).score == -3.25


def test_windows_are_averaged_by_their_length() -> None:
    """A short last window counts for as little as it holds."""
    decoder = Decoder(info(Activation.NONE, "a", "b"))
    answer = decoder.decode(
        [[1.0, 0.0], [4.0, 3.0]], encoded(2, 1), Options(logits=True), 0.0, [BATCH, BATCH]
    )
    assert answer["scores"] == {"a": 2.0, "b": 1.0}
    assert answer["logits"] == [2.0, 1.0]


def test_windows_in_one_micro_batch_count_its_time_once() -> None:
    """`forward_ms` is the model's time for this text, over all the passes it was in."""
    decoder = Decoder(info(Activation.NONE, "a"))
    other = MicroBatch(rows=1, longest=3, tokens=3, forward_ms=5.0)
    answer = decoder.decode([[1.0]] * 3, encoded(1, 1, 1), Options(), 0.0, [BATCH, BATCH, other])
    assert answer["timing"]["forward_ms"] == 7.0


def test_timing_tells_the_wait_and_how_full_the_micro_batch_was() -> None:
    """30 of 40 token positions were text: a quarter was padding."""
    timing = decode([1.0, 2.0]).timing
    assert (timing.queued_ms, timing.forward_ms) == (1.5, 2.0)
    assert (timing.batch_rows, timing.padding_share) == (4, 0.25)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_isnt_finite_is_an_error_not_an_answer(bad: float) -> None:
    """NaN isn't JSON, and an argmax over it is a lie."""
    with pytest.raises(InferenceError, match="NaN or infinity"):
        decode([bad, 1.0])


def test_a_row_of_the_wrong_width_names_both_numbers() -> None:
    """Answers can't be matched to labels if there are more of one than of the other."""
    decoder = Decoder(info(Activation.SOFTMAX, "a", "b"))
    with pytest.raises(InferenceError, match="3 logits came back for 2 labels"):
        decoder.decode([[1.0, 2.0, 3.0]], encoded(1), Options(), 0.0, [BATCH])


@given(st.lists(ROW, min_size=1, max_size=4), st.sampled_from(Activation))
def test_the_label_is_the_same_whether_scores_are_asked_for_or_not(
    rows: list[list[float]], activation: Activation
) -> None:
    """With top_k=0 nothing but the label is sent; of one row or many, it is the full answer's."""
    decoder, text = Decoder(info(activation, "a", "b", "c")), encoded(*range(1, len(rows) + 1))
    batches = [BATCH] * len(rows)
    alone, one, full = (
        Prediction.model_validate(decoder.decode(rows, text, Options(top_k=k), 0.0, batches))
        for k in (0, 1, None)
    )
    assert alone.label == one.label == full.label == next(iter(full.scores))
    assert one.scores == {full.label: full.score}
    assert full.score == max(full.scores.values())
    assert math.isnan(alone.score)
    assert alone.scores == {}


@pytest.mark.parametrize("rows", [[[40.0, 50.0]], [[40.0, 50.0], [45.0, 60.0]]])
@pytest.mark.parametrize("top_k", [None, 0, 1])
def test_the_label_is_the_argmax_of_the_logits_where_scores_cant_tell(
    rows: list[list[float]], top_k: int | None
) -> None:
    """sigmoid(40) and sigmoid(50) are both exactly 1.0; the second logit is the greater."""
    decoder, text = Decoder(info(Activation.SIGMOID, "a", "b")), encoded(*[1] * len(rows))
    answer = decoder.decode(rows, text, Options(top_k=top_k), 0.0, [BATCH] * len(rows))
    assert answer["label"] == "b"
    assert next(iter(answer.get("scores", {"b": 1.0}))) == "b"


@contextmanager
def c_functions() -> Iterator[set[Any]]:
    """The built-in functions that are called inside."""
    seen: set[Any] = set()

    def note(_frame: Any, event: str, function: Any) -> None:
        if event == "c_call":
            seen.add(function)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield seen
    finally:
        sys.setprofile(before)


@pytest.mark.parametrize("activation", [Activation.SOFTMAX, Activation.SIGMOID])
@pytest.mark.parametrize("temperature", [None, 2.0])
@pytest.mark.parametrize(
    ("rows", "top_k", "computed"),
    [
        ([[1.0, 3.0, 2.0]], 0, False),
        ([[1.0, 3.0, 2.0]], 1, True),
        ([[1.0, 3.0, 2.0], [0.0, 9.0, 1.0]], 0, False),
        ([[1.0, 3.0, 2.0], [0.0, 9.0, 1.0]], None, True),
        ([[1.0, 3.0, 2.0], [9.0, 3.0, 1.0]], 0, True),
    ],
)
def test_a_job_for_the_label_alone_computes_no_activation(
    rows: list[list[float]],
    top_k: int | None,
    computed: bool,
    temperature: float | None,
    activation: Activation,
) -> None:
    """Seen by its exponentials. Only windows that disagree are weighed, which takes scores."""
    labels = ("a", "b", "c")
    told = ModelInfo("m", None, "float32", "cpu", labels, activation, 512, temperature)
    decoder, text = Decoder(told), encoded(*[1] * len(rows))
    with c_functions() as called:
        decoder.decode(rows, text, Options(top_k=top_k), 0.0, [BATCH] * len(rows))
    assert (math.exp in called) is computed


@given(st.lists(FINITE, min_size=1, max_size=8), st.floats(0.1, 10))
def test_a_temperature_moves_scores_and_keeps_their_order(
    logits: list[float], temperature: float
) -> None:
    """Softmax of logits / temperature, which the model's description tells."""
    labels = [f"L{i}" for i in range(len(logits))]
    told = ModelInfo(
        "m", None, "float32", "cpu", tuple(labels), Activation.SOFTMAX, 512, temperature
    )
    answer = Decoder(told).decode([logits], encoded(1), Options(), 0.0, [BATCH])
    expected = softmax([value / temperature for value in logits])
    assert answer["model"]["temperature"] == temperature
    assert answer["scores"] == pytest.approx(dict(zip(labels, expected, strict=True)), abs=1e-6)


@given(st.lists(FINITE, min_size=2, max_size=2))
def test_two_labels_get_the_very_numbers_of_the_general_rule(logits: list[float]) -> None:
    """The shortcut for the commonest head is one in time only."""
    powers = [math.exp(value - max(logits)) for value in logits]
    assert softmax(logits) == [power / sum(powers) for power in powers]
    answer = decode(logits)
    assert list(answer.scores) == sorted(answer.scores, key=answer.scores.__getitem__, reverse=True)
    assert answer.label == ("L0" if logits[0] >= logits[1] else "L1")

"""The contract: what is accepted, what is refused and how it is said, what an answer may carry."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from golem_tasks.contract import (
    CLASSIFY,
    CLASSIFY_MANY,
    FailedItem,
    Limits,
    Options,
    Prediction,
    Predictions,
    TextItem,
    check_text,
    parse_job,
)
from golem_tasks.errors import InvalidJob, TextTooLong
from tests.support.answers import prediction

LIMITS = Limits()

sound_texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=200
).filter(lambda text: not text.isspace())
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)


@given(text=sound_texts)
def test_any_text_a_tokenizer_accepts_is_accepted_unchanged(text: str) -> None:
    """No normalising, no trimming: the model sees what the producer sent."""
    job = parse_job(CLASSIFY, [text], {}, LIMITS)
    assert job.items == (TextItem(text),)
    assert job.options == Options()
    assert not job.many


@given(args=any_json, kwargs=any_json)
def test_whatever_the_payload_it_parses_or_is_an_invalid_job(args: Any, kwargs: Any) -> None:
    """A hostile payload never raises anything but InvalidJob, with a field and a reason."""
    for task in (CLASSIFY, CLASSIFY_MANY):
        refused: InvalidJob | None = None
        try:
            assert parse_job(task, args, kwargs, LIMITS).items
        except InvalidJob as exc:
            refused = exc
        assert refused is None or (refused.field and refused.reason)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        (" \n\t ", "is empty"),
        ("a\0b", "has a NUL at character 1"),
        ("ab\ud800", "has a lone surrogate at character 2"),
        (None, "must be a string, not null"),
        (True, "must be a string, not a boolean"),
        (7, "must be a string, not int"),
        ({}, "must be a string, not an object"),
    ],
)
def test_a_text_no_tokenizer_accepts_is_refused_with_its_reason(text: Any, reason: str) -> None:
    """The sentence names the field, and where in the text the fault is."""
    with pytest.raises(InvalidJob) as caught:
        check_text(text, "text", LIMITS)
    assert str(caught.value) == f"The job is invalid: text {reason}."


def test_a_text_over_the_limit_says_both_numbers() -> None:
    """TextTooLong is an InvalidJob that tells how long it is and how long it may be."""
    with pytest.raises(TextTooLong, match="has 11 characters, 10 are allowed"):
        parse_job(CLASSIFY, ["x" * 11], {}, Limits(max_text_chars=10))


@pytest.mark.parametrize(
    ("args", "kwargs", "field"),
    [
        ([], {}, "text"),
        (["a"], {"text": "b"}, "text"),
        (["a", "b", "c"], {}, CLASSIFY),
        ("abc", {}, "args"),
        (["a"], ["b"], "kwargs"),
        (["a"], {"topk": 1}, "topk"),
        (["a"], {"top_k": -1}, "top_k"),
        (["a"], {"top_k": "1"}, "top_k"),
        (["a"], {"logits": 1}, "logits"),
        (["a"], {"on_long": "cut"}, "on_long"),
        (["a", 5], {}, "text_pair"),
    ],
)
def test_the_offending_field_is_named(args: Any, kwargs: Any, field: str) -> None:
    """Types are strict: a string of digits is not a number, 1 is not true."""
    with pytest.raises(InvalidJob) as caught:
        parse_job(CLASSIFY, args, kwargs, LIMITS)
    assert caught.value.field == field


def test_an_unknown_option_lists_the_known_ones() -> None:
    """The remedy is in the sentence."""
    with pytest.raises(InvalidJob, match="the options are top_k, logits, on_long"):
        parse_job(CLASSIFY, ["a"], {"topk": 1}, LIMITS)


def refused(text: Any, limits: Limits) -> bool:
    """Whether a text is refused by itself."""
    try:
        check_text(text, "text", limits)
    except InvalidJob:
        return True
    return False


any_text = st.one_of(
    sound_texts,
    st.text(alphabet="a \n\0\ud800é", max_size=7),
    st.sampled_from([None, 3, ["a"], "\udc00", "a" * 6]),
)


@given(texts=st.lists(any_text, min_size=1, max_size=6))
def test_texts_checked_together_are_judged_as_each_would_be_alone(texts: list[Any]) -> None:
    """The quick look at a whole list is one in time only."""
    limits = Limits(max_text_chars=5)
    items = parse_job(CLASSIFY_MANY, [texts], {}, limits).items
    assert [isinstance(item, InvalidJob) for item in items] == [refused(t, limits) for t in texts]
    accepted = [(t, i) for t, i in zip(texts, items, strict=True) if not isinstance(i, InvalidJob)]
    assert all(item == TextItem(text) for text, item in accepted)


def test_a_bad_text_among_many_fails_alone_and_keeps_its_place() -> None:
    """Its item is the reason; the texts round it stay texts."""
    job = parse_job(CLASSIFY_MANY, [["good", "", "fine"]], {}, LIMITS)
    assert [type(item) for item in job.items] == [TextItem, InvalidJob, TextItem]
    assert isinstance(job.items[1], InvalidJob)
    assert job.items[1].field == "texts[1]"


@pytest.mark.parametrize(
    ("texts", "pairs", "reason"),
    [
        ([], None, "is empty"),
        ("abc", None, "must be a list of strings"),
        (["a"] * 4, None, "has 4 texts, 3 are allowed"),
        (["a", "b"], ["c"], "has 1 entries for 2 texts"),
        (["a"], "b", "must be a list"),
    ],
)
def test_a_list_that_is_wrong_as_a_whole_fails_the_job(texts: Any, pairs: Any, reason: str) -> None:
    """There is no item to blame, so the job fails."""
    with pytest.raises(InvalidJob, match=reason):
        parse_job(CLASSIFY_MANY, [texts, pairs], {}, Limits(max_texts=3))


def test_an_answer_survives_json_and_ignores_what_a_newer_worker_adds() -> None:
    """An older producer reads a newer worker's prediction."""
    told = {**prediction("POSITIVE"), "added_later": 1}
    told["timing"] = {**told["timing"], "added_later": 2}
    read = Prediction.model_validate(told)
    assert read.label == "POSITIVE"
    assert Prediction.model_validate_json(read.model_dump_json()) == read


def test_predictions_hold_answers_and_errors_in_order() -> None:
    """An item is told apart by its fields."""
    error = {"error": {"type": "InvalidJob", "message": "It is empty."}}
    read = Predictions.model_validate({"predictions": [prediction("A"), error]})
    assert isinstance(read.predictions[0], Prediction)
    assert isinstance(read.predictions[1], FailedItem)


def test_boundary_types_are_frozen() -> None:
    """What was checked can't be changed afterwards."""
    read = Prediction.model_validate(prediction("A"))
    with pytest.raises(ValidationError):
        read.label = "B"  # type: ignore[misc]

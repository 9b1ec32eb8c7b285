"""The errors: one drawn tree, and each the same class, with its data, on the producer's side."""

import copy
import inspect
import json
import pickle
import re
from typing import Any

import celery
import pytest

from golem_tasks import errors
from golem_tasks.errors import (
    GolemError,
    InferenceError,
    InvalidJob,
    JobError,
    PoisonJob,
    ResultTimeout,
    SubmitIncomplete,
    TextTooLong,
)

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if cls is not Any]
JOB_ERRORS = [
    InvalidJob.because("texts[3]", "is empty"),
    TextTooLong.because("text", "has 9 characters, 8 are allowed"),
    InferenceError.at("forward", ValueError("shape")),
    PoisonJob("It killed its process twice.", "crash", 2),
    errors.OutOfMemory("It doesn't fit."),
    errors.JobRevoked("It was cancelled."),
    errors.JobExpired("It expired."),
    JobError("It failed."),
]
OTHERS = [
    ResultTimeout("Job x did not end within 3 s.", "x", "PENDING", 12),
    SubmitIncomplete("Redis went away.", ["a"], ["b"], ["c"]),
    errors.QueueFull("12 jobs wait.", 12, 10, 3.5),
]


def test_the_drawn_tree_is_the_tree_there_is() -> None:
    """Every class stands in the module's docstring, indented by its depth, and is exported."""
    lines = (errors.__doc__ or "").splitlines()
    found = [re.match(r"    ([│├└─ ]*)([A-Z]\w+)", line) for line in lines]
    drawn = {match[2]: len(match[1]) // 4 for match in found if match}
    assert drawn == {cls.__name__: cls.__mro__.index(GolemError) for cls in CLASSES}
    assert set(errors.__all__) == set(drawn)


@pytest.mark.parametrize("error", JOB_ERRORS, ids=lambda error: type(error).__name__)
def test_a_stock_celery_producer_gets_the_very_class_with_its_data(error: JobError) -> None:
    """Through Celery's JSON result backend and back: class, sentence, arguments, attributes."""
    app = celery.Celery(set_as_current=False, backend="cache+memory://")
    stored = json.loads(json.dumps(app.backend.prepare_exception(error)))
    back = app.backend.exception_to_python(stored)
    assert type(back) is type(error)
    assert back.args == error.args
    assert vars(back) == vars(error)
    assert str(back) == str(error)


@pytest.mark.parametrize("error", JOB_ERRORS + OTHERS, ids=lambda error: type(error).__name__)
def test_every_error_can_be_pickled_and_copied(error: GolemError) -> None:
    """They cross process pools and survive copy, as exceptions of an application must."""
    for back in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):  # noqa: S301
        assert type(back) is type(error)
        assert back.args == error.args
        assert vars(back) == vars(error)


def test_an_error_reads_as_its_sentence_alone() -> None:
    """The other arguments are data, not prose."""
    assert str(PoisonJob("It killed its process twice.", "crash", 2)) == (
        "It killed its process twice."
    )
    assert str(JobError()) == "JobError"


def test_a_hostile_field_name_does_not_fill_the_log() -> None:
    """The producer names its own fields; the sentence shows the beginning of one."""
    error = InvalidJob.because("x" * 100_000, "is not an option")
    assert len(str(error)) < 200


def test_what_python_calls_it_is_caught_too() -> None:
    """Existing handlers of TimeoutError and ConnectionError see ours."""
    assert issubclass(ResultTimeout, TimeoutError)
    assert issubclass(errors.BrokerUnavailable, ConnectionError)
    assert issubclass(SubmitIncomplete, errors.BrokerUnavailable)

"""What a dispatch makes of payloads, before Celery's tracer settles the jobs."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from golem_tasks import InferenceError, InvalidJob
from golem_tasks.contract import Limits
from tests.support.fake_engine import FakeEngine, expected_label
from worker.app import build
from worker.classifier import Classifier
from worker.runner import Job, Runner, TracerClock
from worker.settings import WorkerSettings


class Unreadable(Mapping[str, Any]):
    """Keyword arguments that can't be gone through."""

    def __getitem__(self, _: str) -> Any:
        raise OSError("no page")

    def __iter__(self) -> Iterator[str]:
        raise OSError("no page")

    def __len__(self) -> int:
        return 1


def job(name: str, *args: Any, body: Any = None) -> Job:
    """A job as the parent sends it."""
    return Job("golem.classify", name, {}, body or (args, {}, None), received_s=0.0)


def test_a_payload_that_cant_be_read_fails_alone_at_that_stage() -> None:
    """Neither hostile arguments nor a body of another shape reach a batch-mate or the model."""
    runner = Runner(
        Classifier(FakeEngine()), build(WorkerSettings()).backend, Limits(), TracerClock()
    )
    jobs = [
        job("first", "text one"),
        job("unreadable", body=((), Unreadable(), None)),
        job("empty", ""),
        job("another shape", body=("text",)),
        job("last", "text two"),
    ]
    outcomes, figures = runner._answer(jobs, {})
    runner._outcomes = outcomes
    for name, text in (("first", "text one"), ("last", "text two")):
        assert runner.outcome(name)["label"] == expected_label(text)
    for name, words in (("unreadable", "OSError: no page"), ("another shape", "ValueError")):
        with pytest.raises(InferenceError, match=words) as caught:
            runner.outcome(name)
        assert caught.value.stage == "read"
    with pytest.raises(InvalidJob):
        runner.outcome("empty")
    assert (figures.texts, figures.rows, figures.failed) == (2, 2, 3)

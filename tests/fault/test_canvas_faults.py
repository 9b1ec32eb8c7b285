"""Chords, chains and callbacks over batched jobs, with faults in the middle; all called once."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.exceptions import ChordError, SoftTimeLimitExceeded, TimeLimitExceeded

from golem_tasks.embedded import EmbeddedServer
from tests.support.fake_engine import expected_label
from tests.support.fake_workers import FakeWorker, jobs_of, nothing_held, numbered
from tests.support.waiting import wait_until
from tests.support.workers import WorkerProcess


@pytest.fixture(autouse=True)
def callbacks(tmp_path: Path, alone: EmbeddedServer) -> Iterator[WorkerProcess]:
    """A stock worker for what follows the classifications."""
    environment = {"CALLBACKS_URL": alone.url}
    app, arguments = "tests.support.callbacks_app", ["--pool", "solo"]
    with WorkerProcess(tmp_path, environment, app=app, arguments=arguments, name="own") as worker:
        yield worker


def classify(app: Celery, *text: str, **options: Any) -> Any:
    """A classification of this text, or of what comes before in a chain."""
    return app.signature("golem.classify", text, queue="golem", **options)


def own(app: Celery, name: str, *args: Any, **options: Any) -> Any:
    """One of the producer's own tasks."""
    return app.signature(f"callbacks.{name}", args, queue="celery", **options)


def noted(server: EmbeddedServer, key: str) -> list[str]:
    """What the callbacks noted under a key, in order."""
    with server.client() as client:
        return [line.decode() for line in client.lrange(key, 0, -1)]  # type: ignore[union-attr]


def test_1_a_child_is_killed_in_the_middle_of_a_canvas(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Done: SIGKILL of the process that computes all kinds of canvas, batched together.

    They are a chord of 200, a chord of two chords, a group, a chain, and a job with a link.
    Must hold: every callback is called once, with every answer.
    """
    go = tmp_path / "go"
    texts = [f"until:{go}", *numbered(199)]
    left, right = [f"left {n}" for n in range(20)], [f"right {n}" for n in range(20)]
    wide = chord([classify(app, text) for text in texts], own(app, "note_all", "wide"))
    inner = [
        chord([classify(app, text) for text in side], own(app, "count")) for side in (left, right)
    ]
    nested = chord(inner, own(app, "note_all", "nested"))
    linked = classify(app, "linked", link=own(app, "note", "linked"))
    chained = chain(classify(app, "chained"), own(app, "note", "chained"))
    grouped = group(classify(app, f"group {n}") for n in range(20))
    for canvas in (wide, nested, linked, chained):
        canvas.apply_async()
    members = grouped.apply_async()
    with FakeWorker(tmp_path, alone) as worker:
        wait_until(lambda: len(jobs_of(app, "active")) >= 200, "the batch to run")
        [child] = worker.children
        os.kill(child, signal.SIGKILL)
        go.touch()
        answers = members.get(timeout=120)
        for key in ("wide", "nested", "linked", "chained"):
            wait_until(lambda key=key: noted(alone, key), f"the callback of {key}")  # type: ignore[misc]
        wait_until(lambda: nothing_held(alone), "everything to be acknowledged")
        # One more through both workers: a second call of anything would have come by now.
        chain(classify(app, "after"), own(app, "label")).apply_async().get(timeout=60)
    assert [a["label"] for a in answers] == [expected_label(f"group {n}") for n in range(20)]
    assert json.loads(*noted(alone, "wide")) == [expected_label(text) for text in texts]
    counts = json.loads(*noted(alone, "nested"))
    assert [sum(count.values()) for count in counts] == [20, 20]
    assert noted(alone, "linked") == [expected_label("linked")]
    assert noted(alone, "chained") == [expected_label("chained")]


def test_2_time_limits_alone_and_in_company(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Done: a job hangs under a hard and a soft limit, alone and as a member of a chord of eleven.

    Must hold: each culprit fails by its limit's own error and its errback is called once; the
    others are answered; the chord completes once, as failed, and calls its errback once.
    """
    errback = own(app, "note_failure", "failed")
    limits = {"soft": {"soft_time_limit": 1}, "hard": {"time_limit": 2}}
    alone_in_it = {
        kind: classify(app, "hang", link_error=errback, priority=9, **limit)
        for kind, limit in limits.items()
    }
    with FakeWorker(tmp_path, alone) as worker:
        culprits = {}
        for kind, sent in alone_in_it.items():
            culprits[kind] = sent.apply_async()
            wait_until(lambda kind=kind: culprits[kind].ready(), f"the {kind} limit")  # type: ignore[misc]
        texts = numbered(10)
        body = own(app, "note_all", "body")
        body.on_error(own(app, "note_failure", "chord"))
        # Each of the innocent has it alone, too, and may be slow.
        members = [classify(app, text, time_limit=5) for text in [*texts, "hang"]]
        result = chord(members, body).apply_async()
        wait_until(lambda: noted(alone, "chord"), "the chord's errback")
        wait_until(lambda: nothing_held(alone), "everything to be acknowledged")
        chain(classify(app, "after"), own(app, "label")).apply_async().get(timeout=60)
        assert worker.runs == dict.fromkeys([*texts, "after"], 1)
    assert isinstance(culprits["soft"].result, SoftTimeLimitExceeded)
    assert isinstance(culprits["hard"].result, TimeLimitExceeded)
    expected = sorted(f"{each.id} failed" for each in culprits.values())
    assert sorted(noted(alone, "failed")) == expected
    assert noted(alone, "chord") == [f"{result.id} failed"]
    assert noted(alone, "body") == []
    assert isinstance(result.result, ChordError)
    labels = [member.result["label"] for member in result.parent.results[:-1]]
    assert labels == [expected_label(text) for text in texts]

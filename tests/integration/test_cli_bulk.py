"""A bulk run's jobs under way: failed messages, lost ones, answers that are too few."""

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from types import TracebackType
from typing import Any, Self

import pytest

from golem_tasks.cli import bulk
from golem_tasks.cli.bulk import Bulk
from golem_tasks.cli.outfile import Outcome
from golem_tasks.client import Golem, SubmitOptions
from golem_tasks.contract import Limits, Prediction
from golem_tasks.embedded import EmbeddedServer
from golem_tasks.errors import PoisonJob, QueueFull, ResultTimeout
from golem_tasks.settings import ClientSettings, load
from golem_tasks.textfiles import Line, checked
from tests.support.answers import Answers, body, messages, prediction
from tests.support.waiting import wait_until


class Particular:
    """A thread in a worker's place, with `Answers` for its results: a text is its own label.

    A message with "poison" in it fails as a whole; one with "short" is answered with too few.
    """

    def __init__(self, server: EmbeddedServer) -> None:
        self.sizes: list[int] = []
        self._server = server
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with self._server.client() as client, Answers(self._server).closing() as answers:
            while not self._ending.is_set():
                taken: Any = client.brpop(["golem.bulk"], timeout=0.1)
                if taken:
                    message = json.loads(taken[1])
                    self._answer(message["headers"]["id"], body(message)[0][0], answers)

    def _answer(self, job_id: str, texts: list[str], answers: Answers) -> None:
        self.sizes.append(len(texts))
        if "poison" in texts:
            error = PoisonJob("This job killed its process twice.", "crash", 2)
            answers.store(job_id, error, "FAILURE")
            return
        known = texts[1:] if "short" in texts else texts
        answers.store(job_id, {"predictions": [prediction(text) for text in known]})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ending.set()
        self._thread.join()


@pytest.fixture
def golem(server: EmbeddedServer) -> Iterator[Golem]:
    """A client with small limits, so that few texts show what many would."""
    settings = load(ClientSettings, broker_url=server.url, max_message_bytes=8_000)
    with Golem(settings=settings) as golem:
        yield golem


def lines(texts: list[str]) -> Iterator[Line]:
    """Texts as a file would give them."""
    return checked(texts, Limits())


def labels(outcomes: list[Outcome]) -> list[str]:
    """Each line's label, which the answerer makes of its text; or its error's type."""
    return [
        each.result.label if isinstance(each.result, Prediction) else each.result.type
        for each in outcomes
    ]


def run(golem: Golem, texts: list[str], **options: Any) -> list[Outcome]:
    """Everything a run yields, in order."""
    bulk = Bulk(golem, SubmitOptions(bulk=True), **options)
    return [outcome for some in bulk.outcomes(lines(texts)) for outcome in some]


def test_one_poisonous_text_costs_no_other_its_answer(server: EmbeddedServer, golem: Golem) -> None:
    """Its message fails as a whole; its halves are sent until it stands alone."""
    texts = [f"text {number}" for number in range(40)]
    texts[17] = "poison"
    with Particular(server):
        outcomes = run(golem, texts, chunk_texts=16)
    assert labels(outcomes) == [*texts[:17], "PoisonJob", *texts[18:]]


def test_answers_that_were_read_do_not_stay_in_redis(server: EmbeddedServer, golem: Golem) -> None:
    """A night of them would fill it: after a run no result is left, not even a failed one."""
    with Particular(server):
        run(golem, ["one", "poison", *["text"] * 100], chunk_texts=8)
    with server.client() as client:
        assert list(client.scan_iter("celery-task-meta-*")) == []


def test_a_text_that_fits_no_message_fails_alone(server: EmbeddedServer, golem: Golem) -> None:
    """The client refuses it before it is sent; its neighbours are answered."""
    texts = ["one", "é" * 2_000, "two"]
    with Particular(server):
        assert labels(run(golem, texts)) == ["one", "InvalidJob", "two"]


def test_large_texts_travel_in_smaller_messages(server: EmbeddedServer, golem: Golem) -> None:
    """A message is bounded in bytes too, so that no number of long texts is refused."""
    texts = [f"{number} " + "x" * 1_500 for number in range(10)]
    with Particular(server) as worker:
        assert labels(run(golem, texts)) == texts
    assert max(worker.sizes) == 2


def test_too_few_answers_are_nobodys_answers(server: EmbeddedServer, golem: Golem) -> None:
    """Whose is missing can't be known: each line of that message fails, the others don't."""
    texts = ["one", "short", "two", "three"]
    with Particular(server):
        outcomes = run(golem, texts, chunk_texts=2)
    assert labels(outcomes) == ["InferenceError", "InferenceError", "two", "three"]


def test_what_redis_has_lost_is_sent_again(
    server: EmbeddedServer, golem: Golem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a flush of everything under way each text still gets its answer, once."""
    monkeypatch.setattr(bulk, "_FIRST_LOOK_S", 0.2)
    texts = [f"text {number}" for number in range(20)]
    outcomes = Bulk(golem, SubmitOptions(bulk=True), chunk_texts=5).outcomes(
        _and_then_flush(texts, server)
    )
    with Particular(server), closing(outcomes):
        got = [outcome for some in outcomes for outcome in some]
    assert labels(got) == texts


def _and_then_flush(texts: list[str], server: EmbeddedServer) -> Iterator[Line]:
    """Yield the lines; when the last has been taken, all that was sent before it is lost."""
    *most, last = lines(texts)
    yield from most
    with server.client() as client:
        client.flushall()
    yield last


def test_no_more_than_the_window_is_under_way(golem: Golem) -> None:
    """Without a worker a run takes from its input what the window allows, and gives up in time."""
    taken = 0

    def counted() -> Iterator[Line]:
        nonlocal taken
        for line in lines([f"text {number}" for number in range(1000)]):
            taken += 1
            yield line

    run = Bulk(golem, SubmitOptions(bulk=True), chunk_texts=10, window_texts=100, patience_s=0.3)
    with pytest.raises(ResultTimeout, match="No answer for "):
        next(run.outcomes(counted()))
    assert taken <= 110


def limited(server: EmbeddedServer) -> Golem:
    """A client whose submits are refused when two jobs have no answer."""
    return Golem(settings=load(ClientSettings, broker_url=server.url, max_backlog=2))


def test_a_full_queue_only_slows_a_run_down(server: EmbeddedServer) -> None:
    """What comes back makes room for the next; nothing is refused, and every line is answered."""
    texts = [f"text {number}" for number in range(60)]
    texts[17] = "poison"  # whose halves are sent again, although the queue is full
    with limited(server) as golem, Particular(server):
        outcomes = run(golem, texts, chunk_texts=4)
    assert labels(outcomes) == [*texts[:17], "PoisonJob", *texts[18:]]


def test_a_run_puts_no_more_into_the_queue_than_the_limit(server: EmbeddedServer) -> None:
    """Of ten messages the window would allow, two are sent while nobody answers."""
    with limited(server) as golem, server.client() as client:
        run = Bulk(golem, SubmitOptions(bulk=True), chunk_texts=10, patience_s=0.3)
        with pytest.raises(ResultTimeout):
            next(run.outcomes(lines([f"text {number}" for number in range(100)])))
        assert client.llen("golem.bulk") == 2


def test_a_queue_that_stays_full_of_others_jobs_ends_a_run(server: EmbeddedServer) -> None:
    """It says that it waits for room, and gives up when its patience is over."""
    said: list[str] = []

    def notice(sentence: str) -> None:
        said.append(sentence)
        run._patience_s = 0.0  # it is over as soon as it has been told

    with limited(server) as golem:
        golem.submit_many(["one", "two"])
        run = Bulk(golem, SubmitOptions(bulk=True), notice=notice)
        with pytest.raises(QueueFull):
            next(run.outcomes(lines(["three"])))
        assert golem.backlog().total == 2
    assert any(sentence.startswith("waiting for room in the queue") for sentence in said)


def test_what_is_under_way_when_it_ends_is_cancelled(server: EmbeddedServer, golem: Golem) -> None:
    """Nobody computes answers nobody waits for: closing stores REVOKED for each job."""
    run = Bulk(golem, SubmitOptions(bulk=True), chunk_texts=10, patience_s=0.3)
    with pytest.raises(ResultTimeout):
        next(run.outcomes(lines([f"text {number}" for number in range(50)])))
    with server.client() as client:
        ids = [message["headers"]["id"] for message in messages(client, "golem.bulk")]
    assert len(ids) == 5
    wait_until(lambda: {golem.job(id_).state for id_ in ids} == {"REVOKED"}, "the cancellation")


def test_answers_are_matched_to_lines_that_were_refused_here(
    server: EmbeddedServer, golem: Golem
) -> None:
    """Lines a worker never sees keep their place among those it answers."""
    with Particular(server):
        assert labels(run(golem, ["", "one", " ", "two"])) == [
            "InvalidJob",
            "one",
            "InvalidJob",
            "two",
        ]
        assert labels(run(golem, ["", " "])) == ["InvalidJob", "InvalidJob"]

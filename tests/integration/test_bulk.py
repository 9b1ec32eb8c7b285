"""A bulk submit as one thing, on a real server: its counts, its answers, its end, its record."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import celery
import pytest
from celery import states
from celery.exceptions import TaskRevokedError

from golem_tasks import (
    AsyncGolem,
    BrokerUnavailable,
    Bulk,
    BulkNotFound,
    Golem,
    InferenceError,
    InvalidJob,
    Job,
    JobError,
    JobExpired,
    JobRevoked,
    Prediction,
    ResultTimeout,
)
from golem_tasks._groups import group_record
from golem_tasks._waiting import AT_ONCE
from golem_tasks.embedded import EmbeddedServer
from golem_tasks.settings import ClientSettings, load
from tests.support.answers import Answerer, Answers, messages, prediction
from tests.support.fake_engine import expected_label
from tests.support.fake_workers import FakeWorker
from tests.support.waiting import wait_until
from worker.pace import MOST_ROWS

MANY = 20_000
MOST_KIB = 20 * 1024
"""What following 20,000 jobs may take: a kilobyte each, where an answer takes three."""

ATTACH = """
import sys
from golem_tasks import Golem
with Golem(sys.argv[1]) as golem:
    bulk = golem.bulk(sys.argv[2])
    for answer in bulk.results(timeout=60):
        print(getattr(answer, "label", type(answer).__name__))
    print(bulk.done, bulk.failed, bulk.total, bulk.eta_s)
"""

FOLLOW = """
import asyncio, re, sys
from pathlib import Path
from golem_tasks import AsyncGolem, Golem

def peak_kib():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

async def follow(url, bulk_id):
    async with AsyncGolem(url) as golem:
        return sum([1 async for _ in (await golem.bulk(bulk_id)).completed(timeout=120)])

with Golem(sys.argv[1]) as golem:
    begun = peak_kib()
    bulk = golem.bulk(sys.argv[2])
    ended = bulk.done + sum(1 for _ in bulk.in_order(timeout=120))
    ended += asyncio.run(follow(*sys.argv[1:]))
    grown = peak_kib() - begun
    held = list(bulk.completed(timeout=120))
    print(ended, grown, peak_kib() - begun)
"""


@pytest.fixture
def golem(server: EmbeddedServer) -> Iterator[Golem]:
    """A client of the emptied server."""
    with Golem(server.url) as client:
        yield client


@pytest.fixture
async def agolem(server: EmbeddedServer) -> AsyncIterator[AsyncGolem]:
    """The same for asyncio."""
    async with AsyncGolem(server.url) as client:
        yield client


@pytest.fixture
def answers(server: EmbeddedServer) -> Iterator[Answers]:
    """Stores results as a worker does."""
    with Answers(server).closing() as store:
        yield store


def labels(results: Iterable[Prediction | JobError]) -> list[str]:
    """Each answer's label, or the class of the error there is instead."""
    return [r.label if isinstance(r, Prediction) else type(r).__name__ for r in results]


def look_again(bulk: Bulk) -> None:
    """Let a second pass for the counts, and as many as it takes to look at all jobs."""
    bulk._look_at_s = bulk._open._sweep_at_s = 0.0


def ready_made(server: EmbeddedServer, jobs: int) -> tuple[str, list[str]]:
    """Store the record of a submit and the answers of all its jobs; its id and theirs."""
    ids = [f"job-{number:06}" for number in range(jobs)]
    record = group_record(load(ClientSettings, broker_url=server.url), "ready-made", ids)
    meta = {"status": "SUCCESS", "result": prediction("A"), "children": [], "traceback": None}
    value = json.dumps(meta)
    with server.client() as client, client.pipeline(transaction=False) as pipe:
        pipe.set(record.key, record.payload, ex=600)
        for id_ in ids:
            pipe.set(f"celery-task-meta-{id_}", value, ex=600)
        pipe.execute()
    return record.id, ids


def test_a_bulk_is_a_sequence_of_its_jobs(server: EmbeddedServer, golem: Golem) -> None:
    """What took a list of jobs takes it: index, slice, loop, sum, as_completed, cancel, forget."""
    bulk = golem.submit_many(["a", "b", "c"], bulk=True)
    with server.client() as client:
        ids = [message["headers"]["id"] for message in messages(client, "golem.bulk")]
    assert [job.id for job in bulk] == [bulk[n].id for n in range(3)] == ids
    assert [job.id for job in bulk[1:]] == ids[1:]
    assert bulk[-1].queue == "golem.bulk"
    assert bulk[0] in bulk
    assert golem.job(ids[0]) not in bulk
    assert (len(bulk), bulk.total, repr(bulk)) == (3, 3, f"<Bulk {bulk.id} of 3 jobs>")
    job = bulk[0]
    assert next(iter(bulk)) is job
    with pytest.raises(IndexError):
        bulk[3]
    more = bulk + golem.submit_many(["d"])
    assert golem.cancel(more[:1]) == 1
    assert labels_of(more[0]) == "JobRevoked"  # read now: the stand-in answers it all the same
    with Answerer(server):
        ended = {job.id: job for job in golem.as_completed(more, timeout=60)}
    assert [labels_of(ended[job.id]) for job in more] == ["JobRevoked", "b", "c", "d"]
    assert golem.forget(bulk) == 3


def labels_of(job: Job[Prediction]) -> str:
    """A job's label, or the class of its error."""
    try:
        return job.result(timeout=60).label
    except JobError as error:
        return type(error).__name__


def test_counts_answers_and_order_with_a_worker(
    live_server: EmbeddedServer, worker: FakeWorker, tmp_path: Path
) -> None:
    """Two of 200 fail: counted so, yielded as any job, and the others' answers are their own."""
    go = tmp_path / "go"
    texts = [f"text {number}" for number in range(200)]
    texts[7], texts[150] = "raise:no", "nan"
    with Golem(live_server.url) as golem:
        held = golem.submit(f"until:{go}")
        wait_until(lambda: golem.queue_length() == 0, "the worker to take it")
        bulk = golem.submit_many(texts)
        assert (bulk.done, bulk.failed, bulk.rate, bulk.eta_s) == (0, 0, 0.0, None)
        go.touch()
        held.result(60)
        completed = {job.id: job for job in bulk.completed(timeout=60)}
        assert (bulk.done, bulk.failed, bulk.total, bulk.eta_s) == (200, 2, 200, 0.0)
        assert bulk.rate > 0
        for job, text in zip(bulk, texts, strict=True):
            if text in ("raise:no", "nan"):
                with pytest.raises(InferenceError):
                    completed[job.id].result()
            else:
                assert completed[job.id].result().label == expected_label(text)
        assert [job.id for job in bulk.in_order(timeout=60)] == [job.id for job in bulk]
        expected = [expected_label(text) for text in texts]
        expected[7] = expected[150] = "InferenceError"
        assert labels(bulk.results(timeout=60)) == expected
    assert worker.alive


async def test_the_same_with_asyncio(live_server: EmbeddedServer, worker: FakeWorker) -> None:
    """Counts, completion, order, results and the record."""
    texts = [f"text {number}" for number in range(200)]
    texts[7] = "raise:no"
    expected = [expected_label(text) for text in texts]
    expected[7] = "InferenceError"
    async with AsyncGolem(live_server.url) as golem:
        bulk = await golem.submit_many(texts)
        assert len({job.id async for job in bulk.completed(timeout=60)}) == 200
        told = await bulk.progress()
        assert (told.done, told.failed, told.total, told.eta_s) == (200, 1, 200, 0.0)
        again = await golem.bulk(bulk.id)
        assert [job.id for job in again] == [job.id async for job in bulk.in_order(timeout=60)]
        assert labels([answer async for answer in again.results(timeout=60)]) == expected
        assert await again.progress() == again._tally.progress()
        assert (await again.progress()).failed == 1
        assert await again.forget() == 200
        with pytest.raises(BulkNotFound):
            await golem.bulk(bulk.id)
    assert worker.alive


def test_jobs_come_as_they_end_and_in_order_once_it_is_their_turn(
    golem: Golem, answers: Answers
) -> None:
    """The last to end is yielded last by one, and holds the others up in the other."""
    bulk = golem.submit_many(["a", "b", "c"])
    answers.store(bulk[2].id, prediction("c"))
    completed, in_order = bulk.completed(timeout=60), bulk.in_order(timeout=60)
    assert next(completed).result().label == "c"
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(next, in_order)
        answers.store(bulk[1].id, InvalidJob.because("text", "is empty"), states.FAILURE)
        assert next(completed).id == bulk[1].id
        assert not first.done()
        answers.store(bulk[0].id, TaskRevokedError("expired"), states.REVOKED)
        assert first.result().id == bulk[0].id
    assert [job.id for job in completed] == [bulk[0].id]
    assert [job.id for job in in_order] == [bulk[1].id, bulk[2].id]
    invalid, expired = list(bulk.results())[1::-1]
    assert isinstance(invalid, InvalidJob)
    assert isinstance(expired, JobExpired)
    assert (bulk.done, bulk.failed) == (3, 2)


def test_counts_see_what_ends_without_a_wait_for_it(golem: Golem, answers: Answers) -> None:
    """A loop that only asks how far it is comes to its end; STARTED doesn't count."""
    bulk = golem.submit_many(["a", "b"])
    answers.store(bulk[0].id, None, states.STARTED)
    answers.store(bulk[1].id, prediction("b"))
    assert bulk.done == 1
    answers.store(bulk[0].id, prediction("a"))
    wait_until(lambda: bulk.done == bulk.total, "both")
    assert str(bulk.progress()).startswith("2 of 2 done, 0 failed, ")


@pytest.mark.parametrize("jobs", [3, AT_ONCE + 3])
async def test_a_wait_that_times_out_says_how_many_are_missing(
    golem: Golem, agolem: AsyncGolem, answers: Answers, jobs: int
) -> None:
    """While it looks as while it listens; what was yielded before stays so."""
    bulk = golem.submit_many(["a"] * jobs)
    answers.store(bulk[1].id, prediction("b"))
    late = rf"and {jobs - 2} more did not end within 0.3 s \(state PENDING, {jobs} jobs wait"
    other = await agolem.bulk(bulk.id)
    got: list[str] = []

    async def follow() -> None:
        async for job in other.completed(timeout=0.3):
            got.append(job.id)  # noqa: PERF401 - what is there before the error counts

    with pytest.raises(ResultTimeout, match=late):
        got.extend(job.id for job in bulk.completed(timeout=0.3))
    with pytest.raises(ResultTimeout, match=late):
        await follow()
    assert got == [bulk[1].id] * 2
    with pytest.raises(ResultTimeout):
        next(bulk.in_order(timeout=0))
    with pytest.raises(ResultTimeout):
        await anext(other.in_order(timeout=0))


# Cancelling and forgetting


def test_all_jobs_in_flight_are_cancelled_at_once(
    live_server: EmbeddedServer, worker: FakeWorker, tmp_path: Path
) -> None:
    """Those in the model and those that wait: everybody who waits for one learns of its end."""
    go = tmp_path / "go"
    texts = [f"until:{go}", *(f"never {number}" for number in range(1_200))]
    with Golem(live_server.url) as golem, ThreadPoolExecutor(1) as threads:
        try:
            bulk = golem.submit_many(texts)
            wait_until(lambda: golem.queue_length() < len(texts), "the worker to take some")
            waiting = threads.submit(lambda: labels(golem.bulk(bulk.id).results(timeout=60)))
            assert bulk.cancel() == len(texts)
        finally:
            go.touch()
        assert waiting.result() == ["JobRevoked"] * len(texts)
        look_again(bulk)
        assert (bulk.done, bulk.failed, bulk.cancel()) == (len(texts), len(texts), 0)
        assert golem.submit("after").result(60).label == expected_label("after")
        assert labels(bulk.results()) == ["JobRevoked"] * len(texts)
    assert worker.alive
    # Those in the model at that moment, at most.
    assert sum(worker.runs[text] for text in texts) <= MOST_ROWS


async def test_cancelling_many_asks_no_job_twice(
    server: EmbeddedServer, golem: Golem, agolem: AsyncGolem, answers: Answers
) -> None:
    """A job that ended keeps its answer, one under way doesn't; a few round trips for hundreds."""
    bulk = golem.submit_many([f"{number}" for number in range(900)])
    ended, revoked, begun = bulk[0], bulk[1], bulk[2]
    answers.store(ended.id, prediction("a"))
    answers.store(revoked.id, TaskRevokedError("revoked"), states.REVOKED)
    answers.store(begun.id, None, states.STARTED)
    other = await agolem.bulk(bulk.id)
    with server.client() as client:
        client.config_resetstat()
        assert await other.cancel() == 899
        calls = client.info("commandstats")
    assert calls["cmdstat_watch"]["calls"] == 1
    assert calls["cmdstat_mget"]["calls"] == 1
    assert ended.result(60).label == "a"
    for job in (revoked, begun, bulk[-1]):
        with pytest.raises(JobRevoked):
            job.result(60)
    with server.client() as client:
        assert 0 < client.ttl(f"celery-task-meta-{begun.id}") <= 3600  # type: ignore[operator]
        assert 0 < client.ttl(f"celery-task-meta-{bulk[-1].id}") <= 3600  # type: ignore[operator]


def test_forgetting_a_bulk_leaves_nothing_of_it(server: EmbeddedServer, golem: Golem) -> None:
    """Answers and record; its queue was emptied by the worker."""
    with Answerer(server):
        bulk = golem.submit_many(["a"] * 600)
        assert len(list(bulk.completed(timeout=60))) == 600
    assert bulk.forget() == 600
    with server.client() as client:
        assert client.dbsize() == 0
    assert bulk.done == 600


# The record


def test_another_process_picks_it_up_by_its_id(
    live_server: EmbeddedServer, worker: FakeWorker
) -> None:
    """It gets the answers in the order of the texts, and the counts; so does a stock Celery app."""
    texts = ["one", "raise:no", "three"]
    with Golem(live_server.url) as golem:
        bulk = golem.submit_many(texts)
    command = [sys.executable, "-c", ATTACH, live_server.url, bulk.id]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    expected = [expected_label("one"), "InferenceError", expected_label("three")]
    assert told.stdout.splitlines() == [*expected, "3 1 3 0.0"]
    stock = celery.Celery(backend=live_server.url, set_as_current=False)
    restored = stock.GroupResult.restore(bulk.id, app=stock)
    assert [result.id for result in restored.results] == [job.id for job in bulk]
    assert (restored.ready(), restored.completed_count()) == (True, 2)
    assert worker.alive


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's own, saving a group
def test_a_group_that_a_celery_producer_saved_is_a_bulk(
    server: EmbeddedServer, golem: Golem
) -> None:
    """Its jobs in their order; a group within a group is refused."""
    stock = celery.Celery(broker=server.url, backend=server.url, set_as_current=False)
    tasks = [stock.signature("golem.classify", [text], queue="golem") for text in ("a", "b")]
    saved = celery.group(tasks, app=stock)()
    saved.save()
    with Answerer(server):
        assert labels(golem.bulk(saved.id).results(timeout=60)) == ["a", "b"]
    stock.GroupResult("outer", [saved], app=stock).save()
    with pytest.raises(BulkNotFound, match="a group is among its jobs"):
        golem.bulk("outer")


async def test_a_bulk_nobody_knows_is_told_as_such(
    server: EmbeddedServer, golem: Golem, agolem: AsyncGolem
) -> None:
    """Expired or mistaken, with the setting that decides how long; rubbish as rubbish."""
    for call in (lambda: golem.bulk("gone"),):
        with pytest.raises(BulkNotFound, match="No bulk submit is known as gone") as caught:
            call()
        assert "3600 s ago (GOLEM_RESULT_EXPIRES_S)" in str(caught.value)
        assert caught.value.bulk_id == "gone"
    with pytest.raises(BulkNotFound):
        await agolem.bulk("gone")
    with server.client() as client:
        for raw in ("no JSON", "[]", '{"result": 1}', '{"result": ["x", [1]]}'):
            client.set("celery-taskset-meta-bad", raw, ex=60)
            with pytest.raises(BulkNotFound, match="isn't a group of jobs"):
                golem.bulk("bad")


def test_the_record_expires_with_the_answers_and_has_the_prefix(server: EmbeddedServer) -> None:
    """One key for a submit, also of no texts at all; Celery reads it under the same prefix."""
    settings = load(
        ClientSettings, broker_url=server.url, global_keyprefix="mine:", result_expires_s=77
    )
    with Golem(settings=settings) as golem, server.client() as client:
        bulk, nothing = golem.submit_many(["a", "b"]), golem.submit_many([])
        key = f"mine:celery-taskset-meta-{bulk.id}"
        assert sorted(client.keys()) == sorted(
            [b"mine:golem", key.encode(), f"mine:celery-taskset-meta-{nothing.id}".encode()]
        )
        assert 0 < client.ttl(key) <= 77  # type: ignore[operator]
        assert [job.id for job in golem.bulk(bulk.id)] == [job.id for job in bulk]
        assert (len(golem.bulk(nothing.id)), nothing.done, nothing.eta_s) == (0, 0, 0.0)
    stock = celery.Celery(backend=server.url, set_as_current=False)
    stock.conf.result_backend_transport_options = {"global_keyprefix": "mine:"}
    assert len(stock.GroupResult.restore(bulk.id, app=stock)) == 2


def test_without_its_record_nothing_is_sent() -> None:
    """A result backend that is away is told at submit, with no job in the queue."""
    with EmbeddedServer() as server, EmbeddedServer() as backend:
        settings = load(
            ClientSettings, broker_url=server.url, result_backend=backend.url, connect_timeout_s=2
        )
        with Golem(settings=settings) as golem:
            assert golem.bulk(golem.submit_many(["a"]).id).total == 1
            backend.kill()
            with pytest.raises(BrokerUnavailable, match="GOLEM_RESULT_BACKEND"):
                golem.submit_many(["b"])
            assert golem.queue_length() == 1


# Trouble and size


def test_an_iteration_goes_through_a_restart_of_redis() -> None:
    """Killed half-way: each job is yielded once, with its answer; the counts say what is wrong."""
    jobs = 3 * AT_ONCE  # half of them are still too many to listen for
    with EmbeddedServer(appendonly=True) as server, Golem(server.url) as golem:
        bulk = golem.submit_many([f"text {number}" for number in range(jobs)])
        ids = [job.id for job in bulk]
        label = {id_: f"label {number}" for number, id_ in enumerate(ids)}
        seen: list[tuple[str, str]] = []

        def follow() -> None:
            seen.extend((job.id, job.result().label) for job in bulk.completed(timeout=120))

        with ThreadPoolExecutor(1) as threads:
            following = threads.submit(follow)
            with Answers(server).closing() as store:
                store.store_all({id_: prediction(label[id_]) for id_ in ids[::2]})
                wait_until(lambda: len(seen) == len(ids[::2]), "the first half")
            server.kill()
            look_again(bulk)
            for _ in range(2):
                with pytest.raises(BrokerUnavailable):
                    bulk.progress()
            server.start()
            with Answers(server).closing() as store:
                store.store_all({id_: prediction(label[id_]) for id_ in ids[1::2]})
            following.result()
        assert sorted(seen) == sorted(label.items())
        assert (bulk.done, bulk.failed) == (jobs, 0)


async def test_an_async_iteration_goes_through_cut_connections(
    server: EmbeddedServer, agolem: AsyncGolem, answers: Answers
) -> None:
    """All of them, before each hundred answers, while it looks and listens; each job comes once."""
    bulk = await agolem.submit_many(["text"] * (AT_ONCE + 200))
    ids = [job.id for job in bulk]
    seen: list[str] = []
    answers.store_all({id_: prediction("x") for id_ in ids[:100]})
    with server.client() as client:
        async for job in bulk.completed(timeout=120):
            seen.append(job.id)
            if len(seen) % 100 == 0:
                client.client_kill_filter(_type="pubsub")
                client.client_kill_filter(_type="normal", skipme=True)
                with Answers(server).closing() as store:
                    more = ids[len(seen) : len(seen) + 100]
                    store.store_all({id_: prediction("x") for id_ in more})
    assert sorted(seen) == sorted(ids)


def test_counts_read_no_answer_twice(server: EmbeddedServer, golem: Golem) -> None:
    """Of 5,000 jobs: what ended is read once, then nobody asks for it; all ended: nobody asks."""
    bulk_id, ids = ready_made(server, 5_000)
    with server.client() as client:
        client.delete(*[f"celery-task-meta-{id_}" for id_ in ids[-100:]])
        bulk = golem.bulk(bulk_id)
        assert bulk.done == 4_900
        bulk._look_at_s += 3_600  # the second until the next look is an hour
        client.config_resetstat()
        assert [bulk.done for _ in range(100)] == [4_900] * 100
        assert "cmdstat_mget" not in client.info("commandstats")
        look_again(bulk)
        assert bulk.done == 4_900
        assert client.info("commandstats")["cmdstat_mget"]["calls"] == 1
        assert client.info("stats")["total_net_output_bytes"] < 40_000  # INFO's own, mostly
        for id_ in ids[-100:]:
            client.copy(f"celery-task-meta-{ids[0]}", f"celery-task-meta-{id_}")
        look_again(bulk)
        assert (bulk.done, bulk.failed) == (5_000, 0)
        client.config_resetstat()
        look_again(bulk)
        assert bulk.eta_s == 0.0
        assert "cmdstat_mget" not in client.info("commandstats")


def test_twenty_thousand_answers_are_never_in_memory_together(server: EmbeddedServer) -> None:
    """Counted, as they complete and in order, by both clients; held by the caller, they show."""
    bulk_id, _ = ready_made(server, MANY)
    command = [sys.executable, "-c", FOLLOW, server.url, bulk_id]
    with server.client() as client:
        client.config_resetstat()
    told = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    ended, grown_kib, held_kib = map(int, told.stdout.split())
    assert ended == 3 * MANY
    assert grown_kib < MOST_KIB < 2 * MOST_KIB < held_kib
    with server.client() as client:
        assert "cmdstat_subscribe" not in client.info("commandstats")


def test_thousands_of_jobs_are_followed_while_they_end(server: EmbeddedServer) -> None:
    """Each once, with its own answer, by two at a time; no subscription is left."""
    texts = [f"{number}" for number in range(5_000)]
    with Golem(server.url) as golem, Answerer(server), ThreadPoolExecutor(1) as threads:
        bulk = golem.submit_many(texts)
        in_order = threads.submit(lambda: labels(golem.bulk(bulk.id).results(timeout=120)))
        completed = {job.id: job.result().label for job in bulk.completed(timeout=120)}
        assert in_order.result() == texts
        assert [completed[job.id] for job in bulk] == texts
        assert (bulk.done, bulk.failed, bulk.eta_s) == (5_000, 0, 0.0)
        assert bulk.rate > 0
    with server.client() as client:
        assert client.pubsub_channels() == []

"""The asyncio client on a real server; a thread answers in a worker's place."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from golem_tasks import (
    AsyncGolem,
    BrokerUnavailable,
    GolemError,
    InvalidJob,
    JobRevoked,
    Prediction,
    ResultTimeout,
    SubmitIncomplete,
    _requests,
)
from golem_tasks.embedded import EmbeddedServer, free_port
from golem_tasks.settings import ClientSettings, load
from tests.support.answers import Answerer, Answers, body, messages, prediction
from tests.support.waiting import wait_until

SECRET = "hunter2-hunter2"  # noqa: S105 - nobody's
MANY = 1_500


@pytest.fixture
async def golem(server: EmbeddedServer) -> AsyncIterator[AsyncGolem]:
    """A client of the emptied server."""
    async with AsyncGolem(server.url) as client:
        yield client


@pytest.fixture
def answers(server: EmbeddedServer) -> Iterator[Answers]:
    """Stores results as a worker does."""
    with Answers(server).closing() as store:
        yield store


def quick(server_url: str, **settings: Any) -> ClientSettings:
    """Settings with short patience."""
    return load(ClientSettings, broker_url=server_url, connect_timeout_s=0.3, **settings)


def subscriptions(server: EmbeddedServer) -> int:
    """Channels somebody is subscribed to."""
    with server.client() as client:
        return len(client.pubsub_channels())


def subscribers(server: EmbeddedServer) -> int:
    """Connections with a subscription."""
    with server.client() as client:
        return len(client.client_list(_type="pubsub"))


async def until(server: EmbeddedServer, channels: int) -> None:
    """Return once this many channels are subscribed to."""
    await asyncio.to_thread(
        wait_until, lambda: subscriptions(server) == channels, f"{channels} subscribed channels"
    )


async def test_an_answer_comes_back_as_a_prediction(
    server: EmbeddedServer, golem: AsyncGolem
) -> None:
    """classify, a job's result, and a batch's items in order."""
    with Answerer(server):
        assert (await golem.classify("one", timeout=60)).label == "one"
        job = await golem.submit_batch(["a", "b"])
        many = await job.result(timeout=60)
    assert [item.label for item in many.predictions if isinstance(item, Prediction)] == ["a", "b"]
    assert (await job.state(), await job.done()) == ("SUCCESS", True)


async def test_it_sends_what_the_synchronous_client_sends(
    server: EmbeddedServer, golem: AsyncGolem
) -> None:
    """In the order of the texts, over more than one pipeline; a bad text means nothing is sent."""
    with pytest.raises(InvalidJob, match=r"texts\[2\]"):
        await golem.submit_many(["a", "b", ""])
    assert await golem.queue_length() == 0
    texts = [f"text {number}" for number in range(1_234)]
    jobs = await golem.submit_many(texts, bulk=True, top_k=1)
    with server.client() as client:
        sent = messages(client, "golem.bulk")
    assert [body(message)[:2] for message in sent] == [[[text], {"top_k": 1}] for text in texts]
    assert [message["headers"]["id"] for message in sent] == [job.id for job in jobs]
    assert await golem.queue_length("golem.bulk") == len(texts)


async def test_the_loop_goes_on_during_a_large_submit(
    golem: AsyncGolem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another task runs while 3,000 texts are checked and composed, in a thread."""
    begun, gone_on = threading.Event(), threading.Event()
    compose = _requests.many

    def composed(*args: Any) -> Any:
        begun.set()
        assert gone_on.wait(60), "the loop stood still"
        return compose(*args)

    monkeypatch.setattr(_requests, "many", composed)
    submitting = asyncio.create_task(golem.submit_many(["some text"] * 3_000))
    await asyncio.to_thread(begun.wait, 60)
    assert not submitting.done()
    gone_on.set()
    assert len(await submitting) == 3_000


async def test_jobs_come_in_the_order_they_complete(golem: AsyncGolem, answers: Answers) -> None:
    """Each once, those already done included."""
    first, second, third = await golem.submit_many(["a", "b", "c"])
    answers.store(second.id, prediction("b"))
    completed = golem.as_completed([first, second, third], timeout=60)
    assert await anext(completed) is second
    answers.store(third.id, prediction("c"))
    assert await anext(completed) is third
    answers.store(first.id, prediction("a"))
    assert [job async for job in completed] == [first]
    assert {(await job.result()).label async for job in golem.as_completed([first, second])} == {
        "a",
        "b",
    }


async def test_fifteen_hundred_awaits_outlive_five_cuts_of_their_connection(
    server: EmbeddedServer, golem: AsyncGolem
) -> None:
    """Every one returns its own answer, over one connection, which ends with no subscription."""
    jobs = await golem.submit_many([f"text {number}" for number in range(MANY)])
    waiting = [asyncio.create_task(job.result(timeout=120)) for job in jobs]
    await until(server, channels=MANY)
    assert subscribers(server) == 1

    def to_cut_or_done() -> bool:
        return subscribers(server) > 0 or all(task.done() for task in waiting)

    async def cut() -> None:
        with server.client() as client:
            for _ in range(5):
                await asyncio.to_thread(wait_until, to_cut_or_done, "a connection to cut")
                client.client_kill_filter(_type="pubsub")

    cutting = asyncio.create_task(cut())
    with Answerer(server):
        labels = [answer.label for answer in await asyncio.gather(*waiting)]
    await cutting
    assert labels == [f"text {number}" for number in range(MANY)]
    await until(server, channels=0)


async def test_an_answer_is_found_whenever_it_is_stored(
    server: EmbeddedServer, golem: AsyncGolem
) -> None:
    """Before, between and after subscription and confirmation: 300 awaits race with the answer."""
    with Answerer(server):
        got = await asyncio.gather(*(golem.classify(f"{n}", timeout=60) for n in range(300)))
    assert [answer.label for answer in got] == [str(number) for number in range(300)]
    await until(server, channels=0)


async def test_two_who_wait_for_one_job_share_its_subscription(
    server: EmbeddedServer, golem: AsyncGolem, answers: Answers
) -> None:
    """One of them may go; the last to leave ends it."""
    job = await golem.submit("a")
    one, two = (asyncio.create_task(golem.job(job.id).result(timeout=60)) for _ in range(2))
    waiters = golem._loop().listener._futures
    await asyncio.to_thread(
        wait_until, lambda: [len(each) for each in list(waiters.values())] == [2], "both to wait"
    )
    await until(server, channels=1)
    one.cancel()
    with pytest.raises(asyncio.CancelledError):
        await one
    assert subscriptions(server) == 1
    answers.store(job.id, prediction("a"))
    assert (await two).label == "a"  # type: ignore[union-attr]
    await until(server, channels=0)


async def test_a_wait_given_up_leaves_nothing(server: EmbeddedServer, golem: AsyncGolem) -> None:
    """By cancellation, by its time-out, and by breaking out of the loop."""
    jobs = await golem.submit_many(["a", "b", "c"])
    waiting = asyncio.create_task(jobs[0].result())
    await until(server, channels=1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with pytest.raises(ResultTimeout):
        await jobs[1].result(timeout=0.05)
    with Answers(server).closing() as store:
        store.store(jobs[2].id, prediction("c"))
        async for job in golem.as_completed(jobs, timeout=60):
            assert job is jobs[2]
            break
    await until(server, channels=0)
    assert golem._loop().listener.waiting == 0


async def test_a_wait_that_times_out_names_id_state_and_queue_length(golem: AsyncGolem) -> None:
    """As the synchronous client does; and for many jobs, how many more."""
    jobs = await golem.submit_many(["a", "b", "c"])
    with pytest.raises(ResultTimeout) as caught:
        await jobs[0].result(timeout=0.05)
    error = caught.value
    assert (error.job_id, error.state, error.queue_length) == (jobs[0].id, "PENDING", 3)
    with pytest.raises(ResultTimeout, match=f"Job {jobs[0].id} and 2 more"):
        await anext(golem.as_completed(jobs, timeout=0.05))


async def test_no_time_at_all_still_finds_what_is_stored(
    golem: AsyncGolem, answers: Answers
) -> None:
    """A time-out of 0 asks once."""
    job = await golem.submit("a")
    with pytest.raises(ResultTimeout):
        await job.result(timeout=0)
    answers.store(job.id, prediction("a"))
    assert (await job.result(timeout=0)).label == "a"


async def test_a_cancelled_job_is_revoked(server: EmbeddedServer, golem: AsyncGolem) -> None:
    """Who waits learns of it at once; one that has ended can't be cancelled."""
    done, job = await golem.submit_many(["a", "b"])
    with Answers(server).closing() as store:
        store.store(done.id, prediction("a"))
    waiting = asyncio.create_task(job.result(timeout=60))
    await until(server, channels=1)
    assert await golem.job(job.id).cancel()
    with pytest.raises(JobRevoked):
        await waiting
    assert not await done.cancel()
    assert await golem.cancel([done, job]) == 1


async def test_nobody_who_only_submits_holds_a_subscription(
    server: EmbeddedServer, golem: AsyncGolem
) -> None:
    """200 submits, alone and in bulk."""
    await asyncio.gather(*(golem.submit(f"{number}") for number in range(100)))
    await golem.submit_many(["a"] * 100)
    assert (subscriptions(server), subscribers(server)) == (0, 0)


async def test_a_broker_that_is_not_there_is_one_sentence_without_the_password() -> None:
    """For every verb, within the connection's own time limit."""
    url = f"redis://:{SECRET}@127.0.0.1:{free_port()}/0"
    # Together, so that the limit may be one that a stalled machine keeps as well.
    settings = load(ClientSettings, broker_url=url, connect_timeout_s=3)
    async with AsyncGolem(settings=settings) as golem:
        errors = await asyncio.gather(
            golem.submit("a"),
            golem.submit_many(["a"] * 600),
            golem.job("x").result(timeout=60),
            golem.job("x").state(),
            golem.job("x").cancel(),
            golem.queue_length(),
            return_exceptions=True,
        )
    for error in errors:
        assert isinstance(error, BrokerUnavailable)
        assert not isinstance(error, SubmitIncomplete)
        assert "can't be reached" in str(error)
        assert SECRET not in str(error)


async def test_a_wrong_password_fails_a_wait_at_once() -> None:
    """No use in waiting for a server that refuses; the right one works."""
    with EmbeddedServer() as server:
        with server.client() as client:
            client.config_set("requirepass", "p@ss")
        host = f"127.0.0.1:{server.port}/0"
        async with AsyncGolem(f"redis://:{SECRET}@{host}") as golem:
            for call in (golem.job("x").result(timeout=60), golem.submit("a")):
                with pytest.raises(BrokerUnavailable, match="refused the login"):
                    await call
        async with AsyncGolem(f"redis://:p%40ss@{host}") as golem:
            await golem.submit("a")


async def test_a_port_that_never_answers_is_told_as_such() -> None:
    """Found out by the connection's time limit, not by a reply's."""

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()

    silent = await asyncio.start_server(listen, "127.0.0.1", 0)
    async with silent:
        port = silent.sockets[0].getsockname()[1]
        async with AsyncGolem(settings=quick(f"redis://127.0.0.1:{port}/0")) as golem:
            with pytest.raises(BrokerUnavailable, match="didn't answer in time"):
                await golem.submit("a")
            with pytest.raises(BrokerUnavailable, match="didn't answer in time"):
                await golem.job("x").result(timeout=60)


async def test_waits_and_submits_go_through_a_restart_of_redis() -> None:
    """The connections from before are dead; everything finds the server again by itself."""
    with EmbeddedServer(appendonly=True) as server:
        patient = load(ClientSettings, broker_url=server.url, connect_timeout_s=60)
        async with AsyncGolem(settings=patient) as golem:
            before = await golem.submit("before")
            waiting = asyncio.create_task(before.result(timeout=120))
            await until(server, channels=1)
            server.kill()
            submitting = asyncio.create_task(golem.submit("after"))
            await asyncio.to_thread(server.start)
            after = await submitting
            with Answerer(server):
                assert (await waiting).label == "before"
                assert (await after.result(timeout=60)).label == "after"


async def test_closing_ends_every_wait_and_connection(server: EmbeddedServer) -> None:
    """Whoever waits is told, rather than left hanging."""
    golem = AsyncGolem(server.url)
    waiting = asyncio.create_task((await golem.submit("a")).result())
    await until(server, channels=1)
    await golem.aclose()
    with pytest.raises(GolemError, match="closed"):
        await waiting
    await until(server, channels=0)
    await golem.aclose()


def test_one_client_serves_one_event_loop_after_another(server: EmbeddedServer) -> None:
    """As a module's global does under several asyncio.run calls."""
    golem = AsyncGolem(server.url)

    async def ask(text: str) -> str:
        try:
            return (await golem.classify(text, timeout=60)).label
        finally:
            await golem.aclose()

    with Answerer(server):
        assert [asyncio.run(ask(text)) for text in ("a", "b", "c")] == ["a", "b", "c"]

"""The broker hangs, forgets, drops connections at the worst moment, or runs out of disk."""

import json
from pathlib import Path

import pytest
from celery import Celery

from golem_tasks import AsyncGolem, BrokerUnavailable, Golem, SubmitIncomplete
from golem_tasks.embedded import EmbeddedServer
from golem_tasks.settings import ClientSettings, load
from tests.support.fake_engine import expected_label
from tests.support.fake_workers import (
    FakeWorker,
    check,
    jobs_of,
    nothing_held,
    numbered,
    producer_for,
    send_all,
)
from tests.support.outages import SmallDisk, hung, let_pass
from tests.support.waiting import wait_until

KEEPS_DATA = True
SOCKET_TIMEOUT_S = 1
QUICK = {"GOLEM_SOCKET_TIMEOUT_S": str(SOCKET_TIMEOUT_S)}


def held(app: Celery) -> set[str]:
    """Ids of the jobs worker w1 has fetched."""
    return {job["id"] for kind in ("active", "reserved") for job in jobs_of(app, kind)}


def queued(server: EmbeddedServer) -> list[str]:
    """Ids of the jobs that wait, the next one first."""
    with server.client() as client:
        raw: list[bytes] = client.lrange("golem", 0, -1)  # type: ignore[assignment]
    return [json.loads(message)["headers"]["id"] for message in reversed(raw)]


@pytest.mark.parametrize("doing", ["idle", "busy"])
def test_1_redis_hangs_longer_than_the_socket_timeout(
    tmp_path: Path, alone: EmbeddedServer, app: Celery, doing: str
) -> None:
    """Done: SIGSTOP of Redis for three socket timeouts.

    The worker is idle, or holds a full buffer and a batch in flight, which ends meanwhile.
    Must hold: the worker lives on as the same process, every answer is right, none is a FAILURE,
    and nothing it held was computed twice.
    """
    go = tmp_path / "go"
    texts = [f"until:{go}", *numbered(100)] if doing == "busy" else []
    ids = [result.id for result in send_all(app, texts)]
    with FakeWorker(tmp_path, alone, GOLEM_MAX_ROWS="20", **QUICK) as worker:
        if doing == "busy":
            wait_until(lambda: len(held(app)) == 40, "a batch in flight and a full buffer")
        pid = worker.pid
        with hung(alone.pid):
            go.touch()
            if doing == "busy":
                wait_until(lambda: "Results can't be stored" in worker.text, "a reply to be missed")
            let_pass(3 * SOCKET_TIMEOUT_S)
        later = producer_for(alone)
        check([later.AsyncResult(task_id) for task_id in ids], texts)
        check(send_all(later, ["afterwards"]), ["afterwards"])
        wait_until(lambda: nothing_held(alone), "everything to be acknowledged")
        assert worker.pid == pid
        assert worker.runs == dict.fromkeys([*texts, "afterwards"], 1)


def test_2_redis_comes_back_without_its_data(
    tmp_path: Path,
) -> None:
    """Done: a Redis that keeps nothing on disk is killed and started.

    The worker has a batch in flight and a full buffer.
    Must hold: what the worker held is answered, once each; what waited in the queue is gone, as
    without persistence it must be; the worker adopts what the server doesn't know, lives on,
    serves what comes next, and leaves nothing behind in Redis.
    """
    go = tmp_path / "go"
    texts = [f"until:{go}", *numbered(100)]
    with EmbeddedServer() as forgetful:
        before = producer_for(forgetful)
        ids = [result.id for result in send_all(before, texts)]
        with FakeWorker(tmp_path, forgetful, GOLEM_MAX_ROWS="20") as worker:
            wait_until(lambda: len(held(before)) == 40, "a batch in flight and a full buffer")
            kept = held(before)
            forgetful.kill()
            forgetful.start()
            wait_until(lambda: "jobs kept" in worker.text, "the worker to be connected again")
            assert "40 jobs kept" in worker.text
            go.touch()
            later = producer_for(forgetful)
            mine = [(id_, text) for id_, text in zip(ids, texts, strict=True) if id_ in kept]
            check([later.AsyncResult(id_) for id_, _ in mine], [text for _, text in mine])
            check(send_all(later, ["afterwards"]), ["afterwards"])
            wait_until(lambda: nothing_held(forgetful), "everything to be acknowledged")
            assert worker.runs == dict.fromkeys([*(text for _, text in mine), "afterwards"], 1)
            assert len(mine) == 40


def test_3_a_reset_between_dispatch_and_acceptance(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Done: a batch is written to a stopped process; Redis restarts; the process goes on.

    Not being accepted, the batch is forgotten by Celery's pool at the reconnect.
    Must hold: it is taken back and answered, once each; nothing is wedged.
    """
    texts = numbered(30)
    with FakeWorker(tmp_path, alone) as worker:
        [child] = worker.children
        with hung(child):
            ids = [result.id for result in send_all(app, texts)]
            wait_until(lambda: len(held(app)) == 30, "the batch to be dispatched")
            assert jobs_of(app, "active") == []
            alone.kill()
            alone.start()
            wait_until(lambda: "30 jobs kept" in worker.text, "the worker to be connected again")
        later = producer_for(alone)
        check([later.AsyncResult(task_id) for task_id in ids], texts)
        check(send_all(later, ["afterwards"]), ["afterwards"])
        wait_until(lambda: nothing_held(alone), "everything to be acknowledged")
        assert worker.children == [child]
        assert worker.runs == dict.fromkeys([*texts, "afterwards"], 1)


def test_4_the_disk_of_redis_is_full(tmp_path: Path) -> None:
    """Done: the append-only file can't be written while a batch runs, and can be again later.

    Must hold: a producer gets BrokerUnavailable and its job isn't in the queue; the worker waits
    with its answers; with room on the disk again every job that was accepted is answered, once.
    """
    go = tmp_path / "go"
    texts = [f"until:{go}", *numbered(60)]
    with SmallDisk() as server, Golem(server.url) as golem:
        app = producer_for(server)
        jobs = golem.submit_many(texts)
        with FakeWorker(tmp_path, server, GOLEM_MAX_ROWS="20") as worker:
            wait_until(lambda: jobs_of(app, "active"), "the batch to run")
            with server.full():
                sent: list[str] = []

                def refused() -> bool:
                    try:
                        sent.append(golem.submit("while the disk fills").id)
                    except BrokerUnavailable as exc:
                        return "refused a command (MISCONF" in str(exc)
                    return False

                wait_until(refused, "the disk to be full")
                with pytest.raises(BrokerUnavailable, match="MISCONF"):
                    golem.submit_many(numbered(600))
                go.touch()
                wait_until(lambda: "Results can't be stored" in worker.text, "it to be refused")
            for job, text in zip(jobs, texts, strict=True):
                assert job.result(timeout=60).label == expected_label(text)
            for job_id in sent:
                answer = golem.job(job_id).result(timeout=60)
                assert answer.label == expected_label("while the disk fills")  # type: ignore[union-attr]
            wait_until(lambda: nothing_held(server), "everything to be acknowledged")
            assert worker.runs == {
                **dict.fromkeys(texts, 1), "while the disk fills": len(sent)
            }  # fmt: skip


def quick(server: EmbeddedServer) -> ClientSettings:
    """A producer that waits some seconds for a reply, and as long for a connection."""
    timeouts = {"connect_timeout_s": 3.0, "socket_timeout_s": 3.0}
    return load(ClientSettings, broker_url=server.url, **timeouts)


def test_5_producers_of_a_redis_that_hangs(server: EmbeddedServer) -> None:
    """Done: SIGSTOP of Redis under a connected producer that submits one job, then many.

    Must hold: both raise within the producer's own time limits, and every id is accounted for:
    what is told as certainly not sent isn't in the queue later, what is told as sent is.
    """
    with Golem(settings=quick(server)) as golem:
        before = golem.submit("before")
        with hung(server.pid):
            with pytest.raises(SubmitIncomplete, match="didn't answer in time") as one:
                golem.submit("one")
            with pytest.raises(BrokerUnavailable, match="didn't answer in time") as many:
                golem.submit_many(numbered(1_200))
            with pytest.raises(BrokerUnavailable, match="didn't answer in time"):
                golem.queue_length()
        answers(server)
        after = golem.submit("after")
    account(server, one.value, many.value, [before.id, after.id])


async def test_6_asyncio_producers_of_a_redis_that_hangs(server: EmbeddedServer) -> None:
    """As above, for the asyncio client."""
    async with AsyncGolem(settings=quick(server)) as golem:
        before = await golem.submit("before")
        with hung(server.pid):
            with pytest.raises(SubmitIncomplete, match="didn't answer in time") as one:
                await golem.submit("one")
            with pytest.raises(BrokerUnavailable, match="didn't answer in time") as many:
                await golem.submit_many(numbered(1_200))
            with pytest.raises(BrokerUnavailable, match="didn't answer in time"):
                await golem.queue_length()
        answers(server)
        after = await golem.submit("after")
    account(server, one.value, many.value, [before.id, after.id])


def answers(server: EmbeddedServer) -> None:
    """Return once the server has got to what came while it was stopped."""
    with server.client() as client:
        client.ping()


def account(
    server: EmbeddedServer, one: SubmitIncomplete, many: BrokerUnavailable, certain: list[str]
) -> None:
    """Compare what the errors say with what is in the queue once Redis has read everything."""
    there = set(queued(server))
    assert set(certain) <= there
    may_be = set(one.uncertain)
    assert (one.sent, one.unsent, len(may_be)) == ([], [], 1)
    if isinstance(many, SubmitIncomplete):
        assert len(many.sent) + len(many.unsent) + len(many.uncertain) == 1_200
        assert set(many.sent) <= there
        may_be |= {*many.sent, *many.uncertain}
    assert there - set(certain) <= may_be

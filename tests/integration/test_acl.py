"""The roles of `deploy/redis/users.acl`: each does its whole work, and nothing else.

The server is started as an operator starts it, by `deploy/redis/start.sh`; a command it refuses in
the course of the work stands in its ACL LOG, which must be empty in the end.
"""

import asyncio
import json
import re
import shlex
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery, chain, chord, group
from redis.backoff import NoBackoff
from redis.retry import Retry

from golem_tasks import AsyncGolem, Golem, Job, JobRevoked, PoisonJob
from golem_tasks.dead import DeadLetters
from tests.support.cli import golem as command
from tests.support.dead_letters import requeue
from tests.support.fake_engine import expected_label
from tests.support.fake_workers import FakeWorker, jobs_of
from tests.support.redis_servers import AclServer, debian_redis
from tests.support.waiting import wait_until

SETUPS = [("embedded", "batched"), ("debian", "stock")]
TEXTS = [f"text {number}" for number in range(40)]


@pytest.fixture(scope="module", params=SETUPS, ids="-".join)
def setup(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Which server, and which transport its worker uses."""
    found: tuple[str, str] = request.param
    return found


@pytest.fixture(scope="module")
def guarded(setup: tuple[str, str]) -> Iterator[AclServer]:
    """A server with the users of the file."""
    with AclServer(debian_redis() if setup[0] == "debian" else None) as server:
        yield server


@pytest.fixture(scope="module")
def worker(
    guarded: AclServer, setup: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FakeWorker]:
    """A worker that is no more than a worker, with all that Celery's has switched on."""
    process = FakeWorker(
        tmp_path_factory.mktemp("worker"),
        guarded,
        arguments=["-E", "--include", "tests.support.plain_tasks"],
        sociable=True,
        GOLEM_BROKER_URL=guarded.url_of("worker"),
        GOLEM_TRANSPORT=setup[1],
        GOLEM_MAX_ROWS="8",
    )
    with process:
        yield process


@pytest.fixture
def producer(guarded: AclServer) -> Celery:
    """A stock Celery producer that is no more than a producer."""
    return app_of(guarded, "producer")


@pytest.fixture
def operator(guarded: AclServer) -> Celery:
    """A stock Celery app with the operator's rights."""
    return app_of(guarded, "operator")


@pytest.fixture
def go(tmp_path: Path) -> Iterator[Path]:
    """A file that lets ``until:`` jobs end; there in the end, so that none blocks the next test."""
    path = tmp_path / "go"
    yield path
    path.touch()


def app_of(server: AclServer, user: str) -> Celery:
    """A stock Celery app of a user."""
    url = server.url_of(user)
    app = Celery(broker=url, backend=url, set_as_current=False)
    app.conf.task_queue_max_priority = 10
    return app


def refused(server: AclServer) -> set[tuple[str, str]]:
    """Users and the commands, keys or channels the server refused them.

    Telling workers of a cancelled job is tried and may fail: see `Wire.broadcast_revoke`.
    """
    with server.client() as client:
        entries = {(entry["username"], entry["object"]) for entry in client.acl_log()}
    return entries - {("producer", "/0.celery.pidbox")}


def labels(texts: Sequence[str]) -> list[str]:
    """The answers to texts."""
    return [expected_label(text) for text in texts]


def test_the_client_for_threads(guarded: AclServer, worker: FakeWorker, go: Path) -> None:
    """Submitting, waiting, cancelling, asking and forgetting are a producer's."""
    with Golem(guarded.url_of("producer")) as golem:
        held = golem.submit(f"until:{go}")
        wait_until(lambda: golem.queue_length() == 0, "the worker to take it")
        cancelled = golem.submit("never mind", bulk=True, priority=9)
        assert cancelled.cancel()
        jobs = golem.submit_many(TEXTS, priority=3)
        batch = golem.submit_batch(TEXTS, bulk=True)
        go.touch()
        assert [job.result(60).label for job in jobs] == labels(TEXTS)
        assert [item.label for item in batch.result(60).predictions] == labels(TEXTS)
        held.result(60)
        with pytest.raises(JobRevoked):
            cancelled.result(60)
        assert golem.job(jobs[0].id).state == "SUCCESS"
        again = golem.bulk(jobs.id)
        assert [answer.label for answer in again.results(60)] == labels(TEXTS)
        assert (again.done, again.failed, again.cancel()) == (len(TEXTS), 0, 0)
        assert golem.submit_many(["never mind"] * 3, bulk=True, countdown_s=3600).cancel() == 3
        assert again.forget() == len(jobs)
        assert golem.submit("with room", max_backlog=100).result(60)
        wait_until(lambda: golem.backlog().workers, "the worker to tell of itself")
    assert worker.alive
    assert not refused(guarded)


@pytest.mark.usefixtures("worker")
async def test_the_client_for_asyncio(guarded: AclServer) -> None:
    """So are they from an event loop."""
    async with AsyncGolem(guarded.url_of("producer")) as golem:
        jobs = await golem.submit_many(TEXTS)
        answers = await asyncio.gather(*(job.result(60) for job in jobs))
        assert [answer.label for answer in answers] == labels(TEXTS)
        await (await golem.submit("never mind", bulk=True)).cancel()
        again = await golem.bulk(jobs.id)
        assert (await again.progress()).done == len(TEXTS)
        assert await again.forget() == len(jobs)
    assert not refused(guarded)


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's own, saving a group
@pytest.mark.usefixtures("worker")
def test_a_stock_celery_producer(guarded: AclServer, producer: Celery) -> None:
    """Chains, chords, retries, countdowns, errbacks and saved groups work for it."""
    one = producer.send_task("golem.classify", ["good"], queue="golem", priority=6, countdown=0.1)
    bulk = producer.send_task("golem.classify", ["bulk"], queue="golem.bulk")
    signature = [producer.signature("golem.classify", [text], queue="golem") for text in TEXTS[:12]]
    label = producer.signature("plain.label", queue="golem")
    joined = chord(signature, producer.signature("plain.labels", queue="golem"), app=producer)()
    failing = chord(
        [*signature[:2], producer.signature("plain.fail", ["no"], queue="golem")],
        producer.signature("plain.labels", queue="golem"),
        app=producer,
    )()
    after = producer.signature("their.task", queue="celery", priority=9)
    linked = producer.send_task("golem.classify", ["linked"], queue="golem", link=after)
    assert linked.get(timeout=60)["label"] == expected_label("linked")
    with guarded.client() as admin:
        assert admin.llen("celery\x06\x169") == 1
    assert chain(signature[0], label, app=producer)().get(timeout=60) == labels(TEXTS)[0]
    assert joined.get(timeout=60) == labels(TEXTS[:12])
    failing.get(timeout=60, propagate=False)
    assert failing.state == "FAILURE"
    saved = group(signature, app=producer)()
    saved.save()
    restored = producer.GroupResult.restore(saved.id, app=producer)
    assert [answer["label"] for answer in restored.get(timeout=60)] == labels(TEXTS[:12])
    restored.delete()
    for result, text in ((one, "good"), (bulk, "bulk")):
        assert result.get(timeout=60)["label"] == expected_label(text)
        result.forget()
    assert not refused(guarded)


def test_an_operator_looks_and_revokes(
    guarded: AclServer, worker: FakeWorker, operator: Celery, go: Path
) -> None:
    """Remote control with its replies, events, and a probe through the queue."""
    with Golem(guarded.url_of("producer")) as golem:
        held = golem.submit(f"until:{go}")
        wait_until(lambda: jobs_of(operator, "active"), "the worker to take it")
        waiting = golem.submit("waits")
        asked = {"destination": ["w1@test"], "reply": True, "timeout": 10}
        wait_until(lambda: operator.control.revoke([waiting.id], **asked), "the worker's consent")
        go.touch()
        held.result(60)
        with pytest.raises(JobRevoked):
            waiting.result(60)
    for user in ("operator", "worker"):  # a worker's container asks for its own health
        healthy = command("health", "--timeout", 60, GOLEM_BROKER_URL=guarded.url_of(user))
        assert healthy.returncode == 0, healthy.stderr
    seen: list[str] = []

    def on_event(event: dict[str, Any]) -> None:
        seen.append(event["type"])
        receiver.should_stop = True

    with operator.connection_for_read() as connection:
        receiver = operator.events.Receiver(connection, handlers={"*": on_event})
        receiver.capture(timeout=60)
    assert seen
    assert worker.alive
    assert not refused(guarded)


def recorded(admin: redis.Redis, jobs: Sequence[Job[Any]]) -> int:
    """How many of these jobs are recorded as held by a worker."""
    held = b" ".join(admin.hvals("unacked"))
    return sum(job.id.encode() in held for job in jobs)


def test_a_worker_keeps_what_it_holds_over_a_lost_connection(
    guarded: AclServer, setup: tuple[str, str], worker: FakeWorker, go: Path
) -> None:
    """Taking its messages over to a new connection is a worker's work."""
    with Golem(guarded.url_of("producer")) as golem, guarded.client() as admin:
        jobs = [golem.submit(f"until:{go}"), *golem.submit_many(TEXTS)]
        # A message that stock kombu has popped and not recorded yet is lost with its connection:
        # there, until it holds all that it may, and pops no more.
        enough = 16 if setup[1] == "stock" else 1
        wait_until(lambda: recorded(admin, jobs) >= enough, "the worker to take jobs")
        admin.client_kill_filter(_type="normal", skipme=True)
        admin.client_kill_filter(_type="pubsub")
        go.touch()
        assert [job.result(120).label for job in jobs[1:]] == labels(TEXTS)
    assert worker.alive
    assert not refused(guarded)


@pytest.mark.usefixtures("worker")
def test_a_worker_restores_what_a_dead_one_held(guarded: AclServer, setup: tuple[str, str]) -> None:
    """A record whose lease ended long ago is put back and answered; one too many is given up.

    That one an operator reads, sends again and throws away.
    """
    with Golem(guarded.url, queue="parked") as golem, guarded.client() as admin:
        job, poison, again = golem.submit_many(["left behind", "poison", "more poison"])
        for number in range(3):
            message = json.loads(str(admin.rpop("parked"), "utf-8"))
            tag = message["properties"]["delivery_tag"]
            if setup[1] == "batched":
                message["properties"]["delivery_info"]["redelivered"] = True
                admin.set(f"golem:deliveries:{tag}", 9)
                if number:  # the first one's trial is still to come
                    admin.set(f"golem:dead:tried:{tag}", 1)
            admin.hset("unacked", tag, json.dumps([message, "", "golem"]))
            admin.zadd("unacked_index", {tag: 1.0})
        assert job.result(60).label == expected_label("left behind")
        if setup[1] == "batched":  # the stock transport doesn't count deliveries
            for bad in (poison, again):
                with pytest.raises(PoisonJob):
                    bad.result(60)
            with DeadLetters(guarded.url_of("operator")) as letters:
                assert {letter.id for letter in letters.all()} == {poison.id, again.id}
                assert "more poison" not in letters.message(again.id)  # base64
                letters.drop(again.id)
                requeue(letters, poison.id)
            assert golem.job(poison.id).result(60)
    assert not refused(guarded)


def test_a_worker_gives_back_what_it_leaves(
    guarded: AclServer, worker: FakeWorker, go: Path
) -> None:
    """SIGTERM puts waiting jobs back into the queue; no refusal stands in its whole log."""
    with Golem(guarded.url_of("producer")) as golem, guarded.client() as admin:
        jobs = [golem.submit(f"until:{go}"), *golem.submit_many(TEXTS)]
        wait_until(lambda: recorded(admin, jobs) > 8, "the worker to buffer a second batch")
        worker.signal(signal.SIGTERM)
        go.touch()
        assert worker.wait() == 0
        assert golem.queue_length() > len(TEXTS) - 16
        assert not admin.exists("unacked", "unacked_index")
    assert not refused(guarded)
    for word in ("refuse", "NOPERM", "ermission", "doesn't tell"):
        assert word not in worker.text


NOBODY = """
    FLUSHALL, FLUSHDB, SAVE, BGSAVE, BGREWRITEAOF, SHUTDOWN NOSAVE, MONITOR
    CONFIG GET *, CONFIG SET maxmemory 1, CONFIG REWRITE, ACL LIST, ACL SETUSER x on, ACL LOG
    CLIENT LIST, CLIENT KILL TYPE normal, CLIENT PAUSE 1, MODULE LIST, REPLICAOF NO ONE
    KEYS *, RANDOMKEY, SWAPDB 0 1, MIGRATE h 1 k 0 1, SLOWLOG GET, LATENCY RESET
    FUNCTION LIST, SCRIPT FLUSH, SCRIPT KILL, DUMP golem, OBJECT ENCODING golem
    GET other, SET other 1, DEL other, LPUSH other 1, LRANGE other 0 -1, HGETALL other
    RENAME golem other, COPY golem other, SORT golem STORE other, RESTORE golem 0 x
    PUBLISH other x, SUBSCRIBE other, PSUBSCRIBE *
"""
"""What no role may do; the server isn't theirs, and neither is what else is stored on it."""

REFUSAL = (
    r"ermission|can't run|can't access|not allowed"  # servers and versions differ in their words
)

REFUSED = {
    "producer": """
        RPOP golem, LPOP golem, BRPOP golem 1, LRANGE golem 0 -1, LINDEX golem 0
        LMOVE golem golem LEFT LEFT, RPUSH golem x, LTRIM golem 1 0, LSET golem 0 x
        DEL golem, UNLINK golem, SET golem x, GET golem, EXISTS golem, TYPE golem
        EXPIRE golem 1, RPOP golem.bulk, LRANGE golem.bulk 0 -1, DEL golem.bulk, LPUSH celery x
        HGETALL unacked, HGET unacked x, HDEL unacked x, DEL unacked, ZRANGE unacked_index 0 -1
        ZREM unacked_index x, LRANGE golem:dead:envelopes 0 -1, HGETALL golem:dead:messages
        DEL golem:dead, HSET golem:workers:golem x y, GET golem:deliveries:x, SCAN 0, INFO
        SMEMBERS _kombu.binding.golem, SADD _kombu.binding.celeryev x, LPUSH x.reply.celery.pidbox y
        PUBLISH /0.celery.pidbox shutdown, PUBLISH /0.celeryev/worker.online x
        PSUBSCRIBE celery-task-meta-*, PSUBSCRIBE /0.celeryev/*
        EVAL "return 1" 0, EVALSHA x 0, SCRIPT LOAD x
    """,
    "worker": """
        RPOP celery, LRANGE celery 0 -1, DEL celery, SCAN 0, INFO, GET golem-is-no-prefix
    """,
    "operator": """
        RPOP golem, LPOP golem, LRANGE golem 0 -1, SET golem x, EXPIRE golem 1, LPUSH celery x
        SET unacked x, LPUSH celery-task-meta-x y
    """,
}


def table(user: str) -> list[str]:
    """The commands a role must be refused."""
    return [line.strip() for line in re.split(r"[,\n]", NOBODY + REFUSED[user]) if line.strip()]


@pytest.mark.parametrize("user", REFUSED)
def test_a_role_can_do_nothing_else(guarded: AclServer, user: str) -> None:
    """Each of these commands is refused by name, key or channel, before it has any effect."""
    done = []
    with guarded.client() as admin, guarded.client(user) as client:
        for key in admin.scan_iter():
            admin.persist(key)  # or its time might be over in the meantime
        before = admin.dbsize()
        for line in table(user):
            try:
                client.execute_command(*shlex.split(line))
            except redis.exceptions.NoPermissionError:
                continue
            except redis.exceptions.RedisError as exc:
                done.append(f"{line}: {exc}")
            else:
                done.append(line)
        assert done == []
        assert admin.dbsize() == before
        admin.acl_log_reset()


@pytest.mark.parametrize("user", REFUSED)
def test_a_script_can_do_no_more_than_its_caller(guarded: AclServer, user: str) -> None:
    """Where a role may run scripts, what runs in one is still refused."""
    with guarded.client() as admin, guarded.client(user) as client:
        sha = admin.script_load("return redis.call(ARGV[1], unpack(ARGV, 2))")
        for line in ("FLUSHALL", "CONFIG GET *", "KEYS *", "GET other", "DEL other"):
            with pytest.raises(redis.exceptions.ResponseError, match=REFUSAL):
                client.evalsha(sha, 0, *line.split())
        admin.acl_log_reset()


def test_nobody_comes_in_without_a_password(guarded: AclServer) -> None:
    """The default user is off, and a wrong password is refused."""
    once = Retry(NoBackoff(), 0)
    for login in ({}, {"username": "worker", "password": "wrong"}):
        client = redis.Redis(port=guarded.port, retry=once, **login)
        with client, pytest.raises(redis.AuthenticationError):
            client.ping()

"""``golem dead`` and `DeadLetters` on a real server, with letters as a worker writes them."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import kombu
import pytest
import redis

from golem_tasks import BrokerUnavailable, DeadLetterError, DeadLetters
from golem_tasks._dead import DeadLetter, Keys, bury
from golem_tasks.cli import main
from golem_tasks.embedded import EmbeddedServer
from golem_tasks.settings import ClientSettings, load
from tests.support.dead_letters import Terminal
from tests.support.waiting import wait_until
from worker.transport import Connection

LETTER = "Chloe's private letter"
ODD = b'{"headers": {"id": "job-7", "task": "\\u001b[2J"}, "properties": {"delivery_info": {}}}'


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[redis.Redis]:
    """A plain client of the server, which is empty."""
    with server.client() as client:
        yield client


@pytest.fixture
def golem(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Terminal:
    """The command in this process, on that server."""
    monkeypatch.setenv("GOLEM_BROKER_URL", server.url)
    return Terminal(main, capsys)


def message(text: str) -> str:
    """A message as a producer sends it."""
    body = base64.b64encode(json.dumps([[text], {}, None]).encode()).decode()
    headers = {"id": "x", "task": "golem.classify"}
    properties = {
        "body_encoding": "base64",
        "priority": 3,
        "delivery_tag": "tag",
        "delivery_info": {"exchange": "", "routing_key": "golem"},
    }
    return json.dumps({"body": body, "headers": headers, "properties": properties})


def give_up(client: redis.Redis, job_id: str, died_s: float, most: int = 10) -> DeadLetter:
    """Write a letter as a worker does."""
    letter = DeadLetter(
        id=job_id,
        job_id=job_id,
        task="golem.classify",
        list_name="golem\x06\x163",
        delivery_tag="tag-" + job_id,
        reason="crash",
        error="The job ended its process 2 times, alone in it.",
        deliveries=1,
        crashes=2,
        died_s=died_s,
        worker="w1@test",
        message_bytes=len(message(LETTER)),
    )
    bury(client.eval, Keys.of(""), letter, message(LETTER), most)
    return letter


def fail(client: redis.Redis, job_id: str) -> str:
    """Store a FAILURE as a worker does; the key."""
    meta = {"status": "FAILURE", "result": {}, "traceback": None, "task_id": job_id}
    client.set(f"celery-task-meta-{job_id}", json.dumps(meta), ex=60)
    return f"celery-task-meta-{job_id}"


def test_an_empty_list_says_so(golem: Terminal) -> None:
    """In words for a person, in nothing for a program."""
    assert golem("dead", "list") == (0, "There are no dead letters.\n", "")
    assert golem("dead", "list", "--json") == (0, "", "")


def test_the_list_shows_jobs_and_unreadable_messages_and_no_text(
    golem: Terminal, client: redis.Redis
) -> None:
    """The latest first, whole ids, and nothing a terminal would obey."""
    give_up(client, "older", 1_700_000_000)
    give_up(client, "0b0f6f0e-6a0c-4b7e-9d1b-4d8b1d3c2a10", 1_700_000_100)
    client.lpush("golem:dead:envelopes", ODD, b"\xff\xfe", b"{", ODD)
    code, out, _ = golem("dead", "list")
    assert code == 0
    assert out.index("0b0f6f0e-6a0c-4b7e-9d1b-4d8b1d3c2a10") < out.index("older")
    assert out.count("envelope-") == 3
    assert "\x1b[2J" not in out
    assert LETTER not in out
    code, out, _ = golem("dead", "list", "--json")
    told = [json.loads(line) for line in out.splitlines()]
    assert [each["reason"] for each in told] == ["crash"] * 2 + ["unreadable"] * 3
    assert told[0]["queue"] == "golem"
    assert told[0]["died_s"] == 1_700_000_100
    assert "job-7" in [each["job_id"] for each in told]


def test_show_has_everything(golem: Terminal, client: redis.Redis) -> None:
    """Facts, and the message with its text: decoded for a person, as it was for a program."""
    give_up(client, "x", 1_700_000_000)
    code, out, _ = golem("dead", "show", "x")
    assert code == 0
    assert LETTER in out
    assert "w1@test" in out
    _, out, _ = golem("dead", "show", "x", "--json")
    assert json.loads(out)["message"] == json.loads(message(LETTER))


@pytest.mark.parametrize(
    "raw",
    [b"\xff\xfe\x1b[2J", b"{", b"[" * 100_000, ODD, b"7" * 5_000],
    ids=["no text", "no JSON", "deep", "no message", "long number"],
)
def test_an_unreadable_message_can_be_shown_and_dropped_and_no_more(
    golem: Terminal, client: redis.Redis, raw: bytes
) -> None:
    """Whatever it is; its id comes from its content and stays the same."""
    client.lpush("golem:dead:envelopes", raw, b"other", raw)
    ids = [json.loads(line)["id"] for line in golem("dead", "list", "--json")[1].splitlines()]
    assert len(ids) == 2
    code, out, _ = golem("dead", "show", ids[0])
    assert code == 0
    assert "\x1b" not in out
    code, _, err = golem("dead", "requeue", ids[0])
    assert code == 1
    assert "no worker could read it" in err
    assert golem("dead", "drop", ids[0])[0] == 0
    assert client.lrange("golem:dead:envelopes", 0, -1) == [b"other"]


def test_requeue_puts_the_message_back_and_clears_what_is_old(
    golem: Terminal, client: redis.Redis
) -> None:
    """Into its own list; failure, delivery count and letter are gone, other jobs' are not."""
    give_up(client, "x", 1_700_000_000)
    give_up(client, "y", 1_700_000_000)
    failure, other = fail(client, "x"), fail(client, "y")
    client.set("golem:deliveries:tag-x", 6, ex=60)
    assert golem("dead", "requeue", "x") == (0, "1 dead letter requeued.\n", "")
    (again,) = [json.loads(raw) for raw in client.lrange("golem\x06\x163", 0, -1)]
    sent = json.loads(message(LETTER))
    assert again["properties"].pop("delivery_tag") != sent["properties"].pop("delivery_tag")
    assert again == sent
    assert not client.exists(failure, "golem:deliveries:tag-x")
    assert client.exists(other)
    assert [json.loads(line)["id"] for line in golem("dead", "list", "--json")[1].splitlines()] == [
        "y"
    ]
    assert client.hkeys("golem:dead:messages") == client.hkeys("golem:dead:facts") == [b"y"]


@pytest.mark.parametrize("status", ["SUCCESS", "REVOKED"])
def test_requeue_leaves_an_answer_and_a_cancellation_alone(
    golem: Terminal, client: redis.Redis, status: str
) -> None:
    """Only a failure is taken away: a job that was answered since isn't asked again."""
    give_up(client, "x", 1_700_000_000)
    key = fail(client, "x")
    stored = json.dumps({"status": status, "result": None}).encode()
    client.set(key, stored)
    assert golem("dead", "requeue", "x")[0] == 0
    assert client.get(key) == stored


def test_a_job_a_worker_still_has_is_not_sent_twice(golem: Terminal, client: redis.Redis) -> None:
    """The sentence says so, and nothing has changed."""
    give_up(client, "x", 1_700_000_000)
    failure = fail(client, "x")
    client.hset("unacked", "tag-x", "...")
    before = client.dump("golem:dead:facts")
    code, out, err = golem("dead", "requeue", "x")
    assert (code, out) == (1, "0 dead letters requeued.\n")
    assert "isn't acknowledged" in err
    assert client.exists(failure)
    assert client.dump("golem:dead:facts") == before
    assert not client.exists("golem\x06\x163")


def test_a_requeued_job_shares_no_record_with_its_message_that_came_back(
    golem: Terminal, server: EmbeddedServer, client: redis.Redis
) -> None:
    """Its worker was killed before the acknowledgement, its lease is over: one ack loses neither.

    Asked again, as after a reply that was lost, it isn't sent a third time.
    """
    give_up(client, "x", 1_700_000_000)
    client.lpush("golem\x06\x163", message(LETTER))
    assert golem("dead", "requeue", "x")[0] == 0
    assert golem("dead", "requeue", "x")[0] == 1
    with Connection(server.url) as connection:
        queue = kombu.Queue("golem", channel=connection.default_channel)
        first, second = queue.get(), queue.get()
        assert queue.get() is None
        assert client.hlen("unacked") == 2
        first.ack()
        wait_until(lambda: client.hkeys("unacked") == [second.delivery_tag.encode()], "one record")
        assert second.headers["id"] == first.headers["id"]
        second.ack()
    assert not client.exists("unacked", "unacked_index", "golem\x06\x163")


def test_all_is_all_that_can_be(golem: Terminal, client: redis.Redis) -> None:
    """Requeue passes over what nobody could read; drop doesn't."""
    for number in range(5):
        give_up(client, str(number), 1_700_000_000 + number)
    client.lpush("golem:dead:envelopes", b"{")
    assert golem("dead", "requeue", "--all") == (0, "5 dead letters requeued.\n", "")
    assert client.llen("golem\x06\x163") == 5
    give_up(client, "x", 1_700_000_000)
    assert golem("dead", "drop", "--all")[1] == "2 dead letters dropped.\n"
    assert client.keys("golem:dead*") == []


def test_an_unknown_id_is_named_and_the_others_go_on(golem: Terminal, client: redis.Redis) -> None:
    """Exit code 1, one sentence for each unknown id, and what is known is done."""
    give_up(client, "x", 1_700_000_000)
    for action in ("requeue", "drop", "show"):
        code, _, err = golem("dead", action, "nobody")
        assert code == 1
        assert "There is no dead letter 'nobody'" in err
    code, out, err = golem("dead", "drop", "nobody", "x", "envelope-0000000000000000")
    assert (code, out) == (1, "1 dead letter dropped.\n")
    assert err.count("There is no dead letter") == 2


@pytest.mark.parametrize("arguments", [[], ["x", "--all"]])
def test_ids_or_all_have_to_be_given(golem: Terminal, arguments: list[str]) -> None:
    """Neither, or both, is asked wrongly."""
    for action in ("requeue", "drop"):
        code, _, err = golem("dead", action, *arguments)
        assert code == 2
        assert "either ids or --all" in err


def test_the_oldest_letters_go_first(client: redis.Redis) -> None:
    """Beyond the cap, whatever order they came in; the same job takes one place."""
    for died_s in (5, 1, 4, 2, 3, 4):
        give_up(client, f"job {died_s}", died_s, most=3)
    assert client.zrange("golem:dead", 0, -1) == [b"job 3", b"job 4", b"job 5"]
    assert client.hlen("golem:dead:facts") == client.hlen("golem:dead:messages") == 3


def test_letters_under_a_key_prefix_are_found_there_alone(
    server: EmbeddedServer, client: redis.Redis
) -> None:
    """The prefix is put before every key, the queue's too."""
    letter = DeadLetter("x", list_name="golem", delivery_tag="tag", died_s=1.0)
    bury(client.eval, Keys.of("shop:"), letter, message(LETTER), 10)
    settings = load(ClientSettings, broker_url=server.url, global_keyprefix="shop:")
    with DeadLetters(server.url) as others, DeadLetters(settings=settings) as dead:
        assert others.all() == []
        with pytest.raises(DeadLetterError):
            others.drop("x")
        assert dead.get("x") == letter
        dead.requeue("x")
    assert client.keys("*") == [b"shop:golem"]


def test_a_redis_that_is_away_or_full_is_named() -> None:
    """One sentence; what wasn't requeued is still there."""
    with EmbeddedServer() as own, own.client() as client, DeadLetters(own.url) as dead:
        give_up(client, "x", 1_700_000_000)
        client.config_set("maxmemory", "1")
        with pytest.raises(BrokerUnavailable, match="is full"):
            dead.requeue("x")
        assert [letter.id for letter in dead.all()] == ["x"]
        own.kill()
        refused: list[Any] = [dead.all, lambda: dead.drop("x"), lambda: dead.requeue("x")]
        for call in refused:
            with pytest.raises(BrokerUnavailable, match="GOLEM_BROKER_URL"):
                call()

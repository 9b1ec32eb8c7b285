"""The account of a bulk submit: whatever breaks when, every id ends in exactly one list."""

import json
from typing import Any

import pytest
import redis.exceptions
from hypothesis import given
from hypothesis import strategies as st

from golem_tasks._publishing import Delivery, chunks
from golem_tasks._redis import broker_server
from golem_tasks._wire import Message
from golem_tasks.errors import BrokerUnavailable, SubmitIncomplete
from golem_tasks.settings import ClientSettings, load

SERVER = broker_server(load(ClientSettings, broker_url="redis://127.0.0.1:1/0"))
REFUSAL = redis.exceptions.ResponseError("no")
LENGTH = 7  # an LPUSH's reply

replies = st.lists(st.sampled_from([LENGTH, REFUSAL]))
sizes = st.integers(min_value=1, max_value=400_000)


def message(job_id: str, size: int = 10) -> Message:
    """A message with a body of that size."""
    envelope = {"body": "x" * size, "headers": {}, "properties": {"delivery_info": {}}}
    return Message(job_id, "golem", json.dumps(envelope), size)


def failure_of(delivery: Delivery, error: Exception = REFUSAL) -> BrokerUnavailable:
    """What the producer is told when it is given up."""
    with pytest.raises(BrokerUnavailable) as caught:
        delivery.pause_s(error)
    return caught.value


@given(each=st.lists(sizes, max_size=60))
def test_pipelines_keep_the_order_and_their_bounds(each: list[int]) -> None:
    """Nothing lost, nothing empty; over 1 MiB only where one message alone is."""
    messages = [message(str(number), size) for number, size in enumerate(each)]
    parts = list(chunks(messages))
    assert [m for part in parts for m in part] == messages
    assert all(parts)
    assert all(len(part) == 1 or sum(len(m.payload) for m in part) <= 2**20 for part in parts)


def test_a_pipeline_holds_five_hundred_messages() -> None:
    """However short they are."""
    parts = chunks(message(str(number)) for number in range(1_001))
    assert [len(part) for part in parts] == [500, 500, 1]


@given(total=st.integers(1, 40), size=st.integers(1, 15), exchanges=st.lists(replies, max_size=8))
def test_every_id_ends_in_exactly_one_list(
    total: int, size: int, exchanges: list[list[Any]]
) -> None:
    """Pipelines broken off, refused in part and tried again, in any order."""
    ids = [f"job {number}" for number in range(total)]
    parts = [ids[start : start + size] for start in range(0, total, size)]
    delivery = Delivery(SERVER, ids)
    proven: set[str] = set()
    for part in parts:
        delivery.begin([message(job_id) for job_id in part])
        while delivery.todo and exchanges:
            got = exchanges.pop()[: len(delivery.todo)]
            proven |= {m.id for m, r in zip(delivery.todo, got, strict=False) if r == LENGTH}
            delivery.account(got)
        if delivery.todo:
            break
    error = failure_of(delivery)
    sent, unsent, uncertain = (
        (error.sent, error.unsent, error.uncertain)
        if isinstance(error, SubmitIncomplete)
        else ([], ids, [])
    )
    assert sorted(sent + unsent + uncertain) == sorted(ids)
    assert set(sent) == proven


def test_without_a_connection_nothing_was_sent() -> None:
    """A plain BrokerUnavailable: there is nothing to list."""
    delivery = Delivery(SERVER, ["a", "b"])
    delivery.begin([message("a"), message("b")])
    assert not isinstance(failure_of(delivery), SubmitIncomplete)


def test_a_pipeline_without_replies_is_uncertain_until_a_later_try_is_proven() -> None:
    """What a broken connection carried may be in the queue; the proof settles it."""
    delivery = Delivery(SERVER, ["a", "b", "c"])
    delivery.begin([message("a"), message("b")])
    assert delivery.account([LENGTH]) is None
    assert [m.id for m in delivery.todo] == ["b"]
    error = failure_of(delivery)
    assert isinstance(error, SubmitIncomplete)
    assert (error.sent, error.unsent, error.uncertain) == (["a"], ["c"], ["b"])
    assert str(error).startswith("Of 3 jobs 1 are in the queue, 1 are not and 1 may be: ")
    assert delivery.account([LENGTH]) is None
    assert delivery.todo == []


def test_only_what_may_be_in_the_queue_already_is_marked_as_a_copy() -> None:
    """As kombu marks what it puts back; everything else of the message stays."""
    delivery = Delivery(SERVER, ["a", "b", "c"])
    delivery.begin([message("a"), message("b"), message("c")])
    delivery.account([LENGTH, REFUSAL])
    refused, uncertain = delivery.todo
    assert refused == message("b")
    marked = json.loads(uncertain.payload)
    assert marked["headers"].pop("redelivered") is True
    assert marked["properties"]["delivery_info"].pop("redelivered") is True
    assert marked == json.loads(message("c").payload)


def test_a_bulks_record_is_sent_again_as_it_was() -> None:
    """It is no message that a worker could be told to look for."""
    record = Message("bulk", "celery-taskset-meta-bulk", '{"result": []}', 14, "SET", ("EX", "60"))
    delivery = Delivery(SERVER, [])
    delivery.begin([record])
    delivery.account([])
    assert delivery.todo == [record]


def test_a_refusal_after_a_broken_try_stays_uncertain() -> None:
    """The first try may have gone through, whatever is said to the second."""
    delivery = Delivery(SERVER, ["a"])
    delivery.begin([message("a")])
    delivery.account([])
    assert delivery.account([REFUSAL]) is REFUSAL
    error = failure_of(delivery)
    assert isinstance(error, SubmitIncomplete)
    assert error.uncertain == ["a"]


def test_a_server_that_is_away_is_tried_again_and_one_that_refuses_is_not() -> None:
    """Pauses grow; a time-out has used up the patience by itself."""
    delivery = Delivery(SERVER, ["a"])
    delivery.begin([message("a")])
    away = redis.exceptions.ConnectionError("refused")
    first, second = delivery.pause_s(away), delivery.pause_s(away)
    assert 0 < first < second
    failure_of(delivery, redis.exceptions.AuthenticationError("wrong"))
    delivery.begin([message("a")])
    failure_of(delivery, redis.exceptions.TimeoutError("silence"))

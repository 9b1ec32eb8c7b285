"""The transport's pure parts: replies, records, names, and which class a URL leads to."""

from __future__ import annotations

import base64
import bz2
import json
import lzma
import re
import ssl
import zlib
from typing import Any

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st
from kombu.transport import redis as stock
from kombu.utils.json import loads as kombu_loads

from worker.transport import Connection, Held, Message, Room, SentinelTransport, Transport
from worker.transport.connection import socket_url
from worker.transport.envelope import UnfitError, check
from worker.transport.keys import Keys, script
from worker.transport.messages import Delivery, load, parse_fetch, put_back

SCRIPTS = ("fetch", "restore", "expired", "renew", "fence")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.integers(0, 3))
def test_a_fetch_reply_tells_which_list_each_message_came_from(
    popped: list[int], buried: int
) -> None:
    """Messages are attributed to the lists in order; one without a count is a first delivery."""
    lists = [f"list{place}" for place in range(len(popped))]
    expected = [
        Delivery(f"tag{number}", b"raw%d" % number, source, 2 if number % 2 else 1)
        for number, source in enumerate(
            name for name, count in zip(lists, popped, strict=True) for _ in range(count)
        )
    ]
    tags = [delivery.tag for delivery in expected]
    facts = {
        "tags": tags,
        "popped": popped,
        "again": {d.tag: d.deliveries for d in expected if d.deliveries > 1},
    }
    unreadable = [b"{"] * buried
    raws = [delivery.raw for delivery in expected] + unreadable
    fetched = parse_fetch([b"12.5", json.dumps(facts).encode(), *raws], lists, 0.5)
    assert fetched.leased_until == "12.5"
    assert fetched.deliveries == expected
    assert fetched.buried == unreadable


def test_a_fenced_fetch_has_no_messages() -> None:
    """The short reply of a fetch that came too late is an empty one."""
    assert parse_fetch([b"0", b"{}"], ["golem"], 0.0).deliveries == []


@given(
    headers=st.dictionaries(st.text(), JSON, max_size=3),
    properties=st.dictionaries(st.text(), JSON, max_size=3),
    info=st.dictionaries(st.text(), JSON, max_size=3),
    body=st.text(),
    priority=st.integers(0, 9) | st.none(),
)
def test_putting_back_marks_a_message_and_changes_nothing_else(
    headers: dict[str, Any],
    properties: dict[str, Any],
    info: dict[str, Any],
    body: str,
    priority: int | None,
) -> None:
    """The two flags stock kombu sets are set; every other value survives, surrogates too."""
    properties = {**properties, "priority": priority, "delivery_info": info}
    message = {"body": body, "headers": headers, "properties": properties}
    record = json.dumps([message, "exchange", "key"]).encode()
    raw, exchange, routing_key, found = put_back(record)
    assert (exchange, routing_key, found) == ("exchange", "key", priority)
    properties["delivery_info"] = {**info, "redelivered": True}
    message["headers"] = {**headers, "redelivered": True}
    assert json.loads(raw) == message


@pytest.mark.parametrize("payload", [None, 3, [], {"headers": None, "properties": []}])
def test_putting_back_leaves_what_it_cannot_mark(payload: Any) -> None:
    """An odd message, which stock would fail on, goes back as it is."""
    raw, *_ = put_back(json.dumps([payload, "", "golem"]).encode())
    assert json.loads(raw) == payload


@given(JSON)
def test_messages_decode_as_in_kombu(value: Any) -> None:
    """Whatever a message carries, ours and kombu's decoder agree."""
    raw = json.dumps(value).encode()
    assert load(raw) == kombu_loads(raw)


def test_types_kombu_marks_are_decoded() -> None:
    """A value kombu has wrapped, such as a UUID, comes out as its type."""
    raw = b'{"id": {"__type__": "uuid", "__value__": {"hex": "%s"}}}' % (b"0" * 32)
    assert load(raw) == kombu_loads(raw)


@pytest.mark.parametrize(
    ("room", "is_open"),
    [(Room(1), True), (Room(0), False), (Room(-3), False), (Room(5, 0), False)],
)
def test_room_is_open_if_a_message_may_come(room: Room, is_open: bool) -> None:
    """Neither messages nor bytes may be used up."""
    assert room.open is is_open


def test_holdings_of_two_dying_channels_add_up() -> None:
    """What the earlier one held stays first; what the later one collects is the earlier one's."""
    messages = {tag: object.__new__(Message) for tag in ("a", "b", "c")}
    first, second = Held(settled={"s": True}, receipts=["r1"]), Held(receipts=["r2"])
    first.messages["a"] = messages["a"]
    second.messages.update({"b": messages["b"], "c": messages["c"]})
    first.absorb(second)
    assert list(first.messages) == ["a", "b", "c"]
    assert first.receipts == ["r1", "r2"]
    second.settled["t"] = False
    assert first.settled == {"s": True, "t": False}


def test_every_key_begins_with_the_prefix() -> None:
    """A database shared with others sees no name of ours without the prefix."""
    keys = Keys.of("blue:", "unacked", "unacked_index", "unacked_mutex")
    names = [keys.unacked, keys.index, keys.mutex, keys.deliveries, keys.fetch, keys.dead]
    assert all(name.startswith("blue:") for name in names)


def test_the_glossary_names_every_key() -> None:
    """fetch.lua describes each key, with its type."""
    keys = Keys.of("", "unacked", "unacked_index", "unacked_mutex")
    glossary = script("fetch")
    for name in (keys.unacked, keys.index, keys.mutex, keys.deliveries, keys.fetch, keys.dead):
        assert re.search(rf"-- +{re.escape(name)}\S* +(list|hash|zset|string) ", glossary), name


def decode_body(body: Any, encoding: Any) -> Any:
    """Decode as kombu's ``Channel.decode_body``."""
    return base64.b64decode(body) if encoding else body


def compressed(body: bytes, method: Any, **headers: Any) -> dict[str, Any]:
    """A message with a compressed body, as Celery sends it."""
    return {
        "body": base64.b64encode(body).decode(),
        "headers": {"compression": method, **headers},
        "properties": {"body_encoding": "base64"},
    }


@given(headers=st.none() | st.dictionaries(st.text(), JSON, max_size=3), body=JSON)
def test_messages_of_any_other_protocol_are_let_through(headers: Any, body: Any) -> None:
    """What names neither a task nor a compression is no concern of the check."""
    named = {"task", "compression"}.intersection(headers or ())
    if not named and not (isinstance(body, dict) and "task" in body):
        check(
            {"headers": headers, "body": json.dumps(body), "properties": {}}, decode_body, 1_000_000
        )


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"task": "t", "id": "1"}, "{"),
        ({}, '{"task": "t", "id": "1"}'),
        ({}, "[" * 100_000),
        (None, None),
    ],
)
def test_ordinary_and_foreign_messages_pass_the_check(headers: Any, body: Any) -> None:
    """Both protocols of Celery, and whatever else isn't a task at all."""
    check({"headers": headers, "body": body, "properties": {}}, decode_body, 1_000_000)


def test_a_body_that_is_looked_into_for_its_task_is_bounded() -> None:
    """What names no task beside its body isn't decoded at any size to find one in it."""
    message = {"headers": {"id": "1"}, "body": '{"task": "t", "id": "1"}', "properties": {}}
    with pytest.raises(UnfitError, match="24 bytes"):
        check(message, decode_body, 23)
    check(message, decode_body, 24)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ([], ""),
        ("text", ""),
        ({"task": ["t"], "id": "1"}, ""),
        ({"task": {}, "id": "1"}, ""),
        ({"task": None, "id": "1"}, ""),
        ({"task": "t"}, ""),
        ({"task": "t", "id": {}}, ""),
        ({}, '{"task": [], "id": "1"}'),
        ({}, '{"task": "t", "id": []}'),
    ],
)
def test_what_celery_would_stumble_over_is_refused(headers: Any, body: str) -> None:
    """Headers, task and id of the wrong type end stock Celery's consumer."""
    with pytest.raises(UnfitError):
        check({"headers": headers, "body": body, "properties": {}}, decode_body, 10)


COMPRESSORS = {
    "gzip": zlib.compress,
    "application/x-gzip": zlib.compress,
    "bzip2": bz2.compress,
    "application/x-lzma": lzma.compress,
}


@pytest.mark.parametrize("method", COMPRESSORS)
@pytest.mark.parametrize("size_bytes", [0, 999, 1_000, 1_001, 100_000])
def test_a_compressed_body_is_bounded_to_the_byte(method: str, size_bytes: int) -> None:
    """Up to the bound it passes; one byte more, and it is refused."""
    message = compressed(COMPRESSORS[method](b"x" * size_bytes), method, task="t", id="1")
    if size_bytes <= 1_000:
        check(message, decode_body, 1_000)
    else:
        with pytest.raises(UnfitError, match="more than 1000 bytes"):
            check(message, decode_body, 1_000)


@pytest.mark.parametrize(
    ("body", "method"),
    [
        (b"junk", "gzip"),
        (b"junk", "bzip2"),
        (b"junk", "lzma"),
        (b"", "gzip"),
        (zlib.compress(b"x" * 100)[:-6], "gzip"),
        (bz2.compress(b"x") + bz2.compress(b"y" * 10_000), "bzip2"),
        (lzma.compress(b"x") + lzma.compress(b"y" * 10_000), "lzma"),
        (lzma.compress(b"x", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 28}]), "lzma"),
        (b"x", "unheard of"),
        (b"x", ["gzip"]),
    ],
)
def test_a_body_that_is_no_bounded_stream_is_refused(body: bytes, method: Any) -> None:
    """Neither a broken stream nor a second one behind a harmless first gets past the bound."""
    with pytest.raises(UnfitError):
        check(compressed(body, method), decode_body, 1_000)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_says_what_it_takes_and_returns(name: str) -> None:
    """A script's head names its keys, its arguments and its reply."""
    head = script(name)
    assert "KEYS[1]" in head
    assert "-- Returns" in head


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h/0", "redis://h/0"),
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock"),
        ("unix:///run/r.sock?db=3", "redis+socket:///run/r.sock?virtual_host=3"),
        ("unix://u:p@/run/r.sock", "redis+socket://u:p@/run/r.sock"),
        ("redis+socket:///run/redis.sock", "redis+socket:///run/redis.sock"),
        ("localhost", "localhost"),
    ],
)
def test_a_unix_socket_url_is_spelt_as_kombu_does(url: str, expected: str) -> None:
    """redis-py's scheme becomes kombu's; anything else stays."""
    assert socket_url(url) == expected


@pytest.mark.parametrize(
    ("url", "transport"),
    [
        ("redis://h", Transport),
        ("rediss://h?ssl_cert_reqs=required", Transport),
        ("redis+socket:///run/redis.sock", Transport),
        ("unix:///run/redis.sock", Transport),
        ("sentinel://h;sentinel://i", SentinelTransport),
    ],
)
def test_every_redis_scheme_leads_to_our_transport(url: str, transport: type) -> None:
    """The URL alone decides; no other setting is needed."""
    assert Connection(url).get_transport_cls() is transport


def test_other_schemes_stay_kombus() -> None:
    """A memory broker, as tests use, isn't touched."""
    assert not issubclass(Connection("memory://").get_transport_cls(), stock.Transport)


def test_a_failover_to_the_next_url_keeps_our_transport() -> None:
    """Kombu takes the transport from the new URL's scheme; it is ours again."""
    connection = Connection("redis://one;redis://two")
    connection.maybe_switch_next()
    assert connection.hostname == "two"
    assert connection.get_transport_cls() is Transport


def test_tls_options_of_the_url_are_kept() -> None:
    """rediss:// keeps meaning TLS, with the certificate check the URL asks for."""
    connection = Connection("rediss://h?ssl_cert_reqs=required")
    assert connection.ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}


def test_a_celery_app_selects_it_by_one_argument() -> None:
    """``amqp="worker.transport:AMQP"`` gives every connection of the app our transport."""
    app = Celery("t", broker="redis://h", amqp="worker.transport:AMQP", set_as_current=False)
    for connection in (app.connection_for_read(), app.connection_for_write()):
        assert connection.get_transport_cls() is Transport

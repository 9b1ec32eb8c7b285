"""What can be told of a message that isn't decoded."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from worker.transport.glimpse import END_BYTES, ends, glimpse

HEADERS = {"id": "job", "task": "golem.classify", "x": {"headers": {"id": "not this"}}}
PROPERTIES = {"correlation_id": "job", "delivery_tag": "tag"}
GIANT = '"headers": {"id": "forged"}, "properties": {}}' * 10_000
TABLES = st.dictionaries(st.text(), st.text() | st.integers() | st.none(), max_size=5)


@given(
    st.permutations(["body", "headers", "properties"]),
    st.sampled_from([GIANT, {"headers": {"id": "forged"}, "x": GIANT}, "short"]),
    st.booleans(),
)
def test_headers_and_properties_are_found_wherever_the_body_is(
    order: list[str], body: Any, spaced: bool
) -> None:
    """Those of the message itself: what the body has of the kind is none of it."""
    parts = {"body": body, "headers": HEADERS, "properties": PROPERTIES}
    separators = None if spaced else (",", ":")
    raw = json.dumps({name: parts[name] for name in order}, separators=separators).encode()
    expected = {"headers": HEADERS, "properties": PROPERTIES}
    assert glimpse(raw) == glimpse(ends(raw)) == expected
    assert len(ends(raw)) <= 2 * END_BYTES


@given(headers=TABLES, properties=TABLES, end=st.integers(1, 40))
def test_a_message_cut_off_tells_what_is_complete(
    headers: dict[str, Any], properties: dict[str, Any], end: int
) -> None:
    """Nothing is told that isn't the message's own."""
    raw = json.dumps({"headers": headers, "body": "x" * 50, "properties": properties}).encode()
    found = glimpse(raw[:-end])
    assert found in ({"headers": headers}, {"headers": headers, "properties": properties})


@given(st.binary(max_size=200) | st.text('{}[]",:\\headrspoti', max_size=60).map(str.encode))
def test_whatever_it_is_it_raises_nothing(raw: bytes) -> None:
    """Of what is no message nothing can be told, or tables."""
    assert all(isinstance(value, dict) for value in glimpse(raw).values())


def test_nothing_deep_is_followed_to_its_end() -> None:
    """A nesting that no decoder bears ends the look, and no more."""
    deep = "[" * 30_000
    raw = f'{{"body": {deep}, "headers": {{"x": {deep}, "properties": {{"a": 1}}}}'
    assert glimpse(raw.encode()) == {"properties": {"a": 1}}

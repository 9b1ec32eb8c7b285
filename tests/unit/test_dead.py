"""Dead letters without Redis: what a letter keeps, and a message as its producer sent it."""

import json
from dataclasses import asdict
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from golem_tasks import PoisonJob
from golem_tasks._dead import DeadLetter, Keys
from golem_tasks.settings import load
from worker.burial import Burial, as_sent
from worker.requests import BatchedRequest
from worker.settings import WorkerSettings
from worker.transport.keys import Keys as TransportKeys
from worker.transport.messages import put_back

texts = st.text(max_size=20)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
unmarked = st.dictionaries(texts.filter(lambda name: name != "redelivered"), plain, max_size=4)


@given(texts, texts, texts, st.integers(0), st.none() | st.floats(0, 1e11))
def test_a_letter_is_read_as_it_was_written(
    job_id: str, list_name: str, error: str, crashes: int, sent_s: float | None
) -> None:
    """Whatever its fields hold; what a newer version adds is passed over."""
    letter = DeadLetter(job_id, list_name=list_name, error=error, crashes=crashes, sent_s=sent_s)
    assert DeadLetter.load(letter.dump()) == letter
    newer = json.dumps({**asdict(letter), "mood": "grim"})
    assert DeadLetter.load(newer) == letter


@given(unmarked, unmarked, unmarked, st.integers(1, 3))
def test_a_message_is_kept_as_its_producer_sent_it(
    headers: dict[str, Any], properties: dict[str, Any], info: dict[str, Any], times: int
) -> None:
    """However often it was put back into its queue: body, headers and properties are the same."""
    info = {**info, "exchange": "", "routing_key": "golem"}
    properties = {**properties, "delivery_info": info}
    sent = {"body": "Ym9keQ==", "headers": headers, "properties": properties}
    raw = json.dumps(sent)
    for _ in range(times):
        raw, *_ = put_back(f'[{raw}, "", "golem"]'.encode())
    assert json.loads(as_sent(json.loads(raw))) == sent


def test_a_queue_is_named_without_its_priority_step() -> None:
    """Which list of it the job came from is for Redis to know."""
    assert DeadLetter("x", list_name="golem.bulk\x06\x163").queue == "golem.bulk"
    assert DeadLetter("x", list_name="golem").queue == "golem"


def test_the_keys_are_those_the_transport_uses() -> None:
    """Both sides name unacknowledged messages, counts and unreadable messages alike."""
    ours = Keys.of("p:")
    theirs = TransportKeys.of("p:", "unacked", "unacked_index", "unacked_mutex")
    assert (ours.unacked, ours.deliveries, ours.envelopes) == (
        theirs.unacked, theirs.deliveries, theirs.dead,
    )  # fmt: skip


def test_where_no_letters_are_wanted_none_is_written() -> None:
    """With GOLEM_MAX_DEAD_LETTERS=0 nobody's text is kept, and Redis isn't even asked."""
    settings = load(WorkerSettings, broker_url="redis://127.0.0.1:1/0", max_dead_letters=0)
    nobody = cast("BatchedRequest", None)
    Burial(settings).bury(nobody, PoisonJob("It crashed.", "crash", 2), crashes=2)

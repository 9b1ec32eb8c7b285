"""What is known of a bulk submit: its counts, its rate, what is looked at, and its order."""

import json

from hypothesis import given
from hypothesis import strategies as st

from golem_tasks._waiting import AT_ONCE, InOrder, Pending
from golem_tasks._wire import Wire
from golem_tasks.progress import Progress, Tally
from golem_tasks.settings import ClientSettings, load

WIRE = Wire(load(ClientSettings, broker_url="redis://127.0.0.1:1/0"))
ENDED = json.dumps({"status": "SUCCESS", "result": {}}).encode()
BEGUN = json.dumps({"status": "STARTED", "result": None}).encode()

steps = st.lists(
    st.tuples(st.floats(0.01, 1_000), st.lists(st.booleans(), max_size=40)), max_size=200
)


@given(each=steps, more=st.integers(0, 100))
def test_counts_are_exact_and_the_rate_is_one_that_happened(
    each: list[tuple[float, list[bool]]], more: int
) -> None:
    """Whenever it is asked: never negative, never faster than all in the shortest step."""
    total = sum(len(ended) for _, ended in each) + more
    tally, now_s, done, failed = Tally(total), 0.0, 0, 0
    tally.sample(now_s)
    for passed_s, ended in each:
        now_s += passed_s
        for bad in ended:
            tally.add(now_s, failed=bad)
        tally.sample(now_s)
        done, failed = done + len(ended), failed + sum(ended)
        told = tally.progress()
        assert (told.total, told.done, told.failed) == (total, done, failed)
        assert 0.0 <= told.rate <= done / 0.0099
        if done == total:
            assert told.eta_s == 0.0
        elif told.rate:
            assert told.eta_s == (total - done) / told.rate
        else:
            assert told.eta_s is None
    assert len(tally._samples) <= 2 * done + 2


def test_time_in_the_queue_does_not_slow_the_rate() -> None:
    """An hour behind other jobs, then ten a second."""
    tally = Tally(100)
    for now_s in range(3_601):
        tally.sample(now_s)
    assert tally.progress() == Progress(100, 0, 0, 0.0, None)
    for _ in range(10):
        tally.add(3_600.5, failed=False)
    tally.sample(3_601)
    assert tally.progress() == Progress(100, 10, 0, 10.0, 9.0)


def test_the_rate_is_of_the_last_minute_or_of_the_last_ten_jobs() -> None:
    """Of a thousand a second that became one, nothing is left after a minute; a slow one counts."""
    tally = Tally(1_000_000)
    tally.sample(0)
    for now_s in range(1, 61):
        for _ in range(1_000):
            tally.add(now_s, failed=False)
        tally.sample(now_s)
    assert tally.progress().rate == 1_000.0
    for now_s in range(61, 122):
        tally.add(now_s, failed=False)
        tally.sample(now_s)
    assert tally.progress().rate == 1.0
    for now_s in range(221, 5_000, 100):
        tally.add(now_s, failed=False)
        tally.sample(now_s)
        tally.sample(now_s + 1)
    assert 0.009 < tally.progress().rate < 0.012
    assert len(tally._samples) < 100


def test_the_rate_stays_once_all_have_ended() -> None:
    """Asked for an hour later it is still what it was."""
    tally = Tally(4)
    tally.sample(0)
    for _ in range(4):
        tally.add(2.0, failed=True)
    tally.sample(3_600)
    assert tally.progress() == Progress(4, 4, 4, 2.0, 0.0)


def test_a_progress_reads_as_a_line() -> None:
    """What a program prints without thinking about it."""
    assert str(Progress(50_000, 1_200, 3, 310.04, 157.4)) == (
        "1,200 of 50,000 done, 3 failed, 310.0/s, 157 s left"
    )
    assert str(Progress(2, 0, 0, 0.0, None)) == "0 of 2 done, 0 failed, 0.0/s"


def look(pending: Pending, stored: dict[str, bytes], now_s: float) -> tuple[list[str], int]:
    """One look at what is stored: the jobs found to have ended, and how many were looked at."""
    found, asked = [], 0
    for part in pending.parts(now_s):
        assert 0 < len(part) <= AT_ONCE
        asked += len(part)
        values = [stored.get(pending.keys[key]) for key in part]
        found += [id_ for id_, _ in pending.found(zip(part, values, strict=True))]
    return found, asked


def test_a_look_reads_the_front_and_all_of_it_now_and_then() -> None:
    """Of 50,000 jobs one part while nothing ends, and what ended is never asked for again."""
    ids = [f"{number}" for number in range(50_000)]
    pending, stored = Pending(WIRE, ids), dict.fromkeys(ids[:700] + ids[-1:], ENDED)
    assert look(pending, stored, 100.0) == ([*ids[:700], ids[-1]], 50_000)
    assert look(pending, stored, 101.0) == ([], AT_ONCE)
    stored |= dict.fromkeys([ids[700], ids[40_000]], ENDED) | {ids[701]: BEGUN}
    assert look(pending, stored, 102.0) == ([ids[700]], 2 * AT_ONCE)
    assert look(pending, stored, 105.0) == ([ids[40_000]], 50_000 - 702)


@given(order=st.permutations(range(12)))
def test_what_ends_in_any_order_is_put_back_into_its_own(order: list[int]) -> None:
    """Each at the moment it and all before it have ended, with its own result."""
    ids = [f"{number}" for number in range(12)]
    again, out = InOrder(ids), list[str]()
    for count, number in enumerate(order, 1):
        ended = list(again.add(ids[number], {"status": ids[number]}))
        assert all(meta == {"status": id_} for id_, meta in ended)
        out += [id_ for id_, _ in ended]
        seen = set(order[:count])
        assert len(out) == next((n for n in range(12) if n not in seen), 12)
    assert out == ids

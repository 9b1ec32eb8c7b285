"""The backlog's arithmetic: what is counted, what is believed, how long it takes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from golem_tasks import QueueFull
from golem_tasks._admission import admit
from golem_tasks._requests import Planned
from golem_tasks.backlog import STATS_TTL_S, Backlog, Counted

NOW_S = 1_000_000.0


def told(name: str, held: tuple[int, int, int, int] = (0, 0, 0, 0), **more: Any) -> bytes:
    """What a worker says; `held` is reserved and in flight, interactive, then the same of bulk."""
    lanes = {
        "interactive": {"reserved": held[0], "in_flight": held[1]},
        "bulk": {"reserved": held[2], "in_flight": held[3]},
    }
    return json.dumps({"name": name, "at_s": NOW_S, **lanes, **more}).encode()


def count(
    waiting: tuple[int, int] = (0, 0), unacknowledged: int = 10_000, **workers: bytes
) -> Counted:
    """A count with these workers' words in it."""
    said = {name.encode(): raw for name, raw in workers.items()}
    return Counted(("golem", "golem.bulk"), waiting, unacknowledged, said, NOW_S)


def planned(jobs: int, limit: int | None, queue: str = "golem") -> Planned:
    """A submit of so many jobs."""
    return Planned([str(number) for number in range(jobs)], queue, (), limit)


def refusal(jobs: int, limit: int, counted: Counted, queue: str = "golem") -> QueueFull:
    """The error such a submit is refused with."""
    with pytest.raises(QueueFull) as caught:
        admit(planned(jobs, limit, queue), lambda: counted)
    return caught.value


def test_waiting_reserved_and_in_flight_jobs_of_both_lanes_and_all_workers_are_counted() -> None:
    """Lane by lane, worker by worker; the total is their sum."""
    backlog = count((5, 7), a=told("a", (1, 2, 3, 4)), b=told("b", (10, 20, 30, 40))).backlog()
    first, second = backlog.lanes
    assert (first.waiting, first.reserved, first.in_flight, first.total) == (5, 11, 22, 38)
    assert (second.waiting, second.reserved, second.in_flight, second.total) == (7, 33, 44, 84)
    assert backlog.total == 122
    assert [worker.name for worker in backlog.workers] == ["a", "b"]


def test_a_worker_that_is_silent_or_makes_no_sense_is_left_out() -> None:
    """Too old a word, no JSON and a field of the wrong type; the others are counted."""
    backlog = count(
        silent=told("silent", (1, 1, 1, 1), at_s=NOW_S - STATS_TTL_S - 1),
        broken=b"{",
        odd=told("odd", processes="many"),
        newer=told("newer", (2, 0, 0, 0), something_new=[1]),
    ).backlog()
    assert [worker.name for worker in backlog.workers] == ["newer"]
    assert backlog.total == 2


@given(
    st.lists(st.tuples(*[st.integers(0, 500)] * 4), max_size=4),
    st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
    st.integers(0, 3_000),
)
def test_no_more_jobs_are_held_than_messages_are_unacknowledged(
    helds: list[tuple[int, int, int, int]], waiting: tuple[int, int], unacknowledged: int
) -> None:
    """What the workers hold is the smaller of the two numbers, whatever each lane's share is."""
    workers = {f"w{number}": told(f"w{number}", held) for number, held in enumerate(helds)}
    counted = count(waiting, unacknowledged, **workers)
    backlog = counted.backlog()
    claimed = sum(map(sum, helds))
    assert backlog.total == sum(waiting) + min(claimed, unacknowledged)
    assert backlog.total <= counted.most
    for lane, number in zip(backlog.lanes, waiting, strict=True):
        assert lane.waiting == number
        assert lane.reserved >= 0
        assert lane.in_flight >= 0
    if claimed <= unacknowledged:
        assert backlog.interactive.in_flight == sum(held[1] for held in helds)


def test_the_wait_is_the_backlog_over_what_all_workers_do_together() -> None:
    """Two workers of 10 and 30 jobs/s: 80 jobs take two seconds; a silent third knows nothing."""
    backlog = count(
        (60, 20),
        a=told("a", full_jobs_per_s=10.0, full_texts_per_s=640.0),
        b=told("b", full_jobs_per_s=30.0, full_texts_per_s=30.0),
        c=told("c"),
    ).backlog()
    assert (backlog.jobs_per_s, backlog.texts_per_s) == (40.0, 670.0)
    assert backlog.drain_s == backlog.wait_s("golem.bulk") == 2.0
    # The interactive lane goes first: what waits in bulk isn't in its way.
    assert backlog.wait_s("golem") == 1.5


@pytest.mark.parametrize("rate", [{}, {"full_jobs_per_s": 0.0}], ids=["none yet", "nothing done"])
def test_an_unknown_speed_makes_no_estimate(rate: dict[str, float]) -> None:
    """Neither a division by nothing nor a number out of the air; no backlog takes no time."""
    backlog = count((1, 0), a=told("a", **rate)).backlog()
    assert backlog.drain_s is backlog.wait_s("golem") is None
    assert count(a=told("a", **rate)).backlog().drain_s == 0.0


def test_what_would_exceed_the_limit_is_refused_and_what_fills_it_is_not() -> None:
    """Nine jobs and one more are ten; the error has the numbers and the wait."""
    nine = count((4, 2), a=told("a", (1, 1, 1, 0), full_jobs_per_s=3.0))
    admit(planned(1, 10), lambda: nine)
    error = refusal(2, 10, nine)
    assert (error.backlog, error.limit) == (9, 10)
    assert error.wait_s == 2.0
    assert "backlog is 9 jobs, and 2 more would exceed the limit of 10" in str(error)
    assert "about 2 s" in str(error)
    assert refusal(2, 10, nine, "golem.bulk").wait_s == 3.0


def test_the_remedy_fits_the_case() -> None:
    """Too many at once, no speed known yet, nobody there to work."""
    assert "send them in parts" in str(refusal(11, 10, count()))
    idle = refusal(1, 10, count((10, 0), a=told("a")))
    assert idle.wait_s is None
    assert "isn't known yet" in str(idle)
    assert "no worker runs on queue 'golem': start one" in str(refusal(1, 10, count((10, 0))))


def test_without_a_limit_or_without_jobs_nobody_is_asked() -> None:
    """The count costs a round trip, so it isn't made for nothing."""

    def count() -> Counted:
        raise AssertionError("it was asked")

    admit(planned(3, None), count)
    admit(planned(0, 1), count)


def test_a_backlog_that_fits_whoever_holds_the_rest_needs_nobodys_word() -> None:
    """Below the limit even with all unacknowledged messages of the database: no word is read."""
    garbage = count((5, 0), unacknowledged=4, a=b"{")
    admit(planned(1, 10), lambda: garbage)
    assert isinstance(garbage.backlog(), Backlog)

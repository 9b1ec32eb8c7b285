"""When leases may be judged, by the server's clock alone."""

from hypothesis import given
from hypothesis import strategies as st

from worker.transport.fetcher import receipt_ttl_s
from worker.transport.leases import RENEWALS_PER_LEASE, Silence
from worker.transport.messages import Message

LEASE_S = 30.0
STEPS = st.lists(st.floats(0.01, LEASE_S / RENEWALS_PER_LEASE), min_size=1, max_size=30)


def test_a_worker_that_has_just_started_judges_at_once() -> None:
    """It knows of no silence, and a dead worker's jobs should not wait for its restart."""
    assert Silence(LEASE_S).over(1_000.0)


@given(STEPS)
def test_a_server_that_keeps_replying_is_never_silent(steps: list[float]) -> None:
    """Replies as often as leases are renewed never put a sweep off."""
    silence, now_s = Silence(LEASE_S), 1_000.0
    for step in steps:
        now_s += step
        assert silence.over(now_s)


@given(st.floats(LEASE_S / 2 + 0.01, 1e6), STEPS)
def test_after_a_silence_leases_are_judged_one_lease_later(gap: float, steps: list[float]) -> None:
    """However long it was, holders get one lease to come back, and no more than that."""
    silence = Silence(LEASE_S)
    silence.hear(1_000.0)
    ended_s = now_s = 1_000.0 + gap
    assert not silence.over(ended_s)
    for step in steps:
        now_s += step
        assert silence.over(now_s) is (now_s >= ended_s + LEASE_S)


@given(st.floats(1, 1e6))
def test_a_clock_set_back_puts_a_sweep_off_by_one_lease_at_most(back_s: float) -> None:
    """A wait reckoned by the old clock doesn't last till the new one gets there."""
    silence = Silence(LEASE_S)
    silence.hear(1e7)
    silence.hear(1e7 + LEASE_S)  # a silence
    silence.hear(now_s := 1e7 + LEASE_S - back_s)
    assert silence.until_s <= now_s + LEASE_S


def held(until_s: float, slack_s: float) -> Message:
    """A message whose lease ends then, as far as its holder knows."""
    message = Message({"properties": {"delivery_tag": "tag", "delivery_info": {}}})
    message.leased_until, message.slack_s = f"{until_s:.6f}", slack_s
    return message


def stored(time_s: float) -> float:
    """The end of a lease begun then, as Redis has it."""
    return float(f"{time_s + LEASE_S:.6f}")


@given(st.floats(0, LEASE_S - 0.01), st.booleans())
def test_a_lease_begun_anew_by_a_lost_renewal_is_still_ours(after_s: float, came: bool) -> None:
    """Whether it came through or not, as long as the lease wasn't over by then."""
    message = held(stored(1_000.0), LEASE_S)
    score = stored(1_000.0 + after_s if came else 1_000.0)
    assert message.is_ours(score, score)


@given(st.floats(LEASE_S + 0.01, 1e6), st.sampled_from([0.0, LEASE_S]))
def test_a_lease_begun_by_another_is_never_taken_for_ours(after_s: float, slack_s: float) -> None:
    """It can't begin before ours is over, so it ends later than any we began in time."""
    message = held(stored(1_000.0), slack_s)
    score = stored(1_000.0 + after_s)
    assert not message.is_ours(score, score)


@given(st.floats(0.01, 1e6), st.none() | st.floats(0, 900))
def test_a_score_without_its_double_is_a_stock_workers(
    after_s: float, double: float | None
) -> None:
    """It knows nothing of leases, so its time of delivery may lie anywhere."""
    score = stored(1_000.0 + after_s)
    assert not held(stored(1_000.0), LEASE_S).is_ours(score, double)


@given(st.floats(0.01, 1e6))
def test_with_no_reply_lost_only_our_own_score_is_ours(after_s: float) -> None:
    """There is no doubt then, so there is no room for one."""
    score = stored(1_000.0 + after_s)
    assert not held(stored(1_000.0), 0.0).is_ours(score, score)
    assert held(stored(1_000.0), 0.0).is_ours(stored(1_000.0), None)


@given(st.floats(1, 3600))
def test_the_record_of_a_fetch_is_gone_before_its_leases_are(lease_s: float) -> None:
    """Else its reader would put back what another worker has by then."""
    assert lease_s - 1 < receipt_ttl_s(lease_s) <= lease_s

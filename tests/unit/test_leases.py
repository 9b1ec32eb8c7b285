"""When leases may be judged, by the server's clock alone."""

from hypothesis import given
from hypothesis import strategies as st

from worker.transport.leases import RENEWALS_PER_LEASE, Silence

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

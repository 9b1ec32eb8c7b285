"""The token budget that memory leaves, on a simulated device and a simulated clock."""

import errno
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from golem_tasks.errors import ModelLoadError
from tests.support.fake_engine import FakeEngine
from worker.ceiling import CALM_S, LONGEST_CALM_S, Ceiling, Trail, warm_up
from worker.failures import failure, forget_frames, is_out_of_memory

FULL = 16_384


def try_out(ceiling: Ceiling, room: int, now_s: float) -> Ceiling:
    """One micro-batch as large as the budget allows, on a device with this much room."""
    area = ceiling.tokens
    while area > room:
        ceiling = ceiling.failed(area, now_s)
        area = ceiling.tokens
    return ceiling.ran(area, now_s)


def troubles(room: int, until_s: int, step_s: int = 10) -> list[int]:
    """When a device of constant room ran out of memory, under a deep queue."""
    ceiling, when = Ceiling.start(FULL), []
    for now_s in range(0, until_s, step_s):
        if ceiling.tokens > room:
            when.append(now_s)
        ceiling = try_out(ceiling, room, now_s)
    return when


def test_a_failed_allocation_halves_the_budget() -> None:
    """To half of what was tried, not of what is allowed."""
    assert Ceiling.start(FULL).failed(1000, 0).tokens == 500


def test_what_has_fitted_is_kept() -> None:
    """Half would be less than what ran a moment ago."""
    ceiling = Ceiling.start(FULL).ran(900, 0).failed(1000, 1)
    assert ceiling.tokens == 900
    assert ceiling.failed(900, 2).tokens == 450, "it fitted once and does no longer"


def test_the_budget_grows_by_time_and_only_while_it_is_used() -> None:
    """A quarter after the calm, if a micro-batch has used more than half of it."""
    ceiling = Ceiling.start(FULL).failed(2000, 0)
    assert ceiling.tokens == 1000
    assert ceiling.ran(1000, CALM_S - 1).tokens == 1000
    assert ceiling.ran(500, CALM_S).tokens == 1000
    assert ceiling.ran(501, CALM_S).tokens == 1251
    assert ceiling.ran(501, CALM_S).ran(1251, CALM_S + 1).tokens == 1251


def test_a_budget_that_is_whole_again_stays_so() -> None:
    """The engine's own is never exceeded, and nothing is left to remember."""
    ceiling = Ceiling.start(FULL).failed(FULL, 0)
    for minute in range(1, 20):
        ceiling = try_out(ceiling, FULL, minute * CALM_S)
    assert (ceiling.tokens, ceiling.lowered) == (FULL, False)


def test_growth_into_the_same_wall_is_tried_less_and_less_often() -> None:
    """The device's own limit is run into once an hour in the end, not once a minute."""
    when = troubles(room=5000, until_s=86_400)
    assert 24 <= len(when) <= 48
    assert all(LONGEST_CALM_S <= b - a <= 2 * LONGEST_CALM_S for a, b in pairwise(when[-4:]))


def test_room_that_comes_back_ends_the_long_waits() -> None:
    """After hours at the wall, twenty minutes bring the whole budget back once there is room."""
    ceiling = Ceiling.start(FULL)
    for now_s in range(0, 36_000, 10):
        ceiling = try_out(ceiling, 5000, now_s)
    begun_s = ceiling.due_s
    assert ceiling.calm_s == LONGEST_CALM_S
    now_s = begun_s
    while ceiling.lowered and now_s < begun_s + LONGEST_CALM_S + 20 * CALM_S:
        ceiling = try_out(ceiling, FULL, now_s)
        now_s += 10
    assert not ceiling.lowered


@pytest.mark.parametrize(("remembered", "tokens"), [(None, FULL), (700, 700), (FULL + 1, FULL)])
def test_what_is_remembered_only_ever_lowers(remembered: int | None, tokens: int) -> None:
    """A figure from a time of a larger setting doesn't raise today's."""
    assert Ceiling.start(FULL, remembered).tokens == tokens


@given(
    full=st.integers(1, 100_000),
    events=st.lists(st.tuples(st.booleans(), st.floats(0, 1), st.floats(0, 5000))),
)
def test_the_budget_stays_within_its_bounds(
    full: int, events: list[tuple[bool, float, float]]
) -> None:
    """Whatever happens: 1 to the engine's own, lower after every failure, waits within theirs."""
    ceiling, now_s = Ceiling.start(full), 0.0
    for fits, share, wait_s in events:
        now_s += wait_s
        area = max(1, int(ceiling.tokens * share))
        before = ceiling
        ceiling = ceiling.ran(area, now_s) if fits else ceiling.failed(max(2, area), now_s)
        assert 1 <= ceiling.tokens <= full
        assert CALM_S <= ceiling.calm_s <= LONGEST_CALM_S
        if not fits:
            assert ceiling.tokens < max(2, area)
            assert ceiling.tokens <= before.tokens
        elif now_s < before.due_s:
            assert ceiling.tokens == before.tokens


@given(full=st.integers(2, 100_000), room=st.integers(1, 100_000))
def test_any_room_is_found_within_a_few_tries(full: int, room: int) -> None:
    """As many failures as halvings from the whole budget down, and half the room at least is used.

    Each halving of a budget above the room leaves at least half of the room.
    """
    ceiling, failures = Ceiling.start(full), 0
    while ceiling.tokens > room:
        ceiling, failures = ceiling.failed(ceiling.tokens, 0), failures + 1
    assert failures <= full.bit_length()
    assert ceiling.tokens >= min(full, room) // 2


class Narrow(FakeEngine):
    """An engine whose warm-up runs out of memory above `max_area`."""

    def warm_up(self, token_budget: int) -> None:
        """See `worker.interfaces.Engine`."""
        if self.max_area is not None and token_budget > self.max_area:
            raise RuntimeError("out of memory")


def test_the_warm_up_finds_a_size_that_fits() -> None:
    """A budget too large for the device is no reason not to start."""
    engine = Narrow(token_budget=4096, max_area=700)
    ceiling = warm_up(engine, Ceiling.start(4096), lambda: 0.0)
    assert (ceiling.tokens, engine.released) == (512, 3)


def test_the_warm_up_passes_on_what_isnt_memory() -> None:
    """A broken model is broken in any size."""

    class Broken(FakeEngine):
        def warm_up(self, token_budget: int) -> None:
            raise ModelLoadError(f"not with {token_budget} either")

    with pytest.raises(ModelLoadError, match="not with 4096 either"):
        warm_up(Broken(), Ceiling.start(4096), lambda: 0.0)


class Mute(RuntimeError):
    """An exception that can't be told."""

    def __str__(self) -> str:
        raise ValueError("no words")


@pytest.mark.parametrize(
    ("exc", "yes"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"
            ),
            True,
        ),
        (
            RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling gemm"), False),
        (RuntimeError("std::bad_alloc"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.EIO, "Input/output error"), False),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("out of memory"), False),
        (Mute(), False),
    ],
)
def test_a_failed_allocation_is_told_from_other_failures(exc: Exception, yes: bool) -> None:
    """Python's, torch's on any device, the libraries' beside it, and libc's."""
    assert is_out_of_memory(exc) is yes


def test_an_exception_without_words_is_named_by_its_class() -> None:
    """A foreign ``__str__`` that raises mustn't hide what it was to describe."""
    assert "at stage 'forward': Mute" in str(failure("forward", Mute()))


def test_frames_are_forgotten_along_the_whole_chain_of_causes() -> None:
    """What they hold would otherwise stay in memory while it is being freed."""

    def allocate() -> None:
        raise MemoryError

    def fail() -> None:
        try:
            allocate()
        except MemoryError:
            raise RuntimeError("out of memory") from None

    with pytest.raises(RuntimeError) as caught:
        fail()
    forget_frames(caught.value)
    assert caught.value.__traceback__ is None
    assert caught.value.__context__ is not None
    assert caught.value.__context__.__traceback__ is None


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["ran", "failed", "taken back"]),
        st.integers(2, 2 * FULL),
        st.floats(0, 2 * CALM_S),
    ),
    max_size=12,
)


@given(EVENTS)
def test_failures_taken_back_leave_no_trace_and_all_others_theirs(
    events: list[tuple[str, int, float]],
) -> None:
    """In whatever order: the ceiling is the one of a dispatch in which they never happened."""
    trail, expected, names = Trail(Ceiling.start(FULL)), Ceiling.start(FULL), []
    for what, area, now_s in events:
        if what == "ran":
            trail.ran(area, now_s)
        else:
            name = trail.failed(area, now_s)
            names += [name] if what == "taken back" else []
        if what != "taken back":
            expected = getattr(expected, what)(area, now_s)
    trail.take_back(names)
    assert trail.ceiling == expected

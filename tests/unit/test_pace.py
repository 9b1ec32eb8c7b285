"""How many texts a full dispatch has."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from worker.pace import DISPATCH_TOKENS, FULL_S, LEAST_ROWS, MOST_ROWS, Pace

SPEEDS = st.floats(1.0, 1e6)  # texts a second


def after(pace: Pace, rows_per_s: float, *, dispatches: int) -> int:
    """The rows once a process has answered so many full dispatches at this speed."""
    for _ in range(dispatches):
        pace.ended(pace.rows, 20 * pace.rows, pace.rows / rows_per_s)
    return pace.rows


@given(st.integers(1, 4096), SPEEDS)
def test_what_is_set_stays(fixed: int, rows_per_s: float) -> None:
    """However fast the processes are."""
    assert after(Pace(fixed), rows_per_s, dispatches=20) == fixed


@given(SPEEDS)
def test_a_full_dispatch_takes_a_quarter_of_a_second_within_the_bounds(rows_per_s: float) -> None:
    """A slow process keeps the least, a fast one gets the most, those between what fits."""
    fitting = int(rows_per_s * FULL_S)
    found = after(Pace(None), rows_per_s, dispatches=3)
    assert abs(found - max(LEAST_ROWS, min(MOST_ROWS, fitting))) <= 1


@given(SPEEDS, SPEEDS)
def test_it_follows_when_texts_grow_longer_or_shorter(before: float, now: float) -> None:
    """Step by step towards the new speed, and there in the end."""
    pace = Pace(None)
    rows = [after(pace, before, dispatches=3)]
    rows += [after(pace, now, dispatches=1) for _ in range(100)]
    assert all(a <= b for a, b in pairwise(rows)) or all(a >= b for a, b in pairwise(rows))
    assert abs(rows[-1] - max(LEAST_ROWS, min(MOST_ROWS, int(now * FULL_S)))) <= 1


@given(
    st.integers(0, LEAST_ROWS // 2 - 1),
    st.integers(0, 4_095),
    st.floats(0, FULL_S, exclude_max=True),
)
def test_a_small_dispatch_that_was_quick_says_nothing(
    rows: int, tokens: int, took_s: float
) -> None:
    """A lone job takes milliseconds whatever the model does."""
    pace = Pace(None)
    pace.ended(rows, tokens, took_s)
    assert pace.worth_tokens is None
    after(pace, 3000.0, dispatches=3)
    before = pace.rows, pace.worth_tokens
    pace.ended(rows, tokens, took_s)
    assert (pace.rows, pace.worth_tokens) == before


@given(st.integers(1, 4096), SPEEDS)
def test_what_is_worth_sharing_takes_a_quarter_of_a_second(fixed: int, rows_per_s: float) -> None:
    """Also where the rows of a dispatch are set; twenty tokens each."""
    pace = Pace(max(fixed, LEAST_ROWS))
    after(pace, rows_per_s, dispatches=3)
    assert pace.worth_tokens is not None
    assert abs(pace.worth_tokens - int(20 * rows_per_s * FULL_S)) <= 1


@given(
    st.one_of(st.none(), st.integers(1, 4096)),
    st.one_of(st.none(), st.integers(1, 100_000)),
    st.floats(0.001, FULL_S),
)
def test_a_full_dispatch_tells_the_speed_however_quick_it_was(
    fixed: int | None, fixed_tokens: int | None, took_s: float
) -> None:
    """Full by its rows, or by its tokens, of which a long text has 512."""
    most_rows, most_tokens = fixed or LEAST_ROWS, fixed_tokens or DISPATCH_TOKENS
    for rows, tokens in ((most_rows, most_rows), (max(1, most_tokens // 512), most_tokens)):
        pace = Pace(fixed, fixed_tokens)
        pace.ended(rows, tokens, took_s)
        assert pace.worth_tokens == int(tokens / took_s * FULL_S)


@given(st.floats(FULL_S, 60))
def test_few_long_texts_tell_the_speed(took_s: float) -> None:
    """A dispatch of ten documents is full by its tokens, and slow by them."""
    pace = Pace(None)
    pace.ended(10, 5_000, took_s)
    assert pace.worth_tokens == int(5_000 / took_s * FULL_S)
    assert pace.rows == LEAST_ROWS

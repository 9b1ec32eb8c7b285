from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.tuning import TOLERANCE, Measured, budgets_to_try, knee, measure


class Device:
    """A device whose passes cost a fixed part and one per padded token; the clock is its own."""

    def __init__(self, fixed_s: float, token_s: float, memory_tokens: int = 10**9) -> None:
        self.now_s = 0.0
        self.busy_s = (0.0, 0.0)
        """From when to when something else takes nine tenths of it."""
        self.runs: list[tuple[int, int]] = []
        self._fixed_s, self._token_s, self._memory = fixed_s, token_s, memory_tokens

    def probe(self, rows: int, length: int) -> float:
        """Take the time."""
        if rows * length > self._memory:
            raise MemoryError
        seconds = self._fixed_s + self._token_s * rows * length
        if self.busy_s[0] <= self.now_s < self.busy_s[1]:
            seconds *= 10
        self.now_s += seconds
        self.runs.append((rows, length))
        return seconds

    def measure(self, budgets: Sequence[int], limit_s: float = 1e9) -> list[Measured]:
        """Measure the budgets on this device."""
        return measure(
            self.probe, budgets, max_rows=256, max_tokens=512, limit_s=limit_s,
            is_out_of_memory=lambda exc: isinstance(exc, MemoryError), clock=lambda: self.now_s,
        )  # fmt: skip


@given(st.floats(0, 0.1), st.floats(1e-7, 1e-3))
def test_the_budget_is_the_smallest_that_is_nearly_as_fast_as_any(
    fixed_s: float, token_s: float
) -> None:
    """Whatever a pass and a token cost, nothing measured is faster by more than the tolerance."""
    found = Device(fixed_s, token_s).measure(budgets_to_try(256, 512))
    chosen = knee(found)
    best = max(each.tokens_per_s for each in found)
    speeds = {each.budget: each.tokens_per_s for each in found}
    assert speeds[chosen] >= best * (1 - TOLERANCE)
    assert all(speeds[b] < best * (1 - TOLERANCE) for b in speeds if b < chosen)


def test_a_higher_fixed_cost_asks_for_a_larger_budget() -> None:
    """What one pass costs in tokens decides: 20 tokens' worth need less than 2,000."""
    small, large = (
        knee(Device(tokens * 1e-5, 1e-5).measure(budgets_to_try(256, 512)))
        for tokens in (20, 2_000)
    )
    assert small < large


@given(st.floats(0, 0.1), st.floats(0, 1), st.floats(0, 0.1))
def test_what_else_the_machine_does_for_a_while_doesnt_count(
    fixed_s: float, begins: float, lasts: float
) -> None:
    """Whichever budgets it met in one round, the other shows their speed; none is left out."""
    calm, busy = Device(fixed_s, 1e-5), Device(fixed_s, 1e-5)
    expected = calm.measure(budgets_to_try(256, 512))
    begin_s = begins * calm.now_s
    busy.busy_s = (begin_s, begin_s + lasts * calm.now_s)
    found = {each.budget: each.tokens_per_s for each in busy.measure(budgets_to_try(256, 512))}
    assert all(found[each.budget] == pytest.approx(each.tokens_per_s) for each in expected)


def test_out_of_memory_ends_the_search_with_what_fitted() -> None:
    """A budget that doesn't fit isn't chosen, and isn't tried twice."""
    device = Device(1.0, 1e-6, memory_tokens=2_000)
    found = device.measure(budgets_to_try(256, 512))
    assert max(each.budget for each in found) <= 2_048
    assert max(rows * length for rows, length in device.runs) <= 2_000


def test_a_device_that_fits_not_even_the_first_budget_raises() -> None:
    """Then there is nothing to choose from."""
    with pytest.raises(MemoryError):
        Device(1.0, 1e-6, memory_tokens=100).measure([256])


def test_time_bounds_the_search_but_one_budget_is_always_measured() -> None:
    """After the limit no other budget is begun."""
    assert len(Device(1.0, 1e-6).measure([256, 512, 1024], limit_s=0.5)) == 1
    assert len(Device(0.1, 1e-6).measure([256, 512, 1024], limit_s=1.5)) == 2


def test_only_budgets_that_rows_can_fill_are_tried() -> None:
    """8 rows of at most 64 tokens never make 1,024."""
    assert budgets_to_try(8, 64) == [256, 512]
    assert budgets_to_try(1, 16) == [256]

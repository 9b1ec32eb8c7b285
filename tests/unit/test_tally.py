"""A worker's tally: sums, and rates that fade."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from golem_tasks.backlog import WorkerStats
from worker.decoding import MicroBatch
from worker.tally import Fading, Figures, Sums, Tally


def figures(**changes: float) -> Figures:
    """A dispatch of 4 texts of 5 tokens each, padded to 8, but for `changes`."""
    batches = [MicroBatch(rows=4, longest=8, tokens=20, forward_ms=3.0)]
    return Figures.of(batches, texts=4, failed=1, queued_ms=12.5, token_budget=512)._replace(
        **changes
    )


def stats(tally: Tally) -> WorkerStats:
    """What it tells, as a reader reads it."""
    return WorkerStats(name="w", at_s=0.0, **tally.told())


def test_a_dispatch_is_the_sum_of_its_micro_batches() -> None:
    """Rows, tokens, area and forward time add up; the padding share is of the whole."""
    batches = [MicroBatch(2, 10, 15, 1.5), MicroBatch(1, 20, 20, 2.5)]
    told = Figures.of(batches, texts=3, failed=0, queued_ms=0.0, token_budget=1)
    assert (told.micro_batches, told.rows, told.tokens, told.area) == (2, 3, 35, 40)
    assert told.forward_ms == 4.0
    assert told.padding_share == pytest.approx(0.125)


def test_a_dispatch_without_a_single_row_has_no_padding() -> None:
    """All its texts were refused before the model."""
    nothing = Figures.of([], texts=0, failed=2, queued_ms=0.0, token_budget=1)
    assert nothing.padding_share == 0.0


def test_a_new_tally_claims_nothing() -> None:
    """No rate, no batch, no speed: None where a number would be made up."""
    told = stats(Tally(0.0))
    assert (told.answered, told.jobs_per_s, told.texts_per_s) == (0, 0.0, 0.0)
    assert told.full_jobs_per_s is told.rows_per_dispatch is told.padding_share is None


@given(st.floats(0.1, 30.0), st.integers(1, 40))
def test_a_steady_rate_is_told_from_the_first_beat_on(seconds: float, beats: int) -> None:
    """Four texts each beat are 4 / seconds a second, however often it is looked at."""
    tally = Tally(0.0)
    for number in range(1, beats + 1):
        tally.ended(2, figures())
        tally.beat(number * seconds, loaded=True)
    told = stats(tally)
    assert told.texts_per_s == pytest.approx(4 / seconds, abs=0.01)
    assert told.jobs_per_s == pytest.approx(2 / seconds, abs=0.01)
    assert told.full_jobs_per_s == pytest.approx(2 / seconds, abs=0.001)
    assert told.rows_per_dispatch == pytest.approx(4.0)
    assert told.padding_share == pytest.approx(0.375)
    assert (told.answered, told.failed) == (2 * beats, beats)
    assert (told.queued_ms, told.token_budget) == (12.5, 512)


def test_idle_time_lowers_the_rate_and_leaves_the_speed() -> None:
    """Ten jobs in a second, then a minute without any: what it can do hasn't changed."""
    tally = Tally(0.0)
    tally.ended(10, figures())
    tally.beat(1.0, loaded=True)
    before = stats(tally)
    tally.beat(61.0, loaded=False)
    after = stats(tally)
    assert after.jobs_per_s < before.jobs_per_s / 50
    assert after.full_jobs_per_s == before.full_jobs_per_s == 10.0
    assert after.rows_per_dispatch == before.rows_per_dispatch


def test_an_hour_without_work_leaves_no_figure_too_small_to_divide_by() -> None:
    """What has faded away is told as unknown again."""
    tally = Tally(0.0)
    tally.ended(1, figures())
    for hour in range(1, 4):
        tally.beat(hour * 3600.0, loaded=False)
    told = stats(tally)
    assert told.jobs_per_s == 0.0
    assert told.rows_per_dispatch is told.padding_share is None


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1000)), min_size=1, max_size=30))
def test_a_fading_quotient_stays_within_what_was_added(pairs: list[tuple[float, float]]) -> None:
    """It is a mean: never below the smallest rate added, nor above the largest."""
    fading = Fading(5.0)
    for seconds, rate in pairs:
        fading.add(Sums(seconds=seconds, jobs=seconds * rate))
    if fading.sums.seconds > 1e-6:
        rates = [rate for seconds, rate in pairs if seconds > 0]
        quotient = fading.sums.jobs / fading.sums.seconds
        assert min(rates) * 0.999 - 1e-6 <= quotient <= max(rates) * 1.001 + 1e-6

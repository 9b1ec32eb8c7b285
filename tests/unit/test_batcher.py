"""The batcher: what is dispatched when, and in what order."""

from hypothesis import given
from hypothesis import strategies as st

from worker.batcher import LEAST_SHARED_TOKENS, Batcher, BatchLimits, Lane, Waiting

LIMITS = BatchLimits(max_rows=8, max_tokens=100, max_age_s=5.0)
WIDE = BatchLimits(max_rows=400, max_tokens=400 * 500)


def job(name: int, **changes: object) -> Waiting[int]:
    """A job of one row and ten tokens that arrived at 0 s, but for `changes`."""
    fields: dict[str, object] = {"rows": 1, "tokens": 10, "since_s": 0.0, **changes}
    return Waiting(name, **fields)  # type: ignore[arg-type]  # the fields are the caller's


def names(batch: list[Waiting[int]]) -> list[int]:
    """The requests of a batch."""
    return [waiting.request for waiting in batch]


def total(batch: list[Waiting[int]]) -> int:
    """The tokens of a batch."""
    return sum(waiting.tokens for waiting in batch)


def filled(*jobs: Waiting[int], limits: BatchLimits = LIMITS) -> Batcher[int]:
    """A batcher with these jobs."""
    batcher: Batcher[int] = Batcher(limits)
    for each in jobs:
        batcher.add(each)
    return batcher


jobs = st.builds(
    Waiting,
    request=st.integers(),
    rows=st.integers(1, 20),
    tokens=st.integers(1, 300),
    since_s=st.floats(0, 20),
    lane=st.sampled_from(Lane),
    priority=st.integers(0, 9),
    time_limits=st.sampled_from([(None, None), (10.0, None)]),
    suspect=st.booleans(),
    trial=st.booleans(),
)


@given(st.lists(jobs, max_size=60), st.floats(0, 40), st.integers(1, 9))
def test_every_job_leaves_exactly_once_in_batches_within_the_bounds(
    waiting: list[Waiting[int]], now_s: float, idle: int
) -> None:
    """Emptying the batcher yields each job once; a batch over a bound holds a single job."""
    batcher = filled(*waiting)
    out: list[Waiting[int]] = []
    while batcher.ripe_at_s() is not None:
        batch = batcher.next_batch(now_s + 20, idle=idle)
        assert batch
        if len(batch) > 1:
            assert sum(each.rows for each in batch) <= LIMITS.max_rows
            assert sum(each.tokens for each in batch) <= LIMITS.max_tokens
            assert not any(each.suspect or each.trial for each in batch)
            assert len({each.time_limits for each in batch}) == 1
        out += batch
    assert sorted(map(id, out)) == sorted(map(id, waiting))
    assert (len(batcher), *batcher.size()) == (0, 0, 0)


@given(st.lists(jobs, max_size=30), st.integers(0, 30))
def test_jobs_put_back_come_out_as_if_they_had_never_left(
    waiting: list[Waiting[int]], batches: int
) -> None:
    """Taking a batch and putting it back changes nothing."""
    batcher = filled(*waiting)
    for _ in range(min(batches, len(waiting))):
        batcher.next_batch(100)
    before = list(batcher)
    taken = batcher.next_batch(100)
    batcher.put_back(taken)
    assert list(batcher) == before
    assert batcher.size().rows == sum(each.rows for each in before)


@given(st.lists(jobs, max_size=30))
def test_while_a_job_is_on_trial_no_other_one_goes(waiting: list[Waiting[int]]) -> None:
    """All but the jobs on trial leave; those stay until the one that runs has ended."""
    batcher = filled(*waiting)
    out: list[Waiting[int]] = []
    while batch := batcher.next_batch(100, trying=True):
        out += batch
    assert sorted(map(id, out)) == sorted(id(each) for each in waiting if not each.trial)
    assert len(batcher) == sum(each.trial for each in waiting)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=400), st.integers(1, 16))
def test_idle_processes_share_what_waits(tokens: list[int], processes: int) -> None:
    """None has more than its part of the tokens, nor more than a few hundred if that is less."""
    batcher = filled(*(job(n, tokens=each) for n, each in enumerate(tokens)), limits=WIDE)
    for idle in range(processes, 0, -1):
        share = -(-batcher.size().tokens // idle)
        batch = batcher.next_batch(0.0, idle=idle)
        assert len(batch) <= 1 or total(batch) <= max(share, LEAST_SHARED_TOKENS)
    assert len(batcher) == 0


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=400),
    st.integers(1, 4),
    st.integers(0, 12),
    st.integers(0, 50_000),
)
def test_what_is_left_is_shared_with_the_busy_as_well(
    tokens: list[int], idle: int, busy: int, worth_tokens: int
) -> None:
    """A batch is its part among all processes where that is worth it, but for less than a job."""
    batcher = filled(*(job(n, tokens=each) for n, each in enumerate(tokens)), limits=WIDE)
    of_idle, of_all = sum(tokens) / idle, sum(tokens) / (idle + busy)
    batch = batcher.next_batch(0.0, idle=idle, busy=busy, worth_tokens=worth_tokens)
    taken = total(batch)
    if len(batch) > 1 and taken >= of_idle + 1:  # more than its part among the idle
        assert taken <= LEAST_SHARED_TOKENS or taken <= worth_tokens / 10
    if len(batch) > 1 and taken >= of_all + 1:  # more than its part among all
        assert taken <= LEAST_SHARED_TOKENS or taken <= worth_tokens
    if len(batch) < len(tokens):
        nearly = taken + tokens[len(batch)]  # with the next one it would be too much
        assert nearly > of_all
        assert nearly > min(worth_tokens, of_idle)
        assert nearly > LEAST_SHARED_TOKENS


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=400),
    st.integers(1, 8),
    st.integers(1, 4_000),
)
def test_processes_end_a_backlog_together(
    tokens: list[int], processes: int, worth_tokens: int
) -> None:
    """Each takes a batch when it is done with its last, and none has much to do after another.

    Much is more than what isn't worth sharing and the longest job.
    """
    batcher = filled(*(job(n, tokens=each) for n, each in enumerate(tokens)), limits=WIDE)
    ends = [0] * processes
    while len(batcher):
        now = min(ends)
        idle = ends.count(now)
        batch = batcher.next_batch(0.0, idle=idle, busy=processes - idle, worth_tokens=worth_tokens)
        ends[ends.index(now)] += total(batch)
    assert max(ends) - min(ends) <= max(worth_tokens, LEAST_SHARED_TOKENS) + max(tokens)


def test_a_fast_process_leaves_nothing_to_a_busy_one() -> None:
    """Nor does one whose speed isn't known yet."""
    for worth_tokens in (None, 1_000):
        batcher = filled(*map(job, range(100)), limits=WIDE)
        assert len(batcher.next_batch(0.0, idle=1, busy=3, worth_tokens=worth_tokens)) == 100


def test_shares_are_even_and_not_too_small() -> None:
    """A hundred alike, of twenty tokens, are fifty each; of forty the first process gets 25."""
    for count, expected in ((100, [50, 50]), (40, [25, 15]), (3, [3, 0])):
        batcher = filled(*(job(n, tokens=20) for n in range(count)), limits=WIDE)
        assert [len(batcher.next_batch(0.0, idle=idle)) for idle in (2, 1)] == expected


def test_idle_processes_dont_share_what_one_has_done_at_once() -> None:
    """What takes a fast one a fortieth of a second, a tenth of what a busy one isn't left."""
    for worth_tokens, expected in ((None, [50, 50]), (5_000, [50, 50]), (20_000, [100, 0])):
        batcher = filled(*(job(n, tokens=20) for n in range(100)), limits=WIDE)
        batches = [batcher.next_batch(0.0, idle=i, worth_tokens=worth_tokens) for i in (2, 1)]
        assert list(map(len, batches)) == expected


def test_a_lone_job_goes_at_once() -> None:
    """Without a linger, one job is a batch as soon as a process is idle."""
    assert names(filled(job(1)).next_batch(0.0)) == [1]


def test_the_linger_starts_with_the_first_job() -> None:
    """A batch waits for its oldest job's linger, however late the others came."""
    limits = BatchLimits(max_rows=8, max_tokens=100, linger_s=2.0)
    batcher = filled(job(1, since_s=10.0), job(2, since_s=11.9), limits=limits)
    assert batcher.ripe_at_s() == 12.0
    assert batcher.next_batch(11.99) == []
    assert names(batcher.next_batch(12.0)) == [1, 2]


def test_a_full_batch_does_not_linger() -> None:
    """As soon as the rows of a batch wait, it goes."""
    limits = BatchLimits(max_rows=2, max_tokens=100, linger_s=60.0)
    batcher = filled(job(1), job(2), job(3), limits=limits)
    assert names(batcher.next_batch(0.0)) == [1, 2]
    assert batcher.next_batch(0.0) == []


def test_the_interactive_lane_goes_before_bulk_and_the_urgent_before_the_rest() -> None:
    """Lane first, then priority with 0 highest, then arrival."""
    batcher = filled(
        job(1, lane=Lane.BULK),
        job(2, priority=9),
        job(3, priority=0),
        job(4, priority=0),
    )
    assert names(batcher.next_batch(0.0)) == [3, 4, 2, 1]


def test_an_overdue_bulk_job_goes_before_fresh_interactive_ones() -> None:
    """Nothing starves: past max_age_s, age decides."""
    batcher = filled(job(1, since_s=6.0), job(2, lane=Lane.BULK, since_s=0.0))
    assert names(batcher.next_batch(7.0)) == [2, 1]


def test_a_job_larger_than_a_batch_goes_alone() -> None:
    """A job over the bounds is neither refused nor does it take others with it."""
    batcher = filled(job(1, rows=50, tokens=5000), job(2))
    assert names(batcher.next_batch(0.0)) == [1]
    assert names(batcher.next_batch(0.0)) == [2]


def test_discarded_jobs_are_gone_and_uncounted() -> None:
    """Discarding removes just what was asked for."""
    batcher = filled(job(1), job(2), job(3, priority=3))
    gone = batcher.discard(lambda request: request != 2)
    assert names(gone) == [1, 3]
    assert (len(batcher), *batcher.size()) == (1, 1, 10)


@given(st.lists(jobs, max_size=30))
def test_lengths_are_those_of_the_lanes(waiting: list[Waiting[int]]) -> None:
    """Every lane is told, an empty one as 0; together they are the batcher's own length."""
    batcher = filled(*waiting)
    for lane, length in batcher.lengths().items():
        held = [each for each in waiting if each.lane is lane]
        assert length == len(held)
        assert batcher.size(lane) == (
            sum(each.rows for each in held),
            sum(each.tokens for each in held),
        )
    assert set(batcher.lengths()) == set(Lane)
    assert sum(batcher.lengths().values()) == len(batcher)


single = st.builds(
    Waiting,
    request=st.integers(),
    rows=st.just(1),
    tokens=st.integers(1, 5),
    since_s=st.floats(0, 20),
    lane=st.just(Lane.BULK),
    priority=st.integers(0, 9),
)


@given(
    st.lists(single, max_size=60), st.lists(st.floats(0, 20), min_size=1, max_size=24), st.data()
)
def test_interactive_jobs_go_with_the_next_batch_however_old_the_bulk_jobs_are(
    bulk: list[Waiting[int]], arrivals: list[float], data: st.DataObject
) -> None:
    """What fits three quarters of a batch leaves with it, in any order of arrival and any age."""
    limits = BatchLimits(max_rows=32, max_tokens=320, max_age_s=5.0)
    interactive = [job(-1, since_s=at_s) for at_s in arrivals]
    mixed = data.draw(st.permutations([*bulk, *interactive]))
    batch = filled(*mixed, limits=limits).next_batch(data.draw(st.floats(20, 60)))
    assert all(any(each is taken for taken in batch) for each in interactive)
    assert len(batch) == min(32, len(mixed))  # and bulk jobs get all that is left


@given(st.lists(single, min_size=1, max_size=60), st.integers(1, 100))
def test_bulk_jobs_go_on_under_any_number_of_interactive_ones(
    bulk: list[Waiting[int]], batches: int
) -> None:
    """Nothing starves: with ever new interactive jobs, each batch has old bulk jobs, too."""
    limits = BatchLimits(max_rows=8, max_tokens=320, max_age_s=5.0)
    batcher, left = filled(*bulk, limits=limits), len(bulk)
    for number in range(batches):
        now_s = 100.0 + number
        for _ in range(8):
            batcher.add(job(-1, since_s=now_s))
        taken = [each for each in batcher.next_batch(now_s) if each.lane is Lane.BULK]
        assert len(taken) >= min(left, 2)
        left -= len(taken)


def test_an_old_bulk_job_that_does_not_fit_keeps_no_interactive_one_out() -> None:
    """It is passed over by those that do fit."""
    batcher = filled(job(1, lane=Lane.BULK), job(2, lane=Lane.BULK, rows=8), job(3, since_s=9.0))
    assert names(batcher.next_batch(10.0)) == [1, 3]
    assert names(batcher.next_batch(10.0)) == [2]

"""How much a worker fetches ahead."""

from hypothesis import given
from hypothesis import strategies as st

from worker.batcher import Batcher, BatchLimits, Lane, Waiting
from worker.transport import Room
from worker.window import Window

LIMITS = BatchLimits(max_rows=100, max_tokens=1_000)


def job(rows: int, tokens: int, lane: Lane = Lane.INTERACTIVE) -> Waiting[int]:
    """A job of so much."""
    return Waiting(0, rows, tokens, 0.0, lane=lane)


jobs = st.builds(job, st.integers(1, 30), st.integers(1, 300), st.sampled_from(Lane))


def room(waiting: list[Waiting[int]], processes: int = 1, ending: int = 0, rows: int = 1) -> Room:
    """What may be fetched, where every message so far had so many texts."""
    batcher: Batcher[int] = Batcher(LIMITS)
    for job in waiting:
        batcher.add(job)
    window = Window()
    for _ in range(500):
        window.came(rows)
    return window.room(batcher, processes, ending)


@given(st.lists(jobs, max_size=40), st.integers(0, 8), st.integers(0, 300))
def test_a_dispatch_for_every_process_is_here_and_no_more(
    waiting: list[Waiting[int]], processes: int, ending: int
) -> None:
    """Messages of one text fill up the rows; with its rows or its tokens here, none is fetched."""

    def missing(jobs: list[Waiting[int]]) -> int:
        rows = processes * LIMITS.max_rows - sum(job.rows for job in jobs) - ending
        enough = sum(job.tokens for job in jobs) >= processes * LIMITS.max_tokens
        return 0 if enough else max(0, rows)

    found = room(waiting, processes, ending)
    urgent = [job for job in waiting if job.lane is Lane.INTERACTIVE]
    assert found == (
        Room(missing(waiting)) if missing(waiting) else Room(missing(urgent), bulk=False)
    )


def test_messages_with_many_texts_are_fewer() -> None:
    """A hundred texts are a hundred messages of one or about ten of ten."""
    assert room([]) == Room(100)
    assert room([], rows=10).messages in (10, 11)


def test_buffered_bulk_jobs_keep_no_interactive_one_out() -> None:
    """With a dispatch of them here, only the interactive lane is fetched, and that as before."""
    bulk = [job(50, 10, Lane.BULK)] * 2
    assert room(bulk) == Room(100, bulk=False)
    assert room([*bulk, job(100, 10)]) == Room(0, bulk=False)

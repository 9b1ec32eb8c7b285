"""The rows of a dispatch and what came back for them."""

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from golem_tasks.contract import Options, TextItem
from worker.decoding import MicroBatch
from worker.interfaces import Encoded, Row
from worker.rows import Pending, Run, Work, doubtful, halves

LOGITS: Any = st.sampled_from(
    [[0.5, 1.0], [math.nan, 1.0], [math.inf, -math.inf], [-math.inf], ["one", "two"], [1e308] * 3]
)


def encoded(rows: int) -> Encoded:
    """A text of so many rows, each of one token more than the one before."""
    return Encoded(tuple(Row([7] * (1 + i)) for i in range(rows)), rows, truncated=False)


@given(st.lists(st.none() | st.integers(1, 3), min_size=1, max_size=6), st.data())
def test_every_work_gets_what_came_back_for_its_own_rows(
    counts: list[int | None], data: st.DataObject
) -> None:
    """In whatever order works were spread and rows answered; complete with the last of its rows."""
    run = Run.of([Work(TextItem("a"), Options(), 0.0)] * len(counts))
    run.encoded = [None if count is None else encoded(count) for count in counts]
    works = data.draw(st.permutations(range(len(counts))))
    some = data.draw(st.integers(0, len(counts)))
    spread = run.spread(works[:some]) + run.spread(works[some:])
    assert spread == list(range(len(run.rows)))
    rows_of = {
        work: [row for row, owner in enumerate(run.owners) if owner == work] for work in works
    }
    assert {work: len(rows) for work, rows in rows_of.items()} == {
        work: count or 0 for work, count in enumerate(counts)
    }
    answered: set[int] = set()
    for row in data.draw(st.permutations(spread)):
        complete = run.answer([row], [[float(row)]], MicroBatch(1, 1, 1, float(row)))
        answered.add(row)
        assert complete == [run.owners[row]] * answered.issuperset(rows_of[run.owners[row]])
        for work in complete:
            logits, batches = run.answers(work, encoded(len(rows_of[work])))
            assert logits == [[float(row)] for row in rows_of[work]]
            assert [batch.forward_ms for batch in batches] == rows_of[work]


@given(st.lists(LOGITS, max_size=6))
def test_only_numbers_that_arent_finite_are_doubtful(logits: list[Any]) -> None:
    """A mate whose logits are no numbers hides nobody's NaN; its own words are the decoder's."""
    bad = [
        row
        for row, values in enumerate(logits)
        if isinstance(values[0], float) and not math.isfinite(sum(values))
    ]
    assert doubtful(range(len(logits)), logits) == bad


@given(st.lists(st.integers(), max_size=9))
def test_halves_are_everything_once_and_in_order(items: list[int]) -> None:
    """The second has the odd one."""
    first, second = halves(items)
    assert first + second == items
    assert 0 <= len(second) - len(first) <= 1


def test_a_micro_batch_knows_its_area_and_its_tokens() -> None:
    """Its longest row times its rows, and what of it isn't padding."""
    pending = Pending.of([4, 2, 0], [5, 3, 3])
    assert (pending.area, pending.tokens, pending.longest) == (15, 11, 5)

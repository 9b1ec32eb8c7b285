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
    """In order, whatever the micro-batches were; nothing until the last of its rows is answered."""
    run = Run.of([Work(TextItem("a"), Options(), 0.0)] * len(counts))
    run.encoded = [None if count is None else encoded(count) for count in counts]
    run.spread()
    order = data.draw(st.permutations(range(len(run.rows))))
    answered = order[: data.draw(st.integers(0, len(order)))]
    for row in answered:
        run.answer([row], [[float(row)]], MicroBatch(1, 1, 1, float(row)))
    for work, count in enumerate(counts):
        rows = [row for row, owner in enumerate(run.owners) if owner == work]
        assert len(rows) == (count or 0)
        answers = run.answers(work)
        assert (answers is not None) == set(rows).issubset(answered)
        if answers is not None:
            logits, batches = answers
            assert logits == [[float(row)] for row in rows]
            assert [batch.forward_ms for batch in batches] == rows


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

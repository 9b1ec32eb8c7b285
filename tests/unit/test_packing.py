"""Micro-batches out of lengths."""

import random
from collections.abc import Iterator
from functools import cache
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from benchmarks.workloads import texts_from, texts_made_up, workload
from golem_tasks.contract import Options, TextItem
from tests.support.compose import ROOT
from tests.support.data import data_folder
from tests.support.fake_engine import FakeEngine
from worker.classifier import Classifier, Work
from worker.interfaces import Encoded
from worker.packing import (
    ENOUGH_BUDGETS,
    MOST_PADDING,
    cheapest,
    overhead_of,
    pack,
)

OVERHEAD = overhead_of(1024, "cpu")
TOKENIZER = ROOT / "worker" / "models" / "golem_mini" / "tokenizer.json"

LENGTHS = st.lists(st.integers(1, 600), max_size=200)
BUDGETS = st.integers(1, 8192)
ROWS = st.integers(1, 150)


def batches_of(lengths: list[int], plan: list[list[int]]) -> list[list[int]]:
    """The lengths in each micro-batch."""
    return [[lengths[i] for i in batch] for batch in plan]


def padded_area(lengths: list[int]) -> int:
    """Token positions a micro-batch of these rows takes: longest x rows."""
    return max(lengths) * len(lengths)


def cost(lengths: list[int], plan: list[list[int]], overhead: int) -> int:
    """What the packing minimises."""
    return sum(padded_area(batch) + overhead for batch in batches_of(lengths, plan))


def greedy(lengths: list[int], budget: int, max_rows: int) -> list[list[int]]:
    """What everybody does: sort, fill each micro-batch to its bounds."""
    plan: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        full = not plan or len(plan[-1]) == max_rows
        if full or lengths[plan[-1][0]] * (len(plan[-1]) + 1) > budget:
            plan.append([])
        plan[-1].append(i)
    return plan


def best_cost(lengths: list[int], budget: int, max_rows: int, overhead: int) -> int:
    """The least cost of all ways to cut the sorted list, by trying each."""
    ordered = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    costs = []
    for number in range(len(ordered)):
        for inner in combinations(range(1, len(ordered)), number):
            cuts = [0, *inner, len(ordered)]
            plan = [ordered[a:b] for a, b in pairwise(cuts)]
            if all(fits(batch, budget, max_rows) for batch in batches_of(lengths, plan)):
                costs.append(cost(lengths, plan, overhead))
    return min(costs)


def fits(batch: list[int], budget: int, max_rows: int) -> bool:
    """Whether a micro-batch keeps both bounds; a row too long for the budget stands alone."""
    return len(batch) == 1 or (padded_area(batch) <= budget and len(batch) <= max_rows)


@given(LENGTHS, BUDGETS, ROWS)
def test_every_row_is_in_one_micro_batch_within_the_bounds(
    lengths: list[int], budget: int, max_rows: int
) -> None:
    """No row is lost, doubled or put where it doesn't fit, whatever the lengths."""
    plan = pack(lengths, budget, max_rows, OVERHEAD)
    assert sorted(i for batch in plan for i in batch) == list(range(len(lengths)))
    assert all(fits(batch, budget, max_rows) for batch in batches_of(lengths, plan))


@given(LENGTHS, BUDGETS, ROWS)
def test_never_worse_than_filling_greedily(lengths: list[int], budget: int, max_rows: int) -> None:
    """Counting the cost of a pass, the cut is at least as good as the usual one."""
    overhead = overhead_of(budget, "cuda:0")
    ours = cost(lengths, cheapest(lengths, budget, max_rows, overhead), overhead)
    assert ours <= cost(lengths, greedy(lengths, budget, max_rows), overhead)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=9),
    st.integers(1, 200),
    st.integers(1, 9),
    st.integers(0, 60),
)
def test_no_other_cut_of_the_sorted_rows_is_better(
    lengths: list[int], budget: int, max_rows: int, overhead: int
) -> None:
    """The programme finds what trying every cut finds."""
    plan = cheapest(lengths, budget, max_rows, overhead)
    assert cost(lengths, plan, overhead) == best_cost(lengths, budget, max_rows, overhead)


@given(LENGTHS, BUDGETS, ROWS)
def test_the_same_lengths_give_the_same_micro_batches(
    lengths: list[int], budget: int, max_rows: int
) -> None:
    """Packing has no chance in it: a failure can be run again."""
    assert pack(lengths, budget, max_rows, OVERHEAD) == pack(
        list(lengths), budget, max_rows, OVERHEAD
    )


@given(LENGTHS, BUDGETS, ROWS)
def test_longest_rows_go_first(lengths: list[int], budget: int, max_rows: int) -> None:
    """Memory that doesn't suffice is met at once, and the allocator's blocks fit what follows."""
    longest = [
        max(batch) for batch in batches_of(lengths, pack(lengths, budget, max_rows, OVERHEAD))
    ]
    assert longest == sorted(longest, reverse=True)


def test_nothing_makes_no_micro_batch() -> None:
    """An empty dispatch is an empty plan."""
    assert pack([], 1024, 128, OVERHEAD) == []


def test_one_long_text_among_many_short_stands_alone() -> None:
    """The outlier that makes naive batching several times slower costs its own length only."""
    lengths = [512] + [16] * 63
    plan = pack(lengths, 1024, 128, OVERHEAD)
    assert plan[0] == [0]
    assert sum(padded_area(batch) for batch in batches_of(lengths, plan)) == sum(lengths)


def test_no_micro_batch_is_made_to_save_a_few_tokens_of_padding() -> None:
    """A pass costs more than a little padding: nearly equal rows stay together."""
    assert len(pack([20, 19, 18, 17] * 8, 1024, 128, OVERHEAD)) == 1


def total_area(lengths: list[int], plan: list[list[int]]) -> int:
    """Token positions that are computed."""
    return sum(padded_area(batch) for batch in batches_of(lengths, plan))


@cache
def lengths_of(name: str, source: str) -> list[int]:
    """Tokens golem-mini's tokenizer makes of the texts of a workload, real or made up."""
    texts = texts_made_up() if source == "made up" else texts_from(data_folder())
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    encodings = tokenizer.encode_batch(workload(name, texts, 2048))
    return [min(512, len(encoding.ids)) for encoding in encodings]


def shuffles(lengths: list[int], tokens: int, times: int) -> Iterator[list[int]]:
    """So many times the first of them in another order that are so many tokens together."""
    for seed in range(times):
        rng = random.Random(seed)  # noqa: S311 - an order, not a secret
        shuffled = rng.sample(lengths, len(lengths))
        count, total = 0, 0
        while total < tokens:
            total += shuffled[count]
            count += 1
        yield shuffled[:count]


@pytest.mark.parametrize("source", ["real", "made up"])
@pytest.mark.parametrize("name", ["short", "mixed", "outlier"])
@pytest.mark.parametrize(
    ("device", "budget", "times"),
    [("cpu", 256, 60), ("cpu", 512, 60), ("cpu", 1024, 60), ("cpu", 2048, 40), ("cuda", 8192, 3)],
)
def test_padding_is_at_most_a_twentieth_of_four_micro_batches_worth(
    source: str, name: str, device: str, budget: int, times: int
) -> None:
    """In whatever order texts came: of what is packed together, at exactly four budgets."""
    for waiting in shuffles(lengths_of(name, source), ENOUGH_BUDGETS * budget, times):
        area = total_area(waiting, pack(waiting, budget, 1024, overhead_of(budget, device)))
        assert area - sum(waiting) <= MOST_PADDING * area


@pytest.mark.parametrize("name", ["short", "mixed", "outlier"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("budgets", [ENOUGH_BUDGETS, 2 * ENOUGH_BUDGETS])
def test_so_is_it_of_a_dispatch_however_a_gpu_takes_it(
    device: str, budgets: int, name: str
) -> None:
    """Also where it is cut into chunks, each of less than four budgets."""
    budget = 2048
    engine = FakeEngine(token_budget=budget, max_rows=1024, device=device)
    texts = workload(name, texts_made_up(), 2048)
    items = [Work(TextItem(text), Options(), 0.0) for text in texts]
    encoded = engine.encode([work.item for work in items], ["truncate"] * len(items))
    rows = [each.rows[0].length for each in encoded if isinstance(each, Encoded)]
    count = next(n for n in range(2048) if sum(rows[:n]) >= (budgets + 0.1) * budget)
    batches = Classifier(engine).classify(items[:count]).micro_batches
    area = sum(batch.rows * batch.longest for batch in batches)
    assert sum(batch.rows for batch in batches) == count
    assert area - sum(batch.tokens for batch in batches) <= MOST_PADDING * area


@pytest.mark.parametrize("name", ["short", "mixed", "outlier"])
def test_what_a_cpus_pass_counts_as_suits_whatever_it_costs(name: str) -> None:
    """Between 40 and 120 tokens: a full dispatch costs 2 % more than it had to at most."""
    lengths = lengths_of(name, "made up")[:1024]
    for budget in (1024, 2048, 4096):
        plan = cheapest(lengths, budget, 1024, overhead_of(budget, "cpu"))
        for real in (40, 80, 120):
            best = cheapest(lengths, budget, 1024, real)
            assert cost(lengths, plan, real) <= 1.02 * cost(lengths, best, real)


@given(LENGTHS, st.integers(64, 2048))
def test_padding_isnt_avoided_at_any_price(lengths: list[int], budget: int) -> None:
    """Lengths that spread evenly get a pass no shorter than a tenth of what one counts as pays."""
    overhead = overhead_of(budget, "cuda")
    least = cheapest(lengths, budget, 1024, overhead // 10)
    assert len(pack(lengths, budget, 1024, overhead)) <= len(least)


def test_a_pass_counts_for_more_on_a_gpu() -> None:
    """There the budget is large because a launch is dear; a CPU's pass costs the same in any."""
    assert [overhead_of(budget, "cpu") for budget in (256, 1024, 4096)] == [16, 48, 48]
    assert overhead_of(65_536, "cuda:0") == 4096

"""How much work a request is, by its texts alone."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from golem_tasks.contract import CLASSIFY, CLASSIFY_MANY
from worker.encoding import window_starts
from worker.measuring import (
    CHARS_PER_TOKEN,
    SPECIAL_TOKENS,
    Measure,
    dispatch_tokens,
    measure,
)
from worker.pace import DISPATCH_TOKENS
from worker.processes import Report
from worker.settings import WorkerSettings

texts = st.lists(st.text(max_size=60), min_size=1, max_size=8)
long_texts = st.text(st.characters(codec="utf-8"), max_size=300)


def measured(task: str, *args: Any, max_tokens: int = 512, **kwargs: Any) -> Measure:
    """The measure of a call."""
    return measure(SimpleNamespace(type=task, args=list(args), kwargs=kwargs), max_tokens)


@given(texts, texts, st.integers(8, 40))
def test_a_pair_counts_with_its_text_however_it_is_given(
    first: list[str], second: list[str], max_tokens: int
) -> None:
    """By place or by name; a row is never more than the longest text the model takes."""
    expected = measured(CLASSIFY_MANY, first, second, max_tokens=max_tokens)
    assert expected == measured(CLASSIFY_MANY, first, text_pairs=second, max_tokens=max_tokens)
    assert expected == measured(
        CLASSIFY_MANY, texts=first, text_pairs=second, max_tokens=max_tokens
    )
    padded = [*second, *[""] * len(first)][: len(first)]
    together = [one + other for one, other in zip(first, padded, strict=True)]
    estimates = [min(int(len(each) / CHARS_PER_TOKEN), max_tokens) for each in together]
    assert expected.rows == len(first)
    assert expected.tokens == sum(estimates) + SPECIAL_TOKENS * len(first)
    assert expected.most_tokens <= max_tokens * len(first)
    one = measured(CLASSIFY, first[0], padded[0], max_tokens=max_tokens)
    assert one == measured(CLASSIFY, first[0], text_pair=padded[0], max_tokens=max_tokens)
    assert one.most_tokens <= max_tokens


@given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))
def test_no_tokenizer_makes_more_tokens_of_a_text_than_the_bound(text: str, pair: str) -> None:
    """The finest there is makes one of each byte."""
    most = measured(CLASSIFY, text, pair, max_tokens=10**6).most_tokens
    assert most >= len(text.encode()) + len(pair.encode())


@given(long_texts, st.data())
def test_windows_count_with_their_overlaps_and_the_shorter_text(text: str, data: Any) -> None:
    """As many tokens as the encoder's windows have, at one token a byte."""
    max_tokens = 32
    pair = data.draw(st.none() | st.text(st.characters(codec="ascii"), max_size=max_tokens // 2))
    tokens, other = len(text.encode()), len(pair or "")
    room = max_tokens - 4 - other
    if tokens <= room:
        return
    windows = window_starts(tokens, room, room // 4)
    rows = sum(min(room, tokens - start) + other for start in windows)
    assert measured(CLASSIFY, text, pair, max_tokens=32, on_long="window").most_tokens >= rows


def test_a_full_dispatch_of_chinese_has_time_for_its_tokens() -> None:
    """A tokenizer of words makes one of each character."""
    most = measured(CLASSIFY_MANY, ["\u4e2d" * 500] * 300).most_tokens
    assert most == 300 * 512


@pytest.mark.parametrize("value", [None, 5, {}, [], [None], "text"])
@pytest.mark.parametrize("task", [CLASSIFY, CLASSIFY_MANY, "another"])
def test_what_breaks_the_contract_counts_as_one(task: str, value: Any) -> None:
    """Nothing that JSON has makes it raise."""
    for each in (measured(task, value), measured(task, value, value), measured(task, texts=value)):
        assert each.rows == 1
        assert each.tokens >= 1


def reports(device: str, *budgets: int) -> list[Report]:
    """What processes with these budgets tell of themselves, memory being short at the moment."""
    return [
        Report(n, 1, ready=True, message="", device=device, token_budget=1, token_ceiling=budget)
        for n, budget in enumerate(budgets)
    ]


@pytest.mark.parametrize(
    ("budgets", "expected"),
    [((16_384,), 65_536), ((4_096,), 32_768), ((4_096, 16_384, 1), 65_536)],
)
def test_a_gpus_dispatch_holds_what_packing_bounds_the_padding_of(
    budgets: tuple[int, ...], expected: int
) -> None:
    """Four micro-batches of the largest budget, and what it is by default at least."""
    assert dispatch_tokens(WorkerSettings(), reports("cuda:0", *budgets)) == expected


@given(st.lists(st.integers(1, 10**9), max_size=8), st.integers(1, 10**6))
def test_a_cpus_dispatch_and_one_that_is_set_dont_grow(budgets: list[int], fixed: int) -> None:
    """Whatever the budget is."""
    assert dispatch_tokens(WorkerSettings(), reports("cpu", *budgets)) == DISPATCH_TOKENS
    settings = WorkerSettings(max_dispatch_tokens=fixed)
    for device in ("cpu", "cuda:0"):
        assert dispatch_tokens(settings, reports(device, *budgets)) == fixed


@pytest.mark.parametrize("device", ["simulated:0", "cpu:0", "CPU", "GPU.1", "npu"])
def test_the_dispatch_of_an_engine_of_the_users_own_doesnt_grow(device: str) -> None:
    """What it calls its device says nothing, and its budget may be that of no device."""
    assert dispatch_tokens(WorkerSettings(), reports(device, 2**30)) == 32_768


@pytest.mark.parametrize("device", ["cuda:0", "mps"])
def test_a_budget_that_was_set_without_bounds_bounds_the_dispatch_all_the_same(device: str) -> None:
    """Four of the largest that are ever measured."""
    assert dispatch_tokens(WorkerSettings(), reports(device, 2**30)) == 262_144

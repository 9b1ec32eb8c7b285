"""Truncation and windows, the arithmetic of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from golem_tasks.contract import TextItem
from worker.encoding import Encoder, kept_of_pair, window_starts

COUNTS = st.integers(0, 300)


@given(COUNTS, COUNTS, st.integers(0, 400))
def test_a_truncated_pair_fills_the_room_and_no_more(first: int, second: int, room: int) -> None:
    """All tokens stay if they fit; else exactly as many as there is room for."""
    kept_first, kept_second = kept_of_pair(first, second, room)
    assert kept_first + kept_second == min(first + second, room)
    assert 0 <= kept_first <= first
    assert 0 <= kept_second <= second


@given(COUNTS, COUNTS, st.integers(0, 400))
def test_the_longer_of_a_pair_stays_the_longer(first: int, second: int, room: int) -> None:
    """Only the longer is shortened, until both are equal."""
    kept_first, kept_second = kept_of_pair(first, second, room)
    if first <= second:
        assert kept_first <= kept_second
    else:
        assert kept_first >= kept_second


@given(st.integers(1, 3000), st.integers(1, 300), st.integers(0, 299))
def test_windows_cover_every_token_and_all_but_the_last_are_full(
    tokens: int, window: int, overlap: int
) -> None:
    """Nothing of a long text goes unseen, and no window is made that adds nothing."""
    overlap = min(overlap, window - 1)
    starts = window_starts(tokens, window, overlap)
    ends = [min(start + window, tokens) for start in starts]
    assert starts[0] == 0
    assert ends[-1] == tokens
    assert all(end - start == window for start, end in zip(starts[:-1], ends[:-1], strict=True))
    assert all(end - start >= overlap for end, start in zip(ends[:-1], starts[1:], strict=True))
    assert ends == sorted(set(ends))


class PanicException(BaseException):
    """What a panic in Rust arrives as."""


class Panicking:
    """A tokenizer of the library's interface that panics."""

    def no_padding(self) -> None:
        """As the library's."""

    def no_truncation(self) -> None:
        """As the library's."""

    def encode_batch_fast(self, _: list[str]) -> list[None]:
        """Panics."""
        raise PanicException("index out of bounds")


def test_a_panic_in_the_tokenizer_is_an_ordinary_exception() -> None:
    """It arrives as a BaseException, which would end the worker for one hostile text."""
    encoder = Encoder(Panicking(), 512, type_ids=False)
    with pytest.raises(RuntimeError, match="panicked: index out of bounds"):
        encoder.encode([TextItem("x")], ["truncate"])

"""Bucketed linear layers: few sizes, the same answers."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.bucketing import BucketedLinear, bucket_linear_layers, bucketed_rows

ROWS = st.integers(1, 100_000)


@given(ROWS)
def test_a_size_holds_its_rows_and_little_more(rows: int) -> None:
    """Less than 16 rows up to 64, 64 up to 1,024, and an eighth above are computed in vain."""
    size = bucketed_rows(rows)
    assert rows <= size
    assert bucketed_rows(size) == size
    assert size - rows < (16 if rows <= 64 else max(64, size / 8))
    assert rows <= 128 or size - rows < rows / 4


@given(ROWS, ROWS)
def test_more_rows_are_never_computed_at_a_lesser_size(rows: int, others: int) -> None:
    """Sizes grow with the rows."""
    assert (bucketed_rows(rows) <= bucketed_rows(others)) or rows > others


def test_a_micro_batch_of_the_usual_budget_has_one_of_22_sizes() -> None:
    """Which is what the kernel cache of a model process has room for, three layer shapes each."""
    assert len({bucketed_rows(rows) for rows in range(1, 1025)}) == 22


@given(
    leading=st.lists(st.integers(1, 40), min_size=0, max_size=3),
    bias=st.booleans(),
    contiguous=st.booleans(),
)
def test_answers_are_those_of_the_plain_layer(
    leading: list[int], bias: bool, contiguous: bool
) -> None:
    """For any shape; to the last bits, since a product's order of summing may go by its size."""
    torch.manual_seed(len(leading))
    plain = torch.nn.Linear(6, 5, bias=bias)
    bucketed = torch.nn.Sequential(torch.nn.Linear(6, 5, bias=bias))
    bucketed[0].load_state_dict(plain.state_dict())
    bucket_linear_layers(bucketed)
    given_rows = torch.randn(*leading, 6) if contiguous else torch.randn(6, *leading).movedim(0, -1)
    torch.testing.assert_close(bucketed(given_rows), plain(given_rows))
    assert type(bucketed[0]) is BucketedLinear


def test_no_row_and_rows_that_are_no_numbers() -> None:
    """An empty batch has an empty answer; a row of NaN makes no other one NaN."""
    layer = torch.nn.Sequential(torch.nn.Linear(3, 2))
    bucket_linear_layers(layer)
    assert layer(torch.empty(0, 7, 3)).shape == (0, 7, 2)
    rows = torch.ones(5, 3)
    rows[2] = torch.nan
    assert layer(rows).isnan().any(dim=1).tolist() == [False, False, True, False, False]


def test_what_is_no_plain_linear_layer_stays_what_it_is() -> None:
    """Subclasses have a forward pass of their own; weights stay the very same tensors."""

    class Own(torch.nn.Linear):
        pass

    model = torch.nn.Sequential(torch.nn.Linear(2, 2), Own(2, 2), torch.nn.ReLU())
    weights = list(model.parameters())
    bucket_linear_layers(model)
    assert [type(module) for module in model] == [BucketedLinear, Own, torch.nn.ReLU]
    assert all(a is b for a, b in zip(weights, model.parameters(), strict=True))

"""A launch returns before the device has computed anything."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from golem_tasks.settings import load as load_settings
from tests.support.models import Kind, build
from worker.engine import TorchEngine, load
from worker.interfaces import Row
from worker.settings import WorkerSettings

ROWS = {
    "of one length": [Row([5, 6, 7, 8]), Row([8, 7, 6, 5])],
    "padded": [Row([5, 6, 7, 8]), Row([9, 5])],
    "a single one": [Row([5, 6, 7])],
}


class Looks(TorchDispatchMode):
    """Counts the operations that bring a value of a tensor, or a shape it decides, to the host.

    On CUDA each of them waits for all that was launched before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation as if nobody looked on."""
        name = func.name().partition("::")[2].partition(".")[0]
        if name in ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal"):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def small_engine(folder: Path, kind: Kind) -> TorchEngine:
    """An engine of a small model."""
    asked = {"device": "cpu", "dtype": "float32", "threads": 1, "token_budget": 1024}
    model = str(build(folder, kind, seed=4))
    return load(load_settings(WorkerSettings, model=model, **asked), 0)


@pytest.mark.parametrize("kind", ["distilbert", "bert", "roberta", "gpt2", "xlnet"])
@pytest.mark.parametrize("shape", ROWS)
def test_a_launch_waits_for_no_value(tmp_path: Path, kind: Kind, shape: str) -> None:
    """Nothing of what is computed decides what is launched next, whatever the padding."""
    loaded = small_engine(tmp_path / "model", kind)
    rows = [_typed(row, loaded) for row in ROWS[shape]]
    with Looks() as looks:
        loaded.launch(rows)
    assert looks.seen == []


@pytest.mark.parametrize("kind", ["distilbert", "bert", "roberta", "gpt2"])
@pytest.mark.parametrize("shape", ROWS)
def test_the_answers_are_those_of_a_mask_that_was_looked_into(
    tmp_path: Path, kind: Kind, shape: str
) -> None:
    """The model by itself, as its users call it, does look, and computes the same."""
    loaded = small_engine(tmp_path / "model", kind)
    rows = [_typed(row, loaded) for row in ROWS[shape]]
    longest = max(row.length for row in rows)
    pad_id = loaded.loaded.model.config.pad_token_id
    ids = torch.tensor([row.ids + [pad_id] * (longest - row.length) for row in rows])
    mask = torch.tensor([[n < row.length for n in range(longest)] for row in rows]).long()
    with Looks() as looks, torch.inference_mode():
        theirs = loaded.loaded.model(input_ids=ids, attention_mask=mask).logits
    assert looks.seen
    ours = torch.tensor(loaded.launch(rows).logits())
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def _typed(row: Row, loaded: TorchEngine) -> Row:
    """The row with type ids where the model takes them."""
    takes = "token_type_ids" in loaded.loaded.tokenizer.model_input_names
    return Row(row.ids, [0] * row.length if takes else None)

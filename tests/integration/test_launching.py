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
from worker.launching import OnTheWay, stopwatch
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


@pytest.mark.parametrize("kind", ["distilbert", "roberta"])
def test_a_model_that_pads_inside_keeps_its_own_mask(tmp_path: Path, kind: Kind) -> None:
    """To a multiple of eight, as one with code of its own may: what we know isn't of its mask."""
    loaded = small_engine(tmp_path / "model", kind)
    rows = [_typed(row, loaded) for row in ROWS["of one length"]]
    expected = torch.tensor(loaded.launch(rows).logits())
    model = loaded.loaded.model

    def padding(input_ids: torch.Tensor, attention_mask: torch.Tensor, **given: Any) -> Any:
        more = (0, -input_ids.shape[1] % 8)
        ids = torch.nn.functional.pad(input_ids, more, value=model.config.pad_token_id)
        mask = torch.nn.functional.pad(attention_mask, more)
        return model(input_ids=ids, attention_mask=mask, **given)

    loaded._forward = padding
    torch.testing.assert_close(torch.tensor(loaded.launch(rows).logits()), expected)


def test_an_answer_tells_how_long_it_took(tmp_path: Path) -> None:
    """On a CPU, where a launch returns with the answer, by the host's clock."""
    launched = small_engine(tmp_path / "model", "distilbert").launch(ROWS["padded"])
    launched.logits()
    assert launched.took_s is not None
    assert launched.took_s > 0


class Event:
    """Stands for CUDA's, on a device that takes a quarter of a second for each of its tasks."""

    done_s = 0.0

    def __init__(self, **given: bool) -> None:
        assert given == {"enable_timing": True, "blocking": True}
        self.at_s: float | None = None

    def record(self, stream: list["Event"]) -> None:
        """Behind all that is queued there."""
        stream.append(self)

    def synchronize(self) -> None:
        """Wait, that is: let the stream work until it comes here."""
        while self.at_s is None:
            task = STREAM.pop(0)
            if isinstance(task, Event):
                task.at_s = Event.done_s
            else:
                Event.done_s += task

    def elapsed_time(self, other: "Event") -> float:
        """Milliseconds, as CUDA tells them."""
        assert self.at_s is not None
        assert other.at_s is not None
        return (other.at_s - self.at_s) * 1e3


STREAM: list[Any] = []


def test_cudas_time_is_that_of_its_own_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three that were launched before the first was waited for."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: STREAM)
    launched = []
    for cost_s in (0.25, 0.5, 1.0):
        watch = stopwatch(torch.device("cuda:0"))
        STREAM.append(cost_s)
        launched.append(OnTheWay(torch.zeros(2, 3), watch))
    assert [each.took_s for each in launched] == [None] * 3
    assert [each.logits() for each in launched] == [[[0.0] * 3] * 2] * 3
    assert [each.took_s for each in launched] == [0.25, 0.5, 1.0]


def _typed(row: Row, loaded: TorchEngine) -> Row:
    """The row with type ids where the model takes them."""
    takes = "token_type_ids" in loaded.loaded.tokenizer.model_input_names
    return Row(row.ids, [0] * row.length if takes else None)

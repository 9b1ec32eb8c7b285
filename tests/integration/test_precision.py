"""What changes how the model is computed: bfloat16 on a CPU, int8 and torch.compile."""

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from golem_tasks.contract import Options, Prediction, TextItem
from golem_tasks.errors import ConfigurationError, GolemError
from golem_tasks.settings import load as load_settings
from tests.support.data import sst2_dev
from tests.support.models import build
from worker.budget import find_budget
from worker.classifier import Classifier, Work
from worker.device import choose_dtype, has_native_bfloat16
from worker.engine import TorchEngine, load
from worker.settings import WorkerSettings


def engine(model: str, **given: object) -> TorchEngine:
    """An engine on one thread of the CPU, in float32 unless told otherwise."""
    asked = {"device": "cpu", "dtype": "float32", "threads": 1, "token_budget": 1024, **given}
    return load(load_settings(WorkerSettings, model=model, **asked), 0)


def classify(loaded: TorchEngine, texts: list[str]) -> list[Prediction]:
    """All of them in dispatches of 256; every one has to be answered."""
    classifier, found = Classifier(loaded), []
    for start in range(0, len(texts), 256):
        works = [Work(TextItem(text), Options(), 0.0) for text in texts[start : start + 256]]
        for outcome in classifier.classify(works).outcomes:
            assert not isinstance(outcome, GolemError)
            found.append(Prediction.model_validate(outcome))
    return found


class Products(TorchDispatchMode):
    """Notes the sizes of a model's matrix products, rows by columns in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, int, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation as if nobody looked on."""
        if func is torch.ops.aten.linear.default:
            rows, weight, *_ = args
            self.sizes.append((rows.numel() // rows.shape[-1], *weight.shape))
        return func(*args, **(kwargs or {}))


def test_in_bfloat16_few_sizes_of_product_serve_all_micro_batches() -> None:
    """And more than one in float32, whose products need no kernel of their own for each size."""
    texts = [" ".join(["good"] * (1 + number * 7 % 90)) for number in range(256)]
    sizes = {}
    for dtype in ("float32", "bfloat16"):
        loaded = engine("golem-mini", dtype=dtype)
        with Products() as products:
            classify(loaded, texts)
            for text in texts[:90]:
                classify(loaded, [text])
        sizes[dtype] = set(products.sizes)
        layers = {size[1:] for size in sizes[dtype]}
    assert len(sizes["bfloat16"]) <= 22 * len(layers) < len(sizes["float32"])


@pytest.mark.parametrize("kind", ["distilbert", "bert", "roberta"])
def test_bfloat16_runs_other_architectures(tmp_path: Path, kind: str) -> None:
    """Answers near float32's."""
    folder = str(build(tmp_path / kind, kind, seed=3))  # type: ignore[arg-type]
    texts = ["the film moves slowly", "never good", "bad and bad and not good"]
    exact, half = (
        classify(engine(folder, dtype=dtype), texts) for dtype in ("float32", "bfloat16")
    )
    for a, b in zip(exact, half, strict=True):
        assert a.scores["POSITIVE"] == pytest.approx(b.scores["POSITIVE"], abs=0.05)


def test_the_default_dtype_keeps_995_of_1000_labels_on_sst2_and_accuracy() -> None:
    """Accuracy within 0.3 points; where a CPU has no bfloat16 the default is float32 itself."""
    texts = [text for text, _ in sst2_dev()]
    truth = [("NEGATIVE", "POSITIVE")[label] for _, label in sst2_dev()]
    exact, default = (
        classify(engine("golem-mini", dtype=dtype), texts) for dtype in ("float32", "auto")
    )
    assert default[0].model.dtype == ("bfloat16" if has_native_bfloat16() else "float32")
    agree = sum(a.label == b.label for a, b in zip(exact, default, strict=True))
    assert agree >= 0.995 * len(texts)
    right = [
        sum(a.label == b for a, b in zip(found, truth, strict=True)) for found in (exact, default)
    ]
    assert abs(right[1] - right[0]) <= 0.003 * len(texts)


def test_int8_costs_golem_mini_less_than_a_point_on_sst2() -> None:
    """97 of 100 labels stay as in float32, and accuracy within a point, over five orders.

    Texts of a micro-batch share a scale, so that which of them go together decides some labels: in
    one order accuracy may be a point better or worse than in the next.
    """
    texts = [text for text, _ in sst2_dev()]
    truth = [("NEGATIVE", "POSITIVE")[label] for _, label in sst2_dev()]
    exact = classify(engine("golem-mini"), texts)
    right_exactly = sum(a.label == b for a, b in zip(exact, truth, strict=True))
    coarse, costs = engine("golem-mini", dtype="int8"), []
    for seed in range(5):
        order = random.Random(seed).sample(range(len(texts)), len(texts))  # noqa: S311 - no secret
        found = classify(coarse, [texts[index] for index in order])
        assert found[0].model.dtype == "int8"
        pairs = [(exact[index], answer) for index, answer in zip(order, found, strict=True)]
        assert sum(a.label == b.label for a, b in pairs) >= 0.97 * len(texts)
        # Computed in int8 indeed: no score is float32's to the last digits, whatever the label.
        assert any(abs(a.score - b.score) > 1e-6 for a, b in pairs)
        right = sum(
            answer.label == truth[index] for index, answer in zip(order, found, strict=True)
        )
        costs.append((right_exactly - right) / len(texts))
    assert statistics.mean(costs) <= 0.01


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlnet"])
def test_int8_runs_other_architectures_and_leaves_their_head_alone(
    tmp_path: Path, kind: str
) -> None:
    """Finite answers near float32's."""
    folder = str(build(tmp_path / kind, kind, seed=3))  # type: ignore[arg-type]
    texts = ["the film moves slowly", "never good", "bad and bad and not good"]
    exact, coarse = (classify(engine(folder, dtype=dtype), texts) for dtype in ("float32", "int8"))
    for a, b in zip(exact, coarse, strict=True):
        assert a.scores["POSITIVE"] == pytest.approx(b.scores["POSITIVE"], abs=0.2)


def test_int8_is_refused_off_the_cpu_in_one_sentence() -> None:
    """The remedy is named."""
    with pytest.raises(ConfigurationError, match=r"int8 can't be used on cuda.*GOLEM_DTYPE=auto"):
        choose_dtype("int8", torch.device("cuda", 0))


# torch's compiler uses what torch itself has deprecated.
_torch_warns = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")


_needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"
)


@_torch_warns
@_needs_compiler
@pytest.mark.parametrize(
    ("kind", "dtype", "margin"),
    [("gpt2", "float32", 1e-4), ("distilbert", "bfloat16", 0.05), ("distilbert", "int8", 0.1)],
)
def test_a_compiled_model_answers_as_before_in_every_shape(
    tmp_path: Path, kind: Any, dtype: str, margin: float
) -> None:
    """One row, many rows, short and long ones: the warm-up has compiled for all of them.

    Of one token too, where the tokenizer adds none of its own. In int8 the padding has its part in
    the scale of what goes into a layer, hence the margin.
    """
    folder = str(build(tmp_path / "model", kind, layers=1, seed=5))
    texts = ["a", "good", "the film is not bad", *["bad " * count for count in range(1, 70)]]
    exact = classify(engine(folder, dtype=dtype), texts)
    compiled = engine(folder, dtype=dtype, compile=True)
    compiled.warm_up(compiled.token_budget)
    with torch.compiler.set_stance("fail_on_recompile"):
        found = classify(compiled, texts)
        single = [classify(compiled, [text])[0] for text in texts[:4]]
    assert found[0].model.dtype == dtype
    assert min(answer.tokens for answer in found) == (1 if kind == "gpt2" else 3)
    for ours, theirs in zip([*found, *single], [*exact, *exact[:4]], strict=True):
        assert ours.scores["POSITIVE"] == pytest.approx(theirs.scores["POSITIVE"], abs=margin)


@_torch_warns
@_needs_compiler
def test_the_search_for_a_token_budget_measures_no_compilation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is compiled is compiled before; and what was found isn't taken for an eager worker's."""

    def without_compiling(*args: Any, **conditions: Any) -> int:
        with torch.compiler.set_stance("fail_on_recompile"):
            return find_budget(*args, **conditions)

    monkeypatch.setattr("worker.engine.find_budget", without_compiling)
    folder = str(build(tmp_path / "model", layers=1, seed=8))
    asked = {"token_budget": "auto", "state_dir": str(tmp_path / "state")}
    compiled = engine(folder, compile=True, **asked)
    [file] = (tmp_path / "state" / "speeds").iterdir()
    kept = json.loads(file.read_text())
    assert (kept["compile"], kept["token_budget"]) == (1, compiled.token_budget)
    launched: list[int] = []
    launch = compiled.launch
    monkeypatch.setattr(compiled, "launch", lambda rows: launched.append(len(rows)) or launch(rows))
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled.warm_up(compiled.token_budget)
        assert len(launched) == 2  # its own, and none of those that compile
        classify(compiled, ["good", "the film is not bad"])
    engine(folder, **asked)
    assert len(list((tmp_path / "state" / "speeds").iterdir())) == 2


def test_compiling_without_a_compiler_names_the_remedy(tmp_path: Path) -> None:
    """Not a traceback out of torch's inductor. In a process of its own: torch looks once."""
    folder = str(build(tmp_path / "model", seed=6))
    code = (
        "from worker.engine import load; from worker.settings import WorkerSettings\n"
        f"load(WorkerSettings(model={folder!r}, device='cpu', compile=True), 0).warm_up(1024)"
    )
    env = {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert "ModelLoadError" in done.stderr
    assert "Install a C++ compiler (g++)" in done.stderr.splitlines()[-1]


def test_the_token_budget_is_measured_once_and_remembered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A real model: the log shows what was measured; the next start takes it from the file."""
    folder = str(build(tmp_path / "model", seed=7))
    asked = {"token_budget": "auto", "state_dir": str(tmp_path / "state")}
    with caplog.at_level("INFO"):
        found = [engine(folder, **asked).token_budget for _ in range(2)]
    assert found[0] == found[1] in {256, 512, 1024, 2048, 4096}
    assert [r.getMessage().startswith("Token budget of") for r in caplog.records].count(True) == 1

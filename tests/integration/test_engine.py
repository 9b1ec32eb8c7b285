"""The real engine on real models: right by comparison with Hugging Face's pipeline."""

import gc
import json
import random
import shutil
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Pipeline, pipeline

from golem_tasks.contract import Options, Prediction, TextItem
from golem_tasks.errors import (
    ConfigurationError,
    GolemError,
    InferenceError,
    ModelLoadError,
    TextTooLong,
)
from golem_tasks.settings import load as load_settings
from tests.support.data import long_reviews, sst2_dev
from tests.support.models import MAX_TOKENS, Kind, build, texts
from worker.checkpoint import fingerprint
from worker.classifier import Classifier, Work
from worker.device import assigned_gpu, has_native_bfloat16
from worker.engine import TorchEngine, load
from worker.interfaces import Activation, Encoded, Launched, Row
from worker.machine import available_cores, cores_of, hardware
from worker.settings import WorkerSettings
from worker.source import EMBEDDED_FOLDER

TOLERANCE = 1e-4
EMOTIONS = ("sadness", "joy", "love", "anger", "fear", "surprise")
HEADS: dict[str, tuple[tuple[str, ...], str | None]] = {
    "two classes": (("NEGATIVE", "POSITIVE"), None),
    "six classes": (EMOTIONS, "single_label_classification"),
    "multi-label": (EMOTIONS, "multi_label_classification"),
    "one label": (("toxic",), None),
    "regression": (("score",), "regression"),
}


def engine(folder: Path | str, **given: Any) -> TorchEngine:
    """The engine of a folder, in float32 on the CPU unless told otherwise.

    One thread, since two that wait for each other are slow on a machine that tests keep busy.
    """
    given = {"device": "cpu", "dtype": "float32", "threads": 1, "token_budget": 1024, **given}
    return load(load_settings(WorkerSettings, model=str(folder), **given), 0)


def warmed(folder: Path | str, **given: Any) -> TorchEngine:
    """The engine of a folder, warmed up."""
    loaded = engine(folder, **given)
    loaded.warm_up(loaded.token_budget)
    return loaded


def reference(folder: Path | str) -> Pipeline:
    """The pipeline of the same folder in float32."""
    torch.set_num_threads(1)
    return pipeline("text-classification", model=str(folder), dtype=torch.float32, device="cpu")


def items(*plain: str | tuple[str, str]) -> list[TextItem]:
    """Texts and pairs as items."""
    return [TextItem(text) if isinstance(text, str) else TextItem(*text) for text in plain]


def classify(
    loaded: TorchEngine, given: list[TextItem], options: Options | None = None
) -> list[Prediction]:
    """All of them in one dispatch; every one has to be answered."""
    works = [Work(item, options or Options(), queued_ms=0.0) for item in given]
    outcomes = Classifier(loaded).classify(works).outcomes
    assert not [outcome for outcome in outcomes if isinstance(outcome, GolemError)]
    return [Prediction.model_validate(outcome) for outcome in outcomes]


def assert_same(ours: Prediction, theirs: list[dict[str, Any]]) -> None:
    """Same label, and every label's score within the tolerance."""
    assert ours.label == theirs[0]["label"]
    assert ours.scores == pytest.approx({e["label"]: e["score"] for e in theirs}, abs=TOLERANCE)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Builds a small random model, each kind and head once."""
    built: dict[tuple[str, str], Path] = {}

    def of(kind: Kind = "distilbert", head: str = "two classes") -> Path:
        if (kind, head) not in built:
            labels, problem_type = HEADS[head]
            folder = tmp_path_factory.mktemp(kind)
            built[kind, head] = build(folder, kind, labels, problem_type=problem_type)
        return built[kind, head]

    return of


@pytest.fixture
def copy(small: Callable[..., Path], tmp_path: Path) -> Path:
    """A small model's folder to be damaged."""
    return Path(shutil.copytree(small(), tmp_path / "model"))


def edit(file: Path, **changes: Any) -> None:
    """Change fields of a JSON file; None removes one."""
    fields = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))


class TestParity:
    """The pipeline on the same folder is the reference."""

    @pytest.mark.parametrize("head", HEADS)
    @pytest.mark.parametrize("kind", ["distilbert", "bert"])
    def test_every_head_answers_as_the_pipeline_does(
        self, small: Callable[..., Path], kind: Kind, head: str
    ) -> None:
        """Softmax, sigmoid or the raw value, and labels from ``id2label``."""
        given = texts(60)
        theirs = reference(small(kind, head))(given, top_k=None, truncation=True)
        for ours, answer in zip(
            classify(engine(small(kind, head)), items(*given)), theirs, strict=True
        ):
            assert_same(ours, answer)

    @pytest.mark.parametrize("kind", get_args(Kind))
    def test_every_architecture_answers_in_a_batch_as_the_pipeline_does_alone(
        self, small: Callable[..., Path], kind: Kind
    ) -> None:
        """Pads right or left, with offsets or without a pad token: the padding never shows."""
        given = texts(40, longest=8)
        alone = reference(small(kind))
        for ours, text in zip(classify(engine(small(kind)), items(*given)), given, strict=True):
            assert_same(ours, alone(text, top_k=None))

    @pytest.mark.parametrize("kind", ["distilbert", "bert", "roberta"])
    def test_pairs_answer_as_in_the_pipeline(self, small: Callable[..., Path], kind: Kind) -> None:
        """Pairs and single texts in one dispatch, many of them truncated."""
        firsts, seconds = texts(40, longest=40), texts(40, longest=40, seed=1)
        given: list[str | tuple[str, str]] = [*zip(firsts, seconds, strict=True), *firsts]
        theirs = reference(small(kind))
        for ours, item in zip(
            classify(engine(small(kind)), items(*given)), items(*given), strict=True
        ):
            inputs = {"text": item.text}
            if item.text_pair is not None:
                inputs["text_pair"] = item.text_pair
            assert_same(ours, theirs(inputs, top_k=None, truncation=True))

    @pytest.mark.parametrize("kind", get_args(Kind))
    def test_a_text_has_the_same_answer_alone_and_in_any_batch(
        self, small: Callable[..., Path], kind: Kind
    ) -> None:
        """Whatever it is padded to."""
        loaded = engine(small(kind))
        given = items(*texts(20))
        together = classify(loaded, given)
        for item, ours in zip(given, together, strict=True):
            [alone] = classify(loaded, [item])
            assert alone.label == ours.label
            assert alone.scores == pytest.approx(ours.scores, abs=TOLERANCE)

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("kind", ["bert", "roberta", "xlnet"])
    def test_truncation_keeps_what_the_tokenizers_own_keeps(
        self, small: Callable[..., Path], tmp_path: Path, kind: Kind, side: str
    ) -> None:
        """Ids and type ids of singles and pairs of any lengths, cut at either side."""
        folder = Path(shutil.copytree(small(kind), tmp_path / "model"))
        edit(folder / "tokenizer_config.json", truncation_side=side)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        chance = random.Random(0)  # noqa: S311 - test data
        words = [" ".join(texts(1, longest=90, seed=i)) for i in range(60)]
        given = items(*words, *zip(words, chance.sample(words, 60), strict=True))
        encoded = engine(folder).encode(given, ["truncate"] * len(given))
        for item, ours in zip(given, encoded, strict=True):
            assert isinstance(ours, Encoded)
            whole = tokenizer(item.text, item.text_pair)
            cut = tokenizer(item.text, item.text_pair, truncation=True, max_length=MAX_TOKENS)
            assert ours.rows[0].ids == cut["input_ids"]
            assert ours.rows[0].type_ids == cut.get("token_type_ids")
            assert ours.tokens == len(whole["input_ids"])
            assert ours.truncated == (ours.tokens > MAX_TOKENS)


@pytest.fixture(scope="module")
def real_texts() -> list[str]:
    """The 872 SST-2 dev sentences and 200 long reviews, shortest first for the pipeline."""
    return sorted([text for text, _ in sst2_dev()] + long_reviews()[:200], key=len)


@pytest.fixture(scope="module")
def real_answers(real_texts: list[str]) -> list[list[dict[str, Any]]]:
    """The pipeline's answers in float32."""
    theirs = reference(EMBEDDED_FOLDER)
    answers: list[list[dict[str, Any]]] = theirs(
        real_texts, top_k=None, truncation=True, batch_size=8
    )
    return answers


class TestEmbeddedModel:
    """golem-mini on real sentences and reviews."""

    def test_float32_is_the_pipelines_answer_in_every_case(
        self, real_texts: list[str], real_answers: list[list[dict[str, Any]]]
    ) -> None:
        """Every label of 1,072 texts, every score within 1e-4, in dispatches of mixed lengths."""
        order = list(range(len(real_texts)))
        random.Random(0).shuffle(order)  # noqa: S311 - test data
        loaded = engine("golem-mini")
        for start in range(0, len(order), 128):
            indexes = order[start : start + 128]
            for i, ours in zip(
                indexes, classify(loaded, items(*(real_texts[i] for i in indexes))), strict=True
            ):
                assert_same(ours, real_answers[i])

    def test_bfloat16_gives_at_least_995_of_1000_labels(
        self, real_texts: list[str], real_answers: list[list[dict[str, Any]]]
    ) -> None:
        """Half precision moves a score; the label only where it was a toss-up."""
        ours = classify(engine("golem-mini", dtype="bfloat16"), items(*real_texts))
        agree = sum(o.label == e[0]["label"] for o, e in zip(ours, real_answers, strict=True))
        assert agree >= 0.995 * len(real_texts)

    def test_a_folder_of_its_name_cant_take_its_place(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The name means the model in the package, wherever the worker is started."""
        (tmp_path / "golem-mini").mkdir()
        monkeypatch.chdir(tmp_path)
        assert engine("golem-mini").info.labels == ("NEGATIVE", "POSITIVE")


class TestLongTexts:
    """`on_long` in its three forms."""

    LONG = " ".join(["good film"] * 40 + ["bad film"] * 40)

    def test_truncate_says_so(self, small: Callable[..., Path]) -> None:
        """The answer is to the beginning, and says how long the text was."""
        [answer] = classify(engine(small()), items(self.LONG))
        assert (answer.tokens, answer.truncated) == (162, True)

    def test_error_names_the_tokens_and_the_maximum(self, small: Callable[..., Path]) -> None:
        """A producer that would rather know than be cut."""
        [error] = engine(small()).encode(items(self.LONG), ["error"])
        assert isinstance(error, TextTooLong)
        assert "has 162 tokens, the model takes 64" in str(error)

    @pytest.mark.parametrize("kind", ["distilbert", "roberta", "gpt2"])
    def test_windows_are_the_mean_of_what_the_pipeline_says_of_each(
        self, small: Callable[..., Path], kind: Kind
    ) -> None:
        """Overlapping pieces, each answered by the pipeline from its text, weighted by length."""
        loaded = engine(small(kind))
        long = " ".join(texts(6, longest=40, seed=3))
        [encoded] = loaded.encode(items(long), ["window"])
        assert isinstance(encoded, Encoded)
        assert len(encoded.rows) > 2
        with torch.inference_mode():
            model = reference(small(kind)).model
            rows = [model(torch.tensor([row.ids])).logits.softmax(-1)[0] for row in encoded.rows]
        weights = torch.tensor(encoded.weights, dtype=torch.float32)
        mean = (torch.stack(rows) * weights[:, None]).sum(0) / weights.sum()
        [ours] = classify(loaded, items(long), Options(on_long="window"))
        assert ours.scores == pytest.approx(
            dict(zip(loaded.info.labels, mean.tolist(), strict=True)), abs=TOLERANCE
        )
        assert (ours.tokens, ours.truncated) == (encoded.tokens, False)

    def test_windows_of_a_pair_slide_over_the_longer_and_keep_the_shorter(
        self, small: Callable[..., Path]
    ) -> None:
        """A question stays beside every piece of its document."""
        loaded = engine(small("bert"))
        [question] = loaded.encode(items("is the film good"), ["truncate"])
        [encoded] = loaded.encode(items(("is the film good", self.LONG)), ["window"])
        assert isinstance(question, Encoded)
        assert isinstance(encoded, Encoded)
        beginning = question.rows[0].ids
        assert all(row.ids[: len(beginning)] == beginning for row in encoded.rows)
        assert all(row.length <= MAX_TOKENS for row in encoded.rows)

    def test_a_pair_of_two_long_texts_cant_be_windowed(self, small: Callable[..., Path]) -> None:
        """There would be no room beside the shorter one: its own error, not a panic."""
        [error] = engine(small("bert")).encode(items((self.LONG, self.LONG)), ["window"])
        assert isinstance(error, TextTooLong)


class TestLoading:
    """What can't answer rightly doesn't start, and says why in one sentence."""

    def refused(self, folder: Path | str, **given: Any) -> str:
        """The message the load, or else the warm-up, ends with."""
        with pytest.raises((ModelLoadError, ConfigurationError)) as caught:
            warmed(folder, **given)
        message = str(caught.value)
        assert "\n" not in message
        return message

    def test_the_model_is_described(self, small: Callable[..., Path]) -> None:
        """Labels, activation, maximum, dtype and device, for answers and logs."""
        info = engine(small("bert", "multi-label"), dtype="bfloat16").info
        assert info.labels == EMOTIONS
        assert info.activation is Activation.SIGMOID
        assert (info.max_tokens, info.dtype, info.device) == (MAX_TOKENS, "bfloat16", "cpu")

    @pytest.mark.parametrize("kind", ["distilbert", "bert", "roberta", "gpt2"])
    def test_the_maximum_comes_from_the_positions_where_the_tokenizer_names_none(
        self, small: Callable[..., Path], tmp_path: Path, kind: Kind
    ) -> None:
        """RoBERTa's first two positions are no text's; a row of the maximum goes through."""
        folder = Path(shutil.copytree(small(kind), tmp_path / "model"))
        edit(folder / "tokenizer_config.json", model_max_length=None)
        loaded = engine(folder)
        assert loaded.info.max_tokens == MAX_TOKENS
        loaded.warm_up(loaded.token_budget)

    def test_a_local_model_touches_no_network(
        self, small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not one connection or look-up, for the folder or for the embedded model."""

        def refuse(*_: Any) -> None:
            raise AssertionError("a local model reached for the network")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        warmed(small())

    def test_loading_is_silent(
        self, small: Callable[..., Path], capfd: pytest.CaptureFixture[str]
    ) -> None:
        """No progress bar and no warning of a library's; the worker's log is the worker's."""
        classify(warmed(small()), items("word " * 5000))
        assert capfd.readouterr() == ("", "")

    def test_a_missing_folder(self, tmp_path: Path) -> None:
        """The path and the working directory, since one of them is wrong."""
        message = self.refused(tmp_path / "nowhere")
        assert "nowhere" in message
        assert "there is no such folder" in message

    def test_a_folder_without_a_model(self, tmp_path: Path) -> None:
        """A folder of something else."""
        assert "no config.json" in self.refused(tmp_path)

    def test_an_unreachable_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not in the cache, and no way to it: the network, or a folder."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert "the hub can't be reached" in self.refused("somebody/some-model")

    def test_weights_that_are_no_safetensors(self, copy: Path) -> None:
        """A pickled checkpoint isn't opened."""
        torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
        (copy / "model.safetensors").unlink()
        assert "no weights in the safetensors format" in self.refused(copy)

    def test_damaged_weights(self, copy: Path) -> None:
        """A download that ended early."""
        (copy / "model.safetensors").write_bytes(b"short")
        assert "damaged" in self.refused(copy)

    def test_a_pointer_of_git_lfs_in_place_of_the_weights(self, copy: Path) -> None:
        """What a clone without Git LFS has; the remedy is among those for damaged weights."""
        pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
        (copy / "model.safetensors").write_text(pointer)
        assert "git lfs pull" in self.refused(copy)

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
    def test_a_file_that_is_not_json(self, copy: Path, name: str) -> None:
        """Cut off, or edited by hand."""
        (copy / name).write_text("{")
        assert "aren't JSON" in self.refused(copy)

    def test_a_file_in_place_of_its_folder(self, copy: Path) -> None:
        """The weights themselves, say."""
        assert "Name the folder it is in" in self.refused(copy / "model.safetensors")

    @pytest.mark.parametrize("name", ["golem_mini", "golem-minni", "Golem-Mini"])
    def test_a_misspelt_name_of_the_embedded_model(self, name: str) -> None:
        """Nobody is asked for it on the hub."""
        assert "The one that does is golem-mini." in self.refused(name)

    def test_a_checkpoint_without_its_head(self, copy: Path) -> None:
        """Hugging Face would warn, take random weights, and answer nonsense for ever."""
        weights = load_file(copy / "model.safetensors")
        kept = {name: weights[name] for name in weights if not name.startswith("classifier.")}
        save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
        assert "no weights for classifier.bias, classifier.weight" in self.refused(copy)

    def test_no_tokenizer(self, copy: Path) -> None:
        """Hugging Face would make an empty one, to which every word is unknown."""
        for file in copy.glob("tokenizer*"):
            file.unlink()
        message = self.refused(copy)
        assert "without a tokenizer" in message or "no fast tokenizer" in message

    def test_another_kind_of_model(self, tmp_path: Path) -> None:
        """An image model has no texts to classify."""
        config = {"model_type": "vit", "architectures": ["ViTModel"]}
        (tmp_path / "config.json").write_text(json.dumps(config))
        self.refused(tmp_path)

    def test_an_unknown_architecture(self, copy: Path) -> None:
        """Newer than the installed transformers, perhaps."""
        edit(copy / "config.json", model_type="nonesuch")
        assert "doesn't know its architecture" in self.refused(copy)

    def test_two_labels_of_one_name(self, copy: Path) -> None:
        """One of the two scores would be lost in every answer."""
        edit(copy / "config.json", id2label={"0": "same", "1": "same"}, label2id={"same": 0})
        assert "'same' more than once" in self.refused(copy)

    def test_code_that_came_with_the_model(self, copy: Path) -> None:
        """It doesn't run unless the operator trusts it."""
        edit(copy / "config.json", model_type="nonesuch", auto_map={"AutoConfig": "evil.Config"})
        (copy / "evil.py").write_text("raise SystemExit('the code ran')")
        assert "GOLEM_TRUST_REMOTE_CODE" in self.refused(copy)

    def test_more_tokens_than_embeddings_fail_the_text_not_the_process(self, copy: Path) -> None:
        """On a GPU such an id is an assert that costs the process its device."""
        tokenizer = AutoTokenizer.from_pretrained(copy)
        tokenizer.add_tokens(["golem"])
        tokenizer.save_pretrained(copy)
        loaded = engine(copy)
        good, bad = loaded.encode(items("a good film", "a golem film"), ["truncate"] * 2)
        assert isinstance(good, Encoded)
        assert "isn't in the model's" in str(bad)

    def test_weights_that_answer_nan(self, copy: Path) -> None:
        """The warm-up asks whether the answers are numbers."""
        weights = load_file(copy / "model.safetensors")
        weights["classifier.bias"].fill_(float("nan"))
        save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
        assert "NaN or infinity" in self.refused(copy)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the test lacks")
    @pytest.mark.parametrize("device", ["cuda", "cuda:3", "mps"])
    def test_a_device_that_isnt_there(self, small: Callable[..., Path], device: str) -> None:
        """Asked for by name, so falling back to the CPU would be a surprise."""
        assert f"GOLEM_DEVICE={device}" in self.refused(small(), device=device)


def _raising_after(
    launch: Callable[[Sequence[Row]], Launched],
) -> Callable[[Sequence[Row]], Launched]:
    """Launch, then fail: the error's frames hold the tensors of the micro-batch."""

    def raising(rows: Sequence[Row]) -> Launched:
        launched = launch(rows)
        raise RuntimeError(f"the forward pass of {len(launched.logits())} rows failed")

    return raising


class TestResources:
    """Memory, threads and precision."""

    def test_no_tensor_of_a_batch_survives_it(
        self, small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After a dispatch, and after one that failed, only the model's tensors are alive."""
        loaded = engine(small(), token_budget=200)
        classifier = Classifier(loaded)

        def tensors() -> int:
            gc.collect()
            return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

        works = [Work(item, Options(), 0.0) for item in items(*texts(50))]
        classifier.classify(works)
        before = tensors()
        kept = [classifier.classify(works) for _ in range(3)]
        assert tensors() == before
        assert len(kept) == 3
        monkeypatch.setattr(loaded, "launch", _raising_after(loaded.launch))
        failed = classifier.classify(works)
        assert all(isinstance(outcome, InferenceError) for outcome in failed.outcomes)
        assert tensors() == before

    def test_the_budget_bounds_every_micro_batch(self, small: Callable[..., Path]) -> None:
        """Setting and default reach the packing."""
        loaded = engine(small(), token_budget=128, max_rows=3)
        works = [Work(item, Options(), 0.0) for item in items(*texts(50))]
        batches = Classifier(loaded).classify(works).micro_batches
        assert all(b.rows <= 3 and (b.rows == 1 or b.rows * b.longest <= 128) for b in batches)
        assert engine(small()).token_budget == 1024

    @pytest.mark.parametrize(("gpus", "each"), [(1, 2), (4, 1), (4, 2), (3, 3)])
    def test_processes_are_spread_evenly_over_the_gpus(self, gpus: int, each: int) -> None:
        """Two on the only GPU; with several GPUs, as many on each as on the next."""
        held = Counter(assigned_gpu(index, gpus) for index in range(gpus * each))
        assert held == dict.fromkeys(range(gpus), each)

    def test_what_is_learned_of_a_model_is_learned_of_these_weights_on_this_machine(
        self, small: Callable[..., Path]
    ) -> None:
        """Its name alone may be another's, and its device's number too."""
        folder = small()
        info = engine(folder).info
        assert (info.checkpoint, info.hardware) == (fingerprint(folder), hardware())

    def test_threads_are_the_cores_over_the_processes(self, small: Callable[..., Path]) -> None:
        """Two processes of one machine don't fight for its cores."""
        before = torch.get_num_threads()
        try:
            engine(small(), processes=2, threads=None)
            assert torch.get_num_threads() == cores_of(0, 2, available_cores())
            engine(small(), threads=1)
            assert torch.get_num_threads() == 1
        finally:
            torch.set_num_threads(before)

    @pytest.mark.parametrize(
        ("line", "native"),
        [
            ("flags\t\t: fpu avx512f avx512_bf16 amx_tile", True),
            ("flags\t\t: fpu avx2 avx512f", False),
            ("Features\t: fp asimd bf16", True),
        ],
    )
    def test_native_bfloat16_is_read_from_the_cpus_flags(
        self, tmp_path: Path, line: str, native: bool
    ) -> None:
        """Emulated bfloat16 would be slower than float32."""
        cpuinfo = tmp_path / "cpuinfo"
        cpuinfo.write_text(f"processor\t: 0\n{line}\n")
        assert has_native_bfloat16(cpuinfo) is native
        assert has_native_bfloat16(tmp_path / "none") is False

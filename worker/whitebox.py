"""One text through the model with every intermediate stage kept, for ``golem inspect``.

It takes the same steps as a job in a worker (`worker.engine`, `worker.decoding`) and watches them
with hooks on the model's modules, so that what it shows is what runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from golem_tasks.contract import Limits, OnLong, Options, Prediction, TextItem, check_text
from golem_tasks.errors import JobError
from worker.decoding import Decoder, MicroBatch
from worker.engine import TorchEngine, build
from worker.interfaces import Encoded, ModelInfo, Row
from worker.settings import WorkerSettings

__all__ = ["LabelScore", "ModuleRun", "Tensor", "Token", "WhiteBox", "look", "open_model"]


@dataclass(frozen=True, slots=True)
class Token:
    """One position of the row the model reads."""

    position: int
    token: str
    id: int
    mask: int
    """1 where the model attends to it, 0 for padding."""
    type_id: int | None
    """Which text of a pair it belongs to; None where the model takes none."""
    special: bool


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a tensor is like."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    device: str


@dataclass(frozen=True, slots=True)
class ModuleRun:
    """One part of the model at work."""

    name: str
    kind: str
    """Its class."""
    output: Tensor
    ms: float


@dataclass(frozen=True, slots=True)
class LabelScore:
    """What the model says to one label."""

    index: int
    label: str
    logit: float
    score: float


@dataclass(frozen=True, slots=True)
class WhiteBox:
    """Every stage of one text's way. Times are in milliseconds, after a warm-up pass."""

    text: str
    model: ModelInfo
    parameters: int
    load_ms: float
    encode_ms: float
    tokens: list[Token]
    """Of the row the model reads, special tokens included."""
    tokens_in_text: int
    """Before any truncation."""
    truncated: bool
    inputs: list[Tensor]
    forward_ms: float
    modules: list[ModuleRun]
    logits: Tensor
    decode_ms: float
    labels: list[LabelScore]
    """In the order of the logits."""
    argmax: int
    prediction: Prediction


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A loaded model."""

    engine: TorchEngine
    load_ms: float


def open_model(settings: WorkerSettings) -> OpenModel:
    """Load the model as a worker does.

    Raises:
        ConfigurationError: the device isn't there, or the calibration isn't the model's.
        ModelLoadError: the model can't be loaded.
    """
    begun_s = time.perf_counter()
    # Not compiled: what is fused into one kernel can't be looked into.
    engine = build(settings.model_copy(update={"compile": False}), 0)
    return OpenModel(engine, _since_ms(begun_s))


def look(opened: OpenModel, text: str, limits: Limits, on_long: OnLong = "truncate") -> WhiteBox:
    """Take one text through the model and keep what every stage made of it.

    Args:
        opened: the model.
        text: the text.
        limits: what a text may be.
        on_long: ``truncate`` or ``error``.

    Raises:
        InvalidJob: the text breaks the contract; `TextTooLong` under ``on_long="error"``.
        InferenceError: the model fails on it.
    """
    item = TextItem(check_text(text, "text", limits))
    engine, model = opened.engine, opened.engine.loaded.model
    _encode(engine, item, on_long)  # warm-up
    begun_s = time.perf_counter()
    encoded = _encode(engine, item, on_long)
    encode_ms = _since_ms(begun_s)
    row = encoded.rows[0]
    engine.launch([row]).logits()  # warm-up
    with _watched(model) as watch:
        begun_s = time.perf_counter()
        logits = engine.launch([row]).logits()
        forward_ms = _since_ms(begun_s)
    begun_s = time.perf_counter()
    batch = MicroBatch(1, row.length, row.length, forward_ms)
    answer = Decoder(engine.info).decode(logits, encoded, Options(logits=True), 0.0, [batch])
    decode_ms = _since_ms(begun_s)
    labels = _labels(engine.info, logits[0], answer["scores"])
    return WhiteBox(
        text=text,
        model=engine.info,
        parameters=engine.loaded.parameters,
        load_ms=opened.load_ms,
        encode_ms=encode_ms,
        tokens=_tokens(opened.engine.loaded.tokenizer, row, watch.mask),
        tokens_in_text=encoded.tokens,
        truncated=encoded.truncated,
        inputs=watch.inputs,
        forward_ms=forward_ms,
        modules=watch.modules,
        logits=watch.logits[0],
        decode_ms=decode_ms,
        labels=labels,
        argmax=max(labels, key=lambda each: each.logit).index,
        prediction=Prediction.model_validate(answer),
    )


class _Watch:
    """Notes what goes into a model and comes out of its parts."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self.mask: list[int] = []
        self.modules: list[ModuleRun] = []
        self.logits: list[Tensor] = []
        self._begun_s: dict[str, float] = {}

    def on_inputs(self, _module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        """Before the whole model."""
        self.inputs = [_tensor(k, v) for k, v in kwargs.items() if isinstance(v, torch.Tensor)]
        self.mask = kwargs["attention_mask"][0].tolist()

    def on_logits(self, _module: Any, _args: Any, output: Any) -> None:
        """After the whole model."""
        self.logits = [_tensor("logits", output.logits)]

    def before(self, name: str) -> Callable[..., None]:
        """Start the clock of a part."""

        def hook(*_: Any) -> None:
            _finish_device_work()
            self._begun_s[name] = time.perf_counter()

        return hook

    def after(self, name: str) -> Callable[..., None]:
        """Stop it, and note the part's output."""

        def hook(module: Any, _args: Any, output: Any) -> None:
            _finish_device_work()
            ms = _since_ms(self._begun_s[name])
            if (tensor := _first_tensor(output)) is not None:
                kind = type(module).__name__
                self.modules.append(ModuleRun(name, kind, _tensor(name, tensor), ms))

        return hook


@contextmanager
def _watched(model: Any) -> Iterator[_Watch]:
    watch = _Watch()
    hooks = [
        model.register_forward_pre_hook(watch.on_inputs, with_kwargs=True),
        model.register_forward_hook(watch.on_logits),
    ]
    for name, part in _parts(model):
        hooks.append(part.register_forward_pre_hook(watch.before(name)))
        hooks.append(part.register_forward_hook(watch.after(name)))
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()


def _parts(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The model's building blocks: embeddings, each layer, the head; not what these are made of."""
    for name, part in model.named_children():
        path = f"{prefix}{name}"
        holds_layers = any(isinstance(each, torch.nn.ModuleList) for each in part.modules())
        if isinstance(part, torch.nn.ModuleList):
            yield from ((f"{path}.{index}", layer) for index, layer in enumerate(part))
        elif holds_layers:
            yield from _parts(part, f"{path}.")
        else:
            yield path, part


def _encode(engine: TorchEngine, item: TextItem, on_long: OnLong) -> Encoded:
    [encoded] = engine.encode([item], [on_long])
    if isinstance(encoded, JobError):
        raise encoded
    return encoded


def _tokens(tokenizer: Any, row: Row, mask: list[int]) -> list[Token]:
    special = set(tokenizer.all_special_ids)
    names = tokenizer.convert_ids_to_tokens(row.ids)
    return [
        Token(
            position,
            name,
            row.ids[position],
            mask[position],
            None if row.type_ids is None else row.type_ids[position],
            row.ids[position] in special,
        )
        for position, name in enumerate(names)
    ]


def _labels(info: ModelInfo, logits: list[float], scores: dict[str, float]) -> list[LabelScore]:
    return [
        LabelScore(index, label, logits[index], scores[label])
        for index, label in enumerate(info.labels)
    ]


def _tensor(name: str, value: torch.Tensor) -> Tensor:
    dtype = str(value.dtype).removeprefix("torch.")
    return Tensor(name, tuple(value.shape), dtype, str(value.device))


def _first_tensor(output: Any) -> torch.Tensor | None:
    if isinstance(output, torch.Tensor):
        return output
    values = output.values() if isinstance(output, dict) else output
    if not isinstance(values, Iterable):
        return None
    return next((each for each in values if isinstance(each, torch.Tensor)), None)


def _finish_device_work() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _since_ms(begun_s: float) -> float:
    return (time.perf_counter() - begun_s) * 1000

"""The loaded model: texts to rows, rows to logits.

Where the model runs; what prepares it for that (`worker.loading`, `worker.device`, `worker.masks`,
`worker.launching`, `worker.quantizing`, `worker.bucketing`, `worker.sharing`) and what shows it
(`worker.whitebox`) knows torch too, and nothing else of the worker does.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from golem_tasks.contract import OnLong, TextItem
from golem_tasks.errors import ConfigurationError, JobError, ModelLoadError
from worker import calibration
from worker.bucketing import bucket_linear_layers, bucketed_length
from worker.budget import find_budget
from worker.checkpoint import fingerprint
from worker.decoding import activation_for
from worker.device import choose_device, choose_dtype, hardware_of, set_threads
from worker.encoding import Encoder
from worker.failures import is_out_of_memory
from worker.interfaces import Activation, Encoded, ModelInfo, Row
from worker.launching import OnTheWay, device_errors, stopwatch
from worker.loading import LoadedModel, labels_of, load_model, max_tokens_of
from worker.masks import known_padding
from worker.settings import WorkerSettings
from worker.sharing import share_weights
from worker.source import Source, find_source

__all__ = ["TorchEngine", "build", "load"]

_TOKEN_BUDGETS = {"cpu": 1024, "mps": 4096, "cuda": 16_384}
"""Padded tokens of a micro-batch where nothing was measured."""


class TorchEngine:
    """A transformers model on one device; implements `worker.interfaces.Engine`.

    Args:
        source: where the model came from.
        loaded: the model and its tokenizer.
        settings: the token budget, "auto" taking a usual one for the device; most rows of a
            micro-batch; whether to run the model through ``torch.compile``, which the warm-up pays
            for; calibration.
        calibrated: whether to look for a calibration at all.

    Raises:
        ConfigurationError: the calibration isn't this model's.
        ModelLoadError: the model's labels are unusable.
    """

    def __init__(
        self,
        source: Source,
        loaded: LoadedModel,
        settings: WorkerSettings,
        *,
        calibrated: bool = True,
    ) -> None:
        self.source = source
        self.loaded = loaded
        model, tokenizer = loaded.model, loaded.tokenizer
        config, self._device = model.config, model.device
        labels = labels_of(source, config)
        activation = activation_for(config.problem_type, config.num_labels)
        self.info = ModelInfo(
            name=source.name,
            revision=loaded.revision,
            dtype=loaded.dtype,
            device=str(self._device),
            labels=labels,
            activation=activation,
            max_tokens=max_tokens_of(model, tokenizer),
            temperature=_temperature(source, settings.calibration, labels, activation)
            if calibrated
            else None,
            checkpoint=fingerprint(source.folder),
            hardware=hardware_of(self._device),
        )
        self.token_budget = _TOKEN_BUDGETS[self._device.type]
        if isinstance(settings.token_budget, int):
            self.token_budget = settings.token_budget
        self.max_rows = settings.most_rows
        # For any shape from the start (see `compile`): else one would be compiled while jobs wait.
        self._compiled = settings.compile
        self._has_compiled = False
        self._forward = torch.compile(model, dynamic=True) if settings.compile else model
        takes = inspect.signature(model.forward).parameters
        self._options = {"use_cache": False} if "use_cache" in takes else {}
        self._pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self._pad_type_id = tokenizer.pad_token_type_id
        # XLNet's head reads the last position, so its padding has to stand in front.
        self._pad_left = getattr(config, "summary_type", None) == "last"
        embeddings = model.get_input_embeddings().num_embeddings
        self._encoder = Encoder(
            tokenizer.backend_tokenizer,
            self.info.max_tokens,
            type_ids="token_type_ids" in takes and "token_type_ids" in tokenizer.model_input_names,
            keep_end=tokenizer.truncation_side == "left",
            vocabulary=embeddings if len(tokenizer) > embeddings else None,
        )

    def encode(
        self, items: Sequence[TextItem], on_long: Sequence[OnLong]
    ) -> list[Encoded | JobError]:
        """See `worker.interfaces.Engine`."""
        return self._encoder.encode(items, on_long)

    @torch.inference_mode()
    def launch(self, rows: Sequence[Row]) -> OnTheWay:
        """See `worker.interfaces.Engine`."""
        longest = max(row.length for row in rows)
        if self._compiled:
            longest = max(longest, min(bucketed_length(longest), self.info.max_tokens))
        padded = any(row.length != longest for row in rows)
        # What is compiled has no such look in it: dynamo can't follow it.
        shape = (len(rows), longest)
        known = contextlib.nullcontext() if self._compiled else known_padding(shape, padded=padded)
        with device_errors(), known:
            block = self._block(rows, longest)  # (2 or 3, B, T)
            watch = stopwatch(self._device)
            inputs = {"input_ids": block[0], "attention_mask": block[1]}
            if len(block) > 2:  # noqa: PLR2004 - the third is there or isn't
                inputs["token_type_ids"] = block[2]
            return OnTheWay(self._forward(**inputs, **self._options).logits, watch)

    def _block(self, rows: Sequence[Row], longest: int) -> torch.Tensor:
        """Ids, mask and type ids, padded, in one tensor: one copy to the device."""
        planes = 2 if rows[0].type_ids is None else 3
        block = np.zeros((planes, len(rows), longest), dtype=np.int64)
        block[0] = self._pad_id
        if planes == 3:  # noqa: PLR2004 - see above
            block[2] = self._pad_type_id
        for index, row in enumerate(rows):
            where = slice(longest - row.length, None) if self._pad_left else slice(row.length)
            block[0, index, where] = row.ids
            block[1, index, where] = 1
            if row.type_ids is not None:
                block[2, index, where] = row.type_ids
        tensor = torch.from_numpy(block)
        if self._device.type == "cuda":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)

    def release_memory(self) -> None:
        """See `worker.interfaces.Engine`."""
        gc.collect()  # a cycle may still hold a frame with tensors in it
        if self._device.type == "cuda":
            with device_errors():
                torch.cuda.synchronize(self._device)  # a lost one says so, whatever said memory
                torch.cuda.empty_cache()
        elif self._device.type == "mps":
            torch.mps.empty_cache()

    def warm_up(self, token_budget: int) -> None:
        """See `worker.interfaces.Engine`; checks the shape and sanity of the answers as well."""
        single = self._plain_row()
        self.compile()
        longest = min(self.info.max_tokens, max(token_budget, single.length))
        count = min(self.max_rows, max(1, token_budget // longest))
        self._try([single.stretched(longest)] * count, smallest=count * longest == single.length)
        self._try([single], smallest=True)

    def compile(self) -> None:
        """Compile for every shape there can be, unless it was done or isn't asked for.

        Raises:
            ModelLoadError: it can't be compiled here.
        """
        if not self._compiled or self._has_compiled:
            return
        row = self._plain_row()
        # What is compiled serves any number of rows and tokens, apart from one, for which torch
        # always compiles anew: so for two rows and for one, while no row has one token (`launch`).
        # Two are fewer than the tokens, lest both numbers be taken for the same.
        for count in (2, 1):
            self._try([row] * count, smallest=True)
        self._has_compiled = True

    def _plain_row(self) -> Row:
        [encoded] = self.encode([TextItem("warm up")], ["truncate"])
        if not isinstance(encoded, Encoded) or not encoded.rows[0].ids:
            raise self._unfit("its tokenizer makes nothing of a plain sentence", "Choose another.")
        return encoded.rows[0]

    def _try(self, rows: list[Row], *, smallest: bool) -> None:
        try:
            logits = self.launch(rows).logits()
        except Exception as exc:
            if is_out_of_memory(exc) and not smallest:
                raise
            shape = f"{len(rows)} rows of {rows[0].length} tokens"
            cause = f"warming up with {shape} failed with {type(exc).__name__}: {exc}"
            first_line = cause.splitlines()[0]
            remedy = "Try GOLEM_DTYPE=float32, or a larger device if it is memory."
            if self._compiled:
                remedy = (
                    "Install a C++ compiler (g++) if there is none, or set GOLEM_COMPILE=false."
                )
            raise self._unfit(first_line, remedy) from exc
        labels = len(self.info.labels)
        if len(logits) != len(rows) or any(len(row) != labels for row in logits):
            cause = f"its answer isn't one number for each of its {labels} labels"
            raise self._unfit(cause, "Correct num_labels and id2label in its config.json.")
        if not all(math.isfinite(value) for row in logits for value in row):
            cause = f"it answers with NaN or infinity in {self.info.dtype}"
            raise self._unfit(cause, "Set GOLEM_DTYPE=float32 or bfloat16.")

    def _unfit(self, cause: str, remedy: str) -> ModelLoadError:
        return ModelLoadError.of(self.info.name, cause, remedy)


def load(settings: WorkerSettings, index: int) -> TorchEngine:
    """Load the model for model process number `index`, and find its token budget if none is set.

    Raises:
        ConfigurationError: the device that was asked for isn't there.
        ModelLoadError: the model can't be loaded.
    """
    engine = build(settings, index)
    if not isinstance(settings.token_budget, int):
        on_cpu = engine.info.device == "cpu"
        threads = {"threads": torch.get_num_threads()} if on_cpu else {}
        # Before the clock of the search runs, and before others wait for their turn.
        engine.compile()
        engine.token_budget = find_budget(
            engine, settings.state_dir, **threads, **settings.conditions
        )
    return engine


def build(settings: WorkerSettings, index: int, *, calibrated: bool = True) -> TorchEngine:
    """Load the model for model process number `index`, which picks the device.

    Args:
        settings: the worker's.
        index: from 0.
        calibrated: whether to look for a calibration at all; who makes a new one minds no old one.

    Raises:
        ConfigurationError: the device that was asked for isn't there.
        ModelLoadError: the model can't be loaded.
    """
    source = find_source(settings)
    device = choose_device(settings.device, index)
    if device.type == "cuda":
        # Else pinned memory, and whatever else asks for the current device, would be GPU 0's.
        torch.cuda.set_device(device)
    set_threads(settings, device, index)
    loaded = load_model(source, choose_dtype(settings.dtype, device), device)
    if device.type == "cpu" and (settings.processes or 1) > 1:
        share_weights(
            loaded.model,
            settings.state_dir,
            name=source.name,
            revision=loaded.revision,
            folder=source.folder,
        )
    if device.type == "cpu" and loaded.dtype == "bfloat16":
        # Other dtypes' products need no kernels of their own.
        bucket_linear_layers(loaded.model)
    return TorchEngine(source, loaded, settings, calibrated=calibrated)


def _temperature(
    source: Source, named: str | None, labels: Sequence[str], activation: Activation
) -> float | None:
    """The calibration that was named, or lies in the model's folder."""
    beside = Path(source.location, calibration.FILE_NAME)
    file = Path(named).expanduser() if named is not None else beside
    if named is None and not (source.is_folder and beside.is_file()):
        return None
    if reason := calibration.unfit_head(activation, labels):
        raise ConfigurationError(
            f"The calibration {file} can't be used: {source.name} {reason}; remove it, or unset "
            "GOLEM_CALIBRATION."
        )
    return calibration.read(file, labels).temperature

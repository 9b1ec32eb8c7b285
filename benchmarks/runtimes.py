"""Other runtimes for the same model, where they are installed: ONNX Runtime and OpenVINO.

Each runs the length-sorted loop (`benchmarks.loops.SortedLoop`), so that what differs is the
forward pass alone. The model is exported once, with both axes dynamic; ONNX Runtime's int8 is its
own dynamic quantization of the weights, OpenVINO computes in the precision it prefers on this CPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.loops import Case, SortedLoop
from golem_tasks.errors import ConfigurationError

__all__ = ["ONNX", "OPENVINO", "RUNTIMES", "installed", "runtime_loops"]

RUNTIMES = ("onnx_float32", "onnx_int8", "openvino")
"""The contenders this module has."""

ONNX = ("onnxruntime", "onnx", "onnxscript")
OPENVINO = ("openvino", "onnx", "onnxscript")
"""What each needs: one to run it, two to export to it."""

_INPUTS = ("input_ids", "attention_mask")

Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def installed(packages: tuple[str, ...]) -> bool:
    """Whether all of these can be imported."""
    return all(find_spec(name) is not None for name in packages)


def runtime_loops(case: Case, folder: Path) -> dict[str, SortedLoop]:
    """The contenders that are installed, by name; the exported model goes into `folder`.

    Args:
        case: the model, in float32 on the CPU.
        folder: a scratch folder of one's own.

    Raises:
        ConfigurationError: the model isn't in float32, which the export would keep.
    """
    if case.engine.info.dtype != "float32":
        raise ConfigurationError("Only a float32 model is exported: load it with dtype float32.")
    wanted = {"onnx": ONNX, "openvino": OPENVINO}
    present = [name for name, packages in wanted.items() if installed(packages)]
    if not present:
        return {}
    path = _export(case, folder / "model.onnx")
    forwards: dict[str, Forward] = {}
    if "onnx" in present:
        forwards["onnx_float32"] = _onnx(path)
        forwards["onnx_int8"] = _onnx(_quantized(path))
    if "openvino" in present:
        forwards["openvino"] = _openvino(path)
    return {name: SortedLoop(case, forward=forward) for name, forward in forwards.items()}


class _Logits(torch.nn.Module):
    """The model as a function of two tensors, (B, T) each, to logits, (B, C)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._model(
            input_ids=input_ids, attention_mask=attention_mask
        ).logits
        return logits


def _export(case: Case, path: Path) -> Path:
    ids = torch.ones(2, 8, dtype=torch.int64)
    batch = torch.export.Dim("batch", min=1, max=1024)
    length = torch.export.Dim("length", min=2, max=case.engine.info.max_tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own dependencies
        torch.onnx.export(
            _Logits(case.model).eval(), (ids, torch.ones_like(ids)), path,
            input_names=_INPUTS, output_names=("logits",), dynamo=True, verbose=False,
            dynamic_shapes={name: {0: batch, 1: length} for name in _INPUTS},
        )  # fmt: skip
    return path


def _quantized(path: Path) -> Path:
    from onnxruntime.quantization import (  # noqa: PLC0415 - where it is installed
        QuantType,
        quantize_dynamic,
    )

    target = path.with_name("model.int8.onnx")
    quantize_dynamic(path, target, weight_type=QuantType.QInt8)
    return target


def _onnx(path: Path) -> Forward:
    import onnxruntime  # noqa: PLC0415 - where it is installed

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # As the loops it is compared with: see `OMP_WAIT_POLICY` in `benchmarks.engine`.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def forward(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        feeds = dict(zip(_INPUTS, (ids.numpy(), mask.numpy()), strict=True))
        (logits,) = session.run(None, feeds)
        return torch.from_numpy(logits)

    return forward


def _openvino(path: Path) -> Forward:
    import openvino  # noqa: PLC0415 - where it is installed

    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    model = openvino.Core().compile_model(path, "CPU", threads)

    def forward(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        feeds = dict(zip(_INPUTS, (ids.numpy(), mask.numpy()), strict=True))
        return torch.from_numpy(model(feeds)["logits"])

    return forward

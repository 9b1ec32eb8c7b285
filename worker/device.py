"""Where the model runs and in which precision: device, dtype and CPU threads of one process."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

import torch

from golem_tasks.errors import ConfigurationError
from worker.machine import available_cores, cores_of, hardware
from worker.settings import WorkerSettings

__all__ = [
    "assigned_gpu",
    "choose_device",
    "choose_dtype",
    "hardware_of",
    "has_native_bfloat16",
    "set_threads",
]

_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86, x86, arm


def choose_device(setting: str, index: int) -> torch.device:
    """The device of model process number `index`; several GPUs are handed out in turn.

    Raises:
        ConfigurationError: the setting asks for a device that isn't there.
    """
    kind, _, number = setting.partition(":")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and not gpus:
        raise ConfigurationError(
            f"GOLEM_DEVICE={setting} can't be used: torch {torch.__version__} sees no CUDA device; "
            "install a CUDA build of torch and the driver, or set GOLEM_DEVICE=cpu."
        )
    if number and int(number) >= gpus:
        raise ConfigurationError(
            f"GOLEM_DEVICE={setting} can't be used: torch sees {gpus} CUDA devices, numbered from "
            "0; choose one of them."
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigurationError(
            "GOLEM_DEVICE=mps can't be used: torch sees no Apple GPU here; set GOLEM_DEVICE=cpu."
        )
    if kind == "cuda" or (kind == "auto" and gpus):
        return torch.device("cuda", int(number) if number else assigned_gpu(index, gpus))
    if kind == "mps" or (kind == "auto" and torch.backends.mps.is_available()):
        return torch.device("mps")
    return torch.device("cpu")


def assigned_gpu(index: int, gpus: int) -> int:
    """The GPU of model process number `index`: in turn, so that each has as many as the next.

    More processes than GPUs share them, and on one GPU all have it.
    """
    return index % gpus


def choose_dtype(setting: str, device: torch.device) -> torch.dtype:
    """The precision: half on CUDA, bfloat16 on a CPU that computes in it, else float32.

    ``torch.qint8`` stands for a model that is quantized after it was loaded.

    Raises:
        ConfigurationError: int8 is asked for anywhere but on a CPU.
    """
    if setting == "int8":
        if device.type != "cpu":
            raise ConfigurationError(
                f"GOLEM_DTYPE=int8 can't be used on {device}: it is for CPUs; set GOLEM_DTYPE=auto."
            )
        return torch.qint8
    if setting != "auto":
        dtype = getattr(torch, setting)
        assert isinstance(dtype, torch.dtype)  # noqa: S101 - for mypy; the setting is a Literal
        return dtype
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if device.type == "cpu" and has_native_bfloat16():
        return torch.bfloat16
    return torch.float32


def has_native_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU multiplies in bfloat16; emulated, it would be slower than float32.

    Linux tells; elsewhere the answer is no, which costs speed and never correctness.
    """
    if platform.system() != "Linux" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return not _BFLOAT16_FLAGS.isdisjoint(flags.split())


def hardware_of(device: torch.device) -> str:
    """The very device, whatever its number is for this process."""
    if device.type != "cuda":
        return hardware()
    found = torch.cuda.get_device_properties(device)
    return f"{found.name} {getattr(found, 'uuid', '')}".rstrip()


def set_threads(settings: WorkerSettings, device: torch.device, index: int) -> int:
    """Give model process number `index` its share of the cores and return it."""
    gpus = torch.cuda.device_count() if device.type == "cuda" else 1
    share = cores_of(index, settings.processes or gpus, available_cores())
    threads = settings.threads or share
    torch.set_num_threads(threads)
    with contextlib.suppress(RuntimeError):  # too late once torch has worked in this process
        torch.set_num_interop_threads(1)
    # Read by the tokenizers library at its first batch; it would take every core in each process.
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
    # Without it the library warns, and stops using threads, after a fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    return threads

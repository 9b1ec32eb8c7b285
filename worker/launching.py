"""What torch leaves on its way after a launch: the logits, how long they take, what goes wrong."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol

import torch

from worker.failures import is_out_of_memory
from worker.interfaces import DeviceLost

__all__ = ["OnTheWay", "Stopwatch", "device_errors", "stopwatch"]

_LOST_SIGNS = ("CUDA error", "device-side assert")


class Stopwatch(Protocol):
    """Times one micro-batch, from when it was made."""

    def stop(self) -> None:
        """All that is to be timed was launched."""

    def wait_s(self) -> float:
        """Wait until it is done; seconds it took."""


def stopwatch(device: torch.device) -> Stopwatch:
    """Time what is launched on this device from now on."""
    return _CudaStopwatch(device) if device.type == "cuda" else _HostStopwatch()


class OnTheWay:
    """Logits on their way from the device; implements `worker.interfaces.Launched`.

    Args:
        logits: as the model gave them, (B, C).
        watch: runs since before the forward pass.
    """

    def __init__(self, logits: torch.Tensor, watch: Stopwatch) -> None:
        # On CUDA this queues the one copy, into pinned memory, behind the kernels; nobody waits.
        self._host = logits.float().to("cpu", non_blocking=logits.is_cuda)  # (B, C)
        watch.stop()
        self._watch = watch
        self.took_s: float | None = None

    def logits(self) -> list[list[float]]:
        """See `worker.interfaces.Launched`."""
        self.took_s = self._watch.wait_s()
        logits: list[list[float]] = self._host.tolist()
        return logits


@contextlib.contextmanager
def device_errors() -> Iterator[None]:
    """Turn the errors after which CUDA serves this process no more into `DeviceLost`."""
    try:
        yield
    except RuntimeError as exc:
        text = str(exc)
        if any(sign in text for sign in _LOST_SIGNS) and not is_out_of_memory(exc):
            raise DeviceLost(text.splitlines()[0]) from None
        raise


class _HostStopwatch:
    """For a device whose launch, or the copy behind it, returns when all is computed."""

    def __init__(self) -> None:
        self._begun_s = time.perf_counter()
        self._took_s = 0.0

    def stop(self) -> None:
        self._took_s = time.perf_counter() - self._begun_s

    def wait_s(self) -> float:
        return self._took_s


class _CudaStopwatch:
    """A pair of events that CUDA notes the time of as it comes to them, whatever the host does."""

    def __init__(self, device: torch.device) -> None:
        # Of the device's stream: by itself an event takes that of the current device.
        self._stream = torch.cuda.current_stream(device)
        self._begun, self._ended = _timed_event(), _timed_event()
        self._begun.record(self._stream)

    def stop(self) -> None:
        self._ended.record(self._stream)

    def wait_s(self) -> float:
        with device_errors():
            self._ended.synchronize()
            return float(self._begun.elapsed_time(self._ended)) / 1e3


def _timed_event() -> torch.cuda.Event:
    """An event whose waiter sleeps; else it burns a core, which another could tokenize on.

    `torch.Event` takes the argument as well, and ignores it.
    """
    event: torch.cuda.Event = torch.cuda.Event(  # type: ignore[no-untyped-call]
        enable_timing=True, blocking=True
    )
    return event

"""How many GPUs the model processes will find; without torch, which the parent never loads."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from itertools import takewhile
from pathlib import Path

__all__ = ["KINDS", "count_gpus", "kinds_of_torch"]

KINDS = ("cuda", "hip")
"""What torch may be built for: NVIDIA's GPUs and AMD's, which both are ``cuda`` devices to it."""

_VISIBLE = {
    "cuda": ("CUDA_VISIBLE_DEVICES",),
    "hip": ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
}
_NVIDIA_SMI_S = 20
_UNKNOWN = 1_000
"""More GPUs than a machine has."""


def count_gpus(dev: Path = Path("/dev"), sys: Path = Path("/sys")) -> int:
    """GPUs this process may use with the torch that is installed.

    As many as there are, or as ``*_VISIBLE_DEVICES`` leaves of them. A container may have GPUs
    and no ``nvidia-smi``, which its driver's "utility" part brings; then its device nodes count.
    Where none of them tells of any, as in WSL, what the variable names is believed.
    """
    for kind in kinds_of_torch():
        visible = next((os.environ[name] for name in _VISIBLE[kind] if name in os.environ), None)
        found = _nvidia(dev) if kind == "cuda" else _amd(dev, sys)
        if visible is not None:
            return _named(visible, found or _UNKNOWN)
        if found:
            return found
    return 0


def kinds_of_torch() -> tuple[str, ...]:
    """Those of `KINDS` the installed torch is built for; all where it doesn't tell."""
    spec = importlib.util.find_spec("torch")  # looks, and imports nothing
    if spec is None or spec.origin is None:
        return KINDS
    try:
        told = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return KINDS
    built = dict(re.findall(r"^(cuda|hip)\b[^=\n]*=\s*(\S+)", told, re.MULTILINE))
    return tuple(kind for kind in KINDS if built.get(kind) != "None")


def _named(visible: str, there: int) -> int:
    """GPUs in a list of numbers or UUIDs, as the driver reads it, and torch where it counts itself.

    What isn't one of those that are there ends it: ``-1``, or SLURM's ``NoDevFiles``. A list that
    names one twice has none. Of MIG's parts a process sees one.
    """
    prefix = next((each for each in ("MIG-", "GPU-") if visible.startswith(each)), None)

    def usable(name: str) -> bool:
        if prefix is not None:
            return name.startswith(prefix)
        return re.fullmatch(r"\d+", name, re.ASCII) is not None and int(name) < there

    names = list(takewhile(usable, (part.strip() for part in visible.split(","))))
    if len(set(names)) < len(names):
        return 0
    return min(len(names), 1 if prefix == "MIG-" else there)


def _nvidia(dev: Path) -> int:
    """As many as the driver's tool lists; where it is missing or fails, as there are nodes."""
    nodes = [node for node in dev.glob("nvidia*") if re.fullmatch(r"nvidia\d+", node.name)]
    if (tool := shutil.which("nvidia-smi")) is None:
        return len(nodes)
    try:
        told = subprocess.run(  # noqa: S603 - a fixed command
            [tool, "-L"], capture_output=True, text=True, timeout=_NVIDIA_SMI_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return len(nodes)
    return sum(line.startswith("GPU ") for line in told.splitlines())


def _amd(dev: Path, sys: Path) -> int:
    """AMD's compute nodes that aren't CPUs, if this process may use any."""
    if not (dev / "kfd").exists():
        return 0
    nodes = sys.glob("class/kfd/kfd/topology/nodes/*/gpu_id")
    # At least the one that kfd is for: what a container's /sys shows is up to its runtime.
    return max(1, sum(_is_gpu(node) for node in nodes))


def _is_gpu(node: Path) -> bool:
    try:
        return node.read_text().strip() not in ("", "0")
    except OSError:  # a GPU that was given to another container
        return False

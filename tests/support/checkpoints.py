"""Files of weights that are all header: as large as they say, and quickly made."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["header"]


def header(file: Path, numbers: int, *, dtype: str = "F32") -> None:
    """Write the header of a safetensors file with two tensors of so many numbers, an even one."""
    shapes = {"bias": [numbers // 2], "weight": [2, numbers // 4]}
    content = {
        "__metadata__": {"format": "pt"},
        **{name: {"dtype": dtype, "shape": shape} for name, shape in shapes.items()},
    }
    told = json.dumps(content).encode()
    file.write_bytes(len(told).to_bytes(8, "little") + told)

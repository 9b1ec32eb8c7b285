"""The ratios `benchmarks.engine` is run for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.report import Figure, ratio

__all__ = ["ratios"]

_RATIOS = (
    ("end_to_end", "limit"),
    ("end_to_end", "limit_processes"),
    ("end_to_end", "pipeline_best"),
    ("default", "limit_processes"),
    ("default", "pipeline_best"),
    ("default", "padded"),
    ("one_process", "limit"),
    ("one_process", "pipeline_best"),
    ("int8", "one_process"),
    ("compiled", "one_process"),
    ("float32", "limit_float32"),
    ("float32", "pipeline_best"),
    ("float32", "pipeline_64"),
    ("onnx_float32", "limit_float32"),
    ("onnx_int8", "limit"),
    ("openvino", "limit"),
)


def ratios(
    results: Mapping[str, Mapping[str, Figure]], models: Sequence[str], workloads: Sequence[str]
) -> dict[str, float]:
    """Of texts/s, of tokens/s where lengths differ, and of a lone text's time, where both ran."""
    found: dict[str, float | None] = {}
    for model in models:
        for name in workloads:
            for over, under in _RATIOS:
                pair = [f"{each} {model} {name}" for each in (over, under)]
                if not results.keys() >= set(pair):
                    continue  # a runtime that isn't installed, or one that wasn't asked for
                a, b = (results[each]["texts_per_s"] for each in pair)
                found[f"{over}/{under} {model} {name}"] = ratio(a, b)
        for contender in ("end_to_end", "default", "one_process"):
            pair = [f"{contender} {model} {name}" for name in ("outlier", "even")]
            if results.keys() >= set(pair):
                a, b = (results[each]["tokens_per_s"] for each in pair)
                found[f"outlier/even tokens_per_s {contender} {model}"] = ratio(a, b)
        a, b = (results[f"{each} {model} one"]["p50_ms"] for each in ("one_process", "pipeline_1"))
        found[f"one_process/pipeline_1 p50 {model} one"] = ratio(a, b)
    return {name: value for name, value in found.items() if value is not None}

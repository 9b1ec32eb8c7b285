"""How near the worker comes to what the hardware can do with the same model.

    python -m benchmarks.engine [--data DIR] [--rounds 3] [--plot engine.png]

Texts of several length profiles go through golem-mini and through a DistilBERT-base of random
weights, made on the spot, by:

- ``end_to_end``: a backlog in Redis, one worker with default settings but for its token budget, to
  the last answer stored;
- ``default``: the worker's classifier without a queue, in as many processes as that worker has;
- ``one_process``, ``int8``, ``compiled`` and ``float32``: the same in this process with all cores,
  in the default dtype, in int8, in the default dtype through ``torch.compile``, and in float32;
- ``pipeline_best`` and ``pipeline_64``: transformers' pipeline in float32, at the batch size of 1,
  8, 32, 64 and 256 that was fastest on the workload, by the better of two runs, and at 64;
- ``padded``: a hand-written loop over batches of 64 in order of arrival, default dtype;
- ``limit`` and ``limit_float32``: a hand-written loop that sorts all texts by length first;
- ``limit_processes``: that loop in as many processes as the worker has, each with its part of the
  texts, dealt out beforehand;
- ``onnx_float32``, ``onnx_int8`` and ``openvino``: that loop on other runtimes, where installed.

The loops in the default dtype run the model as the worker prepares it, and all of them have its
environment (`worker.machine`). All but the pipeline and ``padded`` cut their micro-batches at 1,024
padded tokens. Before the first round each runs the first quarter of a workload's texts, unmeasured.
A round takes all workloads and all contenders in turn.
``--contenders`` names some, for a run of many texts that doesn't wait for the slow ones.

``agreement`` is the share of texts that get the label of the float32 pipeline, or where its best
batch size isn't asked for of Golem in float32. What each dtype does to golem-mini's answers to
SST-2's dev sentences, ``accuracy`` included, is told of ``sst2_dev``.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from worker.machine import CPU_ENVIRONMENT

# Read when torch is loaded, so before what loads it. The loops get what a worker's processes have:
# with torch's own caches, texts that come again each round find their shapes prepared, as no real
# traffic does, and the bfloat16 loops were up to twice as fast in the third round.
os.environ.update({**CPU_ENVIRONMENT, **os.environ})

from benchmarks.engine_field import BEST, CONTENDERS, Field
from benchmarks.engine_ratios import ratios
from benchmarks.lengths import padded_in_order
from benchmarks.loops import (
    Case,
    GolemLoop,
    Loop,
    PipelineLoop,
    Ran,
    save_base,
    timed,
)
from benchmarks.report import (
    Figure,
    Report,
    Round,
    percentile,
    progress,
    publish,
    summarise,
)
from benchmarks.workloads import WORKLOADS, Texts, texts_from, texts_made_up, workload
from worker.source import EMBEDDED_FOLDER

__all__ = ["COUNTS", "measure"]

COUNTS = {"short": 512, "mixed": 128, "outlier": 256, "even": 256, "long": 64}
"""Texts of each workload for the base model: some tens of thousands of tokens each."""
MODELS = {"base": 1.0, "mini": 4.0}
"""How many times as many texts a model gets."""
_SINGLES = 40

_DTYPES = ("auto", "float32", "int8")

Rounds = dict[str, list[Round]]


def measure(
    *,
    texts: Texts,
    models: Sequence[str],
    workloads: Sequence[str],
    rounds: int,
    scale: float,
    contenders: Sequence[str] = CONTENDERS,
) -> Report:
    """Run every contender on every workload in turn, `rounds` times.

    Args:
        texts: where the workloads are drawn from.
        models: of `MODELS`.
        workloads: of `benchmarks.workloads.WORKLOADS`.
        rounds: how often.
        scale: share of `COUNTS`.
        contenders: who runs, of `CONTENDERS`.
    """
    found: Rounds = {}
    notes: dict[str, str] = {}
    with TemporaryDirectory(prefix="golem-engine-") as scratch:
        for model in models:
            folder = EMBEDDED_FOLDER if model == "mini" else save_base(Path(scratch, model))
            counts = {
                name: max(1, round(COUNTS[name] * MODELS[model] * scale)) for name in workloads
            }
            drawn = {name: workload(name, texts, count) for name, count in counts.items()}
            first = {_warm(name): some[: -(-len(some) // 4)] for name, some in drawn.items()}
            room = Path(scratch, f"{model}-runs")
            room.mkdir()
            with Field(folder, room, contenders, {**drawn, **first}) as field:
                _measure_model(model, field, drawn, rounds, found, notes)
        if texts.gold and "mini" in models:
            _measure_answers(texts, found)
    results: dict[str, dict[str, Figure]] = {name: summarise(each) for name, each in found.items()}
    asked = {
        "rounds": rounds,
        "models": list(models),
        "scale": scale,
        "counts": dict(COUNTS),
        "contenders": list(contenders),
    }
    return Report("engine", asked, dict(results), ratios(results, models, workloads), notes)


def _measure_model(
    model: str,
    field: Field,
    drawn: Mapping[str, list[str]],
    rounds: int,
    found: Rounds,
    notes: dict[str, str],
) -> None:
    notes[f"{model} default dtype"] = field.one.engine.info.dtype
    notes[f"{model} default processes"] = str(field.processes)
    notes.update({f"{model} {name}": why for name, why in field.missing.items()})
    best: dict[str, PipelineLoop] = {}
    references: dict[str, list[str]] = {}
    lengths = {name: field.float32.lengths(texts) for name, texts in drawn.items()}
    for name, texts in drawn.items():
        if BEST in field.wanted:
            best[name], references[name] = _fastest(field.pipelines, texts, f"{model} {name}")
            size = str(best[name].batch_size)
            notes[f"{model} {name} best batch size of the pipeline"] = size
        else:
            references[name] = field.loops["float32"].run(texts).labels
        for run in field.runs(_warm(name), best.get(name)).values():
            run()  # unmeasured: the first of a round isn't colder than the last
    for number in range(rounds):
        for name in drawn:
            for contender, run in field.runs(name, best.get(name)).items():
                key = f"{contender} {model} {name}"
                figures = _figures(*run(), references[name], lengths[name])
                found.setdefault(key, []).append(figures)
                progress(f"round {number + 1}/{rounds} {key}: {figures['texts_per_s']:.0f} texts/s")
    singles = next(iter(drawn.values()))[:_SINGLES]
    alone: dict[str, Loop] = {k: field.loops[k] for k in ("one_process", "float32")}
    alone["pipeline_1"] = field.pipelines[1]
    for contender, loop in alone.items():
        found[f"{contender} {model} one"] = [_one_by_one(loop, singles)]


def _warm(name: str) -> str:
    return f"{name} warm-up"


def _fastest(
    pipelines: Mapping[int, PipelineLoop], texts: list[str], key: str
) -> tuple[PipelineLoop, list[str]]:
    """The pipeline at the batch size at which it is fastest, and its answers."""
    took_s = dict.fromkeys(pipelines, float("inf"))
    labels: list[str] = []
    for _ in range(2):  # the first that runs would else pay for all that is done once
        for size, loop in pipelines.items():
            ran, this_s = timed(loop, texts)
            took_s[size] = min(took_s[size], this_s)
            labels = ran.labels
            progress(f"pipeline {size} {key}: {len(texts) / this_s:.0f} texts/s")
    return pipelines[min(took_s, key=took_s.__getitem__)], labels


def _measure_answers(texts: Texts, found: Rounds) -> None:
    """What a dtype does to the answers, right or wrong, of a model that has learned something."""
    cases = {dtype: Case.of(EMBEDDED_FOLDER, dtype) for dtype in _DTYPES}
    answers = {dtype: GolemLoop(case).run(texts.short).labels for dtype, case in cases.items()}
    for dtype, labels in answers.items():
        name = "default" if dtype == "auto" else dtype
        found[f"{name} mini sst2_dev"] = [
            {
                "accuracy": _equal(labels, texts.gold),
                "agreement": _equal(labels, answers["float32"]),
            }
        ]


def _equal(labels: Sequence[str], others: Sequence[str]) -> float:
    return sum(a == b for a, b in zip(labels, others, strict=True)) / len(labels)


def _figures(
    ran: Ran, wall_s: float, reference: Sequence[str], lengths: Sequence[int]
) -> dict[str, float]:
    figures = {
        "texts_per_s": len(reference) / wall_s,
        "tokens_per_s": sum(lengths) / wall_s,
        "agreement": _equal(ran.labels, reference),
    }
    if ran.batch_size:
        figures["padding_share"] = 1 - sum(lengths) / padded_in_order(lengths, ran.batch_size)
    elif ran.padded_tokens:
        figures["padding_share"] = 1 - ran.tokens / ran.padded_tokens
    return figures


def _one_by_one(loop: Loop, texts: Sequence[str]) -> Round:
    took_ms = []
    for text in texts:
        begun_s = time.perf_counter()
        loop.run([text])
        took_ms.append((time.perf_counter() - begun_s) * 1e3)
    return {"p50_ms": percentile(took_ms, 0.5), "p95_ms": percentile(took_ms, 0.95)}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with sst2_glue and imdb_sample")
    parser.add_argument("--models", type=_some_of(MODELS), default=tuple(MODELS))
    parser.add_argument("--workloads", type=_some_of(WORKLOADS), default=WORKLOADS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the texts")
    parser.add_argument("--contenders", type=_some_of(CONTENDERS), default=CONTENDERS)
    parser.add_argument("--plot", metavar="FILE.png")
    return parser.parse_args()


def _some_of(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    def some(given: str) -> tuple[str, ...]:
        names = tuple(given.split(","))
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(
                f"there is no {', '.join(unknown)}; name some of {','.join(known)}"
            )
        return names

    return some


if __name__ == "__main__":
    given = _arguments()
    publish(
        measure(
            texts=texts_from(given.data) if given.data else texts_made_up(),
            models=given.models,
            workloads=given.workloads,
            rounds=given.rounds,
            scale=given.scale,
            contenders=given.contenders,
        ),
        given,
    )

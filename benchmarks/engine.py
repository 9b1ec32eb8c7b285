"""How near the worker comes to what the hardware can do with the same model.

    python -m benchmarks.engine [--data DIR] [--rounds 3] [--plot engine.png]

Texts of several length profiles go through golem-mini and through a DistilBERT-base of random
weights, made on the spot, by:

- ``end_to_end``: a backlog in Redis, one worker with default settings but for its token budget, to
  the last answer stored;
- ``default`` and ``float32``: the worker's classifier in this process, without a queue;
- ``pipeline_best`` and ``pipeline_64``: transformers' pipeline in float32, at the batch size of 1,
  8, 32, 64 and 256 that was fastest on the workload, and at 64;
- ``padded``: a hand-written loop over batches of 64 in order of arrival, default dtype;
- ``limit`` and ``limit_float32``: a hand-written loop that sorts all texts by length first;
- ``onnx_float32``, ``onnx_int8`` and ``openvino``: that loop on other runtimes, where installed.

All but the pipeline and ``padded`` cut their micro-batches at the same 1,024 padded tokens. Before
the first round each runs the first quarter of a workload's texts, unmeasured.
``--contenders`` names some, for a run of many texts that doesn't wait for the slow ones.

``agreement`` is the share of texts that get the label of the float32 pipeline, or where its best
batch size isn't asked for of Golem in float32. What each dtype does to golem-mini's answers to
SST-2's dev sentences, ``accuracy`` included, is told of ``sst2_dev``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from worker.child import CPU_ENVIRONMENT

# Read when torch is loaded, so before what loads it. The loops get what a worker's processes have:
# with torch's own caches, texts that come again each round find their shapes prepared, as no real
# traffic does, and the bfloat16 loops were up to twice as fast in the third round.
os.environ.update({**CPU_ENVIRONMENT, **os.environ})

from benchmarks.backlog import Bench
from benchmarks.contenders import GOLEM, RunningWorker
from benchmarks.engine_ratios import ratios
from benchmarks.loops import (
    BUDGET_TOKENS,
    Case,
    GolemLoop,
    Loop,
    PaddedLoop,
    PipelineLoop,
    Ran,
    SortedLoop,
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
from benchmarks.runtimes import runtime_loops
from benchmarks.workloads import WORKLOADS, Texts, texts_from, texts_made_up, workload
from golem_tasks.errors import GolemError
from worker.loading import EMBEDDED_FOLDER

__all__ = ["COUNTS", "measure"]

COUNTS = {"short": 512, "mixed": 128, "outlier": 256, "even": 256, "long": 64}
"""Texts of each workload for the base model: some tens of thousands of tokens each."""
MODELS = {"base": 1.0, "mini": 4.0}
"""How many times as many texts a model gets."""
BATCH_SIZES = (1, 8, 32, 64, 256)
_REFERENCE = 64
_BEST = "pipeline_best"
_SINGLES = 40

_DTYPES = ("auto", "float32", "int8")

Rounds = dict[str, list[Round]]


class Queue:
    """The way through Redis: a worker that is up, and backlogs for it."""

    def __init__(
        self, bench: Bench, worker: RunningWorker, ids: Mapping[str, Sequence[str]]
    ) -> None:
        self._bench = bench
        self._worker = worker
        self._ids = ids

    def run(self, name: str, texts: Sequence[str]) -> tuple[Ran, float]:
        """Let the worker answer a backlog; what it made of it, and the seconds it took.

        Raises:
            GolemError: an answer is missing.
        """
        self._bench.answers.flushdb()
        drained = self._bench.drain(name, len(texts), [self._worker])
        raw: Any = self._bench.answers.mget([f"celery-task-meta-{i}" for i in self._ids[name]])
        metas = [json.loads(value) for value in raw if value is not None]
        if any(meta["status"] != "SUCCESS" for meta in metas) or len(metas) != len(texts):
            raise GolemError(f"Not every text of {name} was answered; see the worker's log.")
        return Ran([meta["result"]["label"] for meta in metas]), drained.wall_s


def measure(
    *,
    texts: Texts,
    models: Sequence[str],
    workloads: Sequence[str],
    rounds: int,
    scale: float,
    contenders: Sequence[str] = (),
) -> Report:
    """Run every contender on every workload in turn, `rounds` times.

    Args:
        texts: where the workloads are drawn from.
        models: of `MODELS`.
        workloads: of `benchmarks.workloads.WORKLOADS`.
        rounds: how often.
        scale: share of `COUNTS`.
        contenders: who runs; all if none is named.
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
            _measure_model(model, folder, drawn, rounds, contenders, found, notes)
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
    folder: Path,
    drawn: Mapping[str, list[str]],
    rounds: int,
    wanted: Sequence[str],
    found: Rounds,
    notes: dict[str, str],
) -> None:
    float32, default = Case.of(folder, "float32"), Case.of(folder, "auto")
    notes[f"{model} default dtype"] = default.engine.info.dtype
    pipelines = {size: PipelineLoop(float32, size) for size in BATCH_SIZES}
    loops: dict[str, Loop] = {
        "default": GolemLoop(default),
        "limit": SortedLoop(default),
        "float32": GolemLoop(float32),
        "limit_float32": SortedLoop(float32),
        "padded": PaddedLoop(default),
        f"pipeline_{_REFERENCE}": pipelines[_REFERENCE],
    }
    with ExitStack() as running:
        scratch = running.enter_context(TemporaryDirectory(prefix="golem-runtimes-"))
        if not wanted or set(wanted) - {*loops, "end_to_end", _BEST}:
            loops |= runtime_loops(float32, Path(scratch))
        bench = running.enter_context(Bench())
        env = {"GOLEM_MODEL": str(folder), "GOLEM_TOKEN_BUDGET": str(BUDGET_TOKENS)}
        worker = RunningWorker(GOLEM, bench.server, bench.folder, env=env)
        first = {_warm(name): texts[: -(-len(texts) // 4)] for name, texts in drawn.items()}
        backlogs = {**drawn, **first}
        ids = {name: bench.prepare(name, texts) for name, texts in backlogs.items()}
        queue = Queue(bench, running.enter_context(worker), ids)
        bench.warm_up(50)
        for name, texts in drawn.items():
            key = f"{model} {name}"
            contenders = dict(loops)
            if not wanted or _BEST in wanted:
                best, reference = _fastest(pipelines, texts, key)
                notes[f"{key} best batch size of the pipeline"] = str(best)
                contenders[_BEST] = pipelines[best]
            else:
                reference = loops["float32"].run(texts).labels
            for run in _runs(contenders, wanted, queue, _warm(name), first[_warm(name)]).values():
                run()  # unmeasured: the first of a round isn't colder than the last
            runs = _runs(contenders, wanted, queue, name, texts)
            for number in range(rounds):
                for contender, run in runs.items():
                    figures = _figures(*run(), reference)
                    found.setdefault(f"{contender} {key}", []).append(figures)
                    speed = f"{figures['texts_per_s']:.0f} texts/s"
                    progress(f"round {number + 1}/{rounds} {contender} {key}: {speed}")
        singles = next(iter(drawn.values()))[:_SINGLES]
        single: dict[str, Loop] = {k: loops[k] for k in ("default", "float32")}
        single["pipeline_1"] = pipelines[1]
        for contender, loop in single.items():
            found[f"{contender} {model} one"] = [_one_by_one(loop, singles)]


def _warm(name: str) -> str:
    return f"{name} warm-up"


def _runs(
    loops: Mapping[str, Loop], wanted: Sequence[str], queue: Queue, name: str, texts: list[str]
) -> dict[str, Callable[[], tuple[Ran, float]]]:
    """What each contender does in a round; the limit comes right after what it is compared with."""
    runs: dict[str, Callable[[], tuple[Ran, float]]] = {
        "end_to_end": lambda: queue.run(name, texts)
    }
    for contender, loop in loops.items():
        runs[contender] = lambda loop=loop: timed(loop, texts)  # type: ignore[misc]
    order = ("limit", "end_to_end", "default")
    ordered = {key: runs[key] for key in order} | runs
    return {key: run for key, run in ordered.items() if not wanted or key in wanted}


def _fastest(
    pipelines: Mapping[int, PipelineLoop], texts: list[str], key: str
) -> tuple[int, list[str]]:
    """The batch size at which the pipeline is fastest, and its answers."""
    took_s: dict[int, float] = {}
    labels: list[str] = []
    for size, loop in pipelines.items():
        ran, took_s[size] = timed(loop, texts)
        labels = labels or ran.labels
        progress(f"pipeline {size} {key}: {len(texts) / took_s[size]:.0f} texts/s")
    return min(took_s, key=took_s.__getitem__), labels


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


def _figures(ran: Ran, wall_s: float, reference: list[str]) -> dict[str, float]:
    figures = {
        "texts_per_s": len(reference) / wall_s,
        "agreement": _equal(ran.labels, reference),
    }
    if ran.padded_tokens:
        figures["tokens_per_s"] = ran.tokens / wall_s
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
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the texts")
    parser.add_argument("--contenders", default="", help="names as above; all if unset")
    parser.add_argument("--plot", metavar="FILE.png")
    return parser.parse_args()


if __name__ == "__main__":
    given = _arguments()
    publish(
        measure(
            texts=texts_from(given.data) if given.data else texts_made_up(),
            models=given.models.split(","),
            workloads=given.workloads.split(","),
            rounds=given.rounds,
            scale=given.scale,
            contenders=given.contenders.split(",") if given.contenders else (),
        ),
        given,
    )

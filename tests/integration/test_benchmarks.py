"""The benchmark commands as a person runs them, with small counts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.runtimes import ONNX, OPENVINO
from tests.support.compose import ROOT


def run(module: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """Run a benchmark's command and return the one JSON object it printed."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *arguments], env=os.environ | environment,
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    content: dict[str, Any] = json.loads(done.stdout)
    assert content["benchmark"] == module
    return content


def test_plumbing_compares_golem_with_stock_celery_and_draws(tmp_path: Path) -> None:
    """One command prints one JSON object, compares every answer on the way, and draws a picture."""
    pytest.importorskip("matplotlib")
    picture = tmp_path / "plumbing.png"
    content = run(
        "plumbing", "--rounds", "1", "--jobs", "400", "--messages", "5", "--per-message", "8",
        "--producer-jobs", "50", "--peers", "celery", "--plot", str(picture),
    )  # fmt: skip
    for name in ("golem", "celery"):
        rate = content["results"][name]["jobs_per_s"]
        assert 0 < rate["min"] <= rate["median"] <= rate["max"]
    assert content["ratios"]["golem/celery"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_engine_compares_the_worker_with_loops_over_the_same_model(tmp_path: Path) -> None:
    """Every contender answers every text, the float32 ones as the pipeline does; with a picture."""
    for package in ("matplotlib", *ONNX, *OPENVINO):
        pytest.importorskip(package)
    picture = tmp_path / "engine.png"
    content = run(
        "engine", "--rounds", "1", "--models", "mini", "--workloads", "short",
        "--scale", "0.05", "--plot", str(picture),
        # All but the compiled one, which takes a minute to compile.
        "--contenders", "limit,end_to_end,limit_processes,default,one_process,int8,limit_float32,"
        "float32,pipeline_best,pipeline_64,padded,onnx_float32,onnx_int8,openvino",
    )  # fmt: skip
    for name in ("float32", "limit_float32", "pipeline_64", "onnx_float32"):
        assert content["results"][f"{name} mini short"]["agreement"]["median"] == 1
    for name in ("onnx_int8", "openvino"):
        assert content["ratios"][f"{name}/limit mini short"] > 0
    assert content["results"]["end_to_end mini short"]["texts_per_s"]["median"] > 0
    assert content["ratios"]["float32/pipeline_64 mini short"] > 0
    padding = {
        name: content["results"][f"{name} mini short"]["padding_share"]["median"]
        for name in ("end_to_end", "float32", "padded", "pipeline_64")
    }
    assert max(padding["end_to_end"], padding["float32"]) < padding["padded"]
    assert padding["padded"] == padding["pipeline_64"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_engine_tells_a_misspelt_contender() -> None:
    """At once and with the names there are, not by leaving it away."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.engine", "--contenders", "limt,default"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "there is no limt; name some of limit,end_to_end," in done.stderr


def test_threads_compares_one_process_with_two_that_share_its_cores() -> None:
    """Each way of sharing two cores answers every workload, and a lone job."""
    content = run(
        "threads", "--rounds", "1", "--models", "mini", "--cores", "2", "--scale", "0.03",
        "--singles", "2",
    )  # fmt: skip
    for way in ("1x2", "2x1"):
        assert content["results"][f"{way} mini one"]["p50_ms"]["median"] > 0
        assert content["results"][f"{way} mini long"]["texts_per_cpu_s"]["median"] > 0
    assert content["ratios"]["texts_per_s 2x1/1x2 mini short"] > 0


def test_leaks_finds_none_in_a_few_thousand_texts() -> None:
    """Trouble included, every text is accounted for and no tensor outlives its batch."""
    # A small budget has few sizes, for which oneDNN has soon compiled its kernels.
    content = run(
        "leaks", "--texts", "5120", "--warm-share", "0.5", "--threads", "1",
        GOLEM_TOKEN_BUDGET="512",  # noqa: S106 - of sequences, not of access
    )  # fmt: skip
    figures = content["results"]["golem"]
    assert figures["texts"]["median"] == 5120
    assert figures["tensors_growth"]["median"] == 0
    # 8 MiB in bfloat16, 20 in float32, and none once the allocator and oneDNN have what they need:
    # before the 20,000th text and the 32,000th. With 20 KiB kept of each text it would be 50 more.
    assert figures["rss_growth_mib"]["median"] < 40


def test_growth_counts_what_each_of_two_workers_did() -> None:
    """Two workers on simulated GPUs share a backlog, evenly or not; two processes share a GPU."""
    content = run(
        "growth", "--rounds", "1", "--backlogs", "300", "--celery-up-to", "0", "--workers", "2",
        "--token-us", "5", "--seconds-per-worker", "0.1", "--processes", "2",
    )  # fmt: skip
    two = content["results"]["golem 2 workers, b=5 us"]
    assert two["processes"]["median"] in (1, 2)
    assert 0 < two["gpu_busy_share"]["median"] <= 1
    shared = content["results"]["golem 2 processes on one GPU, b=5 us"]
    assert shared["processes"]["median"] in (1, 2)
    assert 0 < shared["gpu_busy_share"]["median"] <= 1
    assert content["results"]["golem 300 jobs"]["parent_peak_rss_mib"]["median"] > 1

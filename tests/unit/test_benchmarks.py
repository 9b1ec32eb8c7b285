"""The pure parts of the benchmarks: what is counted, compared and printed."""

import json
import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.backlog import make_texts
from benchmarks.engines import Run, expected, fingerprint, noop, read_runs, simulated_gpu
from benchmarks.growth import spread
from benchmarks.latency import Answer, arrivals, figures
from benchmarks.ledger import extra_runs, settle
from benchmarks.lengths import deal, padded_in_order
from benchmarks.procfs import Usage, pss_mib, usage
from benchmarks.report import Figure, Report, percentile, ratio, significant, summarise
from benchmarks.resets import schedule
from benchmarks.soak_figures import Sample, flatness
from benchmarks.verify import Verdict, judge
from golem_tasks.contract import Options, TextItem
from worker.classifier import Classifier, Work
from worker.interfaces import Row
from worker.settings import WorkerSettings

numbers = st.floats(min_value=0.001, max_value=1e9)


@given(st.lists(numbers, min_size=1, max_size=9))
def test_a_figure_lies_between_its_least_and_most(values: list[float]) -> None:
    """Median, min and max are those of the rounds, to four digits."""
    figure = Figure.of(values)
    assert figure.min <= figure.median <= figure.max
    assert figure.min == significant(min(values))


def test_a_figure_without_rounds_is_refused() -> None:
    """Nothing measured is an error, not a zero."""
    with pytest.raises(ValueError, match="at least one round"):
        Figure.of([])


def test_rounds_are_summarised_by_figure() -> None:
    """Each figure is taken over the rounds that have it."""
    found = summarise([{"a": 1.0, "b": 5.0}, {"a": 3.0}, {"a": 2.0}])
    assert found == {"a": Figure(2.0, 1.0, 3.0), "b": Figure(5.0, 5.0, 5.0)}


def test_a_ratio_is_of_medians_and_absent_where_one_is_missing() -> None:
    """No ratio is made up."""
    assert ratio(Figure(8.0, 7.0, 99.0), Figure(2.0, 1.0, 3.0)) == 4.0
    assert ratio(Figure(8.0, 7.0, 9.0), None) is None
    assert ratio(Figure(8.0, 7.0, 9.0), Figure(0.0, 0.0, 0.0)) is None


@given(st.lists(numbers, min_size=1), st.floats(min_value=0, max_value=1))
def test_a_percentile_is_a_value_that_enough_values_dont_exceed(
    values: list[float], share: float
) -> None:
    """At least that share of the values is at or below it."""
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9


def test_a_report_is_one_json_object_of_the_promised_shape() -> None:
    """Benchmark, machine, versions, results with median, min, max, and ratios."""
    report = Report(
        "plumbing", {"rounds": 1}, {"golem": dict(summarise([{"jobs_per_s": 2.0}]))}, {"a/b": 4.0}
    )
    read = json.loads(json.dumps(report.as_json()))
    assert list(read)[:3] == ["benchmark", "machine", "versions"]
    assert read["results"]["golem"]["jobs_per_s"] == {"median": 2.0, "min": 2.0, "max": 2.0}
    assert read["ratios"] == {"a/b": 4.0}
    assert read["versions"]["celery"]


def test_the_texts_of_a_seed_are_the_same_and_all_different() -> None:
    """A text tells its job apart, and another run sends the same ones."""
    texts = make_texts(500, seed=3)
    assert texts == make_texts(500, seed=3)
    assert len({fingerprint(text) for text in texts}) == len(texts)


def test_engines_without_a_model_give_each_text_its_expected_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What Golem's own classifier makes of them is what the verdicts compare with."""
    monkeypatch.setenv("BENCH_LAUNCH_MS", "0")
    monkeypatch.setenv("BENCH_TOKEN_US", "0")
    texts = make_texts(50)
    works = [Work(TextItem(text), Options(), 0.0) for text in texts]
    for load in (noop, simulated_gpu):
        outcomes = Classifier(load(WorkerSettings(), 0)).classify(works).outcomes
        for text, outcome in zip(texts, outcomes, strict=True):
            stored = json.dumps({"status": "SUCCESS", "result": outcome}).encode()
            assert judge(stored, text) is Verdict.RIGHT
    assert expected(texts[0]) != expected(texts[1])


def test_engines_that_name_one_device_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A micro-batch begins when the device is done with the other engine's; else each at once."""
    monkeypatch.setenv("BENCH_LAUNCH_MS", "60000")  # the test waits for none of them
    monkeypatch.setenv("BENCH_TOKEN_US", "0")
    alone = [simulated_gpu(WorkerSettings(), index).launch([Row([1])]) for index in range(2)]
    assert alone[1].begun_s < alone[0].ready_s
    monkeypatch.setenv("BENCH_DEVICE", str(tmp_path / "gpu"))
    engines = [simulated_gpu(WorkerSettings(), index) for index in range(2)]
    launched = [engine.launch([Row([1])]) for engine in engines * 2]
    for before, after in pairwise(launched):
        assert after.begun_s == before.ready_s == before.begun_s + 60


def test_another_texts_answer_is_wrong_and_a_failure_failed() -> None:
    """A result only counts if it is SUCCESS with this text's own answer."""
    label, score = expected("one")
    stored = json.dumps({"status": "SUCCESS", "result": {"label": label, "score": score}}).encode()
    assert judge(stored, "one") is Verdict.RIGHT
    assert judge(stored, "another") is Verdict.WRONG
    assert judge(json.dumps({"status": "FAILURE"}).encode(), "one") is Verdict.FAILED
    assert judge(None, "one") is Verdict.ABSENT


def test_an_engines_log_is_read_without_a_line_cut_short(tmp_path: Path) -> None:
    """A process killed while it writes doesn't spoil the account."""
    log = tmp_path / "runs.log"
    assert read_runs(log) == []
    log.write_text("7 1.0 2.0 ff 1\n8 2.0 3.0 a", encoding="ascii")
    assert read_runs(log) == [Run(7, 1.0, 2.0, (255, 1))]


def test_a_ledger_puts_every_job_in_one_place() -> None:
    """What has no answer is waiting, stranded or lost, and the sum is what was sent."""
    ids = ["a", "b", "c", "d", "e"]
    absent = Verdict.ABSENT
    ledger = settle(
        ids,
        [Verdict.RIGHT, absent, absent, absent, Verdict.WRONG],
        waiting=frozenset({"b"}),
        held=frozenset({"b", "c", "e"}),
        duplicates=2,
    )
    assert (ledger.right, ledger.wrong, ledger.waiting, ledger.stranded, ledger.lost) == (
        1, 1, 1, 1, 1,
    )  # fmt: skip
    assert ledger.held_after == 3
    assert not ledger.clean


def test_a_ledger_is_clean_only_if_all_is_right_and_nothing_held() -> None:
    """Neither a missing answer nor a message left behind passes."""
    right = [Verdict.RIGHT]
    nothing: frozenset[str] = frozenset()
    assert settle(["a"], right, waiting=nothing, held=nothing, duplicates=1).clean
    assert not settle(["a"], right, waiting=nothing, held=frozenset({"a"}), duplicates=0).clean


def test_runs_beyond_the_first_of_a_text_are_duplicates() -> None:
    """Each extra run counts, and a text that isn't asked for doesn't."""
    one, two, other = fingerprint("one"), fingerprint("two"), fingerprint("other")
    runs = [
        Run(1, 0.0, 1.0, (one, two, other)),
        Run(2, 1.0, 2.0, (one, other)),
        Run(2, 2, 3, (one,)),
    ]
    assert extra_runs(runs, ["one", "two"]) == 2


@given(st.integers(1, 60), st.integers(0, 1000))
def test_resets_fall_inside_the_run_in_order(resets: int, seed: int) -> None:
    """As many as asked for, none before the first job nor after the last."""
    points = schedule(12_000, resets, seed)
    assert len(points) == resets
    assert points == sorted(points)
    assert points[0] > 0
    assert points[-1] < 12_000
    assert points == schedule(12_000, resets, seed)


def test_spread_compares_each_process_with_an_equal_share() -> None:
    """Rows by process, how busy they were, and how full the batches."""
    runs = [Run(1, 0.0, 1.0, (1, 2, 3)), Run(2, 0.0, 2.0, (4,))]
    assert spread(runs) == {
        "processes": 2,
        "least_share": 0.5,
        "most_share": 1.5,
        "gpu_busy_share": 0.75,
        "mean_rows": 2.0,
    }


def test_arrivals_are_poisson_and_repeatable() -> None:
    """About rate x seconds of them, in order, and the same for the same seed."""
    times = arrivals(100.0, 50.0, seed=1)
    assert times == sorted(times) == arrivals(100.0, 50.0, seed=1)
    assert len(times) == pytest.approx(5000, rel=0.1)
    assert times[-1] < 50.0


def test_a_jobs_time_is_split_into_queue_forward_and_the_rest() -> None:
    """The parts add up to the whole."""
    answer = Answer(total_ms=10.0, queued_ms=3.0, forward_ms=5.0, rows=4)
    assert answer.rest_ms == 2.0
    found = figures([answer] * 3)
    assert found["p99_ms"] == 10.0
    assert found["rest_p50_ms"] == 2.0
    assert found["mean_rows"] == 4.0


def test_flatness_is_the_last_quarter_against_the_second() -> None:
    """The first quarter, where caches fill, doesn't count as growth."""
    sizes = [10.0, 50.0, 60.0, 60.0, 60.0, 60.0, 61.0, 61.0]
    samples = [
        Sample(float(at), Usage(0.0, size, size, 9), Usage(0.0, 5.0, 5.0, 3))
        for at, size in enumerate(sizes)
    ]
    found = flatness(samples)
    assert found["parent_rss_mib_growth"].median == 1.0
    assert found["child_fds_growth"].median == 0.0


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_a_process_is_measured_and_one_that_is_gone_counts_as_nothing() -> None:
    """CPU, memory and files of this very process; no error for a pid that isn't there."""
    mine = usage(os.getpid())
    assert mine.rss_mib > 1
    assert mine.peak_rss_mib >= mine.rss_mib - 1
    assert mine.fds > 2
    assert usage(2**22 + 1) == Usage(0.0, 0.0, 0.0, 0)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_memory_that_processes_share_counts_once() -> None:
    """A proportional share is no more than what is resident; what is gone has none."""
    mine = pss_mib(os.getpid())
    assert 1 < mine <= usage(os.getpid()).rss_mib + 1
    assert pss_mib(2**22 + 1) == 0


@given(st.lists(st.integers(1, 512), max_size=200), st.integers(1, 8))
def test_texts_are_dealt_out_once_and_evenly(lengths: list[int], count: int) -> None:
    """Each text is in one share; a share's sum is at most the longest text above another's."""
    shares = deal(lengths, count)
    assert sorted(index for share in shares for index in share) == list(range(len(lengths)))
    assert all(share == sorted(share) for share in shares)
    sums = [sum(lengths[index] for index in share) for share in shares]
    assert max(sums) - min(sums) <= max(lengths, default=0)


def test_the_padding_of_batches_in_order_is_by_the_longest_of_each() -> None:
    """Two by two: 3 and 1 take six positions, 2 and 5 ten, and a last one its own four."""
    assert padded_in_order([3, 1, 2, 5, 4], 2) == 6 + 10 + 4

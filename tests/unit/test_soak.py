"""The pure parts of the soak: when faults come, who is told of what, what counts as broken."""

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.book import Book, recoveries
from benchmarks.engines import POISON, expected
from benchmarks.faults import Fault, Injected, plan_faults
from benchmarks.fleet import OF_ITS_MODEL, Exit
from benchmarks.ledger import Ledger
from benchmarks.promises import GROWTH_FDS, GROWTH_MIB, Outcome, broken
from benchmarks.report import Figure
from benchmarks.soak_figures import answered_over_time, job_times, recovery_times
from benchmarks.verify import Verdict, judge
from worker.processes import EX_CONFIG

ALL = tuple(Fault)
CLEAN = Ledger(100, 100, 0, 0, 0, 0, 0, 0, 0)
GOOD = Outcome(CLEAN, ALL, ALL, [Exit("w2", "SIGTERM", 0), Exit("w2", "SIGKILL", 247)], 0, 60.0, {})
KILLS = 5


class Answers:
    """Answers as the result backend's client gives them."""

    def __init__(self) -> None:
        self.stored: dict[str, bytes] = {}

    def answer(self, id_: str, text: str) -> None:
        """Store the right answer."""
        label, score = expected(text)
        meta = {"status": "SUCCESS", "result": {"label": label, "score": score}}
        self.stored[f"celery-task-meta-{id_}"] = json.dumps(meta).encode()

    def mget(self, keys: list[str]) -> list[bytes | None]:
        """As redis-py's."""
        return [self.stored.get(key) for key in keys]


@given(st.integers(0, 10_000), st.floats(1.0, 30.0))
def test_faults_come_in_order_and_each_kind_before_one_comes_twice(
    seed: int, every_s: float
) -> None:
    """The same for the same seed, all within the time, none left out of a round."""
    planned = plan_faults(ALL, every_s, 600.0, seed)
    assert planned == plan_faults(ALL, every_s, 600.0, seed)
    times = [each.at_s for each in planned]
    assert times == sorted(times)
    assert all(0 < at_s < 600 for at_s in times)
    counted = Counter(each.fault for each in planned)
    assert max(counted.values(), default=0) - min(counted[kind] for kind in ALL) <= 1


def test_gaps_between_faults_are_exponential() -> None:
    """Their mean is what was asked for, and so is their spread."""
    times = [each.at_s for each in plan_faults(ALL, 10.0, 100_000.0, 3)]
    gaps = [after - before for before, after in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(10.0, rel=0.05)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(100.0, rel=0.1)


def test_no_kind_of_fault_means_no_fault() -> None:
    """A soak without faults is a soak."""
    assert plan_faults((), 10.0, 600.0, 1) == []


def test_a_poison_text_is_right_only_as_a_poison_job() -> None:
    """An answer to it is wrong, another blame a failure; and an innocent job is never poison."""
    poison = f"{POISON}1"
    told = {"status": "FAILURE", "result": {"exc_type": "PoisonJob"}}
    other = {"status": "FAILURE", "result": {"exc_type": "WorkerLostError"}}
    answered = {"status": "SUCCESS", "result": {"label": "POSITIVE", "score": 1.0}}
    assert judge(json.dumps(told).encode(), poison) is Verdict.RIGHT
    assert judge(json.dumps(other).encode(), poison) is Verdict.FAILED
    assert judge(json.dumps(answered).encode(), poison) is Verdict.WRONG
    assert judge(json.dumps(told).encode(), "innocent") is Verdict.FAILED


def test_a_book_knows_when_each_job_was_answered() -> None:
    """A look judges what came since the last; open jobs stay open."""
    book, answers = Book(), Answers()
    book.enter(["a", "b"], ["one", "two"], 1.0)
    answers.answer("b", "two")
    book.look(answers, 3.0)
    assert book.answered_s == [math.inf, 3.0]
    assert book.open == 1
    answers.answer("a", "one")
    book.look(answers, 4.0)
    assert book.answered_s == [4.0, 3.0]
    assert book.judged == [Verdict.RIGHT] * 2
    assert not book.open


def test_an_audit_sees_an_answer_that_was_overwritten() -> None:
    """A wrong run after a right one doesn't go unseen, nor does an answer that is gone."""
    book, answers = Book(), Answers()
    book.enter(["a", "b"], ["one", "two"], 0.0)
    answers.answer("a", "one")
    answers.answer("b", "two")
    book.look(answers, 1.0)
    answers.answer("a", "another")
    answers.stored.pop("celery-task-meta-b")
    book.audit(answers)
    assert book.judged == [Verdict.WRONG, Verdict.ABSENT]


def test_an_uncertain_job_counts_only_if_there_is_a_trace_of_it() -> None:
    """Its producer was told it may not be in the queue: absent it isn't lost, present it counts."""
    book, answers = Book(), Answers()
    book.enter(["sure"], ["one"], 0.0)
    book.enter(["gone", "answered", "queued"], ["two", "three", "four"], 0.0, uncertain=True)
    answers.answer("answered", "three")
    book.look(answers, 1.0)
    assert book.certain_open == 1
    assert book.forget_unsent({"queued"}) == 1
    assert book.ids == ["sure", "answered", "queued"]
    assert book.judged == [Verdict.ABSENT, Verdict.RIGHT, Verdict.ABSENT]


def test_recovery_is_until_the_jobs_sent_before_are_answered() -> None:
    """All of them, and those sent since the fault before; infinite if one never is."""
    sent_s, answered_s = [1.0, 2.0, 6.0, 11.0], [1.5, 14.0, 6.5, math.inf]
    found = recoveries([5.0, 7.0, 12.0], sent_s, answered_s)
    assert found == [(9.0, 9.0), (7.0, 0.0), (math.inf, math.inf)]
    assert recoveries([5.0], [], []) == [(0.0, 0.0)]


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 50)), max_size=30), st.data())
def test_recovery_of_its_own_jobs_is_never_longer_than_of_all(
    jobs: list[tuple[float, float]], data: st.DataObject
) -> None:
    """And neither is negative."""
    jobs.sort()
    sent_s = [at_s for at_s, _ in jobs]
    answered_s = [at_s + wait_s for at_s, wait_s in jobs]
    faults = sorted(data.draw(st.lists(st.floats(0, 120), max_size=8)))
    for each in recoveries(faults, sent_s, answered_s):
        assert 0.0 <= each.own_s <= each.all_s


def test_figures_of_a_soak_hold_no_infinity() -> None:
    """What never recovered is counted apart, for JSON has no infinity."""
    book, answers = Book(), Answers()
    book.enter(["a"], ["one"], 1.0)
    book.enter(["b"], ["two"], 3.0)
    answers.answer("a", "one")
    book.look(answers, 2.5)
    done = [Injected(2.0, Fault.RESET, "all"), Injected(4.0, Fault.RESET, "all")]
    found = recovery_times(done, book)
    assert found["reset"]["own_s"] == {"median": 0.5, "max": 0.5, "never": 1}
    assert job_times(book)["longest_s"] == 1.5
    assert sum(answered_over_time(book)["per_s"]) > 0
    json.dumps([found, job_times(book), answered_over_time(book)], allow_nan=False)
    assert job_times(Book()) == {}
    assert answered_over_time(Book()) == {"at_s": [], "per_s": []}


def test_an_outcome_that_keeps_every_promise_breaks_none() -> None:
    """The duplicates a kill may cost are no broken promise."""
    assert broken(GOOD) == []
    some = replace(CLEAN, duplicates=2 * KILLS - 1)
    assert GOOD.kills == KILLS
    assert broken(replace(GOOD, ledger=some)) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"right": 99, "lost": 1}, "lost"),
        ({"right": 99, "wrong": 1}, "wrong"),
        ({"right": 99, "waiting": 1}, "pending"),
        ({"right": 99, "stranded": 1}, "pending"),
        ({"right": 99, "failed": 1}, "failed"),
        ({"held_after": 1}, "acknowledged"),
        ({"duplicates": 2 * KILLS}, "ran again"),
    ],
)
def test_each_broken_promise_of_the_ledger_is_said(change: dict[str, Any], said: str) -> None:
    """One sentence for each, with the number."""
    (sentence,) = broken(replace(GOOD, ledger=replace(CLEAN, **change)))
    assert said in sentence


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"exits": [Exit("w1", "itself", 1)]}, "w1 ended with code 1 after itself"),
        ({"exits": [Exit("w2", "SIGTERM", 1)]}, "w2 ended with code 1 after SIGTERM"),
        ({"orphans": 1}, "outlived"),
        ({"faults": ALL[1:]}, f"No {ALL[0].value}"),
    ],
)
def test_each_broken_promise_of_the_processes_is_said(change: dict[str, Any], said: str) -> None:
    """A worker that ends by itself, or badly, or leaves a process, or was never hit."""
    (sentence,) = broken(replace(GOOD, **change))
    assert said in sentence


def test_a_worker_may_give_up_only_where_its_model_was_killed() -> None:
    """With the code that says so; by itself it may not, whatever the code."""
    assert Exit("w1", OF_ITS_MODEL, EX_CONFIG).expected
    assert not Exit("w1", OF_ITS_MODEL, 1).expected
    assert not Exit("w1", "itself", EX_CONFIG).expected
    assert not Exit("w1", "SIGTERM", None).expected


def test_growth_is_judged_once_the_run_is_long_enough() -> None:
    """Caches fill in the first minutes; after that memory and files are flat within the bounds."""
    at_most = {
        "parent_rss_mib_growth": Figure(GROWTH_MIB, 0.0, 0.0),
        "parent_fds_growth": Figure(GROWTH_FDS, 0.0, 0.0),
    }
    more = {name: replace(figure, median=figure.median + 1) for name, figure in at_most.items()}
    assert broken(replace(GOOD, seconds=1200.0, flatness=at_most)) == []
    assert len(broken(replace(GOOD, seconds=1200.0, flatness=more))) == 2
    assert broken(replace(GOOD, seconds=60.0, flatness=more)) == []

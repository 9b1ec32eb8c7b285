"""How long the model may take for a dispatch, and how the kernel sees to it."""

import signal
import subprocess
import sys

import pytest
from billiard.common import human_status
from billiard.exceptions import WorkerLostError
from hypothesis import given
from hypothesis import strategies as st

from golem_tasks.settings import load
from worker.batcher import TimeLimits, Waiting
from worker.measuring import limits
from worker.pace import DISPATCH_TOKENS
from worker.patience import ended_by_alarm, patience_s
from worker.settings import WorkerSettings

ENDLESS = """
import signal
from worker.patience import at_most
signal.signal(signal.SIGALRM, lambda *_: None)
with at_most(0.05):
    while True:
        pass
"""


def job(tokens: int, limits: TimeLimits = (None, None)) -> Waiting[str]:
    """A job of so many tokens at most."""
    return Waiting("job", 1, 1, 0.0, time_limits=limits, most_tokens=tokens)


@given(st.lists(st.integers(1, 200_000), min_size=1, max_size=40), st.floats(0.1, 3600))
def test_a_dispatch_gets_the_setting_and_more_in_proportion_to_its_tokens(
    tokens: list[int], setting_s: float
) -> None:
    """No dispatch that can't be larger than the default has more than the setting."""
    settings = WorkerSettings(job_timeout_s=setting_s)
    allowed_s = patience_s([job(each) for each in tokens], settings)
    assert allowed_s == setting_s * max(1, sum(tokens) / DISPATCH_TOKENS)
    assert limits(settings).max_tokens == DISPATCH_TOKENS


def test_a_limit_of_the_jobs_own_or_none_at_all_leaves_it_out() -> None:
    """A soft limit is no hard one."""
    settings = WorkerSettings()
    assert patience_s([job(1, (5.0, None))], settings) is None
    assert patience_s([job(1, (None, 5.0))], settings) == settings.job_timeout_s
    assert patience_s([job(1)], WorkerSettings(job_timeout_s=0)) is None


@pytest.mark.parametrize("written", ["", "0"])
def test_an_empty_setting_means_no_limit(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    """As compose files write it."""
    monkeypatch.setenv("GOLEM_JOB_TIMEOUT_S", written)
    assert load(WorkerSettings).job_timeout_s == 0


def test_a_process_in_an_endless_loop_ends_by_the_alarm() -> None:
    """Whatever handler the model's libraries have set, and the pool's words for it are known."""
    done = subprocess.run([sys.executable, "-c", ENDLESS], timeout=180, check=False)
    assert done.returncode == -signal.SIGALRM
    words = f"Worker exited prematurely: {human_status(done.returncode)} Job: 7."
    assert ended_by_alarm(WorkerLostError(words))
    assert not ended_by_alarm(WorkerLostError(words.replace("14", "9")))

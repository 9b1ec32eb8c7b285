"""The copies of frames that leave a model process."""

import pickle
import traceback

import pytest
from billiard import einfo
from celery.app.trace import build_tracer

from worker.frames import spare_positions


def failure() -> einfo.ExceptionInfo:
    """What Celery's tracer makes of an exception."""
    try:
        build_tracer("x", None)  # fails inside a function of many lines
    except AttributeError:
        return einfo.ExceptionInfo()
    raise AssertionError


def test_a_failure_is_small_and_still_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its frames know file, function and line, and no instruction's position."""
    before = pickle.dumps(failure())
    monkeypatch.setattr(einfo._Frame, "Code", einfo._Frame.Code)  # put back in the end
    spare_positions()
    sent = pickle.dumps(failure())
    assert len(sent) < len(before) / 2
    text = "".join(traceback.format_tb(pickle.loads(sent).tb))  # noqa: S301 - made two lines above
    assert "in failure" in text
    assert "in build_tracer" in text

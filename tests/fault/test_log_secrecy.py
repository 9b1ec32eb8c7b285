"""What a worker's log shows of jobs, whatever becomes of them: nothing above DEBUG."""

import json
import os
from pathlib import Path
from typing import Any

from celery import Celery
from celery.result import AsyncResult

from golem_tasks.embedded import EmbeddedServer
from tests.integration.test_hostile import envelope
from tests.support.fake_workers import FakeWorker, check, nothing_held, numbered, send, send_all
from tests.support.waiting import wait_until

MARK = "Chloe's-private-letter"
WHOLE_LOG = Path(__file__).parents[1] / "support" / "whole_log"
TROUBLE = ("raise", "encode", "labels:5 ", "oom", "memory", "kill", "slow", "raises:SystemExit ")
"""Orders to the fake engine: what follows is the argument, which their errors quote."""


def failing(app: Celery) -> list[AsyncResult]:
    """Jobs that end as errors, each by another way, with the mark in every place of theirs."""
    # Not in `shadow`, the name that a producer wants to have in logs.
    shown = {"argsrepr": f"({MARK!r},)", "kwargsrepr": f"{{{MARK!r}: 1}}"}
    callback = {"task": "no.such", "args": MARK, "kwargs": {MARK: MARK}, "options": {MARK: MARK}}
    bodies: list[tuple[list[Any], dict[str, Any], dict[str, Any]]] = [
        *(([f"{order}:{MARK}"], {}, {}) for order in TROUBLE),
        ([MARK, MARK, MARK], {}, {}),
        ([{MARK: MARK}], {}, {}),
        ([MARK], {MARK: MARK}, {}),
        ([MARK], {"on_long": MARK, "top_k": MARK}, {}),
        ([f"raise:{MARK}"], {}, {"link_error": callback}),
        ([MARK], {}, {"expires": 1e-9}),
        ([MARK], {}, {"eta": "never " + MARK}),
        ([f"hang:{MARK}"], {}, {"time_limit": 2}),
    ]
    return [
        app.send_task("golem.classify", args, kwargs, queue="golem", **shown, **options)
        if "eta" not in options
        else send(app, MARK, headers={"eta": options["eta"]})
        for args, kwargs, options in bodies
    ]


def unreadable() -> list[str]:
    """Messages no request can be made of."""
    deep = "[" * 2_000 + json.dumps(MARK) + "]" * 2_000
    bodies = [MARK, json.dumps(MARK), json.dumps([MARK, {}, None]), f"[[{deep}], {{}}, null]"]
    return [
        *(envelope(body.encode(), {}, f"odd {number}") for number, body in enumerate(bodies)),
        envelope(json.dumps([[MARK], {}, None]).encode(), {"task": "no.such.task"}, "unknown"),
        MARK,
    ]


def test_1_no_text_of_a_job_is_in_the_log_at_info(
    tmp_path: Path, alone: EmbeddedServer, app: Celery
) -> None:
    """Done: jobs answered, failed, expired, killed, timed out, poisonous, unreadable.

    Must hold: neither a line nor anything handed to handlers beside it (arguments, ``extra``,
    traces) has a word of them, in any process; every job has ended, the good ones answered.
    """
    path = os.pathsep.join([str(WHOLE_LOG), os.environ.get("PYTHONPATH", "")])
    good = [*numbered(10), MARK]
    with FakeWorker(tmp_path, alone, PYTHONPATH=path) as worker, alone.client() as client:
        results = send_all(app, good, link=app.signature("golem.classify", queue="golem"))
        ended = failing(app)
        client.lpush("golem", *unreadable())
        check(results, good)
        for result in ended:
            wait_until(result.ready, f"{result.id} to end", timeout_s=120)
        wait_until(lambda: nothing_held(alone), "everything to be acknowledged")
        odd = [f"odd {number}" for number in range(4)]
        assert {app.AsyncResult(job_id).state for job_id in [*odd, "unknown"]} == {"FAILURE"}
    lines = worker.text.splitlines()
    assert any("'levelname': 'INFO'" in line and "ends as" in line for line in lines)
    assert [line for line in lines if MARK in line] == []

"""Jobs that are no longer wanted: before they are fetched, in the buffer, in the model."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from celery import Celery
from celery.canvas import StampingVisitor
from celery.exceptions import TaskRevokedError

from golem_tasks import Golem, JobRevoked
from golem_tasks.embedded import EmbeddedServer
from tests.support.fake_engine import expected_label
from tests.support.fake_workers import (
    EXPIRES_S,
    W1,
    FakeWorker,
    check,
    jobs_of,
    nothing_held,
    send,
    send_all,
)
from tests.support.waiting import wait_until


class Tenant(StampingVisitor):
    """Stamps a signature with whose it is."""

    def on_signature(self, sig: object, **headers: object) -> dict[str, object]:  # noqa: ARG002 - Celery's
        """The stamp."""
        return {"tenant": "gone", "stamped_headers": ["tenant"]}


def test_1_jobs_given_up_at_every_stage(tmp_path: Path, alone: EmbeddedServer, app: Celery) -> None:
    """Done: with a batch in the model, jobs are given up in every way there is.

    Revoked before they are sent, in the buffer and by a stamp; cancelled by `Job.cancel` in the
    buffer and in the model; one expires.
    Must hold: each is REVOKED with its reason, none of those that waited is computed, the one in
    the model loses its answer only, and all their mates are answered.
    """
    go = tmp_path / "go"
    with Golem(alone.url) as golem:
        # Sent before there is a worker, which takes both of them at once.
        in_model, busy = golem.submit("in the model"), golem.submit(f"until:{go}")
        with FakeWorker(tmp_path, alone) as worker:
            wait_until(lambda: len(jobs_of(app, "active")) == 2, "a batch to run")
            unsent = str(uuid4())
            app.control.revoke(unsent, **W1)
            early = send(app, "revoked before it was sent", task_id=unsent)
            stamped = app.signature("golem.classify", ["stamped"], queue="golem")
            stamped.stamp(Tenant())
            of_tenant = stamped.apply_async()
            buffered, expiring = [send(app, "revoked"), send(app, "expired", expires=EXPIRES_S)]
            cancelled = golem.submit("cancelled")
            mates = send_all(app, ["mate one", "mate two"])
            wait_until(lambda: len(jobs_of(app, "reserved")) >= 6, "them to be buffered")
            app.control.revoke(buffered.id, **W1)
            app.control.revoke_by_stamped_headers({"tenant": ["gone"]}, **W1)
            assert golem.cancel([cancelled, in_model]) == 2
            over = datetime.now(UTC) + timedelta(seconds=EXPIRES_S)
            wait_until(lambda: datetime.now(UTC) > over, "the deadline")
            go.touch()
            assert busy.result(timeout=60).label == expected_label(f"until:{go}")
            check(mates, ["mate one", "mate two"])
            for result in (early, buffered, of_tenant, expiring):
                reason = "expired" if result is expiring else "revoked"
                with pytest.raises(TaskRevokedError, match=reason):
                    result.get(timeout=60)
            for job in (cancelled, in_model):
                with pytest.raises(JobRevoked):
                    job.result(timeout=60)
            wait_until(lambda: nothing_held(alone), "everything to be acknowledged")
            assert worker.runs == dict.fromkeys(
                ["in the model", f"until:{go}", "mate one", "mate two"], 1
            )

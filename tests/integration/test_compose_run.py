"""The containers' own commands and health checks, run as the compose file gives them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from golem_tasks.embedded import EmbeddedServer, free_port
from golem_tasks.guard import guarded
from tests.support import compose
from tests.support.waiting import wait_until

BIN = Path(sys.executable).parent


@pytest.fixture
def composed() -> Iterator[EmbeddedServer]:
    """A server with exactly the arguments of the redis service."""
    program, *arguments = compose.services()["redis"]["command"]
    assert program == "valkey-server"
    with EmbeddedServer(arguments=arguments) as server:
        yield server


def installed(command: list[str]) -> list[str]:
    """The command with its program taken from this environment, as the image's PATH does."""
    return [str(BIN / command[0]), *command[1:]]


def test_the_redis_service_is_configured_as_promised(composed: EmbeddedServer) -> None:
    """Append-only, no snapshots, a memory limit, and no eviction."""
    wanted = {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory": str(1024**3),
        "maxmemory-policy": "noeviction",
        "tcp-keepalive": "60",
    }
    with composed.client() as client:
        assert client.config_get(*wanted) == wanted


def test_the_redis_image_is_the_version_we_test_with(composed: EmbeddedServer) -> None:
    """The image's tag names the minor version the tests run on."""
    minor = compose.services()["redis"]["image"].removeprefix("valkey/valkey:").partition("-")[0]
    with composed.client() as client:
        assert str(client.info("server")["valkey_version"]).startswith(f"{minor}.")


def test_jobs_survive_a_killed_redis(composed: EmbeddedServer) -> None:
    """What was acknowledged before a SIGKILL is there after the restart."""
    with composed.client() as client:
        client.rpush("golem", *range(1000))
    composed.kill()
    composed.start()
    with composed.client() as client:
        assert client.lrange("golem", 0, -1) == [str(number).encode() for number in range(1000)]


def test_a_full_redis_refuses_instead_of_dropping(composed: EmbeddedServer) -> None:
    """At the memory limit a new job is an error and the queued ones stay."""
    with composed.client() as client:
        client.rpush("golem", *range(1000))
        client.config_set("maxmemory", "1mb")
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            client.rpush("golem", "one too many")
        assert client.llen("golem") == 1000


def test_the_redis_health_check_is_answered(composed: EmbeddedServer) -> None:
    """The check's question gets PONG; with a client at hand, the check itself passes and fails."""
    _, program, *arguments = compose.services()["redis"]["healthcheck"]["test"]
    assert (program, arguments) == ("valkey-cli", ["-e", "ping"])
    with composed.client() as client:
        assert client.execute_command(arguments[-1]) is True
    found = shutil.which("valkey-cli") or shutil.which("redis-cli")
    if found is None:
        return
    check = [found, "-p", str(composed.port), *arguments]
    assert subprocess.run(check, check=False, capture_output=True).returncode == 0
    composed.shutdown()
    assert subprocess.run(check, check=False, capture_output=True).returncode != 0


def test_flower_runs_and_its_health_check_passes(server: EmbeddedServer, tmp_path: Path) -> None:
    """Flower's command serves, its check notices whether it does, and SIGTERM ends it."""
    flower = compose.services()["flower"]
    port = free_port()
    command = [part.replace("5555", str(port)) for part in flower["command"]]
    check = [part.replace("5555", str(port)) for part in flower["healthcheck"]["test"][1:]]
    assert set(flower["environment"]) == {"GOLEM_BROKER_URL"}
    environment = {"PATH": os.environ["PATH"], "GOLEM_BROKER_URL": server.url}

    def healthy() -> bool:
        return subprocess.run(installed(check), check=False, capture_output=True).returncode == 0

    assert not healthy()
    log = tmp_path / "flower.log"
    with log.open("wb") as output:
        guard = guarded(installed(command), env=environment, output=output)
    try:
        wait_until(healthy, "flower to answer its health check", every_s=0.2)
        assert guard.poll() is None, log.read_text()
    finally:
        assert guard.stdin is not None
        guard.stdin.close()
        guard.wait(60)
    assert not healthy()


def test_the_worker_runs_and_its_health_check_passes(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    """The worker's command answers its health check with its own model; SIGTERM ends it with 0."""
    worker = compose.services()["worker"]
    environment = {
        "PATH": os.environ["PATH"],
        "HF_HOME": str(tmp_path),
        **{name: str(value) for name, value in worker["environment"].items()},
        "GOLEM_BROKER_URL": server.url,
    }
    check = installed(worker["healthcheck"]["test"][1:])

    def asked(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*check, *more], check=False, capture_output=True, text=True, env=environment
        )

    unanswered = asked("--timeout", "1")
    assert unanswered.returncode == 1, unanswered.stderr
    log = tmp_path / "worker.log"
    with log.open("wb") as output:
        guard = guarded(installed(worker["command"]), env=environment, output=output, grace_s=45)
    try:
        wait_until(
            lambda: guard.poll() is not None or asked().returncode == 0,
            "the worker to answer its health check",
            timeout_s=180,
        )
        answered = asked()
        assert answered.returncode == 0, log.read_text()
        told = json.loads(answered.stdout)
        assert (told["ok"], told["model"]["name"]) == (True, "golem-mini")
    finally:
        assert guard.stdin is not None
        guard.stdin.close()
        code = guard.wait(60)
    assert code == 0, log.read_text()

"""The compose file, the Dockerfile and `.env.example`, as far as they can be judged unstarted."""

import json
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path

import flower.options  # noqa: F401 - defines Flower's options
import jsonschema
import pytest
import tornado.options

from golem_tasks.settings import ENV_PREFIX, load
from tests.support import compose
from worker.settings import WorkerSettings

SETTINGS = {ENV_PREFIX + name.upper() for name in WorkerSettings.model_fields}
NOT_FOR_OPERATORS = {"GOLEM_ENGINE"}  # tests and benchmarks bring their own engine
WORKERS = ["worker", "worker-gpu"]
SERVICES = sorted(compose.services())


def test_the_compose_file_follows_the_published_schema() -> None:
    """The Compose specification's own JSON schema finds nothing wrong."""
    folder = resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((folder / "compose-spec.json").read_text("utf-8"))
    jsonschema.Draft202012Validator(schema).validate(compose.as_written())


def test_the_schema_check_would_notice_a_mistake() -> None:
    """A misspelt key is an error, so the test above can fail."""
    folder = resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((folder / "compose-spec.json").read_text("utf-8"))
    document = compose.as_written()
    document["services"]["redis"]["comand"] = ["valkey-server"]
    with pytest.raises(jsonschema.ValidationError, match="comand"):
        jsonschema.Draft202012Validator(schema).validate(document)


def test_nothing_needs_an_env_file() -> None:
    """Every interpolated variable has a default."""
    assert "$" not in json.dumps(compose.services())


def test_every_compose_variable_is_documented() -> None:
    """What the compose file takes from `.env`, `.env.example` offers, and nothing it ignores."""
    offered = set(compose.examples())
    assert compose.variables() <= offered
    ours = {name for name in offered if not name.startswith((ENV_PREFIX, "FLOWER_"))}
    assert ours <= compose.variables()


def test_flower_knows_its_settings() -> None:
    """Flower ends at the start over a FLOWER_ variable it doesn't know, so none is ours."""
    names = {name for name in compose.examples() if name.startswith("FLOWER_")}
    known = {name.replace("-", "_") for name in tornado.options.options.as_dict()}
    assert {name.removeprefix("FLOWER_").lower() for name in names} <= known
    assert not [name for name in compose.variables() if name.startswith("FLOWER_")]


def test_the_env_example_names_every_setting_and_no_other() -> None:
    """A new setting belongs into `.env.example`; a misspelt one would be ignored in silence."""
    offered = {name for name in compose.examples() if name.startswith(ENV_PREFIX)}
    assert offered == SETTINGS - NOT_FOR_OPERATORS


@pytest.mark.parametrize("name", sorted(SETTINGS - NOT_FOR_OPERATORS))
def test_each_example_value_can_be_used(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncommenting one line of `.env.example` starts a worker; defaults are shown where known."""
    monkeypatch.setenv(name, compose.examples()[name])
    field = name.removeprefix(ENV_PREFIX).lower()
    value = getattr(load(WorkerSettings), field)
    default = WorkerSettings.model_fields[field].default
    if default not in (None, "") and name != "GOLEM_BROKER_URL":
        assert value == default


def test_nothing_in_the_env_example_is_switched_on() -> None:
    """Copying the file as it is changes nothing."""
    lines = compose.ENV_EXAMPLE.read_text("utf-8").splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == []


@pytest.mark.parametrize("service", [*WORKERS, "flower"])
def test_compose_passes_only_real_settings(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each variable a container is given is a setting, with a value it accepts."""
    environment = compose.services()[service]["environment"]
    assert set(environment) <= SETTINGS
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    assert load(WorkerSettings).broker == "redis://redis:6379/0"


@pytest.mark.parametrize("service", WORKERS)
def test_a_worker_can_be_scaled(service: str) -> None:
    """Nothing of a worker exists only once on a host: no name, no port."""
    assert not {"container_name", "ports", "hostname"} & set(compose.services()[service])


@pytest.mark.parametrize("service", WORKERS)
def test_a_worker_may_finish_before_docker_kills_it(service: str) -> None:
    """The stop grace period is longer than the worker's own; SIGTERM is what starts both."""
    described = compose.services()[service]
    assert compose.seconds(described["stop_grace_period"]) > load(WorkerSettings).grace_s
    assert described["stop_signal"] == compose.instruction("worker", "STOPSIGNAL") == "SIGTERM"


def test_nothing_but_the_cpu_limit_says_how_many_threads_there_are() -> None:
    """A worker starts as many as it has cores, which it reads itself, and not as its host has."""
    worker = compose.services()["worker"]
    assert worker["deploy"]["resources"]["limits"]["cpus"]
    assert not {"GOLEM_THREADS", "GOLEM_PROCESSES"} & set(worker["environment"])


def test_the_gpu_worker_waits_to_be_asked_for() -> None:
    """A machine without a GPU can run everything else; with one, the worker insists on it."""
    gpu = compose.services()["worker-gpu"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert gpu["profiles"] == ["gpu"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert gpu["environment"]["GOLEM_DEVICE"] == "cuda"


@pytest.mark.parametrize("service", SERVICES)
def test_every_container_is_contained(service: str) -> None:
    """Read-only root, no capabilities, an init, a memory limit, a health check, rotated logs."""
    described = compose.services()[service]
    assert described["read_only"] is True
    assert described["init"] is True
    assert described["cap_drop"] == ["ALL"]
    assert described["security_opt"] == ["no-new-privileges:true"]
    assert described["deploy"]["resources"]["limits"]["memory"]
    assert described["healthcheck"]["test"][0] == "CMD"
    assert described["logging"]["options"]["max-size"]


@pytest.mark.parametrize("service", SERVICES)
def test_ports_are_published_on_loopback_only(service: str) -> None:
    """Nothing asks for a password, so nothing is reachable from another machine."""
    for port in compose.services()[service].get("ports", []):
        assert port.startswith("127.0.0.1:")


def test_redis_is_kept_in_a_named_volume() -> None:
    """Jobs survive the container."""
    redis = compose.services()["redis"]
    assert redis["volumes"] == ["redis:/data"]
    assert set(compose.as_written()["volumes"]) == {"redis", "models"}


@pytest.mark.parametrize("service", [*WORKERS, "flower"])
def test_an_image_is_built_from_a_stage_that_exists(service: str) -> None:
    """Target, arguments, command and health check are the Dockerfile's own."""
    described = compose.services()[service]
    build = described["build"]
    assert build["target"] in compose.stages()
    declared = " ".join(
        argument.partition("=")[0]
        for stage in compose.stages().values()
        for name, argument in stage
        if name == "ARG"
    ).split()
    assert set(build.get("args", {})) <= set(declared)
    assert json.loads(compose.instruction(build["target"], "CMD")) == described["command"]


def test_the_image_checks_its_health_as_compose_does() -> None:
    """Docker alone and compose ask the worker the same question."""
    _, _, command = compose.instruction("worker", "HEALTHCHECK").partition("CMD ")
    test = compose.services()["worker"]["healthcheck"]["test"]
    assert ["CMD", *json.loads(command)] == test


@pytest.mark.parametrize("stage", ["worker", "flower"])
def test_an_image_runs_without_root(stage: str) -> None:
    """The last user of an image that runs is a number, and not 0."""
    user, _, group = compose.instruction(stage, "USER").partition(":")
    assert int(user) > 0
    assert int(group) > 0


def test_every_stage_has_a_name_and_every_base_a_version() -> None:
    """No stage is found by its number, and no base moves by itself."""
    for name, stage in list(compose.stages().items())[1:]:
        base = stage[0][1].partition(" AS ")[0]
        assert name
        assert base in compose.stages() or ":${PYTHON_VERSION}-" in base
    assert ":" in compose.services()["redis"]["image"]
    assert not compose.services()["redis"]["image"].endswith(":latest")


def test_what_the_dockerfile_copies_is_there() -> None:
    """Each COPY source exists in the checkout and `.dockerignore` lets it through."""
    kept = [
        line[1:]
        for line in (compose.ROOT / ".dockerignore").read_text("utf-8").splitlines()
        if line.startswith("!")
    ]
    sources = {
        source
        for stage in compose.stages().values()
        for name, argument in stage
        if name == "COPY" and not argument.startswith("--from")
        for source in argument.split()[:-1]
    }
    assert sources == set(kept)
    assert [source for source in sources if not (compose.ROOT / source).exists()] == []
    assert not any(fnmatch(".env", pattern) for pattern in kept)


def test_the_dockerfile_has_no_lint() -> None:
    """Hadolint finds nothing to say, and nothing is silenced."""
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if linter is None:
        pytest.skip("hadolint has no build for this machine")
    done = subprocess.run(
        [linter, "--no-color", str(compose.DOCKERFILE)], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert "hadolint ignore" not in compose.DOCKERFILE.read_text("utf-8")

"""What `docker-compose.yml`, the `Dockerfile` and `.env.example` say, read without Docker."""

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "Dockerfile"
ENV_EXAMPLE = ROOT / ".env.example"

_VARIABLE = re.compile(r"\$\{(\w+):-([^${}]*)\}")
_DURATION = re.compile(r"(?:(\d+)m)?(?:(\d+)s)?")


def as_written() -> dict[str, Any]:
    """The compose file with its anchors resolved and its variables not."""
    document: dict[str, Any] = yaml.safe_load(COMPOSE_FILE.read_text("utf-8"))
    return document


def with_defaults(value: Any) -> Any:
    """The value with each ``${NAME:-default}`` in it, nested ones too, as its default."""
    if isinstance(value, dict):
        return {key: with_defaults(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_defaults(item) for item in value]
    while isinstance(value, str) and (replaced := _VARIABLE.sub(r"\2", value)) != value:
        value = replaced
    return value


def services() -> dict[str, dict[str, Any]]:
    """The services as they run for somebody without a ``.env``."""
    found: dict[str, dict[str, Any]] = with_defaults(as_written()["services"])
    return found


def variables() -> set[str]:
    """Names the compose file takes from ``.env``."""
    return set(re.findall(r"\$\{?(\w+)", COMPOSE_FILE.read_text("utf-8")))


def examples() -> dict[str, str]:
    """Every setting `.env.example` offers, with its example value."""
    pairs = re.findall(r"^#?([A-Z]\w+)=(.*)$", ENV_EXAMPLE.read_text("utf-8"), re.MULTILINE)
    return dict(pairs)


def seconds(duration: str) -> float:
    """A compose duration such as ``1m30s``, in seconds."""
    match = _DURATION.fullmatch(duration)
    assert match, duration
    minutes, rest = match.groups(default="0")
    return int(minutes) * 60 + int(rest)


def stages() -> dict[str, list[tuple[str, str]]]:
    """The Dockerfile's stages by name, each a list of (instruction, argument)."""
    text = DOCKERFILE.read_text("utf-8").replace("\\\n", " ")
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        instruction, _, argument = line.strip().partition(" ")
        if instruction == "FROM":
            name = argument.partition(" AS ")[2]
        found.setdefault(name, []).append((instruction, argument.strip()))
    return found


def instruction(stage: str, name: str) -> str:
    """The argument of the last such instruction in a stage; fails if there is none."""
    given = [argument for known, argument in stages()[stage] if known == name]
    assert given, f"stage {stage} has no {name}"
    return given[-1]

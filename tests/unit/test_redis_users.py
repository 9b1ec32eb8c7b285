"""`deploy/redis`: the rules of its users are explained, and give nobody everything."""

import re

import pytest
import yaml

from tests.support.compose import ROOT, as_written

FOLDER = ROOT / "deploy" / "redis"
README = (FOLDER / "README.md").read_text("utf-8")
USERS = {
    line.split()[1]: line.split()[2:]
    for line in (FOLDER / "users.acl").read_text("utf-8").splitlines()
}
ROLES = ["producer", "worker", "operator"]


def test_the_users_are_the_documented_ones() -> None:
    """Each has its row in the README's table."""
    assert list(USERS) == ["default", *ROLES, "admin"]
    assert set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)) >= USERS.keys()


@pytest.mark.parametrize("role", ROLES)
def test_each_rule_has_its_reason(role: str) -> None:
    """No key, channel or command is granted that the README doesn't name."""
    explained = set(" ".join(re.findall(r"`([^`]+)`", README)).replace("&", "").split())
    rules = [rule.strip("()") for rule in USERS[role]]
    granted = {re.sub(r"^(%\w+~|[~&+])", "", rule) for rule in rules if rule[0] in "%~&+"}
    assert {rule for rule in granted if rule[0] != "@"} <= explained


@pytest.mark.parametrize("role", ROLES)
def test_no_role_has_everything(role: str) -> None:
    """None is open without a password, none has all keys, channels, or commands."""
    rules = [rule.strip("()") for rule in USERS[role]]
    assert {"resetpass", "resetkeys", "resetchannels", "-@all", "-@dangerous"} <= set(rules)
    assert not {"nopass", "~*", "&*", "allkeys", "allchannels", "+@all"} & set(rules)
    assert {rule for rule in rules if rule.startswith("+@")} == {"+@connection", "+@transaction"}


def test_the_second_compose_file_changes_no_option_of_the_server() -> None:
    """It starts the server of the first with the same options, and names the users in URLs."""
    second = yaml.safe_load((FOLDER / "compose.yml").read_text("utf-8"))["services"]
    name, *options = as_written()["services"]["redis"]["command"]
    assert name == "valkey-server"
    assert second["redis"]["command"] == ["--dir", "/data", *options]
    urls = {
        part: service["environment"].get("GOLEM_BROKER_URL") for part, service in second.items()
    }
    assert urls == {
        "redis": None,
        "worker": "redis://worker:${REDIS_WORKER_PASSWORD}@redis:6379/0",
        "worker-gpu": "redis://worker:${REDIS_WORKER_PASSWORD}@redis:6379/0",
        "flower": "redis://operator:${REDIS_OPERATOR_PASSWORD}@redis:6379/0",
    }

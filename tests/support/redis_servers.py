"""Servers beside the embedded one: with the users of `deploy/redis`, with TLS, of Debian."""

import os
import shutil
from pathlib import Path
from typing import Self
from urllib.parse import quote

import pytest
import redis

from golem_tasks.embedded import EmbeddedServer, server_binary

__all__ = ["PASSWORDS", "AclServer", "debian_redis"]

ROOT = Path(__file__).resolve().parents[2]
START = ROOT / "deploy" / "redis" / "start.sh"
PASSWORDS = {user: f"{user}'s p@ss:w/rd" for user in ("producer", "worker", "operator", "admin")}


def debian_redis() -> str:
    """Path of Debian's ``redis-server``; the test is skipped where there is none."""
    folders = [str(ROOT / ".debian-redis" / "bin"), os.environ.get("PATH", "")]
    found = shutil.which("redis-server", path=os.pathsep.join(folders))
    if found is None:
        pytest.skip("no redis-server; tools/debian_redis.sh gets Debian's")
    return found


class AclServer(EmbeddedServer):
    """A server started by ``deploy/redis/start.sh``, on which every role has a password.

    Its `client` and `url` are the administrator's; workers and producers take `url_of`.
    """

    def __init__(self, binary: str | None = None) -> None:
        super().__init__(binary=str(START))
        self._server = binary or server_binary()

    def url_of(self, user: str) -> str:
        """URL of database 0 for a user of the file."""
        password = quote(PASSWORDS[user], safe="")
        return f"redis://{user}:{password}@127.0.0.1:{self.port}/0"

    @property
    def url(self) -> str:
        """The administrator's URL."""
        return self.url_of("admin")

    def client(self, user: str = "admin") -> redis.Redis:
        """A new client of database 0, by default the administrator's; the caller closes it."""
        return redis.Redis.from_url(self.url_of(user), socket_timeout=10)

    def start(self) -> Self:
        """Start it as an operator does: passwords in the environment."""
        variables = {f"{user.upper()}_PASSWORD": word for user, word in PASSWORDS.items()}
        variables |= {"REDIS_SERVER": self._server, "ACL_FILE": str(self.folder / "users.acl")}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            return super().start()

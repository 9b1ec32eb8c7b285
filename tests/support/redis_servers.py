"""Servers beside the embedded one: with the users of `deploy/redis`, with TLS, of Debian."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self
from urllib.parse import quote, urlencode

import pytest
import redis

from golem_tasks.embedded import EmbeddedServer, server_binary

__all__ = [
    "PASSWORDS",
    "AclServer",
    "Certificates",
    "ProtectedServer",
    "Sentinel",
    "TlsServer",
    "debian_redis",
]

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

    def __init__(self, binary: str | None = None, arguments: Sequence[str] = ()) -> None:
        super().__init__(binary=str(START), arguments=arguments)
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


class Certificates:
    """An authority and what it signed, made anew: for a server on 127.0.0.1, and for a client."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self.authority = folder / f"{name}.crt"
        self._authority_key = folder / f"{name}.key"
        self._openssl("req", "-x509", "-subj", f"/CN={name}", *self._key(self._authority_key),
                      "-out", self.authority)  # fmt: skip

    def signed(self, name: str, *, address: str = "127.0.0.1") -> tuple[Path, Path]:
        """Certificate and key of one side."""
        certificate, key = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        self._openssl("req", "-x509", "-subj", f"/CN={name}", *self._key(key),
                      "-CA", self.authority, "-CAkey", self._authority_key,
                      "-addext", f"subjectAltName=IP:{address}", "-out", certificate)  # fmt: skip
        return certificate, key

    @staticmethod
    def _key(path: Path) -> list[object]:
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-keyout", path]

    @staticmethod
    def _openssl(*arguments: object) -> None:
        openssl = shutil.which("openssl")
        if openssl is None:
            pytest.skip("no openssl to make certificates with")
        subprocess.run([openssl, *map(str, arguments)], check=True, capture_output=True)


class TlsServer(AclServer):
    """Debian's server, which speaks TLS only and asks for a client certificate, with the users."""

    def __init__(self, certificates: Certificates) -> None:
        certificate, key = certificates.signed("server")
        super().__init__(debian_redis(), [
            "--port", "0", "--tls-auth-clients", "yes", "--tls-cert-file", str(certificate),
            "--tls-key-file", str(key), "--tls-ca-cert-file", str(certificates.authority),
        ])  # fmt: skip
        self._arguments += ["--tls-port", str(self.port)]
        self.authority = certificates.authority
        self.client_certificate = certificates.signed("client")

    def url_of(self, user: str, *, authority: Path | None = None, certificate: bool = True) -> str:
        """A user's URL: with the authority to trust, and by default the client certificate."""
        query = {"ssl_cert_reqs": "required", "ssl_ca_certs": str(authority or self.authority)}
        if certificate:
            names = ("ssl_certfile", "ssl_keyfile")
            query |= dict(zip(names, map(str, self.client_certificate), strict=True))
        plain = super().url_of(user).replace("redis:", "rediss:", 1)
        return f"{plain}?{urlencode(query, safe='/')}"


class ProtectedServer(EmbeddedServer):
    """A primary, or the replica of another one, whose default user has a password."""

    PASSWORD = "pass of the s@rvers"  # noqa: S105 - nobody's

    def __init__(
        self, primary: EmbeddedServer | None = None, arguments: Sequence[str] = ()
    ) -> None:
        role = ["--replicaof", "127.0.0.1", str(primary.port)] if primary else []
        login = ["--requirepass", self.PASSWORD, "--masterauth", self.PASSWORD]
        super().__init__(arguments=[*login, *role, *arguments])

    @property
    def url(self) -> str:
        """URL of database 0."""
        return f"redis://:{quote(self.PASSWORD)}@127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        """A new client of database 0; the caller closes it."""
        return redis.Redis(port=self.port, password=self.PASSWORD, socket_timeout=10)


class Sentinel(EmbeddedServer):
    """One Sentinel, which decides alone, watching a primary as ``mymaster``.

    Args:
        primary: what it watches at first.
        password: its own; None: it has none, as most have.
    """

    def __init__(self, primary: ProtectedServer, password: str | None = None) -> None:
        super().__init__()
        self._password = password
        configuration = self.folder / "sentinel.conf"  # Sentinel writes to it
        lines = [
            f"sentinel monitor mymaster 127.0.0.1 {primary.port} 1",
            f'sentinel auth-pass mymaster "{primary.PASSWORD}"',
            "sentinel down-after-milliseconds mymaster 3000",
            "sentinel failover-timeout mymaster 5000",
            *([f"requirepass {password}"] if password else []),
        ]
        configuration.write_text("\n".join([*lines, ""]))
        # The file must be the server's first argument.
        script = self.folder / "sentinel.sh"
        script.write_text(f'#!/bin/sh\nexec {server_binary()} {configuration} --sentinel "$@"\n')
        script.chmod(0o700)
        self._binary = str(script)
        self._arguments = []

    def client(self) -> redis.Redis:
        """A new client of the Sentinel itself; the caller closes it."""
        return redis.Redis(port=self.port, password=self._password, socket_timeout=10)

    @property
    def url(self) -> str:
        """URL of the primary's database 0, whichever server that is."""
        return f"sentinel://:{quote(ProtectedServer.PASSWORD)}@127.0.0.1:{self.port}/0"

    def primary_port(self) -> int:
        """Port of the primary it names now."""
        with self.client() as client:
            port: int = client.sentinel_get_master_addr_by_name("mymaster")[1]
            return port

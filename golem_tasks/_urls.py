"""Redis URLs: what is wrong with one, and how one is shown. Nothing here connects.

redis-py reads them for our own commands, kombu for the worker's broker and Celery for its results,
each in its own way, and each fails on a bad one with a traceback of its own that may quote the
password. So a URL is looked at here, once, before any of them sees it.
"""

from __future__ import annotations

import re
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

__all__ = ["fault_of", "mask_url"]

_SCHEMES = ("redis", "rediss", "redis+socket", "unix", "sentinel")

_SOCKETS = ("unix", "redis+socket")

_SECRET_QUERY = ("password", "pass", "token", "secret", "credential")
_SOCKET_QUERY = ("db", "virtual_host", "password", "username")
_DATABASE_QUERY = ("db", "virtual_host")
_TLS_QUERY = "ssl_"
_CERT_REQS = ("none", "optional", "required")
_MOST_PORT = 65_535
_SHOWN_SCHEME = re.compile(r"([A-Za-z][A-Za-z+.-]{0,15})://")


def mask_url(url: str) -> str:
    """Return the URL, each of them in a ``;`` list, with its passwords as ``**``."""
    return ";".join(_mask_one(part) for part in url.split(";"))


def _mask_one(url: str) -> str:
    try:
        parts = urlsplit(url)
        if _is_cut(parts):
            return f"{parts.scheme}://**"
        userinfo, at, host = parts.netloc.rpartition("@")
        if at:
            user, colon, _ = userinfo.partition(":")
            # Without a colon the whole userinfo may be a token somebody pasted.
            userinfo = f"{user}:**" if colon else "**"
        query = [
            (key, "**" if any(word in key.lower() for word in _SECRET_QUERY) else value)
            for key, value in parse_qsl(parts.query, keep_blank_values=True)
        ]
    except ValueError:
        return "**"
    shown = f"?{urlencode(query, safe='*/')}" if query else ""
    separator = "://" if "://" in url else ":" if parts.scheme else ""
    return f"{parts.scheme}{separator}{userinfo}{at}{host}{parts.path}{shown}"


def _is_cut(parts: SplitResult) -> bool:
    """Whether a / ? or # in the password, not encoded, has cut it in two."""
    return parts.scheme not in _SOCKETS and "@" in parts._replace(netloc="").geturl()


def fault_of(url: str) -> str | None:
    """What is wrong with a URL, without quoting what may be its password; None if nothing is."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES or not rest:
        return _not_ours(url)
    if scheme == "sentinel":
        faults = [_fault_of_one(part) for part in url.split(";")]
        return next((fault for fault in faults if fault), None)
    fault = _fault_of_one(url)
    if fault is None and ";" in url:
        return "has a ; in it, as only a list of sentinel:// URLs does: write %3B"
    return fault


def _not_ours(url: str) -> str:
    known = ", ".join(f"{name}://" for name in _SCHEMES)
    found = _SHOWN_SCHEME.match(url)
    quoted = ", without quotes round it" if url[:1] in ("'", '"') else ""
    begins = f"; this one begins with {found[0]}" if found and found[1] not in _SCHEMES else ""
    return f"must be a Redis URL that begins with one of {known}{quoted}{begins}"


def _fault_of_one(url: str) -> str | None:
    try:
        parts = urlsplit(url)
    except ValueError as exc:
        return f"isn't a URL ({exc})"
    if fault := _fault_of_signs(url, parts):
        return fault
    if parts.scheme in _SOCKETS:
        if len(parts.path) <= 1 or parts.netloc.rpartition("@")[2]:
            return "must name the socket after three slashes, as in unix:///run/redis.sock"
        return _unknown_parameter(parts, _SOCKET_QUERY) or _fault_of_database(parts)
    fault = _fault_of_address(parts)
    if fault:
        return fault
    return _unknown_parameter(parts) or _fault_of_tls(parts)


def _fault_of_signs(url: str, parts: SplitResult) -> str | None:
    if re.search(r"\s", url.rpartition("@")[2]):
        return "has a blank in it"
    if "#" in url and not _is_cut(parts):
        return "has a # in it, behind which nothing is read: write %23"
    return None


def _fault_of_address(parts: SplitResult) -> str | None:
    if _is_cut(parts):
        return "has a /, ? or # in its password, or an @ behind the host: write %2F, %3F, %23, %40"
    if not _has_port(parts):
        return f"has a port that isn't a number from 1 to {_MOST_PORT}"
    if not re.fullmatch(r"/?[0-9]*/?", parts.path) or parts.path == "//":
        return "must end with the number of a database, as in redis://127.0.0.1:6379/0"
    return None


def _has_port(parts: SplitResult) -> bool:
    try:
        return parts.port != 0
    except ValueError:
        return False


def _unknown_parameter(parts: SplitResult, known: tuple[str, ...] = ()) -> str | None:
    tls = parts.scheme == "rediss"
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        if tls and name.startswith(_TLS_QUERY):
            continue
        if name.startswith(_TLS_QUERY):
            return f"has {name}, which is for TLS: begin it with rediss://"
        if name not in known:
            takes = ", ".join(known) or ("ssl_..." if tls else "none")
            return f"has a parameter {name[:40]!r} that isn't among those taken ({takes})"
    return None


def _fault_of_database(parts: SplitResult) -> str | None:
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in _DATABASE_QUERY and not re.fullmatch(r"[0-9]{1,9}", value):
            return f"has a {name} that isn't the number of a database"
    return None


def _fault_of_tls(parts: SplitResult) -> str | None:
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name == "ssl_cert_reqs" and value.lower().removeprefix("cert_") not in _CERT_REQS:
            return f"has an ssl_cert_reqs other than {', '.join(_CERT_REQS)}"
    return None

"""The settings a producer and a worker share, read from ``GOLEM_*`` and checked once.

`load` turns whatever is wrong with them into one `ConfigurationError` sentence; `describe` lists
them for a log with the secrets masked. A URL is a `SecretStr`, so that neither a repr nor a
traceback can show its password.
"""

from __future__ import annotations

import difflib
import logging
import os
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from golem_tasks._urls import fault_of, mask_url
from golem_tasks.contract import BULK_SUFFIX, DEFAULT_QUEUE, Limits
from golem_tasks.errors import ConfigurationError

__all__ = ["CLOSE", "ENV_PREFIX", "ClientSettings", "describe", "load", "mask_url", "settings_of"]

logger: logging.Logger = logging.getLogger(__name__)

ENV_PREFIX = "GOLEM_"
CLOSE = 0.8
"""How alike two names are, 0 to 1, of which one may be the other misspelt."""
_told: set[str] = set()
"""Misspelt variables that were told of; once in a process is enough."""


def _check_url(value: SecretStr) -> SecretStr:
    url = value.get_secret_value().strip()  # a secret's file often ends with a line end
    if fault := fault_of(url):
        raise ValueError(fault)
    return SecretStr(url)


RedisUrl = Annotated[SecretStr, AfterValidator(_check_url)]


class ClientSettings(BaseSettings):
    """What every process that talks to the queue needs to know."""

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        env_prefix=ENV_PREFIX, frozen=True, extra="ignore", validate_default=True
    )

    broker_url: RedisUrl = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        description="Redis that holds the queues: redis://, rediss://, unix or sentinel://.",
    )
    result_backend: RedisUrl | None = Field(
        None, description="Redis that holds the answers; the broker's own if unset."
    )
    queue: str = Field(
        DEFAULT_QUEUE,
        min_length=1,
        max_length=200,
        pattern=r"^[\w.:-]+$",
        description="Interactive queue, of letters, digits and ._:-; its bulk lane has the suffix "
        f"{BULK_SUFFIX!r}.",
    )
    global_keyprefix: str = Field(
        "", description="Put before every Redis key, for a database shared with others."
    )
    sentinel_master: str = Field(
        "mymaster", min_length=1, description="Name of the master a sentinel:// URL asks for."
    )
    sentinel_password: SecretStr | None = Field(
        None, description="Password of the Sentinels themselves; the URL has that of the servers."
    )
    result_expires_s: int = Field(
        3600, ge=1, description="Seconds an answer stays in Redis after it was stored."
    )
    connect_timeout_s: float = Field(
        5.0, gt=0, le=300, description="Seconds until an unreachable Redis is an error."
    )
    socket_timeout_s: float = Field(
        30.0, gt=0, le=3600, description="Seconds until a Redis that doesn't reply is an error."
    )
    max_text_chars: int = Field(
        Limits().max_text_chars, ge=1, description="Characters allowed in one text."
    )
    max_texts: int = Field(
        Limits().max_texts, ge=1, description="Texts allowed in one classify_many job."
    )
    max_message_bytes: int = Field(
        Limits().max_message_bytes, ge=1024, description="Bytes allowed in one message body."
    )
    max_backlog: int | None = Field(
        None, ge=1, description="Jobs without an answer at which a submit is refused; unset: never."
    )

    @property
    def broker(self) -> str:
        """The broker URL with its secret: for connecting, never for showing."""
        return self.broker_url.get_secret_value()

    @property
    def backend(self) -> str:
        """The result backend's URL with its secret: for connecting, never for showing."""
        chosen = self.result_backend or self.broker_url
        return chosen.get_secret_value()

    @property
    def bulk_queue(self) -> str:
        """Name of the bulk lane."""
        return self.queue + BULK_SUFFIX

    @property
    def limits(self) -> Limits:
        """What a job may carry."""
        return Limits(
            max_text_chars=self.max_text_chars,
            max_texts=self.max_texts,
            max_message_bytes=self.max_message_bytes,
        )


SettingsT = TypeVar("SettingsT", bound=BaseSettings)


def load(cls: type[SettingsT], **given: Any) -> SettingsT:
    """Read settings from the environment; a keyword argument that isn't None goes before it.

    A variable that looks like one of them, misspelt, is told in the log.

    Raises:
        ConfigurationError: one sentence that names the setting, its fault and where to set it.
    """
    _tell_misspelt(cls)
    try:
        return cls(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as exc:
        first, *others = exc.errors(include_url=False, include_context=False, include_input=False)
        field = str(first["loc"][0]) if first["loc"] else "settings"
        reason = first["msg"].removeprefix("Value error, ")
        for other in others:  # of a setting that is a number or a word, what it could be as well
            if other["loc"][:1] == first["loc"][:1]:
                reason += f", or {other['msg'].removeprefix('Input should be ')}"
        if first["type"] == "string_pattern_mismatch":  # a pattern says nothing to a person
            reason = f"It should be: {cls.model_fields[field].description}".rstrip(".")
        where = "in the call" if field in given else "in the environment"
        message = (
            f"{ENV_PREFIX}{field.upper()} can't be used: {reason[0].lower()}{reason[1:]}; "
            f"correct it {where} or on the command line."
        )
        raise ConfigurationError(message) from None


def _tell_misspelt(cls: type[BaseSettings]) -> None:
    names = [name.upper() for name in cls.model_fields]
    for variable in os.environ:
        name = variable.removeprefix(ENV_PREFIX)
        if name == variable or name in names or variable in _told:
            continue
        # Only what is close: whoever runs us may have variables of his own that begin like ours.
        if close := difflib.get_close_matches(name, names, n=1, cutoff=CLOSE):
            _told.add(variable)
            logger.warning(
                "%s isn't a setting of Golem and is passed over: did you mean %s%s?",
                variable, ENV_PREFIX, close[0],
            )  # fmt: skip


def settings_of(settings: ClientSettings | None, given: dict[str, Any]) -> ClientSettings:
    """Read the settings; what is given goes before `settings`, and that before the environment."""
    base = {} if settings is None else settings.model_dump()
    return load(ClientSettings, **{**base, **{k: v for k, v in given.items() if v is not None}})


def describe(settings: BaseSettings) -> dict[str, str]:
    """Every setting by its environment name, secrets masked; for the log at start."""
    shown = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            secret = value.get_secret_value()
            value = mask_url(secret) if "://" in secret else "**"
        shown[ENV_PREFIX + name.upper()] = str(value)
    return shown

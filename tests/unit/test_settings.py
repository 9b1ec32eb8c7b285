"""Settings: what is read, what is refused and how, and that no secret is ever shown."""

from difflib import get_close_matches
from urllib.parse import quote

import pytest
import redis.asyncio.connection
import redis.connection
from hypothesis import given
from hypothesis import strategies as st
from kombu import Connection

from golem_tasks._redis import Server, broker_server, celery_url
from golem_tasks.errors import ConfigurationError
from golem_tasks.settings import CLOSE, ClientSettings, describe, load, mask_url
from worker.processes import FOLDER
from worker.settings import WorkerSettings

SECRET = "hunter2-hunter2"  # noqa: S105 - nobody's
URLS = [
    f"redis://:{SECRET}@host:6379/1",
    f"rediss://user:{SECRET}@host:6380/0?ssl_cert_reqs=CERT_REQUIRED",
    f"redis+socket:///run/redis.sock?virtual_host=2&password={SECRET}",
    f"unix://:{SECRET}@/run/redis.sock?db=2",
    f"sentinel://:{SECRET}@one:26379;sentinel://:{SECRET}@two:26379/3",
]


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ClientSettings.model_fields:
        monkeypatch.delenv(f"GOLEM_{name.upper()}", raising=False)


@pytest.mark.parametrize("url", URLS)
def test_no_url_shows_its_password(url: str) -> None:
    """Neither masked, nor in the settings' repr, the log at start, or a server's repr."""
    settings = load(ClientSettings, broker_url=url, result_backend=url, sentinel_password=SECRET)
    shown = [mask_url(url), repr(settings), str(describe(settings)), repr(broker_server(settings))]
    assert not [text for text in shown if SECRET in text]
    assert settings.broker == url


@given(
    password=st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=6),
    user=st.sampled_from(["", "user"]),
)
def test_whatever_the_password_masking_hides_it(password: str, user: str) -> None:
    """Percent-encoded, as a URL carries it; nothing else of the URL is lost."""
    encoded = quote(password, safe="")
    masked = mask_url(f"redis://{user}:{encoded}@golem.example:6379/7")
    assert masked == f"redis://{user}:**@golem.example:6379/7"


@given(url=st.text(max_size=60))
def test_masking_never_fails(url: str) -> None:
    """It runs while an error is being told, on whatever the operator typed."""
    assert isinstance(mask_url(f"redis://{url}"), str)


def test_an_argument_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """And None is no argument."""
    monkeypatch.setenv("GOLEM_QUEUE", "from-environment")
    assert load(ClientSettings).queue == "from-environment"
    assert load(ClientSettings, queue=None).queue == "from-environment"
    assert load(ClientSettings, queue="given").queue == "given"


def test_the_answers_are_in_the_brokers_redis_unless_set() -> None:
    """One URL is enough."""
    settings = load(ClientSettings, broker_url="redis://a:1/0")
    assert settings.backend == "redis://a:1/0"
    assert load(ClientSettings, result_backend="redis://b:1/0").backend == "redis://b:1/0"
    assert settings.bulk_queue == "golem.bulk"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("BROKER_URL", "localhost:6379", "GOLEM_BROKER_URL can't be used: must be a Redis URL"),
        ("BROKER_URL", "amqp://localhost", "GOLEM_BROKER_URL can't be used: must be a Redis URL"),
        ("QUEUE", "a b", "GOLEM_QUEUE can't be used: it should be: Interactive queue, of"),
        ("CONNECT_TIMEOUT_S", "soon", "GOLEM_CONNECT_TIMEOUT_S can't be used"),
        ("CONNECT_TIMEOUT_S", "-1", "GOLEM_CONNECT_TIMEOUT_S can't be used"),
        ("MAX_TEXTS", "0", "GOLEM_MAX_TEXTS can't be used"),
    ],
)
def test_a_bad_value_is_one_sentence_that_names_the_setting(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    """The operator reads which setting, what is wrong with it and where to correct it."""
    monkeypatch.setenv(f"GOLEM_{name}", value)
    with pytest.raises(ConfigurationError) as caught:
        load(ClientSettings)
    assert str(caught.value).startswith(said)
    assert str(caught.value).endswith("correct it in the environment or on the command line.")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["MAX_ROWS", "MAX_DISPATCH_TOKENS", "TOKEN_BUDGET"])
@pytest.mark.parametrize("value", ["AUTO", "", "0", "many"])
def test_a_setting_that_is_a_number_or_auto_says_both(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """Who wrote neither may have meant either."""
    monkeypatch.setenv(f"GOLEM_{name}", value)
    said = (
        rf"^GOLEM_{name} can't be used: input should be [^;]*, or 'auto'; correct it in the envir"
    )
    with pytest.raises(ConfigurationError, match=said):
        load(WorkerSettings)
    monkeypatch.setenv(f"GOLEM_{name}", "auto")
    assert getattr(load(WorkerSettings), name.lower()) == "auto"


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("GOLEM_BROKER_URLL", "GOLEM_BROKER_URL"),
        ("GOLEM_BROKERURL", "GOLEM_BROKER_URL"),
        ("GOLEM_MODLE", "GOLEM_MODEL"),
        ("GOLEM_LEASE_SS", "GOLEM_LEASE_S"),
    ],
)
def test_a_misspelt_variable_is_told_with_the_setting_it_is_like(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str, meant: str
) -> None:
    """Once in a process, without its value; a variable like none of ours is nobody's business."""
    monkeypatch.setattr("golem_tasks.settings._told", set())
    monkeypatch.setenv(variable, SECRET)
    monkeypatch.setenv("GOLEM_RELEASE_NOTES", "of somebody's own")
    load(WorkerSettings)
    load(WorkerSettings)
    assert [record.getMessage() for record in caplog.records] == [
        f"{variable} isn't a setting of Golem and is passed over: did you mean {meant}?"
    ]


def test_no_setting_of_a_worker_looks_like_a_misspelt_one_of_a_producer() -> None:
    """A producer doesn't know the worker's settings, which may stand in the same environment."""
    ours = [name.upper() for name in ClientSettings.model_fields]
    others = {name.upper() for name in WorkerSettings.model_fields} - set(ours)
    internal = {FOLDER.removeprefix("GOLEM_")}
    assert not [name for name in others | internal if get_close_matches(name, ours, 1, CLOSE)]


@pytest.mark.parametrize(
    ("url", "host", "port", "db", "password"),
    [
        ("redis://:p%40ss@host:6390/4", "host", 6390, 4, "p@ss"),
        ("rediss://u:pw@host:6390/4", "host", 6390, 4, "pw"),
        ("rediss://u:pw@host:6390/4?ssl_cert_reqs=CERT_NONE", "host", 6390, 4, "pw"),
    ],
)
def test_redis_py_and_kombu_read_one_url_alike(
    url: str, host: str, port: int, db: int, password: str
) -> None:
    """Sync, asyncio and Celery's side connect to the same server with the same login."""
    server = server_at(url)
    pool = server.pool()
    kombu = Connection(celery_url(url))
    assert pool.connection_kwargs["host"] == kombu.hostname == host
    assert pool.connection_kwargs["port"] == kombu.port == port
    assert pool.connection_kwargs["password"] == kombu.password == password
    assert pool.connection_kwargs["db"] == int(kombu.virtual_host) == db
    assert bool(kombu.ssl) is url.startswith("rediss")
    assert issubclass(pool.connection_class, redis.connection.SSLConnection) is bool(kombu.ssl)


async def test_a_unix_socket_is_found_by_either_spelling() -> None:
    """redis-py calls it unix://, kombu redis+socket://."""
    for url in ("unix:///run/r.sock?db=2", "redis+socket:///run/r.sock?virtual_host=2"):
        for pool in (server_at(url).pool(), server_at(url).async_pool()):
            assert pool.connection_kwargs["path"] == "/run/r.sock"
            assert pool.connection_kwargs["db"] == 2
            assert pool.connection_class in {
                redis.connection.UnixDomainSocketConnection,
                redis.asyncio.connection.UnixDomainSocketConnection,
            }
        assert celery_url(url) == "redis+socket:///run/r.sock?virtual_host=2"


async def test_every_sentinel_is_asked_for_the_named_master() -> None:
    """The list, the password and the database come from the URL, the master from the settings."""
    login = "pw"
    server = server_at(f"sentinel://:{login}@one:1;sentinel://:{login}@two:2/3")
    for pool in (server.pool(), server.async_pool(), server.async_subscriber_pool()):
        manager = pool.sentinel_manager
        assert [
            (node.connection_pool.connection_kwargs["host"],) for node in manager.sentinels
        ] == [("one",), ("two",)]
        assert pool.service_name == "mymaster"
        assert pool.connection_kwargs["db"] == 3
        assert pool.connection_kwargs["password"] == login


def test_tls_is_checked_unless_the_url_says_otherwise() -> None:
    """Celery's result backend refuses a rediss:// URL that doesn't say; ours says "required"."""
    assert celery_url("rediss://host/0") == "rediss://host/0?ssl_cert_reqs=required"
    told = "rediss://host/0?ssl_cert_reqs=none"
    assert celery_url(told) == told
    assert celery_url("redis://host/0") == "redis://host/0"


def server_at(url: str) -> Server:
    """A server that is never connected to."""
    return broker_server(load(ClientSettings, broker_url=url))

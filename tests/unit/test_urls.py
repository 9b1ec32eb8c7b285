"""Redis URLs: a bad one is refused in words, and none of those words is its password."""

import pytest
from celery import Celery
from celery.app import backends
from hypothesis import given
from hypothesis import strategies as st
from kombu import Connection

from golem_tasks._redis import broker_server, celery_url
from golem_tasks._urls import fault_of, mask_url
from golem_tasks.errors import ConfigurationError
from golem_tasks.settings import ClientSettings, load

SECRET = "hunter2"  # noqa: S105 - nobody's


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "must be a Redis URL that begins with one of redis://"),
        ("localhost:6379", "must be a Redis URL that begins with one of redis://"),
        ("redis:/localhost", "must be a Redis URL that begins with one of redis://"),
        ("http://localhost:6379", "this one begins with http://"),
        ('"redis://localhost"', "without quotes round it"),
        ("redis://localhost:port/0", "a port that isn't a number from 1 to 65535"),
        ("redis://localhost:99999/0", "a port that isn't a number from 1 to 65535"),
        ("redis://localhost:0/0", "a port that isn't a number from 1 to 65535"),
        ("redis://a:1;redis://b:1", "a port that isn't a number from 1 to 65535"),
        ("redis://[::1/0", "isn't a URL (Invalid IPv6 URL)"),
        ("redis://local host/0", "has a blank in it"),
        ("redis://localhost/first", "must end with the number of a database"),
        ("redis://localhost/-1", "must end with the number of a database"),
        ("redis://localhost/0/1", "must end with the number of a database"),
        ("sentinel://one:1;sentinel://two:2/x", "must end with the number of a database"),
        ("redis://localhost?db=2", "has a parameter 'db' that isn't among those taken (none)"),
        ("redis://localhost/0?ssl_cert_reqs=none", "for TLS: begin it with rediss://"),
        ("rediss://localhost/0?ssl_cert_reqs=maybe", "other than none, optional, required"),
        ("rediss://localhost/0?timeout=3", "isn't among those taken (ssl_...)"),
        ("rediss://localhost/0?ssl_cert_reqs=", "other than none, optional, required"),
        ("rediss://localhost/0#", "has a # in it"),
        ("sentinel://one:1;sentinel://two:2/0#x", "has a # in it"),
        ("unix:///run/redis.sock?db=x", "a db that isn't the number of a database"),
        ("unix:///run/redis.sock;", "has a ; in it"),
        ("sentinel://one:1/0?db=1", "has a parameter 'db' that isn't among those taken (none)"),
        ("redis://localhost//", "must end with the number of a database"),
        ("unix://run/redis.sock", "must name the socket after three slashes"),
        ("unix:///run/redis.sock?base=2", "(db, virtual_host, password, username)"),
    ],
)
def test_a_bad_url_is_refused_with_what_is_wrong_with_it(url: str, said: str) -> None:
    """One sentence that names the setting and the fault, before anything connects."""
    with pytest.raises(ConfigurationError) as caught:
        load(ClientSettings, broker_url=url)
    told = str(caught.value)
    assert told.startswith("GOLEM_BROKER_URL can't be used: ")
    assert said in told
    assert told.endswith("correct it in the call or on the command line.")


@pytest.mark.parametrize("mark", ["/", "?", "#", "/?#", "?a=", "#@", "@/"])
@pytest.mark.parametrize("scheme", ["redis", "rediss", "sentinel"])
def test_a_password_that_is_not_encoded_is_refused_and_not_shown(scheme: str, mark: str) -> None:
    """Cut in two by the reader of URLs, it would stand in the error as a port or a path."""
    url = f"{scheme}://:{SECRET}{mark}{SECRET}@golem.example:6379/0"
    with pytest.raises(ConfigurationError) as caught:
        load(ClientSettings, broker_url=url)
    assert SECRET not in str(caught.value)
    assert SECRET not in mask_url(url)


def test_blanks_around_a_url_do_not_count() -> None:
    """A secret's file often ends with a line end."""
    assert load(ClientSettings, broker_url=" redis://one:1/2\n").broker == "redis://one:1/2"


@given(rest=st.text(max_size=40), scheme=st.sampled_from(["redis", "rediss", "sentinel", "unix"]))
def test_what_is_not_refused_is_read_by_all_three_readers(scheme: str, rest: str) -> None:
    """redis-py, kombu and Celery's result backend take what passes; none raises its own error."""
    url = f"{scheme}://{rest}"
    if fault_of(url) is not None:
        return
    broker_server(load(ClientSettings, broker_url=url)).pool()
    if "%" not in url:  # kombu and Celery undo it a second time, which may raise
        Connection(celery_url(url))
        app = Celery(set_as_current=False)
        cls, read = backends.by_url(celery_url(url), app.loader)
        cls(app=app, url=read)

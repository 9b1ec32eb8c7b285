"""Which arguments leave the command line, and what takes their place."""

import pytest

from golem_tasks.cli.hiding import split

SECRET = "redis://:pw@h/0"  # noqa: S105 - nobody's


@pytest.mark.parametrize("given", [["--broker-url", SECRET], [f"--broker-url={SECRET}"]])
def test_a_url_with_a_password_goes_into_the_environment(given: list[str]) -> None:
    """Both spellings of an option; everything else keeps its order."""
    kept, moved = split(["python", "golem", "worker", *given, "--queue", "q", "--", "-E"])
    assert kept == ["python", "golem", "worker", "--queue", "q", "--", "-E"]
    assert moved == {"GOLEM_BROKER_URL": SECRET}


def test_what_holds_no_secret_stays() -> None:
    """A URL without a password, Celery's own arguments, an option without its value."""
    for argv in (
        ["golem", "worker", "--broker-url", "redis://h/0"],
        ["golem", "worker", "--", "--broker-url", SECRET],
        ["golem", "worker", "--broker-url"],
    ):
        assert split(argv) == (argv, {})


def test_the_last_of_two_options_counts() -> None:
    """As for click; the first one goes as well, since it would go before the environment."""
    kept, moved = split(["golem", "--result-backend", SECRET, "--result-backend", "redis://h/1"])
    assert kept == ["golem"]
    assert moved == {"GOLEM_RESULT_BACKEND": "redis://h/1"}


def test_a_password_that_is_no_url_goes_too() -> None:
    """The Sentinels' own."""
    assert split(["--sentinel-password", "pw"]) == ([], {"GOLEM_SENTINEL_PASSWORD": "pw"})

"""The FastAPI example's page in a real browser, with a real worker behind it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from golem_tasks.embedded import EmbeddedServer, free_port
from tests.support.browser import chromium
from tests.support.fastapi_example import LABELS, LOVE, WASTE, application
from tests.support.servers import WebServer
from tests.support.waiting import wait_until
from tests.support.workers import WorkerProcess

Rows = list[tuple[str, str]]


@pytest.fixture(scope="module")
def chrome() -> Iterator[Chrome]:
    """One browser for the module."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def web(redis_server: EmbeddedServer, tmp_path: Path) -> Iterator[WebServer]:
    """The application, on the Redis of the worker."""
    with application(tmp_path / "log", GOLEM_BROKER_URL=redis_server.url) as server:
        yield server


class Page:
    """What a person does with the page, and what they see of it."""

    def __init__(self, chrome: Chrome, url: str) -> None:
        self._chrome = chrome
        chrome.get(url)

    def send(self, *lines: str) -> None:
        """Replace the texts and press the button."""
        field = self._chrome.find_element(By.ID, "texts")
        field.clear()
        field.send_keys("\n".join(lines))
        self._chrome.find_element(By.ID, "send").click()

    @property
    def rows(self) -> Rows:
        """Text and label of each row."""
        cells = "return [...document.querySelectorAll('tbody tr')].map(r => [...r.cells].map(c => "
        shown = self._chrome.execute_script(cells + "c.textContent))")
        return [(text, label) for text, label, _ in shown]

    def says(self, element: str) -> str:
        """The text of an element."""
        return self._chrome.find_element(By.ID, element).text

    def check(self, rows: Rows) -> None:
        """Wait until nothing waits; then the table is exactly this."""
        wait_until(
            lambda: (
                len(self.rows) == len(rows) and all(label != "waiting" for _, label in self.rows)
            ),
            "a label in every row",
        )
        assert self.rows == rows

    @property
    def complaints(self) -> list[str]:
        """What the browser logged of scripts since it was last asked."""
        return [
            entry["message"]
            for entry in self._chrome.get_log("browser")
            if entry["source"] != "network"
        ]


@contextmanager
def paused(worker: WorkerProcess) -> Iterator[None]:
    """SIGSTOP the worker: it takes nothing before the block ends."""
    worker.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        worker.signal(signal.SIGCONT)


@pytest.mark.usefixtures("worker")
def test_labels_arrive_for_every_line_and_texts_stay_texts(chrome: Chrome, web: WebServer) -> None:
    """Markup in a text is shown as it was typed; nothing of it becomes an element or runs."""
    hostile = f"<img src=x onerror='document.title = 1'><script>document.title = 1</script> {LOVE}"
    page = Page(chrome, web.url)
    title = chrome.title
    page.send(LOVE, WASTE, "", hostile)
    page.check([(LOVE, LABELS[LOVE]), (WASTE, LABELS[WASTE]), (hostile, LABELS[LOVE])])
    assert page.says("progress") == "3 of 3 answered"
    assert page.says("problem") == ""
    assert chrome.title == title
    assert not chrome.find_elements(By.CSS_SELECTOR, "td img, td script")
    assert len(chrome.find_elements(By.TAG_NAME, "meter")) == 3
    assert page.complaints == []


@pytest.mark.usefixtures("web")
def test_the_page_is_labelled(chrome: Chrome, web: WebServer) -> None:
    """What a screen reader needs: names, roles and live regions, as the browser computes them."""
    Page(chrome, web.url)
    field, button = (chrome.find_element(By.ID, name) for name in ("texts", "send"))
    assert (field.accessible_name, field.aria_role) == ("Texts, one on each line", "textbox")
    assert (button.accessible_name, button.aria_role) == ("Classify", "button")
    roles = {name: chrome.find_element(By.ID, name).get_attribute("role") for name in LIVE}
    assert roles == LIVE
    assert chrome.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"


LIVE = {"problem": "alert", "progress": "status"}


def test_scenario_1_the_stream_is_lost_while_a_job_waits(
    chrome: Chrome, web: WebServer, worker: WorkerProcess
) -> None:
    """The application is restarted under an open stream: the page says so, and no label is lost."""
    page = Page(chrome, web.url)
    with paused(worker):
        page.send(LOVE, WASTE)
        wait_until(lambda: page.says("progress") == "0 of 2 answered", "the texts to be sent")
        web.stop()
        wait_until(lambda: "2 answers are still to come" in page.says("problem"), "the words")
        assert page.says("problem").startswith(("The connection was", "The application can't"))
        web.start()
        wait_until(lambda: page.says("problem") == "", "the page to have its stream again")
        assert page.says("progress") == "0 of 2 answered"
    page.check([(LOVE, LABELS[LOVE]), (WASTE, LABELS[WASTE])])
    assert page.complaints == []


def test_refusals_are_told_in_words(chrome: Chrome, server: EmbeddedServer, tmp_path: Path) -> None:
    """No text, no Redis, no application, a full queue: each a sentence; the button works again."""
    redis = f"redis://127.0.0.1:{free_port()}/0"
    env = {"GOLEM_BROKER_URL": redis, "GOLEM_CONNECT_TIMEOUT_S": "0.2"}
    with application(tmp_path / "log", **env) as web:
        page = Page(chrome, web.url)
        page.send(" ")
        assert page.says("problem") == "There is no text to send."
        page.send(LOVE)
        wait_until(lambda: "queue can't be reached" in page.says("problem"), "the 503's words")
    page.send(LOVE)
    wait_until(lambda: "application can't be reached" in page.says("problem"), "the words")
    full = {"GOLEM_BROKER_URL": server.url, "GOLEM_MAX_BACKLOG": "1"}
    with application(tmp_path / "log", **full) as web:
        page = Page(chrome, web.url)
        page.send(LOVE, WASTE)
        wait_until(lambda: "Too many texts are waiting" in page.says("problem"), "the 429's words")
        assert "Try again in 5 s" in page.says("problem")
    assert page.rows == []
    assert chrome.find_element(By.ID, "send").is_enabled()

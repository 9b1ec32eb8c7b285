"""The documentation built as pages: strictly, and without a word to the network."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Attributes by which a browser loads something of itself; an `a` only leads somewhere.
LOADS = {("link", "href"), *((tag, "src") for tag in ("script", "img", "iframe", "source"))}


class Loaded(HTMLParser):
    """What a page loads, and what its text is."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.links: list[str] = []
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what is loaded or linked."""
        for name, value in attrs:
            if (tag, name) in LOADS and ("rel", "canonical") not in attrs:
                self.targets.append(value or "")
            elif (tag, name) == ("a", "href"):
                self.links.append(value or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, built as `make docs` does; a warning fails."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return folder


def test_every_page_is_there_and_in_the_navigation(site: Path) -> None:
    """A page that was forgotten in mkdocs.yml would be found by nobody."""
    linked = {link.partition("#")[0] for link in Loaded(site / "index.html").links}
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / f"{page.stem}.html").is_file()
        assert f"{page.stem}.html" in linked | {"index.html"}


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    """Neither its HTML nor a style sheet names another host; what it names is there."""
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        for target in Loaded(page).targets:
            assert not re.match(r"(\w+:)?//", target), (page, target)
            if page.name != "404.html":
                assert (page.parent / target.partition("?")[0]).exists(), (page, target)
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text("utf-8"))


def test_links_out_of_the_docs_lead_to_copies(site: Path) -> None:
    """A proof is one click away, without a forge; so is what an example's page links to."""
    proofs = [link for link in Loaded(site / "guarantees.html").links if "tests/" in link]
    assert len(proofs) > 10
    assert all((site / link).is_file() for link in proofs)
    shown = (site / "source/tests/fault/test_leases.py.html").read_text("utf-8")
    assert "a_worker_killed_with_a_running_and_a_waiting_batch" in shown
    assert (site / "source/examples/fastapi_app/main.py.html").is_file()

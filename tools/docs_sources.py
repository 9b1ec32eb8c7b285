"""MkDocs hook: a page of docs/ may link to any file of the repository.

Where the repository is browsed such a link leads to the file. In the built pages it leads to a copy
of the file under source/, code highlighted, so that they need neither a forge nor a network. Links
of Markdown files that are copied are followed in the same way.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
COPIES = "source/"
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)")
LANGUAGES = {
    ".js": "javascript", ".lua": "lua", ".py": "python", ".sh": "bash", ".toml": "toml",
    ".yml": "yaml",
}  # fmt: skip
HEAD = "---\ntitle: {title}\nsearch:\n  exclude: true\n---\n\n"
FENCE = "`" * 8  # longer than any in the files themselves


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every file of the repository that a page links to."""
    found: set[Path] = set()
    todo = [Path(file.abs_src_path) for file in files.documentation_pages() if file.abs_src_path]
    while todo:
        for target in _targets(todo.pop()):
            if target in found or target.is_relative_to(DOCS) or not target.is_file():
                continue  # a link that leads nowhere is MkDocs' to complain of
            found.add(target)
            files.append(File.generated(config, _uri(target), content=_copy(target)))
            if target.suffix == ".md":
                todo.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - MkDocs' signature
    """Turn links into links to the pages that were added."""
    here = page.file.src_uri
    source = ROOT / here.removeprefix(COPIES) if here.startswith(COPIES) else DOCS / here
    if not source.is_file():  # a copy of code, which is nobody's prose
        return markdown

    def relative(match: re.Match[str]) -> str:
        target = (source.parent / match[1]).resolve()
        if not target.is_file():
            return match[0]
        return f"]({posixpath.relpath(_uri(target), posixpath.dirname(here))}{match[2] or ''})"

    return LINK.sub(relative, markdown)


def _targets(page: Path) -> Iterator[Path]:
    for target, _ in LINK.findall(page.read_text("utf-8")):
        yield (page.parent / target).resolve()


def _uri(file: Path) -> str:
    """Where a file is among the pages."""
    if file.is_relative_to(DOCS):
        return file.relative_to(DOCS).as_posix()
    # MkDocs leaves out what begins with a dot.
    path = COPIES + "/".join(part.lstrip(".") for part in file.relative_to(ROOT).parts)
    return path if file.suffix == ".md" else f"{path}.md"


def _copy(file: Path) -> str:
    text = file.read_text("utf-8")
    head = HEAD.format(title=file.relative_to(ROOT).as_posix())
    if file.suffix == ".md":
        return head + text
    return f"{head}{FENCE}{LANGUAGES.get(file.suffix, 'text')}\n{text}\n{FENCE}\n"

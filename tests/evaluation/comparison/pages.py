"""Reading a page of a comparison: its tables, what it refers to, and what a browser makes of it."""

import os
import shutil
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import pytest

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects references (tag, attribute, value), and of the first table rows of (text, data-value)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[tuple[str, str, str]] = []
        self.headings: list[str] = []
        self.rows: list[list[tuple[str, str | None]]] = []
        self.open: list[str] = []
        self.tables = 0
        self._cell: tuple[list[str], str | None] | None = None
        self.feed(text)
        self.close()
        assert self.open == [], "tags that were not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                self.references.append((tag, name, value or ""))
        self.tables += tag == "table"
        if tag == "tr" and self.tables == 1:
            self.rows.append([])
        if tag in ("td", "th") and self.tables == 1:
            self._cell = ([], dict(attrs).get("data-value"))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("td", "th") and self._cell is not None:
            self.rows[-1].append(("".join(self._cell[0]).strip(), self._cell[1]))
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell[0].append(data)


def browser() -> str:
    """Return Chromium; skips the test on a machine without, but not in CI."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None and "CI" not in os.environ:
        pytest.skip("no Chromium on this machine")
    assert found is not None, "CI has no Chromium to open the page in"
    return found


FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--hide-scrollbars", "--enable-logging=stderr", "--log-level=0",
)  # fmt: skip


def open_in_browser(page: Path, *words: str) -> tuple[str, list[str]]:
    """Return what Chromium prints of a page, and the lines of its console; `words` are further flags."""
    with tempfile.TemporaryDirectory(prefix="chromium-") as profile:
        command = [browser(), *FLAGS, f"--user-data-dir={profile}", *words, page.as_uri()]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout, [line for line in result.stderr.splitlines() if "CONSOLE" in line]

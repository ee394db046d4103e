"""The site builds strictly, every menu, link and anchor leads somewhere, and no page asks another host for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.docs.generated import DOCS, ROOT

LOADED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("video", "src"), ("audio", "src")}
LINKS_THAT_LOAD = {"stylesheet", "icon", "preconnect", "preload", "dns-prefetch", "modulepreload", "manifest"}


class Loads(HTMLParser):
    """Collects what a browser fetches by itself for a page, and the ids and links it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.classes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.loads += [value for name, value in found.items() if (tag, name) in LOADED]
        if tag == "link" and LINKS_THAT_LOAD & set(found.get("rel", "").split()):
            self.loads.append(found.get("href", ""))
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if "id" in found:
            self.ids.add(found["id"])
        self.classes |= set(found.get("class", "").split())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def _read(page: Path) -> Loads:
    parser = Loads()
    parser.feed(page.read_text())
    return parser


def _pages(site: Path) -> dict[Path, Loads]:
    return {page: _read(page) for page in sorted(site.rglob("*.html"))}


def test_every_page_of_the_folder_is_a_page_of_the_site(site: Path) -> None:
    missing = [
        str(page) for page in DOCS.rglob("*.md") if not (site / page.relative_to(DOCS).with_suffix(".html")).is_file()
    ]
    assert not missing


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    for page, found in _pages(site).items():
        outside = [url for url in found.loads if re.match(r"(?:[a-z]+:)?//", url)]
        assert not outside, f"{page.relative_to(site)} loads {outside}"
        # Material fetches Mermaid from a CDN where a page holds a diagram of it.
        assert "mermaid" not in found.classes, f"{page.relative_to(site)} holds a Mermaid diagram; draw an SVG"
    for sheet in site.rglob("*.css"):
        outside = re.findall(r"(?:url\(|@import )\s*[\"']?(?:https?:)?//[^)\"']+", sheet.read_text())
        assert not outside, f"{sheet.relative_to(site)} loads {outside}"


def test_links_and_anchors_lead_somewhere(site: Path) -> None:
    """MkDocs checks those of Markdown; this also sees those written in HTML, and headings that were renamed."""
    pages = _pages(site)
    for page, found in pages.items():
        if page.name == "404.html":  # its links are absolute: it answers for any address
            continue
        for link in found.links:
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{page.relative_to(site)}: {link}"
            if anchor and target in pages:
                assert anchor in pages[target].ids, f"{page.relative_to(site)}: {link}"

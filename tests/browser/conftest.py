"""Chromium on a live system: `pruneloop up` in a process of its own, and a page that is watched while it is used."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from api.dashboard.install import WANTED_BY_TESTS, install
from tests.e2e.conftest import System, started

ASKED = "PRUNELOOP_TEST_BROWSER"  # set by `make test-browser`: then what is missing is a failure, and everything is run
SHOTS = "PRUNELOOP_SCREENSHOTS"  # a folder: pictures of every page go there
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE_MS = 60_000


def chromium_path() -> str | None:
    """Return the browser of this host, if there is one."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


@dataclass
class Watched:
    """A page, and all that it asked for and complained about."""

    page: Any
    url: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    forgiven: tuple[str, ...] = ()

    def go(self, route: str) -> None:
        self.page.goto(f"{self.url}/{route}")

    def log_in(self, token: str) -> None:
        self.page.fill("#token", token)
        self.page.click("button[type=submit]")

    def check(self) -> None:
        """No request left the host, and the console is free of errors."""
        foreign = [one for one in self.requests if not one.startswith((f"{self.url}/", "data:", f"blob:{self.url}/"))]
        assert not foreign
        left = [one for one in self.complaints if not any(text in one for text in self.forgiven)]
        assert not left


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: `make test-browser`"
    )
    path = chromium_path()
    problem = (
        "chromium is not on the PATH: `apt-get install chromium`, or `make test-browser`" if path is None else None
    )
    problem = problem or install(with_tests=True)
    if problem is not None:
        assert ASKED not in os.environ, problem
        pytest.skip(problem)
    with playwright_api.sync_playwright() as playwright:
        # Chromium refuses its sandbox to root; the tests load pages of this project only.
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        launched = playwright.chromium.launch(executable_path=path, args=sandbox)
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def system(browser: Any) -> Iterator[System]:
    with started() as running:
        yield running


Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any, system: System) -> Iterator[Open]:
    """Open pages of the system; what they asked for and complained about is looked at when the test is over."""
    opened: list[tuple[Any, Watched]] = []

    def make(*, forgiven: tuple[str, ...] = (), **options: Any) -> Watched:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        watched = Watched(page, system.url, forgiven=forgiven)
        page.on("request", lambda request: watched.requests.append(request.url))
        page.on("console", lambda message: message.type == "error" and watched.complaints.append(message.text))
        page.on("pageerror", lambda error: watched.complaints.append(str(error)))
        page.goto(system.url)
        opened.append((context, watched))
        return watched

    yield make
    for context, _ in opened:
        context.close()
    for _, watched in opened:
        watched.check()


@pytest.fixture
def inside(open_page: Open, system: System) -> Watched:
    """A page, logged in."""
    watched: Watched = open_page()
    watched.log_in(system.token)
    watched.page.wait_for_selector("h1:has-text('Jobs')")
    return watched


@pytest.fixture(scope="session")
def axe() -> str:
    return (Path(__file__).parents[2] / "api" / "dashboard" / "vendor" / next(iter(WANTED_BY_TESTS))).read_text()


@contextmanager
def the_page_stays(watched: Watched) -> Iterator[None]:
    """Hold that what happens within needs no reload."""
    watched.page.evaluate("window.stays = true")
    yield
    assert watched.page.evaluate("window.stays") is True


only_when_asked = pytest.mark.skipif(ASKED not in os.environ, reason="takes minutes: `make test-browser` runs it")

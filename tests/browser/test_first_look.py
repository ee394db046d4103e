"""The short version: the page comes up, lets the right person in, and every page that needs no job draws itself."""

from __future__ import annotations

import pytest

from tests.browser.conftest import Open, Watched
from tests.e2e.conftest import System

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

FIRST_PAGES = {"#/jobs": "No job yet.", "#/devices": "Add a device", "#/compare": "Choose jobs", "#/submit": "New job"}


def test_a_wrong_token_is_told_and_the_right_one_lets_in(open_page: Open, system: System) -> None:
    # The browser itself writes a line for the answer 401; it is what this test asks for.
    watched: Watched = open_page(forgiven=("401",))
    watched.log_in("guess")
    watched.page.wait_for_selector("[role=alert]:has-text('Nobody knows this token')")
    watched.log_in(system.token)
    watched.page.wait_for_selector("h1:has-text('Jobs')")
    assert watched.page.evaluate("sessionStorage.length") == 0
    assert system.token not in str(watched.page.evaluate("JSON.stringify({...localStorage}) + document.cookie"))


def test_every_first_page_draws_itself_by_keyboard_and_on_a_phone(inside: Watched) -> None:
    page = inside.page
    for route, text in FIRST_PAGES.items():
        inside.go(route)
        page.wait_for_selector(f"text={text}")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the content"
    page.set_viewport_size({"width": 360, "height": 740})
    for route in FIRST_PAGES:
        for direction in ("ltr", "rtl"):
            inside.go(route)
            page.evaluate("(direction) => { document.documentElement.dir = direction }", direction)
            page.wait_for_selector("h1")
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, (route, direction)


def test_this_machine_is_there_as_a_device(inside: Watched) -> None:
    inside.go("#/devices")
    inside.page.click("tbody a >> nth=0")
    inside.page.wait_for_selector("h2:has-text('Health')")
    runtimes = inside.page.locator(
        "table:has(caption:text-is('Runtimes')) tbody tr"
    )  # health checks name runtimes, too
    row = runtimes.filter(has=inside.page.locator("th:text-is('onnxruntime')"))
    row.wait_for()
    assert "works" in row.inner_text()

"""A day at the dashboard: submit, watch, look closer, stop, download, add a device, pause it; the server restarts meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from domain.job import JobState
from tests.browser.conftest import SHOTS, Open, Watched, only_when_asked, the_page_stays
from tests.e2e.conftest import System

pytestmark = [only_when_asked, pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(2400)]

LONG_MS = 900_000
SERIOUS = {"serious", "critical"}


@pytest.fixture(scope="module")
def job_id(browser: Any, system: System) -> str:
    """A job that was submitted by the form, seen to grow without a reload, and stopped by its button."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(60_000)
    page = context.new_page()
    watched = Watched(page, system.url)
    page.on("request", lambda request: watched.requests.append(request.url))
    page.on("console", lambda message: message.type == "error" and watched.complaints.append(message.text))
    page.on("pageerror", lambda error: watched.complaints.append(str(error)))
    page.goto(system.url)
    watched.log_in(system.token)
    page.wait_for_selector("h1:has-text('Jobs')")
    page.click("text=New job")
    page.fill("#name", "by the form")
    page.select_option("#model-name", "convnet")
    page.select_option("#data-name", "digits")
    page.check("label:has-text('int8') input")
    for field, value in {"#trials": "200", "#wall": "20", "#max-drop": "5", "#epochs": "0.3", "#keep": "2"}.items():
        page.fill(field, value)
    page.fill("#labels", "team=vision")
    page.click("button:has-text('Check')")
    page.wait_for_selector("#plan")
    assert page.text_content("#plan").count("at most 200") == 1
    with system.client() as client:
        assert client.jobs() == [], "the check must store nothing"
    page.click("#plan button:has-text('Submit')")
    page.wait_for_url(re.compile(r"#/jobs/job_"))
    made = page.url.rsplit("/", 1)[-1]
    with the_page_stays(watched):
        page.wait_for_selector("text=live", timeout=60_000)
        page.wait_for_selector("#front-chart[data-points]", timeout=LONG_MS)
        first = drawn(page)
        wait_until(lambda: drawn(page) >= first + 3 and drawn(page, "points") >= 1, LONG_MS / 1000)
        page.click("button:has-text('Stop')")
        page.click("dialog button:has-text('Stop')")
        page.wait_for_selector(".badge:has-text('stopped')", timeout=LONG_MS)
    with system.client() as client:
        assert client.job(made).state is JobState.STOPPED
    context.close()
    watched.check()
    return made


def drawn(page: Any, *kinds: str) -> int:
    told = page.evaluate("({...document.getElementById('front-chart').dataset})")
    return sum(int(told[kind]) for kind in kinds or ("points", "trials"))


def wait_until(is_so: Callable[[], bool], most_s: float) -> None:
    # Playwright's own way to wait for a condition is eval, which the page's policy forbids.
    deadline = time.monotonic() + most_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_a_click_on_a_point_opens_its_trial(inside: Watched, job_id: str) -> None:
    page = inside.page
    inside.go(f"#/jobs/{job_id}")
    page.wait_for_selector("#front-chart[data-points]")
    page.wait_for_timeout(300)
    place = page.evaluate("document.getElementById('front-chart').places().find((point) => point.kind === 'front')")
    box = page.locator("#front-chart").bounding_box()
    page.mouse.move(box["x"] + place["x"], box["y"] + place["y"])
    page.wait_for_selector(f".tip:has-text('Trial {place['number']}')")
    page.mouse.click(box["x"] + place["x"], box["y"] + place["y"])
    page.wait_for_url(re.compile(rf"/trials/{place['number']}$"))
    page.wait_for_selector(f"h1:has-text('Trial {place['number']}')")
    page.wait_for_selector(".chart[aria-label*='pairs of blocks'] canvas")
    assert page.locator(".pairs dt:has-text('runtime_version')").count() >= 1


def test_a_downloaded_file_is_the_one_its_digest_names(inside: Watched, job_id: str, tmp_path: Path) -> None:
    page = inside.page
    inside.go(f"#/jobs/{job_id}?tab=files")
    page.wait_for_selector("table tbody tr")
    row = page.locator("tbody tr").last
    digest = row.locator("code").get_attribute("title")
    with page.expect_download() as waiting:
        row.locator("button:has-text('Download')").click()
    path = tmp_path / "model"
    waiting.value.save_as(path)
    assert digest == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    page.wait_for_selector("text=its sha256 is right")


def test_a_clone_is_the_same_request(inside: Watched, system: System, job_id: str) -> None:
    page = inside.page
    inside.go(f"#/submit?from={job_id}")
    page.wait_for_selector("h1:has-text('Submit it again')")
    page.click("button:has-text('Edit as JSON')")
    wanted = json.loads(page.input_value("#json"))
    with system.client() as client:
        spec = client.job(job_id).spec
    assert wanted["model"]["name"] == "convnet" and wanted["budget"]["trials"] == spec.budget.trials
    assert wanted["targets"][0]["precision"] == ["fp32", "int8"]
    assert wanted["labels"] == {"team": "vision"}


def test_filters_live_in_the_url(inside: Watched, job_id: str) -> None:
    page = inside.page
    inside.go("#/jobs?state=STOPPED&label=team%3Dvision")
    page.wait_for_selector(f"a[href='#/jobs/{job_id}']")
    assert page.get_attribute("button.chip:has-text('stopped')", "aria-pressed") == "true"
    page.click("button.chip:has-text('stopped')")
    page.click("button.chip:has-text('failed')")
    page.wait_for_url(re.compile("state=FAILED"))
    page.wait_for_selector("text=No job matches these filters.")


@pytest.fixture
def second_device(inside: Watched, tmp_path: Path) -> Iterator[str]:
    """A device that joined by the line the page showed, run as the agent module that the line installs."""
    page = inside.page
    inside.go("#/devices")
    page.click("button:has-text('Add a device')")
    page.fill("#labels", "class=second")
    page.click("button:has-text('Make the command')")
    words = shlex.split(page.text_content(".command pre"))
    server, token = words[words.index("--server") + 1], words[words.index("--token") + 1]
    page.wait_for_selector("text=Waiting for it to arrive")
    agent = [sys.executable, "-m", "workers.agent"]
    state = ["--state-dir", str(tmp_path / "agent")]
    root = Path(__file__).parents[2]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PRUNELOOP_")}
    subprocess.run(
        [*agent, "join", "--server", server, "--token", token, "--name", "second", *state],
        check=True, cwd=root, env=environment, timeout=120, capture_output=True,
    )  # fmt: skip
    with (tmp_path / "agent.log").open("wb") as log:
        running = subprocess.Popen([*agent, "run", *state], cwd=root, env=environment, stdout=log, stderr=log)
    yield "second"
    running.send_signal(signal.SIGTERM)
    running.wait(60)


def test_a_device_is_added_arrives_and_is_paused(inside: Watched, system: System, second_device: str) -> None:
    page = inside.page
    page.wait_for_selector(f"[role=status]:has-text('{second_device} has joined')")
    page.click(f"[role=status] a:has-text('{second_device}')")
    page.wait_for_selector("h1:has-text('second')")
    page.wait_for_selector(".badge:has-text('active')", timeout=120_000)
    page.fill("#note", "a fan is loose")
    page.click("button:has-text('Pause')")
    page.wait_for_selector(".badge:has-text('paused')")
    page.wait_for_selector("text=a fan is loose")
    with system.client() as client:
        states = {device.name: device.state.value for device in client.devices()}
    assert states["second"] == "paused"
    page.click("button:has-text('Resume')")
    page.wait_for_selector(".badge:has-text('active')")
    page.click("button:has-text('Remove')")
    page.click("dialog button:has-text('Remove')")
    page.wait_for_selector(".badge:has-text('removed')")


def test_the_server_restarts_and_the_page_carries_on(open_page: Open, system: System, job_id: str) -> None:
    watched: Watched = open_page(forgiven=("ERR_", "Failed to load resource"))
    page = watched.page
    watched.log_in(system.token)
    page.wait_for_selector(f"a[href='#/jobs/{job_id}']")
    with the_page_stays(watched):
        # Killed until the page has seen it: it is back within a second or two, which a page that looks now and then may not notice.
        until = time.monotonic() + 60
        while not page.is_visible(".away") and time.monotonic() < until:
            pid = json.loads((system.data_dir / "run" / "api.pid").read_text())["pid"]
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            page.wait_for_timeout(200)
        page.wait_for_selector(".away:not([hidden])")
        assert page.is_visible(f"a[href='#/jobs/{job_id}']"), "what was there must stay"
        page.wait_for_selector(".away", state="hidden")
        with system.client() as client:
            client.submit(
                {"name": "after the restart", "model": {"name": "convnet"}, "data": {"name": "digits"}, "targets": [{}]}
            )
        page.wait_for_selector("text=after the restart")
    with system.client() as client:
        client.cancel(client.jobs()[0].id)


def test_an_expired_token_leads_to_the_log_in_and_back(open_page: Open, system: System, job_id: str) -> None:
    watched: Watched = open_page(forgiven=("401",))
    page = watched.page
    answer = httpx.post(
        f"{system.url}/v1/tokens",
        headers={"Authorization": f"Bearer {system.token}"},
        json={"name": f"short-{time.time():.0f}", "scopes": ["read"], "expires_in_s": 6},
        timeout=30,
    )
    assert answer.status_code == 201, answer.text
    watched.log_in(answer.json()["token"])
    page.wait_for_selector("h1:has-text('Jobs')")
    assert page.locator("text=New job").count() == 0, "who may only read is offered nothing else"
    page.goto(f"{system.url}/#/jobs/{job_id}?tab=network")
    page.wait_for_selector("#token")
    page.wait_for_selector("text=You were logged out")
    watched.log_in(system.token)
    page.wait_for_selector("h2:has-text('Before and after')")


def pages(system: System, job_id: str) -> dict[str, str]:
    with system.client() as client:
        device = client.devices()[0].id
        trial = client.front(job_id).items[0].trial
    return {
        "jobs": "#/jobs",
        "job": f"#/jobs/{job_id}",
        **{
            f"job-{tab}": f"#/jobs/{job_id}?tab={tab}"
            for tab in ("network", "search", "timeline", "events", "files", "spec")
        },
        "trial": f"#/jobs/{job_id}/trials/{trial}",
        "devices": "#/devices",
        "device": f"#/devices/{device}",
        "compare": f"#/compare?job={job_id}",
        "submit": "#/submit",
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_on_any_page(
    open_page: Open, system: System, job_id: str, axe: str, scheme: str
) -> None:
    watched: Watched = open_page(color_scheme=scheme)
    page = watched.page
    problems = {"login": violations(page, axe)}
    picture(page, f"login-{scheme}")
    watched.log_in(system.token)
    page.wait_for_selector("h1:has-text('Jobs')")
    for name, route in pages(system, job_id).items():
        watched.go(route)
        page.wait_for_selector("h1")
        page.wait_for_selector(".loading", state="detached")
        page.wait_for_timeout(400)
        problems[name] = violations(page, axe)
        picture(page, f"{name}-{scheme}")
    watched.go("#/devices")
    page.click("button:has-text('Add a device')")
    problems["add a device"] = violations(page, axe)
    page.set_viewport_size({"width": 360, "height": 740})
    for name, route in pages(system, job_id).items():
        watched.go(route)
        page.wait_for_selector("h1")
        page.wait_for_selector(".loading", state="detached")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, name
        problems[f"{name} on a phone"] = violations(page, axe)
    assert {name: found for name, found in problems.items() if found} == {}


def violations(page: Any, axe: str) -> list[str]:
    if not page.evaluate("'axe' in window"):
        page.evaluate(axe)
    told = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:200]}: {one['nodes'][0].get('failureSummary', '')[:300]}"
        for one in told["violations"]
        if one["impact"] in SERIOUS
    ]


def picture(page: Any, name: str) -> None:
    folder = os.environ.get(SHOTS)
    if folder:
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)

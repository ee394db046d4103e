"""How soon a job of a thousand trials is on the screen, and what that costs, beside optuna-dashboard on the same trials.

Both are opened in the same headless Chromium, with nothing cached, one after the other, several times. *Drawn* is when the plot of
accuracy against latency holds all the trials: for ours the front's chart, for optuna-dashboard the first plot with as many marks.
Bytes are what the browser received, compressed as it came, scripts included; JSON is told apart, uncompressed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Browser, sync_playwright

from benchmarks.dashboard.rows import seed_job
from db.engine import make_engine
from search.export import export_study
from tests.browser.conftest import chromium_path
from tests.e2e.conftest import System, started
from workers.servers.folders import prepare_folders
from workers.servers.postgres import start_postgres

MOVES = 40


@dataclass(frozen=True)
class Look:
    """One visit with nothing cached."""

    first_paint_ms: float
    drawn_ms: float
    bytes_received: int
    json_bytes: int
    requests: int
    slowest_interaction_ms: float


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--trials", type=int, default=1000)
    options.add_argument("--groups", type=int, default=60)
    options.add_argument("--runs", type=int, default=5)
    options.add_argument(
        "--journal", action="store_true", help="optuna-dashboard on a journal file instead of SQLite: quick to write"
    )
    options.add_argument("--report", type=Path)
    asked = options.parse_args()
    text = measure(asked.trials, asked.groups, asked.runs, is_journal=asked.journal)
    print(text)
    if asked.report:
        asked.report.write_text(text)
    return 0


def measure(trials: int, groups: int, runs: int, *, is_journal: bool = False) -> str:
    with started("--no-agent") as system, tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        engine = make_engine(start_postgres(prepare_folders(system.data_dir)))
        job_id = seed_job(engine, trials=trials, groups=groups)
        engine.dispose()
        file = f"{folder}/trials.{'log' if is_journal else 'db'}"
        started_s = time.monotonic()
        with system.client() as client:
            storage = f"journal:{file}" if is_journal else f"sqlite:///{file}"
            export_study(client.job(job_id), client.trials(job_id), storage)
        print(f"exported in {time.monotonic() - started_s:.0f} s", file=sys.stderr, flush=True)
        rival, rival_url = _optuna_dashboard(file if is_journal else storage)
        browser = playwright.chromium.launch(
            executable_path=chromium_path(), args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        try:
            ours: list[Look] = []
            cold: list[Look] = []
            theirs: list[Look] = []
            for run in range(runs):
                print(f"run {run + 1} of {runs}", file=sys.stderr, flush=True)
                _restart_api(system)
                cold.append(_our_look(browser, system, job_id, trials))
                ours.append(_our_look(browser, system, job_id, trials))
                theirs.append(_their_look(browser, rival_url, trials))
        finally:
            browser.close()
            rival.send_signal(signal.SIGTERM)
            rival.wait(20)
    return _table(trials, groups, runs, "a journal file" if is_journal else "SQLite", cold, ours, theirs)


def _restart_api(system: System) -> None:
    """A server that has just started has read nothing yet."""
    file = system.data_dir / "run" / "api.pid"
    before = file.read_text()
    os.kill(json.loads(before)["pid"], signal.SIGTERM)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(0.2)
        try:
            if file.read_text() != before and httpx.get(f"{system.url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            continue
    raise RuntimeError("the API did not come back")


def _our_look(browser: Browser, system: System, job_id: str, trials: int) -> Look:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(system.url)
    page.fill("#token", system.token)
    page.click("button[type=submit]")
    page.wait_for_selector("h1:has-text('Jobs')")
    state = context.storage_state()
    context.close()
    # A second context with the session and an empty cache.
    context = browser.new_context(viewport={"width": 1280, "height": 900}, storage_state=state)

    def interact(page: Any) -> None:
        box = page.locator("#front-chart").bounding_box()
        for step in range(MOVES):
            page.mouse.move(box["x"] + 80 + step * (box["width"] - 120) / MOVES, box["y"] + 60 + (step * 37) % 250)
        for tab in ("network", "search", "timeline"):
            page.click(f"a[href*='tab={tab}']")
            page.wait_for_selector(".loading", state="detached")
            page.wait_for_timeout(300)
        box = page.locator("canvas").first.bounding_box()
        for step in range(MOVES):
            page.mouse.move(box["x"] + 160 + step * 20, box["y"] + 20)

    is_drawn = f"Number(document.getElementById('front-chart')?.dataset.trials || 0) >= {trials // 2}"
    look = _look(context, f"{system.url}/#/jobs/{job_id}", is_drawn, interact)
    context.close()
    return look


def _their_look(browser: Browser, url: str, trials: int) -> Look:
    context = browser.new_context(viewport={"width": 1280, "height": 900})

    def interact(page: Any) -> None:
        box = page.locator(".js-plotly-plot").first.bounding_box()
        for step in range(MOVES):
            page.mouse.move(box["x"] + 80 + step * (box["width"] - 120) / MOVES, box["y"] + 60 + (step * 37) % 250)

    # Their plots are svg marks, or one canvas where there are many: its data then says how many it holds.
    is_drawn = (
        "[...document.querySelectorAll('.js-plotly-plot')].some((plot) => plot._fullLayout && (plot.data || [])"
        f".reduce((sum, trace) => sum + (trace.x?.length || 0), 0) >= {trials // 2} && plot.querySelector('.main-svg'))"
    )
    look = _look(context, url, is_drawn, interact)
    context.close()
    return look


OBSERVE = """
window.slowest = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries())
    if (entry.interactionId || /^(mouse|pointer)/.test(entry.name)) window.slowest = Math.max(window.slowest, entry.duration);
}).observe({ type: "event", durationThreshold: 16, buffered: true });
(function watch() {
  let is = false;
  try { is = Boolean(DRAWN); } catch { is = false; }
  if (is) requestAnimationFrame(() => setTimeout(() => { window.drawnAt = performance.now(); }, 0));
  else requestAnimationFrame(watch);
})();
"""


def _look(context: Any, url: str, is_drawn: str, interact: Callable[[Any], None]) -> Look:
    page = context.new_page()
    page.add_init_script(OBSERVE.replace("DRAWN", is_drawn))
    session = context.new_cdp_session(page)
    session.send("Network.enable")
    received, kinds, plain = [], {}, {}
    session.on(
        "Network.responseReceived", lambda event: kinds.__setitem__(event["requestId"], event["response"]["mimeType"])
    )
    session.on(
        "Network.dataReceived",
        lambda event: plain.__setitem__(event["requestId"], plain.get(event["requestId"], 0) + event["dataLength"]),
    )
    session.on("Network.loadingFinished", lambda event: received.append(event["encodedDataLength"]))
    page.goto(url)
    deadline = time.monotonic() + 120
    while not page.evaluate("window.drawnAt"):  # not wait_for_function: it is eval, which our policy forbids
        if time.monotonic() > deadline:
            raise RuntimeError(f"{url} was not drawn")
        page.wait_for_timeout(100)
    page.wait_for_timeout(1000)
    drawn_ms = page.evaluate("window.drawnAt")
    paint_ms = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    total, count = int(sum(received)), len(received)
    json_bytes = sum(size for name, size in plain.items() if "json" in kinds.get(name, ""))
    interact(page)
    page.wait_for_timeout(500)
    slowest = page.evaluate("window.slowest")
    return Look(paint_ms, drawn_ms, total, json_bytes, count, slowest)


def _optuna_dashboard(storage: str) -> tuple[subprocess.Popen[bytes], str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = Path(sys.executable).parent / "optuna-dashboard"
    running = subprocess.Popen(
        [program, storage, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            studies = httpx.get(f"{url}/api/studies", timeout=10).json()["study_summaries"]
            return running, f"{url}/dashboard/studies/{studies[0]['study_id']}"
        except httpx.HTTPError:
            time.sleep(0.3)
    running.kill()
    raise RuntimeError("optuna-dashboard did not come up")


def _table(
    trials: int, groups: int, runs: int, storage: str, cold: list[Look], ours: list[Look], theirs: list[Look]
) -> str:
    def middle(looks: list[Look], name: str) -> float:
        return statistics.median(getattr(look, name) for look in looks)

    def spread(looks: list[Look], name: str) -> str:
        values = sorted(getattr(look, name) for look in looks)
        return f"{middle(looks, name):.0f} ({values[0]:.0f} to {values[-1]:.0f})"

    rows = []
    for label, name in (
        ("first paint, ms", "first_paint_ms"),
        ("all trials drawn, ms", "drawn_ms"),
        ("slowest interaction, ms", "slowest_interaction_ms"),
    ):
        rows.append(f"| {label} | {spread(ours, name)} | {spread(cold, name)} | {spread(theirs, name)} |")
    for label, name in (("received, kB", "bytes_received"), ("JSON, uncompressed, kB", "json_bytes")):
        told = [f"{middle(looks, name) / 1000:.0f}" for looks in (ours, cold, theirs)]
        rows.append(f"| {label} | {' | '.join(told)} |")
    counts = [f"{middle(looks, 'requests'):.0f}" for looks in (ours, cold, theirs)]
    rows.append(f"| requests | {' | '.join(counts)} |")
    fewer = middle(theirs, "bytes_received") / middle(ours, "bytes_received")
    sooner, sooner_cold = (middle(theirs, "drawn_ms") / middle(one, "drawn_ms") for one in (ours, cold))
    return PAGE.format(
        trials=trials, groups=groups, runs=runs, storage=storage, cores=os.cpu_count(),
        rows="\n".join(rows), fewer=fewer, sooner=sooner,
        sooner_cold=sooner_cold,
    )  # fmt: skip


PAGE = """# The dashboard on a large job

`make bench-dashboard`: a job of {trials:,} trials and {groups} groups of channels put into PostgreSQL by rows, its page opened
in headless Chromium with nothing cached, beside optuna-dashboard 0.21 on the same trials in {storage}
(`pruneloop export-study`), in one run on the same {cores} cores; median of {runs} visits each, and their range.
*Just started*: the server has read nothing of the job yet.

| | ours | ours, server just started | optuna-dashboard |
|---|---|---|---|
{rows}

{fewer:.1f} times fewer bytes, and drawn {sooner:.1f} times sooner ({sooner_cold:.1f} times right after the server's start).

*Drawn* is when the plot of accuracy against latency holds the trials. Interaction is the longest of the browser's own event
timings while the pointer moves over the plots and, for ours, the other views of the job are opened. Bytes are as received,
scripts included.
"""

if __name__ == "__main__":
    sys.exit(main())

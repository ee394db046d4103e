"""The dashboard's files, read once: our own beside this module, libraries as `api.dashboard.install` put them there.

Every path carries a hash of all files, so that browsers may keep them for ever and a new release is seen at once.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

HERE = Path(__file__).parent
STATIC, VENDOR = HERE / "static", HERE / "vendor"
INDEX = "index.html"
NEEDED = ("preact.js", "uplot.js", "uplot.css")  # of the libraries, as `api.dashboard.install` names them
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
LEAST_GZIPPED = 1024


@dataclass(frozen=True)
class Asset:
    """A file as it is sent; ``gzipped`` where that is worth it."""

    body: bytes
    media_type: str
    gzipped: bytes | None


class DashboardFiles:
    """All files by their path under the version.

    Args:
        static: Folder of our own files.
        vendor: Folder of the libraries.
    """

    def __init__(self, static: Path = STATIC, vendor: Path = VENDOR) -> None:
        self._static, self._vendor = static, vendor

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the libraries' files that are not installed."""
        return tuple(name for name in NEEDED if not (self._vendor / name).is_file())

    @cached_property
    def version(self) -> str:
        whole = hashlib.sha256()
        for name, body in sorted(self._bodies.items()):
            whole.update(f"{name}\0{len(body)}\0".encode() + body)
        return whole.hexdigest()[:16]

    @cached_property
    def index(self) -> Asset:
        """The page itself, with the version in its links."""
        return _asset(INDEX, self._bodies[INDEX].replace(b"{version}", self.version.encode()))

    def asset(self, name: str) -> Asset | None:
        """Return a file by its path, None where there is none."""
        return self._assets.get(name)

    @cached_property
    def _assets(self) -> dict[str, Asset]:
        return {name: _asset(name, body) for name, body in self._bodies.items() if name != INDEX}

    @cached_property
    def _bodies(self) -> dict[str, bytes]:
        found = {}
        for folder, prefix in ((self._static, ""), (self._vendor, "vendor/")):
            for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
                if path.is_file() and path.suffix in TYPES:
                    found[prefix + path.relative_to(folder).as_posix()] = path.read_bytes()
        return found


def _asset(name: str, body: bytes) -> Asset:
    gzipped = gzip.compress(body, 9, mtime=0) if len(body) >= LEAST_GZIPPED else None
    return Asset(body, TYPES[Path(name).suffix], gzipped)

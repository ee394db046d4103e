"""The wheel a fresh machine becomes a device by: this server's own code, as much of it as a device needs.

It is put together from the folders this process runs from, so that a checkout, an image and an installed wheel serve the same
thing, no build tool is needed, and a device always runs the release of its server. The version ends in the digest of what is
inside: ``pip`` then knows another wheel from the one it has, and a device's inventory says which code it runs.

Source: the binary distribution format, https://packaging.python.org/en/latest/specifications/binary-distribution-format/
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import tomllib
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

NAME = "pruneloop"
EXTRA = "agent"
ROOT = Path(__file__).resolve().parents[1]
# What a device imports: the nouns, the agent, and the command line with the shapes it reads.
PARTS = (
    "domain/**/*",
    "workers/__init__.py",
    "workers/agent/**/*",
    "client/**/*",
    "api/__init__.py",
    "api/schemas/**/*",
)
TAG = "py3-none-any"
OLDEST = (1980, 1, 1, 0, 0, 0)  # of a zip file: equal content is an equal file
REQUIREMENT = re.compile(r"^(?P<name>[A-Za-z0-9][\w.-]*)(?P<extras>\[[^\]]*\])?")
EXTRA_MARKER = re.compile(r";\s*extra\s*==\s*['\"](?P<extra>[\w.-]+)['\"]\s*$")


@dataclass(frozen=True)
class AgentWheel:
    """``content`` under ``file_name``; ``sha256`` in hex, as pip checks it."""

    file_name: str
    content: bytes
    sha256: str


@dataclass(frozen=True)
class _Project:
    """What the wheel's metadata says. ``requirements``: of every device; the agent's extra is part of them."""

    version: str
    python: str
    base: tuple[str, ...]
    agent: tuple[str, ...]


@cache
def agent_wheel(root: Path = ROOT) -> AgentWheel:
    """Return the wheel of the code in a folder, made once in the life of the process."""
    project = _project(root)
    files = dict(_files(root))
    inside = hashlib.sha256()
    for place, content in files.items():
        inside.update(f"{place} {len(content)}\n".encode() + content)
    metadata = _metadata(project)
    inside.update(metadata.encode())
    version = f"{project.version}+{inside.hexdigest()[:12]}"
    info = f"{NAME}-{version}.dist-info"
    files |= {
        f"{info}/METADATA": metadata.replace("\nVersion: \n", f"\nVersion: {version}\n").encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: {NAME}\nRoot-Is-Purelib: true\nTag: {TAG}\n".encode(),
        f"{info}/entry_points.txt": f"[console_scripts]\n{NAME} = client.__main__:main\n".encode(),
    }
    record = "".join(f"{place},sha256={_record_hash(content)},{len(content)}\n" for place, content in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    content = _zipped(files)
    return AgentWheel(f"{NAME}-{version}-{TAG}.whl", content, hashlib.sha256(content).hexdigest())


def _files(root: Path) -> Iterator[tuple[str, bytes]]:
    found = {path for part in PARTS for path in root.glob(part)}
    for path in sorted(found):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path.relative_to(root).as_posix(), path.read_bytes()


def _project(root: Path) -> _Project:
    """Read pyproject.toml beside the code, as a checkout and the images have it; else what is installed."""
    path = root / "pyproject.toml"
    if path.is_file():
        project = tomllib.loads(path.read_text())["project"]
        pins = _pins(root / "constraints.txt")
        return _Project(
            version=project["version"],
            python=project["requires-python"],
            base=_pinned(project["dependencies"], pins),
            agent=_pinned(project["optional-dependencies"][EXTRA], pins),
        )
    installed = distribution(NAME)
    base, agent = [], []
    for line in installed.requires or ():
        marker = EXTRA_MARKER.search(line)
        if marker is None:
            base.append(line)
        elif marker["extra"] == EXTRA:
            agent.append(line[: marker.start()].strip())
    return _Project(
        version=installed.version.partition("+")[0],
        python=installed.metadata["Requires-Python"],
        base=tuple(base),
        agent=tuple(agent),
    )


def _pins(path: Path) -> Mapping[str, str]:
    """Return name -> version: a device gets what the tests ran with, not what came out since."""
    if not path.is_file():
        return {}
    found = re.findall(r"^([\w.-]+)==(\S+)$", path.read_text(), re.MULTILINE)
    return {_plain(name): version for name, version in found}


def _pinned(requirements: Iterable[str], pins: Mapping[str, str]) -> tuple[str, ...]:
    found = []
    for requirement in requirements:
        match = REQUIREMENT.match(requirement)
        pin = pins.get(_plain(match["name"])) if match is not None else None
        found.append(requirement if match is None or pin is None else f"{match[0]}=={pin}")
    return tuple(found)


def _metadata(project: _Project) -> str:
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {NAME}",
        "Version: ",
        f"Requires-Python: {project.python}",
        *(f"Requires-Dist: {one}" for one in project.base),
        f"Provides-Extra: {EXTRA}",
        *(f'Requires-Dist: {one}; extra == "{EXTRA}"' for one in project.agent),
    ]
    return "\n".join(lines) + "\n"


def _zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for place, content in files.items():
            entry = zipfile.ZipInfo(place, OLDEST)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _record_hash(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

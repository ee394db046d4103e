"""Podman without a daemon, a registry or systemd: images from Debian packages, containers with Debian's runc.

Source: the flags were found by trial on Debian 12, podman 4.3.1, as root: crun refuses hybrid control groups, and without the
limits on files and processes setrlimit is refused.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
TOOLS = ("podman", "buildah", "runc", "mmdebstrap", "netavark", "iptables", "catatonit")
TO_INSTALL = (
    "apt-get install --no-install-recommends podman buildah runc mmdebstrap netavark aardvark-dns iptables catatonit"
)
PYTHON_IMAGE = "docker.io/library/python:3.11-slim"
SERVICES_IMAGE = "localhost/pruneloop-test/services"
STAND_INS = {"postgres": "docker.io/library/postgres:18", "valkey": "docker.io/valkey/valkey:9"}
ROLES = ("server", "build", "agent")
LIMITS = ("--ulimit", "nofile=20000:20000", "--ulimit", "nproc=1024:1024")
PLACES = ("/usr/lib/podman", "/usr/libexec/podman")


def missing_tools() -> str:
    """Return what to install for these tests; empty: all is there."""
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", *PLACES))
    missing = [tool for tool in TOOLS if shutil.which(tool, path=path) is None]
    if sys.platform != "linux" or os.geteuid() != 0:
        return "building and running images wants Linux and root"
    return f"{', '.join(missing)} missing: {TO_INSTALL}" if missing else ""


class Podman:
    """The command, with its configuration in a folder of this test."""

    def __init__(self, folder: Path) -> None:
        configuration = folder / "containers.conf"
        configuration.write_text('[engine]\ncgroup_manager = "cgroupfs"\nruntime = "runc"\n')
        self._environment = {**os.environ, "CONTAINERS_CONF": str(configuration)}

    def __call__(self, *words: str, timeout_s: float = 600, check: bool = True) -> str:
        done = subprocess.run(
            ["podman", *words], env=self._environment, capture_output=True, text=True, timeout=timeout_s
        )
        if check:
            assert done.returncode == 0, f"podman {' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout.strip()

    def holds(self, *words: str) -> bool:
        """Whether a command ends well."""
        done = subprocess.run(["podman", *words], env=self._environment, capture_output=True, timeout=600)
        return done.returncode == 0

    def logs(self, container: str) -> str:
        """Return both streams of a container."""
        done = subprocess.run(
            ["podman", "logs", container], env=self._environment, capture_output=True, text=True, timeout=60
        )
        return done.stdout + done.stderr

    def inspect(self, container: str) -> Mapping[str, object]:
        found: Mapping[str, object] = json.loads(self("inspect", container))[0]
        return found

    # --- images -----------------------------------------------------------------------------------------------------
    def make_base_images(self, folder: Path) -> None:
        """Make what a registry would give, from Debian's packages, unless it is there already."""
        self._bootstrap(folder, "bookworm", PYTHON_IMAGE, "python3,python3-venv,python3-pip,ca-certificates")
        if all(self.holds("image", "exists", name) for name in STAND_INS.values()):
            return
        self._bootstrap(folder, "trixie", SERVICES_IMAGE, "postgresql,valkey-server,valkey-tools")
        for target, name in STAND_INS.items():
            self._build(HERE, "--target", target, "--tag", name, "--file", str(HERE / "services.Containerfile"))

    def build_roles(self, folder: Path) -> None:
        """Build the Dockerfile's three images as a person does, with this host's pip configuration inside."""
        index = pip_of_this_host(folder)
        for role in ROLES:
            self._build(ROOT, "--target", role, "--tag", f"docker.io/pruneloop/{role}:latest", *index)

    def _build(self, context: Path, *options: str) -> None:
        self("build", "--isolation=chroot", *LIMITS, *options, str(context), timeout_s=1500)

    def _bootstrap(self, folder: Path, suite: str, name: str, packages: str) -> None:
        if self.holds("image", "exists", name):
            return
        archive = folder / f"{suite}.tar"
        subprocess.run(
            ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}", suite, str(archive)],
            check=True, timeout=900,
        )  # fmt: skip
        self("import", str(archive), name, timeout_s=300)
        archive.unlink()


def pip_of_this_host(folder: Path) -> Sequence[str]:
    """Return the options that give a build the index, the certificates and the folders that pip uses on this host."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    wanted: dict[str, str] = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        key = name.rpartition(".")[2]
        if key in {"index-url", "extra-index-url", "find-links", "cert", "trusted-host"}:
            wanted[key] = value.strip("'\"")
    file = folder / "pip.conf"
    file.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in wanted.items()))
    options = ["--volume", f"{file}:/etc/pip.conf:ro"]
    for value in (word for key in wanted for word in wanted[key].split()):
        local = Path(urlsplit(value).path) if value.startswith("file:") else Path(value)
        if local.is_absolute() and local.exists():
            place = local if local.is_file() else local.parent if local.name == "simple" else local
            options += ["--volume", f"{place}:{place}:ro"]
    if "find-links" in wanted or "extra-index-url" in wanted:
        options += ["--build-arg", "TORCH_INDEX_URL="]  # this host says itself where its torch comes from
    return _unique_pairs(options)


def _unique_pairs(options: Sequence[str]) -> list[str]:
    pairs = dict.fromkeys(zip(options[::2], options[1::2], strict=True))
    return [word for pair in pairs for word in pair]

"""Images and the composition, made once for these tests: minutes, so `make test-image` asks for them by PRUNELOOP_TEST_IMAGE=1."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from client.api import PruneloopClient
from tests.image.composition import Composition
from tests.image.podman import ROOT, Podman, missing_tools
from workers.embedded import free_port

ASKED = "PRUNELOOP_TEST_IMAGE"


@dataclass
class Running:
    """The composition, and its API."""

    composition: Composition
    podman: Podman
    folder: Path
    url: str
    took_s: Mapping[str, float]

    def secret(self, name: str) -> str:
        return (self.folder / "secrets" / name).read_text().strip()

    def client(self) -> PruneloopClient:
        return PruneloopClient(self.url, self.secret("admin_token"))

    def cli(self, *words: str) -> str:
        """Run `pruneloop` as a person on this host does."""
        environment = {**os.environ, "PRUNELOOP_URL": self.url, "PRUNELOOP_TOKEN": self.secret("admin_token")}
        done = subprocess.run(
            [sys.executable, "-m", "client", *words], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Podman:
    missing = missing_tools()
    if missing and os.environ.get(ASKED):
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)
    return Podman(tmp_path_factory.mktemp("podman"))


@pytest.fixture(scope="session")
def images(podman: Podman, tmp_path_factory: pytest.TempPathFactory) -> Podman:
    """The Dockerfile's three images, built now."""
    folder = tmp_path_factory.mktemp("images")
    for what, make in (("base images", podman.make_base_images), ("our images", podman.build_roles)):
        begin_s = time.monotonic()
        make(folder)
        sys.stderr.write(f"\n{what}: {time.monotonic() - begin_s:.0f} s\n")
    return podman


@pytest.fixture(scope="session")
def running(images: Podman, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A copy of the compose file and what it mounts, with secrets of its own, up and well."""
    folder = tmp_path_factory.mktemp("compose")
    shutil.copy(ROOT / "docker-compose.yml", folder)
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    subprocess.run(["sh", "deploy/make-secrets.sh"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    port = free_port("127.0.0.1")
    environment = {"PRUNELOOP_LISTEN": f"127.0.0.1:{port}", "PRUNELOOP_BUILD_MEMORY": "3g"}
    composition = Composition(images, folder, f"pltest{secrets.token_hex(3)}", environment)
    try:
        took_s = composition.up()
        sys.stderr.write(f"up: {json.dumps({name: round(s, 1) for name, s in took_s.items()})}\n")
        yield Running(composition, images, folder, f"http://127.0.0.1:{port}", took_s)
    finally:
        composition.down()

"""docker-compose.yml, brought up by podman, in the order and on the conditions it states.

Not by podman-compose: health checks of this podman are run by systemd timers, which a container or a chroot lacks, so that
nothing would ever be healthy. Here they are run by hand.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.image.podman import LIMITS, Podman

PATIENCE_S = 300.0
VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\})")


def interpolated(text: str, environment: Mapping[str, str]) -> str:
    """Fill in ``${NAME}`` and ``${NAME:-default}`` and make ``$$`` a dollar, as Compose does.

    Source: https://github.com/compose-spec/compose-spec/blob/main/12-interpolation.md
    """
    return VARIABLE.sub(lambda m: (environment.get(m["name"]) or m["default"] or "") if m["name"] else "$", text)


class Composition:
    """The services of a compose file as containers named ``<project>-<service>-<n>``."""

    def __init__(self, podman: Podman, folder: Path, project: str, environment: Mapping[str, str]) -> None:
        self._podman = podman
        self._folder = folder
        self._project = project
        text = (folder / "docker-compose.yml").read_text()
        self.config: Mapping[str, Any] = yaml.safe_load(interpolated(text, environment))
        self.services: Mapping[str, Mapping[str, Any]] = {
            name: service for name, service in self.config["services"].items() if not service.get("profiles")
        }

    # --- life -------------------------------------------------------------------------------------------------------
    def up(self) -> Mapping[str, float]:
        """Start everything, each when what it depends on is as it says; return the seconds each took to be well."""
        for name, network in self.config["networks"].items():
            internal = ["--internal"] if (network or {}).get("internal") else []
            self._podman("network", "create", *internal, f"{self._project}_{name}")
        took: dict[str, float] = {}
        for name in self._in_order():
            begin_s = time.monotonic()
            for container in self.containers(name):
                self.run(name, container)
            for container in self.containers(name):
                self.await_condition(name, container)
            took[name] = time.monotonic() - begin_s
        return took

    def down(self) -> None:
        """Remove containers, volumes and networks."""
        for name in self.services:
            for container in self.containers(name):
                self._podman("rm", "--force", "--time", "2", "--volumes", container, check=False)
        for volume in self.config["volumes"]:
            self._podman("volume", "rm", "--force", f"{self._project}_{volume}", check=False)
        for network in self.config["networks"]:
            self._podman("network", "rm", "--force", f"{self._project}_{network}", check=False)

    def containers(self, service: str) -> list[str]:
        replicas = self.services[service].get("deploy", {}).get("replicas", 1)
        return [f"{self._project}-{service}-{n}" for n in range(1, replicas + 1)]

    def is_well(self, container: str) -> bool:
        """Run the service's own health check inside."""
        return self._podman.holds("healthcheck", "run", container)

    def await_condition(self, service: str, container: str) -> None:
        """Wait until a standing service is healthy, or one that runs once has ended well."""
        deadline = time.monotonic() + PATIENCE_S
        if "healthcheck" not in self.services[service]:
            assert self._podman("wait", container, timeout_s=PATIENCE_S) == "0", self._podman.logs(container)[-3000:]
            return
        while not self.is_well(container):
            assert time.monotonic() < deadline, f"{container} is not well:\n{self._podman.logs(container)[-3000:]}"
            time.sleep(0.5)

    def _in_order(self) -> Iterator[str]:
        left = dict(self.services)
        while left:
            ready = [name for name, one in left.items() if not set(one.get("depends_on", {})) & set(left)]
            assert ready, f"depend on one another: {sorted(left)}"
            for name in ready:
                del left[name]
                yield name

    # --- one container ----------------------------------------------------------------------------------------------
    def run(self, service: str, container: str) -> None:
        self._podman("run", "--detach", "--name", container, *LIMITS, *self._options(service), timeout_s=PATIENCE_S)

    def _options(self, service: str) -> list[str]:
        told = self.services[service]
        limits = told["deploy"]["resources"]["limits"]
        options = [
            "--restart", str(told["restart"]), "--memory", str(limits["memory"]), "--pids-limit", str(limits["pids"]),
        ]  # fmt: skip
        if "cpus" in limits:
            options += ["--cpus", str(limits["cpus"])]
        for network in told["networks"]:
            options += ["--network", f"{self._project}_{network}:alias={service}"]
        for name, value in (told.get("environment") or {}).items():
            options += ["--env", f"{name}={value}"]
        for port in told.get("ports", []):
            options += ["--publish", port]
        for volume in told.get("volumes", []):
            options += ["--volume", self._volume(volume)]
        for secret in told.get("secrets", []):
            file = self._folder / self.config["secrets"][secret]["file"]
            options += ["--volume", f"{file.resolve()}:/run/secrets/{secret}:ro"]
        for flag, key in (("--read-only", "read_only"), ("--init", "init")):
            options += [flag] if told.get(key) else []
        for flag, key in (("--tmpfs", "tmpfs"), ("--cap-drop", "cap_drop"), ("--security-opt", "security_opt")):
            for value in told.get(key, []):
                options += [flag, value]
        for flag, key in (("--user", "user"), ("--shm-size", "shm_size")):
            options += [flag, str(told[key])] if key in told else []
        if "stop_grace_period" in told:
            options += ["--stop-timeout", str(told["stop_grace_period"]).removesuffix("s")]
        if "healthcheck" in told:
            kind, *words = told["healthcheck"]["test"]
            # This podman takes no list of words with spaces in them.
            command = words[0] if kind == "CMD-SHELL" else shlex.join(words)
            options += ["--health-cmd", command, "--health-interval", "disable"]
        return [*options, self._image(told["image"]), *(told.get("command") or [])]

    def _volume(self, volume: str) -> str:
        source, colon, rest = volume.partition(":")
        if source.startswith("./"):
            return f"{(self._folder / source).resolve()}:{rest}"
        return f"{self._project}_{volume}" if colon else volume

    @staticmethod
    def _image(name: str) -> str:
        return f"docker.io/{name}" if "/" in name else f"docker.io/library/{name}"

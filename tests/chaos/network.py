"""The network between agents and server, and ways to cut it.

Namespaces   each agent in a network namespace of its own, on one bridge with the server; a cut takes its port out of the bridge,
             so that packets vanish as on a pulled cable. Needs root.
Relays       where namespaces are refused: each agent reaches API and broker through a relay of its own on the loopback; a cut
             stops the relay from passing anything on, and connections stay open and silent.
"""

from __future__ import annotations

import os
import secrets
import selectors
import shutil
import socket
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from workers.embedded import free_port


class Network(Protocol):
    """Where the server listens, and how one agent after the other gets there."""

    name: str
    server_host: str

    def attach(self, agent: str, api_port: int, broker_port: int) -> tuple[list[str], str, str]:
        """Return the words before the agent's command, and host:port of API and broker as it sees them."""
        ...

    def cut(self, agent: str) -> None: ...

    def mend(self, agent: str) -> None: ...

    def close(self) -> None: ...


def make_network(*, namespaces: bool) -> Network:
    if namespaces and os.geteuid() == 0 and shutil.which("ip"):
        try:
            return Namespaces()
        except subprocess.CalledProcessError:
            pass
    return Relays()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Namespaces:
    name = "network namespaces"

    def __init__(self) -> None:
        self._tag = f"pl{secrets.token_hex(3)}"
        self._net = f"10.{64 + secrets.randbelow(64)}.{secrets.randbelow(250)}"
        self.server_host = f"{self._net}.1"
        self._agents: dict[str, int] = {}
        _ip("link", "add", f"{self._tag}b", "type", "bridge")
        _ip("addr", "add", f"{self.server_host}/24", "dev", f"{self._tag}b")
        _ip("link", "set", f"{self._tag}b", "up")

    def attach(self, agent: str, api_port: int, broker_port: int) -> tuple[list[str], str, str]:
        number = len(self._agents) + 2
        self._agents[agent] = number
        space, inside = f"{self._tag}n{number}", f"{self._tag}p{number}"
        _ip("netns", "add", space)
        _ip("link", "add", self._port(agent), "type", "veth", "peer", "name", inside)
        _ip("link", "set", inside, "netns", space)
        _ip("-n", space, "addr", "add", f"{self._net}.{number}/24", "dev", inside)
        _ip("-n", space, "link", "set", inside, "up")
        _ip("-n", space, "link", "set", "lo", "up")
        _ip("link", "set", self._port(agent), "up")
        self.mend(agent)
        at = self.server_host
        return ["ip", "netns", "exec", space], f"{at}:{api_port}", f"{at}:{broker_port}"

    def cut(self, agent: str) -> None:
        _ip("link", "set", self._port(agent), "nomaster")

    def mend(self, agent: str) -> None:
        _ip("link", "set", self._port(agent), "master", f"{self._tag}b")

    def close(self) -> None:
        for number in self._agents.values():
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "del", f"{self._tag}n{number}")
        _ip("link", "del", f"{self._tag}b")

    def _port(self, agent: str) -> str:
        return f"{self._tag}h{self._agents[agent]}"


@dataclass
class Relay:
    """One port of the loopback that passes bytes to another; while cut it passes none, and closes nothing."""

    target_port: int
    port: int = field(default_factory=lambda: free_port("127.0.0.1"))
    is_cut: bool = False
    is_over: bool = False

    def start(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._listener.settimeout(0.2)
        threading.Thread(target=self._accept, name=f"relay-{self.port}", daemon=True).start()

    def _accept(self) -> None:
        while not self.is_over:
            if self.is_cut:
                time.sleep(0.05)
                continue
            with suppress(OSError):
                near, _ = self._listener.accept()
                threading.Thread(target=self._pass_on, args=(near,), daemon=True).start()
        self._listener.close()

    def _pass_on(self, near: socket.socket) -> None:
        there = ("127.0.0.1", self.target_port)
        with (
            near,
            suppress(OSError),
            socket.create_connection(there, timeout=5) as far,
            selectors.DefaultSelector() as ready,
        ):
            ready.register(near, selectors.EVENT_READ, far)
            ready.register(far, selectors.EVENT_READ, near)
            while not self.is_over:
                if self.is_cut:
                    time.sleep(0.05)
                    continue
                for key, _ in ready.select(0.2):
                    data = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                    if not data:
                        return
                    key.data.sendall(data)


class Relays:
    name = "relays on the loopback"
    server_host = "127.0.0.1"

    def __init__(self) -> None:
        self._relays: dict[str, list[Relay]] = {}

    def attach(self, agent: str, api_port: int, broker_port: int) -> tuple[list[str], str, str]:
        self._relays[agent] = [Relay(api_port), Relay(broker_port)]
        for relay in self._relays[agent]:
            relay.start()
        api, broker = (f"127.0.0.1:{relay.port}" for relay in self._relays[agent])
        return [], api, broker

    def cut(self, agent: str) -> None:
        for relay in self._relays[agent]:
            relay.is_cut = True

    def mend(self, agent: str) -> None:
        for relay in self._relays[agent]:
            relay.is_cut = False

    def close(self) -> None:
        for relays in self._relays.values():
            for relay in relays:
                relay.is_over = True

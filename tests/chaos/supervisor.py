"""`pruneloop up` with more of everything: ``python -m tests.chaos.supervisor PLAN.json`` runs the product's own supervisor."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel

from workers.embedded import Child, Embedded
from workers.servers.folders import prepare_folders


class AgentPlan(BaseModel):
    """An agent: its name, the words before its command (a namespace), what its environment says, and its way to the broker."""

    name: str
    broker: str
    prefix: list[str]
    environment: dict[str, str]
    labels: dict[str, str]


class Plan(BaseModel):
    """How many of each process, where they listen, and who joins."""

    data_dir: Path
    host: str
    port: int
    searches: int
    builders: int
    reapers: int
    agents: list[AgentPlan]


def run(plan: Plan) -> None:
    logging.basicConfig(level="INFO", stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", force=True)
    logging.getLogger("httpx").setLevel("WARNING")
    folders = prepare_folders(plan.data_dir)
    system = Embedded(folders, plan.host, plan.port, with_agent=False)

    def on_signal(*_: object) -> None:
        system.is_stopping = True

    signal.signal(signal.SIGTERM, on_signal)
    try:
        system.start()
        for role, count in (("search", plan.searches), ("build", plan.builders), ("reaper", plan.reapers)):
            for number in range(2, count + 1):
                _add(system, Child(f"{role}-{number}", [sys.executable, "-m", "workers.main", role]))
        for agent in plan.agents:
            _join(system, agent)
        (folders.run_dir / "ready").touch()
        system.supervise()
    finally:
        system.stop()


def _join(system: Embedded, agent: AgentPlan) -> None:
    answer = httpx.post(
        f"{system.url}/v1/join_tokens",
        headers={"Authorization": f"Bearer {system.admin_token_file.read_text().strip()}"},
        timeout=10,
    )
    answer.raise_for_status()
    state_dir = str(system.folders.data_dir / agent.name)
    words = [*agent.prefix, "env", *(f"{key}={value}" for key, value in agent.environment.items())]
    command = [*words, sys.executable, "-m", "workers.agent"]
    labels = [word for key, value in agent.labels.items() for word in ("--label", f"{key}={value}")]
    subprocess.run(
        [*command, "join", "--state-dir", state_dir, "--name", agent.name, *labels,
         "--server", agent.environment["PRUNELOOP_AGENT_SERVER_URL"], "--token", answer.json()["token"]],
        env=system.environment, check=True, timeout=120,
    )  # fmt: skip
    identity = Path(state_dir) / "agent.json"
    known = json.loads(identity.read_text())
    url = urlsplit(known["broker"]["url"])  # told to all alike, and here each has a way of its own
    known["broker"]["url"] = url._replace(netloc=f"{url.netloc.rpartition('@')[0]}@{agent.broker}").geturl()
    identity.write_text(json.dumps(known))
    _add(system, Child(agent.name, [*command, "run", "--state-dir", state_dir]))


def _add(system: Embedded, child: Child) -> None:
    system.children.append(child)
    system._launch(child)


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parents[2])
    run(Plan.model_validate_json(Path(sys.argv[1]).read_text()))

"""A device: ``python -m workers.agent join | run | doctor``. The `pruneloop agent` commands call the same three functions."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import SecretStr

from domain.errors import PruneloopError, Unavailable
from domain.messages import PROTOCOL, JoinRequest, check_protocol
from workers.agent.api import AgentApi
from workers.agent.assembly import make_inventory
from workers.agent.doctor import Diagnosis, diagnose
from workers.agent.settings import IDENTITY_FILE, AgentSettings, Identity


def join(
    server: str,
    token: str,
    name: str = "",
    labels: Mapping[str, str] | None = None,
    state_dir: Path | None = None,
) -> Identity:
    """Make this machine a device of a server and remember who it is.

    Args:
        server: URL of the API.
        token: Join token, from ``POST /v1/join_tokens``.
        name: Shown to people; default: the host's name.
        labels: Matched by jobs.
        state_dir: Where the identity is kept, mode 0600.

    Raises:
        Unauthorized: ``bad_join_token``.
        Unavailable: The server does not answer.
    """
    settings = _settings(state_dir)
    inventory = make_inventory(settings)
    request = JoinRequest(
        name=name or inventory.hostname, labels=dict(labels or {}), inventory=inventory, protocol=PROTOCOL
    )
    with AgentApi(server, token, ca_file=settings.ca_file) as api:
        answer = api.join(request)
    check_protocol(answer.protocol, "server")
    identity = Identity(
        server_url=server.rstrip("/"),
        device_id=answer.device_id,
        name=answer.name,
        device_token=SecretStr(answer.device_token),
        broker=answer.broker,
    )
    identity.save(settings.state_dir)
    return identity


def run(state_dir: Path | None = None) -> int:
    """Measure until asked to leave (SIGTERM, Ctrl-C); return the exit code.

    The worker's child is spawned and imports this process's main module again, so a caller with another main module (the
    command line, say) is replaced by ``python -m workers.agent``.

    Raises:
        NotFound: ``not_joined``, where PRUNELOOP_AGENT_JOIN_TOKEN_FILE does not say how to join either.
    """
    settings = _settings(state_dir)
    _join_at_start(settings)
    identity = Identity.load(settings.state_dir)  # refuse at once, in words
    if getattr(sys.modules["__main__"].__spec__, "name", None) != "workers.agent.__main__":
        home = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH", ""))))
        command = [sys.executable, "-m", "workers.agent", "run", "--state-dir", str(settings.state_dir)]
        os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": path})
    from workers.agent.tasks import run_worker  # Celery, for this command only

    return run_worker(settings, identity)


def _join_at_start(settings: AgentSettings) -> None:
    """Become a device where this machine is none yet and its settings say how: nobody is there to type the command.

    Raises:
        Unavailable: ``no_join_token``; the server does not answer.
        Unauthorized: ``bad_join_token``.
    """
    if settings.join_token_file is None or (settings.state_dir / IDENTITY_FILE).exists():
        return
    if settings.server_url is None:
        raise Unavailable("PRUNELOOP_AGENT_JOIN_TOKEN_FILE wants PRUNELOOP_AGENT_SERVER_URL too.", code="no_server")
    try:
        token = settings.join_token_file.read_text().strip()
    except OSError as error:
        raise Unavailable(
            f"The join token cannot be read from {settings.join_token_file} ({error.strerror}); "
            "make one with `pruneloop devices add --token-only`.",
            code="no_join_token",
        ) from error
    identity = join(settings.server_url, token, settings.name, settings.labels, settings.state_dir)
    sys.stderr.write(f"joined {identity.server_url} as {identity.name} ({identity.device_id})\n")


def doctor(state_dir: Path | None = None) -> Diagnosis:
    """Say whether this machine can measure, and what to mend; works before joining as well."""
    return diagnose(_settings(state_dir))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the three commands; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m workers.agent", description="This machine as a device.")
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("join", "run", "doctor"):
        one = commands.add_parser(command)
        one.add_argument("--state-dir", type=Path, default=None)
        if command == "join":
            one.add_argument("--server", required=True)
            one.add_argument("--token", required=True)
            one.add_argument("--name", default="")
            one.add_argument("--label", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args(arguments)
    try:
        if given.command == "run":
            return run(given.state_dir)
        if given.command == "doctor":
            diagnosis = doctor(given.state_dir)
            for finding in diagnosis.findings:
                sys.stdout.write(f"{finding.level:8} {finding.name}: {finding.detail}\n")
            return 0 if diagnosis.is_fit else 1
        labels = dict(label.split("=", 1) for label in given.label if "=" in label)
        identity = join(given.server, given.token, given.name, labels, given.state_dir)
        sys.stdout.write(f"joined {identity.server_url} as {identity.name} ({identity.device_id})\n")
        return 0
    except PruneloopError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1


def _settings(state_dir: Path | None) -> AgentSettings:
    settings = AgentSettings()
    return settings if state_dir is None else settings.model_copy(update={"state_dir": state_dir.resolve()})


if __name__ == "__main__":
    sys.exit(main())

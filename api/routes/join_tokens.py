"""Join tokens: what an operator hands to a device, once."""

from __future__ import annotations

import secrets
import shlex
from datetime import timedelta
from ipaddress import ip_address
from typing import Annotated
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Depends

from api.agent_wheel import AgentWheel
from api.auth import AdminPrincipal, require_admin
from api.body import body_of, request_body
from api.deps import Deps
from domain.messages import JoinTokenAnswer, JoinTokenRequest

router = APIRouter(prefix="/v1/join_tokens", tags=["devices"], dependencies=[Depends(require_admin)])

HOME = "~/.pruneloop-agent"  # of the agent's own environment; a tilde is the shell's to fill in

Wanted = Annotated[JoinTokenRequest, Depends(body_of(JoinTokenRequest, is_optional=True))]


@router.post(
    "",
    operation_id="createJoinToken",
    summary="Make a token that lets a device join",
    description=(
        "Single use and one hour by default. The token is shown this once; its hash is kept. `command` is one line for a fresh "
        "machine with Python 3.11 or later: it installs the agent into a folder of its own, joins, and measures."
    ),
    status_code=201,
    openapi_extra=request_body(JoinTokenRequest, is_optional=True),
)
def create_join_token(deps: Deps, principal: AdminPrincipal, wanted: Wanted) -> JoinTokenAnswer:
    token = f"plj_{secrets.token_urlsafe(24)}"
    expires_at = deps.store.create_join_token(
        token,
        expires_in=timedelta(seconds=wanted.expires_in_s),
        uses=wanted.uses,
        labels=wanted.labels,
        by=principal,
    )
    command = join_command(deps.public_url, token, deps.agent_wheel())
    return JoinTokenAnswer(token=token, expires_at=expires_at, command=command, note=_reach(deps.public_url))


def join_command(server_url: str, token: str, wheel: AgentWheel) -> str:
    """Return the line that makes a fresh machine a device.

    Wheels only: a board must not begin to compile. The bytecode is written as it is used, which is quicker than all of it. The
    digest is checked by pip, also where the server has no TLS.
    """
    agent = f"pruneloop[agent] @ {server_url}/v1/agent/{quote(wheel.file_name)}#sha256={wheel.sha256}"
    install = f"{HOME}/bin/pip install --only-binary :all: --no-compile {shlex.quote(agent)}"
    join = f"{HOME}/bin/pruneloop agent join --server {shlex.quote(server_url)} --token {token}"
    return f"python3 -m venv {HOME} && {install} && {join} && {HOME}/bin/pruneloop agent run"


def _reach(server_url: str) -> str:
    host = urlsplit(server_url).hostname or ""
    try:
        is_here_only = ip_address(host).is_loopback or ip_address(host).is_unspecified
    except ValueError:
        is_here_only = host == "localhost"
    if not is_here_only:
        return ""
    return f"{server_url} is this machine only; say by PRUNELOOP_PUBLIC_URL how others reach the server, and start it again."

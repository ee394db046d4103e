"""A real server for each file of tests, and agents that join it."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from db.engine import make_engine, upgrade
from tests.integration.agent.real_server import RealAgent, RealServer

MakeAgent = Callable[..., RealAgent]


@pytest.fixture(scope="module")
def server(database_url: str, broker_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    name = f"failures_{uuid.uuid4().hex[:12]}"
    url = make_url(database_url)
    admin = make_engine(database_url)
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    own_url = url.set(database=name).render_as_string(hide_password=False)
    upgrade(own_url)
    engine = make_engine(own_url)
    made = RealServer(own_url, broker_url, tmp_path_factory.mktemp("server"), engine)
    made.start()
    yield made
    made.close()
    engine.dispose()
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture(scope="module")
def make_agent(server: RealServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeAgent]:
    made: list[RealAgent] = []

    def make(name: str, *labels: str, **environment: str) -> RealAgent:
        agent = RealAgent(server, tmp_path_factory.mktemp(name), environment, labels)
        made.append(agent)
        agent.run()
        return agent

    yield make
    for agent in made:
        agent.close()
        sys.stderr.write(agent.log.read_text()[-4000:])

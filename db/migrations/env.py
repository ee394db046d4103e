"""Where Alembic starts: on the connection of ``db.engine``, or on ``-x url=...`` from the command line of a developer."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from db.engine import make_engine
from db.models import metadata


def _run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=metadata)
    with context.begin_transaction():
        context.run_migrations()


given: Connection | None = context.config.attributes.get("connection")
if given is not None:
    _run(given)
else:
    with make_engine(context.get_x_argument(as_dictionary=True)["url"]).begin() as own:
        _run(own)

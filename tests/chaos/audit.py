"""Every change of the tables, written down by triggers with the database's clock: what recovery and invariants are read from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, text

WATCHED = ("job", "trial", "build", "measurement", "device")
BULKY = (
    "spec",
    "report",
    "request",
    "outcome",
    "last_failure",
    "inventory",
    "conditions",
    "params",
    "distributions",
    "candidate",
)

SQL = (
    """
    CREATE TABLE chaos_audit (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        at timestamptz NOT NULL DEFAULT clock_timestamp(),
        app text NOT NULL DEFAULT current_setting('application_name'),
        tbl text NOT NULL, row_id text NOT NULL, old jsonb, new jsonb NOT NULL
    )
    """,
    f"""
    CREATE FUNCTION chaos_note() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO chaos_audit (tbl, row_id, old, new) VALUES (
            TG_TABLE_NAME, NEW.id,
            CASE WHEN TG_OP = 'UPDATE' THEN to_jsonb(OLD) - ARRAY{list(BULKY)!r} END,
            to_jsonb(NEW) - ARRAY{list(BULKY)!r}
        );
        RETURN NULL;
    END $$
    """,
    *(
        f"CREATE TRIGGER chaos_note AFTER INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION chaos_note()"
        for table in WATCHED
    ),
)


@dataclass(frozen=True)
class Change:
    """One row, before and after; ``app`` names the process's role."""

    id: int
    at: datetime
    app: str
    table: str
    row_id: str
    old: dict[str, Any] | None
    new: dict[str, Any]

    def became(self, state: str) -> bool:
        return self.new["state"] == state and (self.old is None or self.old["state"] != state)

    @property
    def is_claim(self) -> bool:
        """Whether a lease was given: by an attempt, as a job's search or a row of work."""
        counter = "search_attempt" if self.table == "job" else "attempt"
        return self.old is not None and self.new.get(counter, 0) > self.old.get(counter, 0)


def install(engine: Engine) -> None:
    with engine.begin() as connection:
        for statement in SQL:
            connection.execute(text(statement))


def read(engine: Engine) -> list[Change]:
    """Return every change, in the order it was made."""
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT id, at, app, tbl, row_id, old, new FROM chaos_audit ORDER BY id")).all()
    return [Change(*row) for row in rows]

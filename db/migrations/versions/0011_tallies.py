"""Counters that survive restarts: triggers note what ends, the reaper adds the notes up. And how old code may be on this schema.

A note is an insert, so that two transactions never wait for one counter; ``tally_sum`` plus the notes that are left is the truth.

Revision: 0011, after 0010
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

BOUNDS_S = "ARRAY[0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800]::double precision[]"
DURATION_S = "greatest(extract(epoch FROM {row}.finished_at - {row}.started_at)::double precision, 0)"
# width_bucket counts a bound to the class above it, Prometheus to the one below: the difference is a duration to the microsecond.
CLASS = f"width_bucket({{duration}}, {BOUNDS_S})"

FUNCTIONS = {
    "tally_work": f"""
        DECLARE took_s double precision;
        BEGIN
            IF OLD.state = 'leased' AND OLD.lease_until < now() AND (
                NEW.attempt > OLD.attempt OR (
                    NEW.state IN ('pending', 'failed', 'cancelled')
                    AND (NEW.written_attempt IS NOT DISTINCT FROM OLD.written_attempt OR NEW.written_sha256 = '')
                )
            ) THEN
                INSERT INTO tally (what, label) VALUES ('expired', TG_TABLE_NAME);
            END IF;
            IF NEW.state = OLD.state THEN
                RETURN NULL;
            END IF;
            IF NEW.state = 'pending' AND NEW.written_attempt IS DISTINCT FROM OLD.written_attempt THEN
                INSERT INTO tally (what, label) VALUES (TG_TABLE_NAME, 'retried');
            ELSIF NEW.state IN ('failed', 'cancelled') THEN
                INSERT INTO tally (what, label) VALUES (TG_TABLE_NAME, NEW.state);
            ELSIF NEW.state = 'done' THEN
                took_s := coalesce({DURATION_S.format(row="NEW")}, 0);
                INSERT INTO tally (what, label, class, seconds)
                    VALUES (TG_TABLE_NAME, 'done', {CLASS.format(duration="took_s")}, took_s);
                IF to_jsonb(NEW)->>'device_id' IS NOT NULL THEN
                    INSERT INTO tally (what, label, seconds) VALUES ('device', to_jsonb(NEW)->>'device_id', took_s);
                END IF;
            END IF;
            RETURN NULL;
        END
    """,
    "tally_job": """
        BEGIN
            IF OLD.search_until < now() AND NEW.search_attempt > OLD.search_attempt THEN
                INSERT INTO tally (what, label) VALUES ('expired', 'search');
            END IF;
            IF NEW.state <> OLD.state AND NEW.finished_at IS NOT NULL THEN
                INSERT INTO tally (what, label) VALUES ('job', NEW.state);
            END IF;
            RETURN NULL;
        END
    """,
    "tally_trial": """
        BEGIN
            IF TG_OP = 'INSERT' THEN
                INSERT INTO tally (what, label) VALUES ('trial', 'asked');
            END IF;
            IF NEW.state NOT IN ('building', 'measuring') THEN
                INSERT INTO tally (what, label) VALUES ('trial', NEW.state);
            END IF;
            RETURN NULL;
        END
    """,
    "tally_stale": """
        BEGIN
            INSERT INTO tally (what, label) VALUES ('fenced', 'measurement');
            RETURN NULL;
        END
    """,
    "tally_health": """
        BEGIN
            INSERT INTO tally (what, label) VALUES ('health', NEW.verdict);
            RETURN NULL;
        END
    """,
}
WORK_MOVES = "WHEN (OLD.state IS DISTINCT FROM NEW.state OR OLD.attempt <> NEW.attempt)"
TRIGGERS = (
    ("tally_work", "measurement", "AFTER UPDATE OF state", WORK_MOVES),
    ("tally_work", "build", "AFTER UPDATE OF state", WORK_MOVES),
    ("tally_job", "job", "AFTER UPDATE OF state, search_attempt", ""),
    ("tally_trial", "trial", "AFTER UPDATE OF state", "WHEN (OLD.state IS DISTINCT FROM NEW.state)"),
    ("tally_trial", "trial", "AFTER INSERT", ""),
    ("tally_stale", "stale_outcome", "AFTER INSERT", ""),
    ("tally_health", "device_health", "AFTER INSERT", ""),
)


def upgrade() -> None:
    op.create_table(
        "tally",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        *_columns(),
        sa.PrimaryKeyConstraint("id", name="pk_tally"),
    )
    op.create_table(
        "tally_sum",
        *_columns(),
        sa.PrimaryKeyConstraint("what", "label", "class", name="pk_tally_sum"),
    )
    op.create_index("ix_trial_open", "trial", ["state"], postgresql_where=sa.text("state IN ('building', 'measuring')"))
    op.create_table("schema_floor", sa.Column("revision", sa.Text(), nullable=False))
    op.execute("INSERT INTO schema_floor VALUES ('0010')")
    _begin_with_what_there_is()
    for name, body in FUNCTIONS.items():
        op.execute(f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$")
    for function, table, moment, condition in TRIGGERS:
        op.execute(
            f"CREATE TRIGGER {_name(function, table, moment)} {moment} ON {table} "
            f"FOR EACH ROW {condition} EXECUTE FUNCTION {function}()"
        )


def downgrade() -> None:
    for function, table, moment, _ in TRIGGERS:
        op.execute(f"DROP TRIGGER {_name(function, table, moment)} ON {table}")
    for name in FUNCTIONS:
        op.execute(f"DROP FUNCTION {name}()")
    op.drop_index("ix_trial_open", table_name="trial")
    op.drop_table("schema_floor")
    op.drop_table("tally_sum")
    op.drop_table("tally")


def _begin_with_what_there_is() -> None:
    took_s = DURATION_S.format(row="work")
    sums = [
        "SELECT 'job', state, 0, count(*), 0 FROM job WHERE finished_at IS NOT NULL GROUP BY state",
        "SELECT 'trial', state, 0, count(*), 0 FROM trial WHERE state NOT IN ('building', 'measuring') GROUP BY state",
        "SELECT 'trial', 'asked', 0, count(*), 0 FROM trial HAVING count(*) > 0",
        "SELECT 'fenced', 'measurement', 0, count(*), 0 FROM stale_outcome HAVING count(*) > 0",
        "SELECT 'health', verdict, 0, count(*), 0 FROM device_health GROUP BY verdict",
        f"SELECT 'device', device_id, 0, count(*), sum(coalesce({took_s}, 0)) FROM measurement AS work "
        "WHERE state = 'done' AND device_id IS NOT NULL GROUP BY device_id",
    ]
    for table in ("build", "measurement"):
        sums += [
            f"SELECT '{table}', state, 0, count(*), 0 FROM {table} WHERE state IN ('failed', 'cancelled') GROUP BY state",
            f"SELECT '{table}', 'done', class, count(*), sum(took_s) FROM (SELECT took_s, "
            f"{CLASS.format(duration='took_s')} AS class FROM (SELECT coalesce({took_s}, 0) AS took_s FROM {table} AS work "
            "WHERE state = 'done') AS each) AS classed GROUP BY class",
        ]
    for one in sums:
        op.execute(f"INSERT INTO tally_sum (what, label, class, number, seconds) {one}")


def _columns() -> list[sa.Column[object]]:
    return [
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("class", sa.Integer(), nullable=False, server_default="0", comment="Of its duration."),
        sa.Column("number", sa.BigInteger(), nullable=False, server_default="1"),
        sa.Column("seconds", sa.Double(), nullable=False, server_default="0"),
    ]


def _name(function: str, table: str, moment: str) -> str:
    return f"{function}_{table}_{'insert' if 'INSERT' in moment else 'update'}"

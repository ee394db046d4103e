"""Triggers that hold state machines in the database itself: a bug or a hand-written UPDATE cannot make an illegal move."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def create_transition_trigger(table: str, transitions: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the SQL of a trigger that lets ``table.state`` move only from a key to one of its values.

    Staying in a state is always allowed. An illegal move raises ``check_violation`` and names both states.
    """
    pairs = [f"{before}>{after}" for before, afters in transitions.items() for after in sorted(afters)]
    legal = ", ".join(f"'{pair}'" for pair in pairs)
    return [
        f"""
        CREATE FUNCTION {table}_state_moves() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NOT (OLD.state || '>' || NEW.state) = ANY (ARRAY[{legal}]) THEN
                RAISE EXCEPTION '{table} % may not move from % to %', OLD.id, OLD.state, NEW.state
                    USING ERRCODE = 'check_violation';
            END IF;
            RETURN NEW;
        END $$
        """,
        f"""
        CREATE TRIGGER {table}_state_moves BEFORE UPDATE OF state ON {table} FOR EACH ROW
        WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION {table}_state_moves()
        """,
    ]


def drop_transition_trigger(table: str) -> list[str]:
    """Return the SQL that takes the trigger away again."""
    return [f"DROP TRIGGER {table}_state_moves ON {table}", f"DROP FUNCTION {table}_state_moves()"]

"""Alembic migrations. Run by ``db.engine.upgrade``."""

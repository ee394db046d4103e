"""What is wrong with data, with the field that names it."""

from __future__ import annotations

from domain.errors import FieldProblem, Invalid


def problem(field: str, code: str, message: str) -> Invalid:
    """Return the error of one field of a job's data."""
    return Invalid(message, code=code, fields=[FieldProblem(field, message)])

"""Pages made from the code: `make reference` writes them, a test compares them.

A page is a function that gives its text. ``PAGES`` names them by their path in ``docs/``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from api.openapi import openapi_text
from tests.docs.pages import command_line, errors, job, python_client, rest, settings

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def decisions() -> str:
    """Return the index of the architecture decision records."""
    rows = []
    for path in sorted((DOCS / "adr").glob("[0-9]*.md")):
        text = path.read_text()
        title = re.sub(r"^# *(ADR )?\d+[.:]?\s*", "", text.splitlines()[0])
        status = re.search(r"^\W*Status:\W*(\w+)", text, flags=re.MULTILINE)
        rows.append(f"| {int(path.name[:4])} | [{title}]({path.name}) | {status[1] if status else ''} |")
    return "\n".join(
        [
            "# Decisions",
            "",
            'What somebody will ask "why?" about, forty lines each.',
            "",
            "| | decision | status |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


PAGES: dict[str, Callable[[], str]] = {
    "adr/index.md": decisions,
    "reference/command-line.md": command_line.text,
    "reference/errors.md": errors.text,
    "reference/job.md": job.text,
    "reference/python-client.md": python_client.text,
    "reference/rest.md": lambda: rest.text(json.loads(openapi_text())),
    "reference/settings.md": settings.text,
}


def main() -> None:
    for name, make in PAGES.items():
        path = DOCS / name
        text = make()
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            sys.stdout.write(f"{path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()

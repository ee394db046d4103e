"""Write the OpenAPI text: ``python -m api.openapi docs/openapi.json``. A test compares it with the committed file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from api.app import build_routes


def openapi_text() -> str:
    """Return the OpenAPI document, stable from run to run."""
    schema = build_routes().openapi()
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> int:
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m api.openapi docs/openapi.json\n")
        return 2
    Path(sys.argv[1]).write_text(openapi_text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

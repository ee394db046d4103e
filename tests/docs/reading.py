"""What a page says is to be done: its fenced blocks, in order.

A block is what its language says, and a comment in the line above may add to it:

    ```sh                       run in a shell that keeps folder and environment from block to block
    ```python                   run as a script
    ```yaml title="job.yaml"    with a title that is a file's name: written there, whatever the language
    ```text, json, ini, http    shown only, as is what stands under <!-- a signature -->

    <!-- goes on: until it says "ready" -->              a terminal of its own; the reader goes on once it says so
    <!-- goes on elsewhere: until it says "ready" -->    the same on another machine: a home and an environment of its own
    <!-- cannot run here: a Raspberry Pi -->             not run by any test, and why; tests/docs/test_pages.py counts these
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

RUN = frozenset({"sh", "python"})
SHOWN = frozenset({"text", "json", "ini", "toml", "yaml", "http"})
FENCE = re.compile(r"^( *)```(\w*)(?: title=\"([^\"]+)\")?[ ]*$")
GOES_ON = re.compile(r"^ *<!-- goes on( elsewhere)?: until it says \"([^\"]+)\" -->$")
SIGNATURE = "<!-- a signature -->"
CANNOT_RUN = re.compile(r"^ *<!-- cannot run here: (.+) -->$")
FILE_NAME = re.compile(r"^[\w./-]+\.\w+$")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    code: str
    file: str | None = None
    until: str | None = None
    is_elsewhere: bool = False
    reason: str | None = None
    is_signature: bool = False

    @property
    def where(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def is_run(self) -> bool:
        return self.language in RUN and not (self.file or self.reason or self.is_signature)


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page.

    Raises:
        ValueError: For a block of a language nobody knows, one that is not closed, or a mark above no block.
    """
    found: list[Block] = []
    opened: tuple[int, int, str, str | None] | None = None
    body: list[str] = []
    mark = ""
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = FENCE.match(line)
        if opened is None:
            if fence is None:
                if mark and line.strip():
                    raise ValueError(f"{page.name}:{number}: the mark above stands over no block")
                mark = line if GOES_ON.match(line) or CANNOT_RUN.match(line) or line == SIGNATURE else ""
                if ("<!-- goes on" in line and not mark) or ("<!-- cannot run" in line and not mark):
                    raise ValueError(f"{page.name}:{number}: not a mark anybody knows: {line.strip()}")
                continue
            if fence[2] not in RUN | SHOWN:
                raise ValueError(f"{page.name}:{number}: a block needs a language of {sorted(RUN | SHOWN)}")
            opened, body = (number, len(fence[1]), fence[2], fence[3]), []
        elif fence is not None and not fence[2]:
            start, indent, language, title = opened
            goes_on, cannot = GOES_ON.match(mark), CANNOT_RUN.match(mark)
            found.append(
                Block(
                    page, start, language, "\n".join(text[indent:] for text in body) + "\n",
                    file=title if title and FILE_NAME.match(title) else None,
                    until=goes_on[2] if goes_on else None,
                    is_elsewhere=bool(goes_on and goes_on[1]),
                    reason=cannot[1] if cannot else None,
                    is_signature=mark == SIGNATURE,
                )
            )  # fmt: skip
            opened, mark = None, ""
        else:
            body.append(line)
    if opened is not None:
        raise ValueError(f"{page.name}:{opened[0]}: the block is not closed")
    return found

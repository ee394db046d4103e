"""Names for layers and parameters, from what the file calls their weights.

Names of a file end up in generated Python code: only letters, digits and underscores pass, whatever the file says.
"""

from __future__ import annotations

import keyword
import re

from torch import nn

_FORBIDDEN = re.compile(r"[^0-9A-Za-z_]+")
_ANONYMOUS = re.compile(r"(onnx::|val_|_?\d+$|/|const)", re.IGNORECASE)
_TAKEN = {*dir(nn.Module()), "graph", "code"}
LONGEST = 80


def safe_part(text: str) -> str:
    """Return one part of a dotted path, safe in generated code."""
    part = _FORBIDDEN.sub("_", text)[:LONGEST].strip("_") or "x"
    return f"{part}_" if keyword.iskeyword(part) or part in _TAKEN else part


def safe_path(text: str) -> str:
    return ".".join(safe_part(part) for part in text.split(".") if part) or "x"


def layer_path(weight: str | None, node: str, operator: str, outputs: tuple[str, ...]) -> str:
    """Return a layer's path: ``layer1.0.conv1`` of a weight of that name or of a node ``/layer1/layer1.0/conv1/Conv``."""
    if weight and not _ANONYMOUS.match(weight):
        head, dot, _ = weight.rpartition(".")
        return safe_path(head if dot else weight)
    if node.startswith("/"):
        parts: list[str] = []
        for part in node.strip("/").split("/")[:-1]:
            if parts and part.startswith(f"{parts[-1]}."):
                parts[-1] = part
            else:
                parts.append(part)
        if parts:
            return safe_path(".".join(parts))
    return safe_part(f"{operator.lower()}_{outputs[0] if outputs else node}")


class Paths:
    """Paths in use; none is another's beginning, so that no layer ends up inside another."""

    def __init__(self) -> None:
        self._leaves: set[str] = set()
        self._branches: set[str] = set()

    def claim(self, wanted: str) -> str:
        """Return the path, or it with a number where it is taken."""
        path, number = wanted, 0
        while self._clashes(path):
            number += 1
            path = f"{wanted}_{number}"
            if number > 3 and "." in wanted:  # a layer stands in the way further up
                path = f"{wanted.replace('.', '_')}_{number}"
        self._leaves.add(path)
        parts = path.split(".")
        self._branches.update(".".join(parts[:length]) for length in range(1, len(parts)))
        return path

    def _clashes(self, path: str) -> bool:
        parts = path.split(".")
        above = {".".join(parts[:length]) for length in range(1, len(parts))}
        return path in self._leaves or path in self._branches or bool(above & self._leaves)

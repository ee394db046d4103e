"""docs/reference/errors.md: every stable code, found in the source: who raises it, what it says."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from api.errors import CODE_OF_STATUS, STATUS_OF_CODE, STATUS_OF_ERROR
from domain import errors
from tests.docs.pages.markdown import code, page, table

ROOT = Path(__file__).resolve().parents[3]
ROOMS = ("domain", "pruning", "search", "db", "workers", "api", "client")
CODE = re.compile(r"^[a-z][a-z0-9]*(_[a-z0-9]+)*$")
SHORTEST_MESSAGE = 12

HEAD = """
Every error has a stable `code`; sentences and statuses may change. Over REST it stands in the body of the problem
(`application/problem+json`), in Python it is `error.code`, in a failed trial, build or measurement it is `code` beside
`stage`, `reason` and `blame`. `…` stands for what differs from case to case.

An error of input (`Invalid`) names every failing field in `errors`: `[{"field": "targets.0.runtime", "message":
"..."}]`.
"""
FAILED = "failed work"


@dataclass(frozen=True)
class Use:
    """A code where the source raises it."""

    code: str
    kind: str
    message: str


def text() -> str:
    found: dict[str, list[Use]] = defaultdict(list)
    for use in uses():
        found[use.code].append(use)
    rows = []
    for name in sorted(found):
        kinds = sorted({use.kind for use in found[name] if use.kind})
        messages = list(dict.fromkeys(use.message for use in found[name] if use.message))
        rows.append((code(name), _status(name, kinds), ", ".join(kinds), " / ".join(messages[:2])))
    classes = [(code(kind.__name__), str(int(status))) for kind, status in STATUS_OF_ERROR.items()]
    return page(
        "Error codes",
        HEAD,
        table(("class", "status"), classes),
        "## Codes",
        table(("code", "status", "is", "says"), rows),
    )


def uses() -> Iterator[Use]:
    """Yield every code that the source names, in whatever way it names it."""
    trees = {path: ast.parse(path.read_text()) for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))}
    families = _families(trees.values())
    for kind, default in families.items():
        if default:
            yield Use(default, _root(kind, families), "")
    for status_code in (*STATUS_OF_CODE, *CODE_OF_STATUS.values()):
        yield Use(status_code, "", "")
    takers = _takers(trees.values())
    for tree in trees.values():
        for node in ast.walk(tree):  # return "batch_not_available", "What to do."
            if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple) and len(node.value.elts) == 2:
                first, second = (_sentence(part) for part in node.value.elts)
                if CODE.match(first) and "_" in first:
                    yield Use(first, "", second)
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
            for value in _codes_of(call, takers.get(name)):
                kind = FAILED if name == "Failed" else _root(name, families) if name in families else ""
                yield Use(value, kind, _message_of(call, value))


def _codes_of(call: ast.Call, position: int | None) -> Iterator[str]:
    given = [keyword.value for keyword in call.keywords if keyword.arg == "code"]
    if position is not None and position < len(call.args):
        given.append(call.args[position])
    for node in given:
        options = [node.body, node.orelse] if isinstance(node, ast.IfExp) else [node]
        for option in options:
            text = _sentence(option)
            if CODE.match(text.replace("…", "x")):
                yield text


def _takers(trees: object) -> dict[str, int]:
    """Return the functions of ours that take a ``code`` by position, and at which."""
    found = {}
    for tree in trees:  # type: ignore[attr-defined]
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                names = [one.arg for one in node.args.args if one.arg != "self"]
                if "code" in names:
                    found[node.name] = names.index("code")
    found.pop("error_of", None)
    return found


def _families(trees: object) -> dict[str, str]:
    """Return every error class and the code it has by default."""
    found: dict[str, str] = {}
    bases = {"PruneloopError"}
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]  # type: ignore[attr-defined]
    for _ in range(3):  # a class may stand before its base
        for node in classes:
            if node.name in bases or any(isinstance(base, ast.Name) and base.id in bases for base in node.bases):
                bases.add(node.name)
                found.setdefault(node.name, "")
                for statement in node.body:
                    if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == "default_code":
                        found[node.name] = str(getattr(statement.value, "value", ""))
    _PARENTS.update(
        {
            node.name: [base.id for base in node.bases if isinstance(base, ast.Name)]
            for node in classes
            if node.name in found
        }
    )
    return found


_PARENTS: dict[str, list[str]] = {}


def _root(name: str, families: dict[str, str]) -> str:
    """Return the class of domain.errors that a class is, which decides the status."""
    if hasattr(errors, name) and name in {kind.__name__ for kind in STATUS_OF_ERROR}:
        return name
    for parent in _PARENTS.get(name, []):
        if parent in families:
            return _root(parent, families)
    return name if name == "PruneloopError" else ""


def _status(name: str, kinds: list[str]) -> str:
    by_name = {kind.__name__: status for kind, status in STATUS_OF_ERROR.items()}
    own = STATUS_OF_CODE.get(name) or next((status for status, value in CODE_OF_STATUS.items() if value == name), None)
    statuses = {int(own)} if own else {int(by_name[kind]) for kind in kinds if kind in by_name}
    return ", ".join(str(status) for status in sorted(statuses))


def _message_of(call: ast.Call, name: str) -> str:
    """Return the sentence that goes with a code, its values as an ellipsis."""
    given = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg in {"message", "reason"})]
    for node in given:
        text = _sentence(node)
        if text != name and len(text) >= SHORTEST_MESSAGE and " " in text:
            return text
    return ""


def _sentence(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(_sentence(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp):
        return _sentence(node.left) + (_sentence(node.right) or "…")
    return ""

"""One run of one method, and what is kept of it: a JSON and its ONNX files, in a folder named by what went in."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HARNESS = 2
"""Raise it when what all methods share changes its meaning: nothing that was kept before counts then."""


@dataclass(frozen=True)
class Cell:
    """What is run: a method on a task, with a seed, within a budget.

    ``options`` are laid over our job (see ``ours``); ``label`` says what they are for.
    """

    method: str
    task: str
    seed: int
    budget_s: float
    threads: int
    label: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The method as a table shows it."""
        return f"{self.method}:{self.label}" if self.label else self.method

    def key(self, *, code: str, weights: str, recipe: Sequence[float]) -> str:
        """Return the folder's name.

        Args:
            code: Hash of the method's sources.
            weights: Digest of the dense weights.
            recipe: Epochs and rates by which it trains, as far as they are the harness's.
        """
        text = json.dumps([HARNESS, asdict(self), code, weights, list(recipe)], sort_keys=True)
        return f"{self.task}-{self.name.replace(':', '-')}-{self.seed}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class Kept:
    """A file a method would hand over, and the second it had it."""

    found_s: float
    file: str
    note: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """A finished cell. ``took_s`` may be past the budget: a method that does not look at its clock is late, not stopped."""

    key: str
    cell: Cell
    weights: str
    points: tuple[Kept, ...]
    took_s: float
    made_at: str
    notes: Mapping[str, Any] = field(default_factory=dict)


class Results:
    """The folder of finished cells.

    Args:
        folder: Made where it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, key: str) -> bool:
        return (self.folder / "cells" / key / "result.json").exists()

    def begin(self, key: str) -> Path:
        """Return an empty folder to write files into; what an unfinished run left there goes."""
        folder = self.folder / "cells" / key
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def finish(
        self, key: str, cell: Cell, *, weights: str, points: Iterable[Kept], took_s: float, notes: Mapping[str, Any]
    ) -> Result:
        """Write the result; from now on the cell is done."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        result = Result(key, cell, weights, tuple(points), took_s, now, dict(notes))
        path = self.folder / "cells" / key / "result.json"
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(result), indent=1))
        part.replace(path)
        return result

    def all(self) -> list[Result]:
        """Return every finished cell; of several of the same method, label, task, seed, threads and budget, the newest."""
        newest: dict[tuple[Any, ...], Result] = {}
        for path in sorted((self.folder / "cells").glob("*/result.json")):
            result = _read(path)
            cell = result.cell
            same = (cell.name, cell.task, cell.seed, cell.budget_s, cell.threads, result.weights)
            if same not in newest or newest[same].made_at <= result.made_at:
                newest[same] = result
        return list(newest.values())

    def path(self, result: Result, kept: Kept) -> Path:
        return self.folder / "cells" / result.key / kept.file


def _read(path: Path) -> Result:
    told = json.loads(path.read_text())
    cell, points = Cell(**told.pop("cell")), tuple(Kept(**point) for point in told.pop("points"))
    return Result(cell=cell, points=points, **told)


def code_of(paths: Iterable[Path]) -> str:
    """Return the hash of source files; of a folder, all Python files in it."""
    hasher = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            hasher.update(file.name.encode() + b"\0" + file.read_bytes())
    return hasher.hexdigest()[:16]

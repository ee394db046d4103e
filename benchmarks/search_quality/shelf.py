"""Where a method puts the files it would hand over, each with the second it had it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.search_quality.cells import Kept
from benchmarks.search_quality.clock import Clock


class Shelf:
    """Files of one run.

    Args:
        folder: Theirs alone.
        clock: Of the run.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.folder, self.clock = folder, clock
        self.points: list[Kept] = []
        self.notes: dict[str, Any] = {}

    def keep_file(self, file: bytes, **note: Any) -> None:
        """Hand over a file now. Whether it came in time is for the score to say."""
        found_s = self.clock.elapsed_s()
        name = f"{len(self.points):03d}.onnx"
        (self.folder / name).write_bytes(file)
        self.points.append(Kept(found_s=round(found_s, 2), file=name, note=note))

"""All files of all methods, measured together at the end: paired with the dense model, in mixed order, and run on val and test.

What was measured is kept by the file's digest, so a session that was cut short goes on; the speed-up is a ratio to the dense model
of the same session, and so compares across sessions.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.search_quality.bench import exported
from benchmarks.search_quality.tasks import Task, open_task
from domain.artifact import ArtifactKind, ArtifactRef, digest_of_file
from domain.measurement import Measured, MeasuredFile, MeasurementPlan, MeasurementRequest
from pruning.datasets.splits import CheckedSplits
from pruning.exporters.onnx import OnnxExporter
from pruning.metrics.scores import accuracy as accuracy_of
from workers.agent.sandbox import SandboxRunner

FILES_A_SESSION = 6


@dataclass(frozen=True)
class FileScore:
    """One file: paired speed-up over the dense model with its 95 % interval, accuracy in onnxruntime on both splits."""

    digest: str
    speedup: float
    low: float
    high: float
    val: float
    test: float
    dense_ms: float
    measured_at: str


@dataclass(frozen=True)
class DenseScore:
    """The dense file: what all are compared with."""

    val: float
    test: float
    test_samples: int


class Joint:
    """The measuring of one task.

    Args:
        task: Whose files these are.
        results: Results folder.
        weights: Digest of the dense weights.
    """

    def __init__(self, task: Task, results: Path, weights: str) -> None:
        self._path = results / "joint" / f"{task.name}-{weights[:12]}.jsonl"
        self._dense_path = self._path.with_suffix(".dense.json")
        self._task, self._results = task, results
        self.scores: dict[str, FileScore] = {}
        if self._path.exists():
            rows = [FileScore(**json.loads(line)) for line in self._path.read_text().splitlines()]
            self.scores = {row.digest: row for row in rows}

    @property
    def dense(self) -> DenseScore | None:
        return DenseScore(**json.loads(self._dense_path.read_text())) if self._dense_path.exists() else None

    def forget(self) -> None:
        """Measure everything anew."""
        self._path.unlink(missing_ok=True)
        self.scores = {}

    def measure(self, files: Mapping[str, Path], *, until_s: float = float("inf")) -> bool:
        """Measure the files (digest -> path) that are not measured yet; returns whether all are.

        Args:
            files: Of all methods.
            until_s: Begin no session after this second of ``time.monotonic()``.
        """
        waiting = sorted(digest for digest in files if digest not in self.scores)
        if not waiting and self.dense is not None:
            return True
        random.Random(0).shuffle(waiting)  # methods mixed: what the machine does meanwhile meets all alike
        dense = open_task(self._task, self._results, seed=0)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            baseline = Path(folder) / "dense.onnx"
            baseline.write_bytes(exported(dense.model, dense.splits))
            if self.dense is None:
                val, test = _accuracies(baseline, dense.splits)
                told = DenseScore(val, test, len(dense.splits.test[0]))
                self._dense_path.write_text(json.dumps(asdict(told)))
            for begin in range(0, len(waiting), FILES_A_SESSION):
                if time.monotonic() >= until_s:
                    return False
                digests = waiting[begin : begin + FILES_A_SESSION]
                self._session(baseline, {digest: files[digest] for digest in digests}, dense.splits)
        return True

    def _session(self, baseline: Path, files: Mapping[str, Path], splits: CheckedSplits) -> None:
        accuracies = {digest: _accuracies(path, splits) for digest, path in files.items()}
        outcome = _paired(baseline, list(files.values()))
        now = datetime.now(UTC).isoformat(timespec="seconds")
        rows = []
        for timing in outcome.candidates:
            (low, high), (val, test) = timing.speedup_ci, accuracies[timing.digest]
            rows.append(
                FileScore(timing.digest, timing.speedup, low, high, val, test, outcome.baseline.latency_ms, now)
            )
        with self._path.open("a") as out:
            out.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
        self.scores.update({row.digest: row for row in rows})


def _paired(baseline: Path, candidates: Sequence[Path]) -> Measured:
    paths = {digest_of_file(path): path for path in (baseline, *candidates)}
    request = MeasurementRequest(
        runtime="onnxruntime",
        baseline=_file(baseline),
        candidates=tuple(_file(path) for path in candidates),
        plan=MeasurementPlan(),
    )
    outcome = SandboxRunner().run(
        request, fetch=lambda ref: paths[ref.digest], report_stage=lambda stage: None, is_cancelled=lambda: False
    )
    if not isinstance(outcome, Measured):
        raise SystemExit(f"The joint session failed in {outcome.stage}: {outcome.reason}")
    return outcome


def _file(path: Path) -> MeasuredFile:
    ref = ArtifactRef(digest=digest_of_file(path), size_bytes=path.stat().st_size, kind=ArtifactKind.ONNX)
    return MeasuredFile(artifact=ref)


def _accuracies(path: Path, splits: CheckedSplits) -> tuple[float, float]:
    """Return a file's accuracy on val and on test, run in onnxruntime."""
    found = []
    for inputs, labels in (splits.val, splits.test):
        assert labels is not None
        found.append(accuracy_of(OnnxExporter().run(path.read_bytes(), inputs, threads=1), labels))
    return found[0], found[1]

"""Every family of models in every format: what the file gives in its own runtime, and how much faster half of it is.

    make converters && make formats-table                 # docs/benchmarks/formats.md; an hour of one core
    python -m benchmarks.formats --out OUT [--family ViT] [--no-timing] [--report FILE]

A family is built in and trained on the digits of scikit-learn (BERT reads their 64 pixels as words), or comes as an ONNX file with
trained weights (``families.py``). It is cut by half in every group, distilled for some epochs, and exported by the builder itself,
dense and cut, in every format and precision it has. ``accuracy`` is that of the file, run in its own runtime on 400 test samples.
Where an agent has a runtime for the format, the cut file is timed against the dense one of the same format and precision by
``pruneloop bench``: one thread, batch 1. All are timed after all are built, so that families may be built side by side
(``--no-timing``). What cannot be says why. What was done lies in OUT and is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import families
from benchmarks.families import Given
from domain.build import BuildResult, BuiltArtifact, CandidateRequest, FinalRequest, PrepareRequest
from domain.candidate import Candidate, ImportanceMix, RecoveryPlan
from domain.formats import FORMATS, why_not
from domain.job import DataSpec, ModelSpec
from domain.ports import ArtifactStore
from pruning.builder import TorchBuilder
from pruning.converters import ConverterSettings
from pruning.datasets.digits import digits
from tests.unit.pruning.folder import FolderStore
from workers.agent.bench import BenchFailed, bench

PRECISIONS = ("fp32", "fp16", "int8")
TIMED_IN = {"onnx": "onnxruntime", "openvino": "openvino", "litert": "litert", "ncnn": "ncnn", "torch": "torch"}
PACKAGES = ("onnxruntime", "openvino", "ai-edge-litert", "ncnn", "torch")
MAX_S = 5.0


@dataclass(frozen=True)
class Family:
    """A built-in model with its parameters, or what gives a file; and for how long it is distilled once cut."""

    name: str
    model: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    epochs: float = 4.0
    file: Callable[[ArtifactStore], Given] | None = None

    def given(self, store: ArtifactStore) -> Given:
        """Return the model, its data and its metric."""
        if self.file is not None:
            return self.file(store)
        data = _pixels_as_words(store) if self.model == "bert" else DataSpec(name="digits")
        return Given(ModelSpec(name=self.model, params=self.params), data, "accuracy")

    def __str__(self) -> str:
        if self.file is not None:
            return "An ONNX file with trained weights (`benchmarks/families.py`)"
        return f"`{self.model}` ({', '.join(f'{name} {value}' for name, value in self.params.items())})"


def _recurrent(kind: type[nn.LSTM] | type[nn.GRU]) -> Callable[[ArtifactStore], Given]:
    return families.classifier(lambda: families.Recurrent(kind, 64, 128))


FAMILIES = (
    Family("ResNet", "resnet8", {"width": 32}),
    Family("MobileNet", "mobilenet", {"width": 32}),
    Family("MobileNetV3 block", file=families.classifier(lambda: families.Inverted(64)), epochs=8.0),
    Family("ConvNet", "convnet", {"width": 32}),
    Family("Grouped convolution", file=families.classifier(lambda: families.Grouped(64)), epochs=8.0),
    Family("DenseNet", file=families.classifier(lambda: families.DenseNet(48)), epochs=8.0),
    Family("U-Net", file=families.denoiser, epochs=8.0),
    Family("Detector", file=families.detector, epochs=20.0),
    Family("ViT", "vit", {"image": 8, "patch": 2}, epochs=10.0),
    Family(
        "BERT", "bert", {"vocabulary": 18, "dim": 64, "depth": 2, "heads": 4, "hidden": 256, "longest": 64}, epochs=10.0
    ),
    Family("LSTM", file=_recurrent(nn.LSTM), epochs=8.0),
    Family("GRU", file=_recurrent(nn.GRU), epochs=8.0),
    Family("Recommender", file=families.recommender, epochs=10.0),
)


class Bench:
    """A builder, its store, and what was already found out of each family."""

    def __init__(self, out: Path) -> None:
        (out / "store").mkdir(parents=True, exist_ok=True)
        self.out = out
        self.store = FolderStore(out / "store")
        self.builder = TorchBuilder(self.store, threads=1, torch_device="cpu")

    def build(self, request: PrepareRequest | CandidateRequest | FinalRequest) -> BuildResult | str:
        """Return a build, or the reason why there is none."""
        outcome = self.builder.build(request, progress=lambda stage, fraction: None, hold=nullcontext)
        return outcome if isinstance(outcome, BuildResult) else outcome.reason

    def cells(self, family: Family) -> dict[str, dict[str, Any]]:
        """Return format -> precision -> what is known of it."""
        path = self._state(family, "cells")
        found: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def build_family(self, family: Family, formats: Sequence[str] = tuple(FORMATS)) -> None:
        """Build a family's files that are not there yet, and run each on the test split."""
        cells = self.cells(family)
        missing = [name for name in formats if name not in cells]
        if not missing:
            return
        common, dense, cut = self._begun(family)
        for format in missing:
            asked = {**common, "weights": dense.weights, "epochs": 0, "formats": (format,)}
            cells[format] = {}
            for precision in PRECISIONS:
                refused = why_not(format, precision=precision)
                shape = _half(family, dense).model_copy(update={"precision": precision})
                wanted = {"precisions": (precision,)}, {"start": cut.weights, "candidate": shape}
                made = [refused[1]] if refused else [self.build(FinalRequest(**asked, **one)) for one in wanted]
                reasons = [one for one in made if isinstance(one, str)]
                built = [one for one in made if isinstance(one, BuildResult)]
                cell = {"reason": reasons[0]} if reasons else self._built(format, precision, built)
                cells[format][precision] = cell
                print(family.name, format, precision, json.dumps(cell), flush=True)
            self._state(family, "cells").write_text(json.dumps(cells, indent=1))

    def time_family(self, family: Family) -> None:
        """Time a family's files that were built and not timed yet."""
        cells = self.cells(family)
        for format, precision, cell in [(f, p, cell) for f, row in cells.items() for p, cell in row.items()]:
            if "files" in cell and not {"speedup", "untimed"} & cell.keys():
                cell |= self._timed(format, precision, [self.out / name for name in cell["files"]])
                print(family.name, format, precision, cell.get("speedup", cell.get("untimed")), flush=True)
                self._state(family, "cells").write_text(json.dumps(cells, indent=1))

    def facts(self, family: Family) -> dict[str, Any]:
        """Return a family's metric and its multiply-accumulates, dense and cut."""
        _, dense, cut = self._begun(family)
        return {"metric": dense.accuracy.metric, "macs": (dense.macs, cut.macs)}

    def _begun(self, family: Family) -> tuple[dict[str, Any], BuildResult, BuildResult]:
        """Return what every request of a family holds, its dense model and that model cut by half."""
        path = self._state(family, "began")
        if path.exists():
            told = json.loads(path.read_text())
            common = {"model": ModelSpec(**told["model"]), "data": DataSpec(**told["data"]), "metric": told["metric"]}
            return common, BuildResult.model_validate(told["dense"]), BuildResult.model_validate(told["cut"])
        given = family.given(self.store)
        common = {"model": given.model, "data": given.data, "metric": given.metric}
        dense = _must(self.build(PrepareRequest(**common)))
        cut = _must(self.build(CandidateRequest(**common, weights=dense.weights, candidate=_half(family, dense))))
        parts = {"model": given.model, "data": given.data, "dense": dense, "cut": cut}
        told = {name: part.model_dump(mode="json") for name, part in parts.items()}
        path.write_text(json.dumps({**told, "metric": given.metric}))
        return common, dense, cut

    def _state(self, family: Family, what: str) -> Path:
        return self.out / f"{family.name.lower().replace(' ', '-')}.{what}.json"

    def _built(self, format: str, precision: str, built: Sequence[BuildResult]) -> dict[str, Any]:
        artifacts = [
            next(one for one in each.artifacts if (one.format, one.precision) == (format, precision)) for each in built
        ]
        files = [self._file(artifact) for artifact in artifacts]
        return {
            "accuracy": [artifact.accuracy_test for artifact in artifacts],
            "size_bytes": [file.stat().st_size for file in files],
            "files": [file.name for file in files],
        }

    def _timed(self, format: str, precision: str, files: list[Path]) -> dict[str, Any]:
        runtime = TIMED_IN.get(format)
        if runtime is None:
            return {"untimed": "no agent runs it"}
        try:
            timed = bench(files[1], files[0], runtime=runtime, precision=precision, max_s=MAX_S)
        except BenchFailed as error:
            return {"untimed": error.message}
        return {key: timed[key] for key in ("speedup", "speedup_ci", "latency_ms", "baseline_latency_ms", "is_noisy")}

    def _file(self, artifact: BuiltArtifact) -> Path:
        path = self.out / f"{artifact.artifact.digest[7:23]}.{FORMATS[artifact.format].suffix}"
        path.write_bytes(self.store.read(artifact.artifact.digest))
        return path


def _half(family: Family, dense: BuildResult) -> Candidate:
    return Candidate(
        sparsity={},
        widths={group.name: max(1, group.channels // 2) for group in dense.groups},
        importance=ImportanceMix(l2=0.5, taylor=1, activation=0.5),
        recovery=RecoveryPlan(epochs=family.epochs),
    )


def _pixels_as_words(store: ArtifactStore) -> DataSpec:
    splits, arrays = digits(), {}
    for name in ("train", "val", "test"):
        images, labels = getattr(splits, name)
        # The seventeen shades of a pixel are the words 1 to 17; 0 fills up.
        arrays[f"{name}_inputs"] = (images * 6.0 + 5.9).round().flatten(1).numpy().astype(np.float32)
        arrays[f"{name}_labels"] = labels.numpy()
    return families.npz_of(store, arrays)


def report(made: Bench, among: Sequence[Family] = FAMILIES) -> str:
    """Return the page: one table over all families, then one a family; no row by hand."""
    packages = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    when = datetime.now(UTC).date().isoformat()
    lines = [
        "# Formats, measured",
        "",
        f"`make formats-table`, {when}. {_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()},"
        f" Python {platform.python_version()}; {packages}; {_converters()}. Load average at the end: {os.getloadavg()[0]:.1f}.",
        "",
        "Each family is cut by half in every group and distilled; no search took place. The built-in ones are trained on "
        "the digits of scikit-learn (1,097 training, 400 test images of 8x8 pixels; BERT reads the pixels as 64 words). "
        "The others come as users' files do: ONNX with trained weights and data as an npz, digits too; but the U-Net "
        "takes noise off them, the detector finds bright rectangles in scenes of 32x32 and has no labels, and the "
        "recommender reads a user, an item and four numbers.",
        "",
        "Accuracy is the metric of the very file, run in its own runtime on 400 test samples, in percent (see "
        "[metrics](../how-to/data-formats.md#what-a-job-is-scored-by)). Speed-up: the cut file against the dense one in "
        "the same runtime and precision, one thread, batch 1, paired, with its 95 % interval; ~ marks a measurement that "
        "says itself it was too noisy. These networks are small: a file of 0.1 ms is mostly overhead, and the point is "
        "that every file runs and what it gives, not how fast.",
    ]
    lines += ["", *_overview(made, among)]
    for family in among:
        cells = made.cells(family)
        if not cells:
            continue
        facts = made.facts(family)
        before, after = facts["macs"]
        lines += [
            "",
            f"## {family.name}",
            "",
            f"{family}, {facts['metric']}: {before / 1e6:.2f} million multiply-accumulates, {after / 1e6:.2f} once cut.",
            "",
            "| format | precision | accuracy dense | accuracy cut | kB dense | kB cut | speed-up |",
            "|---|---|---|---|---|---|---|",
        ]
        absent = {"absent": "not run yet: `make formats-table` goes on where it stopped"}
        for format in FORMATS:
            for precision, cell in cells.get(format, dict.fromkeys(PRECISIONS, absent)).items():
                lines.append(f"| {format} | {precision} | {_row(cell)} |")
    return "\n".join(lines) + "\n"


def _overview(made: Bench, among: Sequence[Family]) -> list[str]:
    """Return one row a family and one column a format: accuracy of the cut fp32 file, and its speed-up."""
    lines = [
        "The cut files in fp32, accuracy and speed-up (others, and what is refused, below):",
        "",
        "| | " + " | ".join(FORMATS) + " |",
        "|---" * (1 + len(FORMATS)) + "|",
    ]
    for family in among:
        cells = made.cells(family)
        row = [_short(cells[format]["fp32"]) if format in cells else "not run yet" for format in FORMATS]
        lines.append(f"| {family.name} | {' | '.join(row)} |")
    return lines


def _short(cell: dict[str, Any]) -> str:
    if "reason" in cell:
        return "not made"
    timed = f", {'~' if cell['is_noisy'] else ''}{cell['speedup']:.2f}x" if "speedup" in cell else ""
    return f"{100 * cell['accuracy'][1]:.1f}{timed}"


def _row(cell: dict[str, Any]) -> str:
    if "absent" in cell:
        return f"{cell['absent']} | | | |"
    if "reason" in cell:
        return f"not made: {cell['reason'].replace('|', '/')} | | | |"
    before, after = (f"{100 * value:.2f}" for value in cell["accuracy"])
    sizes = " | ".join(f"{size / 1000:.1f}" for size in cell["size_bytes"])
    if "speedup" not in cell:
        return f"{before} | {after} | {sizes} | not timed: {cell.get('untimed', 'built, not timed yet')}"
    low, high = cell["speedup_ci"]
    noisy = "~" if cell["is_noisy"] else ""
    return f"{before} | {after} | {sizes} | {noisy}{cell['speedup']:.2f} [{low:.2f}, {high:.2f}]"


def _converters() -> str:
    """Return the versions of the converters' environments, read from their folders."""
    found = []
    for format, package in (("litert", "litert_torch"), ("executorch", "executorch")):
        site = ConverterSettings().python_of(format).parent.parent
        names = sorted(site.glob(f"lib/python*/site-packages/{package}-*.dist-info"))
        told = names[0].name.split("-")[1].removesuffix(".dist") if names else "missing"
        found.append(f"{package.replace('_', '-')} {told}")
    return ", ".join(found)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _must(outcome: BuildResult | str) -> BuildResult:
    if isinstance(outcome, str):
        raise SystemExit(outcome)
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/formats"))
    parser.add_argument("--family", action="append", help="Only this one; may be given again.")
    parser.add_argument("--format", action="append", choices=tuple(FORMATS), help="Only this one; may be given again.")
    parser.add_argument(
        "--no-timing", dest="timing", action="store_false", help="Build only: another core may be busy."
    )
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    made = Bench(args.out)
    asked = [family for family in FAMILIES if args.family is None or family.name in args.family]
    for family in asked:
        made.build_family(family, tuple(args.format or FORMATS))
    for family in asked if args.timing else ():
        made.time_family(family)
    if args.report is not None:
        args.report.write_text(report(made), "utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

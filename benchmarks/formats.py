"""Every family of models in every format: what the file gives in its own runtime, and how much faster half of it is.

    make converters && make formats-table                 # docs/benchmarks/formats.md; twenty minutes on an idle core
    python -m benchmarks.formats --out OUT [--family vit] [--report FILE]

A family is trained on the digits of scikit-learn (BERT reads their 64 pixels as words), cut by half in every group, distilled for
some epochs, and exported by the builder itself, dense and cut, in every format and precision it has. ``accuracy`` is that of the
file, run in its own runtime on the 400 test images. Where an agent has a runtime for the format, the cut file is timed against the
dense one of the same format and precision by ``pruneloop bench``: one thread, batch 1. What cannot be says why. What was done lies
in OUT and is not done again.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domain.artifact import ArtifactKind
from domain.build import BuildResult, BuiltArtifact, CandidateRequest, FinalRequest, PrepareRequest
from domain.candidate import Candidate, ImportanceMix, RecoveryPlan
from domain.formats import FORMATS, why_not
from domain.job import DataSpec, ModelSpec
from pruning.builder import TorchBuilder
from pruning.converters import ConverterSettings
from pruning.datasets.digits import digits
from tests.unit.pruning.folder import FolderStore
from workers.agent.bench import BenchFailed, bench

PRECISIONS = ("fp32", "fp16", "int8")
TIMED_IN = {"onnx": "onnxruntime", "openvino": "openvino", "litert": "litert", "ncnn": "ncnn", "torch": "torch"}
PACKAGES = ("onnxruntime", "openvino", "ai-edge-litert", "ncnn", "torch")
MAX_S = 1.0


@dataclass(frozen=True)
class Family:
    """A model with its parameters, how it is taken smaller, and for how long it is distilled."""

    name: str
    model: str
    params: dict[str, Any]
    epochs: float = 4.0


FAMILIES = (
    Family("ResNet", "resnet8", {"width": 32}),
    Family("MobileNet", "mobilenet", {"width": 32}),
    Family("ConvNet", "convnet", {"width": 32}),
    Family("ViT", "vit", {"image": 8, "patch": 2}, epochs=10.0),
    Family(
        "BERT", "bert", {"vocabulary": 18, "dim": 64, "depth": 2, "heads": 4, "hidden": 256, "longest": 64}, epochs=10.0
    ),
)


class Bench:
    """A builder, its store, and what was already found out."""

    def __init__(self, out: Path) -> None:
        (out / "store").mkdir(parents=True, exist_ok=True)
        self.out = out
        self.store = FolderStore(out / "store")
        self.builder = TorchBuilder(self.store, threads=1, torch_device="cpu")
        self._path = out / "cells.json"
        self.cells: dict[str, dict[str, Any]] = json.loads(self._path.read_text()) if self._path.exists() else {}

    def build(self, request: PrepareRequest | CandidateRequest | FinalRequest) -> BuildResult | str:
        """Return a build, or the reason why there is none."""
        outcome = self.builder.build(request, progress=lambda stage, fraction: None, hold=nullcontext)
        return outcome if isinstance(outcome, BuildResult) else outcome.reason

    def family(self, family: Family, formats: tuple[str, ...] = tuple(FORMATS)) -> None:
        """Fill in a family's cells that are not there yet."""
        missing = [name for name in formats if f"{family.name} {name}" not in self.cells]
        if not missing:
            return
        began = self._path.with_name(f"{family.name}.json")
        common: dict[str, Any] = {
            "model": ModelSpec(name=family.model, params=family.params),
            "data": self._data(family),
        }
        if began.exists():
            dense, cut = (BuildResult.model_validate(one) for one in json.loads(began.read_text()))
        else:
            dense = _must(self.build(PrepareRequest(**common)))
            request = CandidateRequest(**common, weights=dense.weights, candidate=self._half(family, dense))
            cut = _must(self.build(request))
            began.write_text(json.dumps([one.model_dump(mode="json") for one in (dense, cut)]))
        candidate = self._half(family, dense)
        for format in missing:
            own: dict[str, Any] = {"macs": [dense.macs, cut.macs], "precisions": {}}
            asked = {**common, "weights": dense.weights, "epochs": 0, "formats": (format,)}
            able = tuple(precision for precision in PRECISIONS if why_not(format, precision=precision) is None)
            whole = self.build(FinalRequest(**asked, precisions=able))
            for precision in PRECISIONS:
                refused = why_not(format, precision=precision)
                if refused is not None or isinstance(whole, str):
                    cell: dict[str, Any] = {"reason": refused[1] if refused is not None else whole}
                else:
                    shape = candidate.model_copy(update={"precision": precision})
                    half = self.build(FinalRequest(**asked, start=cut.weights, candidate=shape))
                    cell = self._cell(format, precision, whole, half)
                own["precisions"][precision] = cell
                print(family.name, format, precision, json.dumps(cell), flush=True)
            self.cells[f"{family.name} {format}"] = own
            self._path.write_text(json.dumps(self.cells, indent=1))

    def _half(self, family: Family, dense: BuildResult) -> Candidate:
        return Candidate(
            sparsity={},
            widths={group.name: max(1, group.channels // 2) for group in dense.groups},
            importance=ImportanceMix(l2=0.5, taylor=1, activation=0.5),
            recovery=RecoveryPlan(epochs=family.epochs),
        )

    def _cell(self, format: str, precision: str, whole: BuildResult, half: BuildResult | str) -> dict[str, Any]:
        if isinstance(half, str):
            return {"reason": half}
        artifacts = [
            next(one for one in built.artifacts if (one.format, one.precision) == (format, precision))
            for built in (whole, half)
        ]
        files = [self._file(artifact) for artifact in artifacts]
        made: dict[str, Any] = {
            "accuracy": [artifact.accuracy_test for artifact in artifacts],
            "size_bytes": [file.stat().st_size for file in files],
        }
        runtime = TIMED_IN.get(format)
        if runtime is None:
            return {**made, "untimed": "no agent runs it"}
        try:
            timed = bench(files[1], files[0], runtime=runtime, precision=precision, max_s=MAX_S)
        except BenchFailed as error:
            return {**made, "untimed": error.message}
        keys = ("speedup", "speedup_ci", "latency_ms", "baseline_latency_ms", "is_noisy")
        return {**made, **{key: timed[key] for key in keys}}

    def _file(self, artifact: BuiltArtifact) -> Path:
        path = self.out / f"{artifact.artifact.digest[7:23]}.{FORMATS[artifact.format].suffix}"
        path.write_bytes(self.store.read(artifact.artifact.digest))
        return path

    def _data(self, family: Family) -> DataSpec:
        if family.model != "bert":
            return DataSpec(name="digits")
        splits, arrays = digits(), {}
        for name in ("train", "val", "test"):
            images, labels = getattr(splits, name)
            # The seventeen shades of a pixel are the words 1 to 17; 0 fills up.
            arrays[f"{name}_inputs"] = (images * 6.0 + 5.9).round().flatten(1).numpy().astype(np.float32)
            arrays[f"{name}_labels"] = labels.numpy()
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        return DataSpec(source="npz", artifact=self.store.put_bytes(buffer.getvalue(), ArtifactKind.DATA).digest)


def report(cells: dict[str, dict[str, Any]], among: tuple[Family, ...] = FAMILIES) -> str:
    """Return the page: one table a family, no row by hand."""
    families = [family for family in among if any(key.startswith(f"{family.name} ") for key in cells)]
    packages = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    when = datetime.now(UTC).date().isoformat()
    lines = [
        "# Formats, measured",
        "",
        f"`make formats-table`, {when}. {_processor()}, {os.cpu_count()} cores, {platform.system()}"
        f" {platform.machine()}, Python"
        f" {platform.python_version()}; {packages}; {_converters()}. Load average at the end: {os.getloadavg()[0]:.1f}.",
        "",
        "Each family is trained on the digits of scikit-learn (1,097 training, 400 test images of 8x8"
        " pixels; BERT reads the pixels as 64"
        " words), cut by half in every group and distilled. Accuracy is that of the very file, run in its"
        " own runtime on the 400 test"
        " images, in percent; one image is 0.25. Speed-up: the cut file against the dense one in the same"
        " runtime and precision, one"
        " thread, batch 1, paired, with its 95 % interval; ~ marks a measurement that says itself it was too"
        " noisy. These networks are"
        " small: a file of 0.1 ms is mostly overhead, and the point is that every file runs and what it gives, not how fast.",
    ]
    for family in families:
        own = {key.partition(" ")[2]: cell for key, cell in cells.items() if key.partition(" ")[0] == family.name}
        before, after = next(iter(own.values()))["macs"]
        params = ", ".join(f"{name} {value}" for name, value in family.params.items())
        lines += [
            "",
            f"## {family.name}",
            "",
            f"`{family.model}` ({params}): {before / 1e6:.2f} million multiply-accumulates, {after / 1e6:.2f} once cut.",
            "",
            "| format | precision | accuracy dense | accuracy cut | kB dense | kB cut | speed-up |",
            "|---|---|---|---|---|---|---|",
        ]
        for format in FORMATS:
            absent = {"absent": "not run yet: `make formats-table` goes on where it stopped"}
            cells_of = own[format]["precisions"] if format in own else dict.fromkeys(PRECISIONS, absent)
            for precision, cell in cells_of.items():
                lines.append(f"| {format} | {precision} | {_row(cell)} |")
    return "\n".join(lines) + "\n"


def _row(cell: dict[str, Any]) -> str:
    if "absent" in cell:
        return f"{cell['absent']} | | | |"
    if "reason" in cell:
        return f"not made: {cell['reason'].replace('|', '/')} | | | |"
    before, after = (f"{100 * value:.2f}" for value in cell["accuracy"])
    sizes = " | ".join(f"{size / 1000:.1f}" for size in cell["size_bytes"])
    if "untimed" in cell:
        return f"{before} | {after} | {sizes} | not timed: {cell['untimed']}"
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
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    made = Bench(args.out)
    for family in FAMILIES:
        if args.family is None or family.name in args.family:
            made.family(family, tuple(args.format or FORMATS))
            if args.report is not None:
                args.report.write_text(report(made.cells), "utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

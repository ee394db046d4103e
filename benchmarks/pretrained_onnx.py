"""A pretrained convolutional ONNX file, pruned without labels: agreement with the original against latency.

The file is PP-OCR's classifier of text direction (a MobileNetV3 with squeeze-and-excite, 0.6 MB), written by paddle2onnx:
every weight
is a Constant node, batch, height and width are free. It comes inside the package ``rapidocr-onnxruntime`` (Apache-2.0). Its
inputs are lines of text, drawn here, half of them upside down; nobody labels them: the original is the only teacher.

    pip install --no-deps rapidocr-onnxruntime==1.4.4
    python -m benchmarks.pretrained_onnx --out OUT [--sparsity 0.3,0.5] [--epochs 2]

Every file is run in ONNX Runtime on lines that nothing was fitted to, and timed against the original by ``pruneloop bench``:
batch 1, one thread.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import torch
from PIL import Image, ImageDraw, ImageFont

from domain.artifact import ArtifactKind
from domain.build import BuildOutcome, BuildResult, CandidateRequest, FinalRequest, PrepareRequest
from domain.candidate import Candidate, ImportanceMix, RecoveryPlan
from domain.job import DataSpec, ModelSpec
from pruning.builder import TorchBuilder
from tests.unit.pruning.folder import FolderStore

PACKAGE = "rapidocr_onnxruntime"
FILE = "models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
HEIGHT, WIDTH = 48, 192  # what the package feeds it
SYLLABLES = (
    "ba",
    "den",
    "ki",
    "lor",
    "mu",
    "net",
    "pra",
    "qui",
    "ro",
    "sta",
    "tem",
    "un",
    "vel",
    "xo",
    "yr",
    "12",
    "47",
    "3.5",
)


def file_of_package() -> Path | None:
    """Return where the classifier lies; None where the package is not installed."""
    found = find_spec(PACKAGE)
    locations = list(found.submodule_search_locations or ()) if found is not None else []
    return Path(locations[0]) / FILE if locations else None


def text_lines(count: int, seed: int) -> np.ndarray:
    """Draw lines of text, half of them upside down, as the package feeds them: ``(count, 3, 48, 192)``, about -1 to 1."""
    rng = np.random.default_rng(seed)
    lines = np.empty((count, 3, HEIGHT, WIDTH), np.float32)
    for number in range(count):
        paper, ink = rng.integers(150, 256, 3), rng.integers(0, 100, 3)
        image = Image.new("RGB", (WIDTH, HEIGHT), tuple(int(value) for value in paper))
        words = ["".join(rng.choice(SYLLABLES, rng.integers(1, 4))) for _ in range(rng.integers(1, 4))]
        text = " ".join(word.capitalize() if rng.random() < 0.4 else word for word in words)
        font = ImageFont.load_default(size=int(rng.integers(20, 34)))
        place = int(rng.integers(2, 12)), int(rng.integers(2, 12))
        ImageDraw.Draw(image).text(place, text, font=font, fill=tuple(int(value) for value in ink))
        if rng.random() < 0.5:
            image = image.rotate(180)
        pixels = np.asarray(image, np.float32) + rng.normal(0, 6, (HEIGHT, WIDTH, 3))
        lines[number] = (pixels / 255 - 0.5).transpose(2, 0, 1) / 0.5
    return lines


def stored_lines(store: FolderStore, train: int, val: int, test: int) -> DataSpec:
    """Store lines as an npz without labels."""
    arrays = {"train": text_lines(train, 0), "val": text_lines(val, 1), "test": text_lines(test, 2)}
    buffer = io.BytesIO()
    np.savez(buffer, **{f"{name}_inputs": lines for name, lines in arrays.items()})  # type: ignore[arg-type]
    return DataSpec(source="npz", artifact=store.put_bytes(buffer.getvalue(), ArtifactKind.DATA).digest)


def width_of(channels: int, sparsity: float) -> int:
    """Return what is kept of a group, in steps of eight: odd widths run slower than wide ones."""
    return min(channels, max(8, 8 * round(channels * (1 - sparsity) / 8)))


def cut_of(prepared: BuildResult, sparsity: float, epochs: float) -> Candidate:
    """Return a candidate in which every group loses the same share of its channels."""
    return Candidate(
        sparsity={group.name: sparsity for group in prepared.groups},
        widths={group.name: width_of(group.channels, sparsity) for group in prepared.groups},
        importance=ImportanceMix(l2=1, taylor=1, activation=1),
        recovery=RecoveryPlan(epochs=epochs, learning_rate=0.01, precision="fp32"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sparsity", default="0.3,0.5", help="Share of channels taken from every group.")
    parser.add_argument("--epochs", type=float, default=6.0)
    args = parser.parse_args()
    path = file_of_package()
    if path is None:
        raise SystemExit("pip install --no-deps rapidocr-onnxruntime==1.4.4")
    (args.out / "store").mkdir(parents=True, exist_ok=True)
    store = FolderStore(args.out / "store")
    data = stored_lines(store, 1500, 500, 1000)
    model = ModelSpec(source="onnx", artifact=store.put_bytes(path.read_bytes(), ArtifactKind.ONNX).digest)
    builder = TorchBuilder(store, threads=1, torch_device="cpu")
    common = {"model": model, "data": data, "metric": "agreement"}
    dense = _built(builder.build(PrepareRequest(**common), progress=_quiet, hold=nullcontext))
    told = {"macs": dense.macs, "params": dense.params, "groups": len(dense.groups), "whole": len(dense.unprunable)}
    print(json.dumps({"point": "original", **told}), flush=True)
    for layer in dense.unprunable:
        print(json.dumps({"whole": layer.name, "reason": layer.reason}), flush=True)
    baseline = args.out / "original.onnx"
    baseline.write_bytes(_of_one_line(path.read_bytes()))
    for sparsity in map(float, args.sparsity.split(",")):
        candidate = cut_of(dense, sparsity, args.epochs)
        cut = _built(
            builder.build(
                CandidateRequest(**common, weights=dense.weights, candidate=candidate),
                progress=_quiet,
                hold=nullcontext,
            )
        )
        final = FinalRequest(**common, weights=dense.weights, start=cut.weights, candidate=candidate, epochs=1)
        made = _built(builder.build(final, progress=_quiet, hold=nullcontext))
        file = args.out / f"sparsity-{sparsity:g}.onnx"
        file.write_bytes(_of_one_line(store.read(made.artifacts[0].artifact.digest)))
        command = [sys.executable, "-m", "client", "bench", str(file), "--against", str(baseline), "--json"]
        timed = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
        point = {
            "point": f"sparsity {sparsity:g}",
            "agreement": made.accuracy.test,
            "of": made.accuracy.test_samples,
            "macs": made.macs,
            "params": made.params,
            **{key: timed[key] for key in ("speedup", "speedup_ci", "latency_ms", "baseline_latency_ms")},
        }
        print(json.dumps(point), flush=True)


def _of_one_line(file: bytes) -> bytes:
    """Return a file for one line of the size the package feeds: `bench` would feed free sizes one of each."""
    model = onnx.load_from_string(file)
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, 3, HEIGHT, WIDTH), strict=True):
        dim.dim_value = size
    made: bytes = model.SerializeToString()
    return made


def _built(outcome: BuildOutcome) -> BuildResult:
    if not isinstance(outcome, BuildResult):
        raise SystemExit(outcome.reason)
    return outcome


def _quiet(stage: str, fraction: float) -> None:
    del stage, fraction


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

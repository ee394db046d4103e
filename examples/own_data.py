"""Prune on data of your own: write an npz, upload it, name it in a job, take the front's files home.

    pruneloop up                      # in another terminal
    python examples/own_data.py --url http://127.0.0.1:8420 --token "$(cat .pruneloop/admin-token)"

Arrays: train_inputs, train_labels and, if you have them, val_* and test_*; the first axis is the samples. What is missing is cut
from train, and the job's report says how.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from client.api import PruneloopClient
from domain.artifact import ArtifactKind


def write_data(path: Path) -> None:
    """Write 1,797 images of 8x8 handwritten digits; put your own arrays here."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = (digits.images[order, None] / 16.0).astype(np.float32)  # (samples, channels, height, width)
    np.savez(path, train_inputs=images, train_labels=digits.target[order].astype(np.int64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("models"))
    given = parser.parse_args()
    with PruneloopClient(given.url, given.token) as client, tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "digits.npz"
        write_data(data)
        uploaded = client.upload_artifact(data, ArtifactKind.DATA)
        job = client.submit(
            {
                "name": "digits of my own",
                "model": {"name": "resnet8", "params": {"width": 16}},
                "data": {"source": "npz", "artifact": uploaded.digest},
                "targets": [{"speedup": 1.5}],
                "objective": {"max_drop": 0.05},
                "budget": {"trials": given.trials, "wall_s": 300},
                "final": {"keep": 2, "epochs": 2.0},
            }
        )
        view = client.wait(job.id)
        print(f"{view.state}: {view.reason or 'done'}; splits: {view.report.get('splits')}")
        for point in client.front(job.id).items:
            (artifact,) = point.artifacts
            path = client.download(artifact.digest, given.out / f"trial-{point.trial}.onnx")
            print(
                f"{path}: accuracy {point.accuracy:.3f}, {point.latency_ms:.4f} ms, {point.speedup:.2f}x {point.speedup_ci}"
            )


if __name__ == "__main__":
    main()

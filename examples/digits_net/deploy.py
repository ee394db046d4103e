"""Run a downloaded file as any program would: ONNX Runtime and numpy, nothing of Pruneloop and no torch."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime

HERE = Path(__file__).parent


def main(file: str) -> None:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    data = np.load(HERE / "digits.npz")
    answers = np.array([session.run(None, {name: one[None]})[0].argmax() for one in data["test_inputs"]])
    print(f"{Path(file).name}: accuracy {(answers == data['test_labels']).mean():.4f} on {len(answers)} test samples")


if __name__ == "__main__":
    main(sys.argv[1])

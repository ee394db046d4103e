"""Train the network and leave what a job names: weights.safetensors and digits.npz, next to this file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from digits_net import make_model
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn

HERE = Path(__file__).parent
SPLITS = {"train": slice(0, 1200), "val": slice(1200, 1450), "test": slice(1450, None)}
EPOCHS = 15


def load_data() -> tuple[np.ndarray, np.ndarray]:
    """Return 1,797 images of 8x8 handwritten digits, (samples, channels, height, width), and their labels."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    return (digits.images[order, None] / 16.0).astype(np.float32), digits.target[order].astype(np.int64)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # a network this small only waits for more
    images, labels = load_data()
    inputs, wanted = torch.from_numpy(images), torch.from_numpy(labels)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(EPOCHS):
        for batch in torch.randperm(SPLITS["train"].stop).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), wanted[batch]).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        hits = model(inputs[SPLITS["test"]]).argmax(1) == wanted[SPLITS["test"]]
    # The search needs samples the model was not trained on, and the report some that the search never saw: one file, three splits.
    arrays = {f"{name}_inputs": images[part] for name, part in SPLITS.items()}
    arrays |= {f"{name}_labels": labels[part] for name, part in SPLITS.items()}
    np.savez(HERE / "digits.npz", **arrays)
    save_file(model.state_dict(), HERE / "weights.safetensors")
    print(f"accuracy {hits.float().mean():.3f} on {len(hits)} test samples")


if __name__ == "__main__":
    main()

"""A Keras classifier with convolutions, trained on digits, as the ONNX file and the data that a Pruneloop job takes.

Runs where TensorFlow is installed and needs nothing of Pruneloop:

    python -m venv keras && keras/bin/pip install tensorflow tf2onnx onnxruntime scikit-learn
    keras/bin/python examples/keras_digits/train.py OUT
    pruneloop submit examples/keras_digits/job.yaml      # with OUT = examples/keras_digits

tf2onnx keeps Keras's layout: inputs are (N, height, width, channels), and the file begins with a Transpose. Pruneloop cuts the
convolutions behind it, and gives back a file with the same names, the same layout and the same free batch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import tf2onnx
from sklearn.datasets import load_digits


def data(seed: int = 0) -> dict[str, np.ndarray]:
    """Return 8x8 digits as an npz of Pruneloop names its arrays, channels last."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    images = (images[order].reshape(-1, 8, 8, 1) / 16).astype(np.float32)
    labels = labels[order].astype(np.int64)
    parts = {"train": slice(0, 1200), "val": slice(1200, 1450), "test": slice(1450, None)}
    return {
        f"{name}_{kind}": values[part]
        for name, part in parts.items()
        for kind, values in (("inputs", images), ("labels", labels))
    }


def network() -> keras.Model:
    """A small residual network with batch normalisation, a depthwise convolution and a softmax at its end."""
    layers = keras.layers

    def normed(x: object) -> object:
        return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))

    inputs = keras.Input((8, 8, 1), name="image")
    x = normed(layers.Conv2D(24, 3, padding="same", use_bias=False)(inputs))
    y = normed(layers.Conv2D(32, 3, padding="same", use_bias=False)(x))
    x = layers.ReLU()(
        layers.add(
            [x, layers.BatchNormalization(momentum=0.9)(layers.Conv2D(24, 3, padding="same", use_bias=False)(y))]
        )
    )
    x = normed(layers.DepthwiseConv2D(3, padding="same", strides=2, use_bias=False)(x))
    x = normed(layers.Conv2D(48, 1, use_bias=False)(x))
    x = layers.Flatten()(x)
    x = layers.Dense(64, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax", name="digit")(x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)
    arrays = data()
    model = network()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(arrays["train_inputs"], arrays["train_labels"], batch_size=64, epochs=args.epochs, verbose=0)
    _, accuracy = model.evaluate(arrays["test_inputs"], arrays["test_labels"], verbose=0)
    function = tf.function(lambda image: model(image, training=False))
    signature = [tf.TensorSpec((None, 8, 8, 1), tf.float32, name="image")]
    tf2onnx.convert.from_function(function, signature, opset=17, output_path=str(args.out / "keras_digits.onnx"))
    np.savez(args.out / "keras_digits.npz", **arrays)
    print(json.dumps({"test_accuracy": round(float(accuracy), 4), "params": model.count_params()}))


if __name__ == "__main__":
    main()

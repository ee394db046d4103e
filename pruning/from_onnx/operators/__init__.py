"""One module a family of operators; ``pruning.from_onnx.conversion`` imports them all, which registers them."""

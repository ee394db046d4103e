"""NVIDIA ModelOpt's FastNAS, as its users run it: a limit on FLOPs, a score on val, a sensitivity map paid once.

Its own example for a small ResNet on CIFAR-10 lowers the divisor of channels from 32 to 16, without which the first stage of such a
net cannot be narrowed; so do we. Every limit gives one network, which gets the final recipe. The map is shared between limits by
the search checkpoint, as its documentation says; with it the second search takes seconds.

Needs the extra `bench`, which nothing of the product does: `nvidia-modelopt`, with `huggingface_hub`, which it imports without
declaring it, and `torchprofile` 0.0.4, by which it counts FLOPs: later ones lack what it patches.

Source: github.com/NVIDIA/Model-Optimizer, examples/cnn_pruning (Apache-2.0); called, not copied.
"""

from __future__ import annotations

import tempfile
import warnings
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn

from benchmarks.search_quality.bench import Bench

DIVISOR = 16
LIMITS = (50, 30, 70, 20, 40, 60, 15, 80, 25, 35, 10)  # percent of the dense model's FLOPs
BATCH = 64
UNSATISFIABLE = "NOT all constraints can be satisfied"
"""What it raises where even its narrowest network is past the limit."""


def missing() -> str | None:
    """Return what to install where it does not import; else None. Importing it takes seconds, and no run is to pay for them."""
    try:
        import modelopt.torch.prune  # noqa: F401
        from torchprofile import profile

        profile.handlers  # noqa: B018 - gone after 0.0.4
    except (ImportError, AttributeError) as error:
        return f"ModelOpt does not import ({error}); run pip install -c constraints.txt -e '.[bench]'"
    return None


def run(bench: Bench) -> None:
    """Search under one limit after the other."""
    with tempfile.TemporaryDirectory() as folder:
        seen = set()
        for limit in LIMITS:
            try:
                model = searched(bench, limit, Path(folder) / "map.pth")
            except ValueError as error:
                if UNSATISFIABLE not in str(error):
                    raise
                bench.notes.setdefault("out_of_reach", []).append(limit)
                continue
            shape = tuple(tuple(parameter.shape) for parameter in model.parameters())
            if shape in seen:
                continue
            seen.add(shape)
            bench.recover(model)
            bench.keep(model, stage="final", limit=limit)


def searched(bench: Bench, limit: int, checkpoint: Path) -> nn.Module:
    """Return the network FastNAS finds within so many percent of the dense model's FLOPs."""
    import modelopt.torch.prune as mtp

    bench.clock.check()
    config = mtp.fastnas.FastNASConfig()
    for kind, key in (("nn.Conv2d", "channel_divisor"), ("nn.BatchNorm2d", "feature_divisor")):
        config[kind]["*"][key] = DIVISOR
    inputs = bench.dense.calibration()[0]
    # It refuses models that are channels-last, as ours are.
    dense = deepcopy(bench.dense.model).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    batches = [(bench.dense.compute.place(part), None) for part in inputs.split(BATCH)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, _ = mtp.prune(
            model=dense,
            mode=[("fastnas", config)],
            constraints={"flops": f"{limit}%"},
            dummy_input=bench.dense.example[:1],
            config={
                "data_loader": batches,
                "score_func": bench.accuracy,
                "checkpoint": str(checkpoint),
                "verbose": False,
            },
        )
    return bench.dense.compute.adopt(model)


METHODS = {"fastnas": run}

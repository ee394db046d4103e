"""What a worker has imported before it forks: what a build would else pay for, in every new child."""

from __future__ import annotations

import json
import subprocess
import sys

STEP = """
import json, sys
from importlib import import_module
from workers.main import IMPORTED_FIRST
for module in IMPORTED_FIRST["build"]:
    import_module(module)
before = set(sys.modules)
import torch
from domain.job import ModelSpec
from pruning.models import build_model
from pruning.precision import Compute
from pruning.recovery import Recipe, TrainingSet, train
model = build_model(ModelSpec(name="convnet", params={"width": 4}))
inputs, labels = torch.randn(64, 1, 8, 8), torch.randint(0, 10, (64,))
train(model, TrainingSet(inputs, labels), Recipe(epochs=1, learning_rate=0.01, batch=32), Compute(torch.device("cpu")))
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_a_first_training_imports_next_to_nothing() -> None:
    ran = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, check=True)
    late = json.loads(ran.stdout.splitlines()[-1])
    assert len(late) < 20, late

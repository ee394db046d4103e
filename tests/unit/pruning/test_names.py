"""The names the API checks at the door are those the builder really has."""

from __future__ import annotations

from pruning.datasets import DATASETS
from pruning.models import MODELS
from pruning.names import BUILTIN_DATASETS, BUILTIN_MODELS


def test_the_names_without_torch_are_the_registries() -> None:
    assert tuple(plugin.name for plugin in MODELS.plugins() if plugin.source == "builtin") == BUILTIN_MODELS
    assert tuple(plugin.name for plugin in DATASETS.plugins() if plugin.source == "builtin") == BUILTIN_DATASETS

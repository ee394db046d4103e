"""The names a job may use, without torch: the API checks them at the door, the builder looks them up for real."""

from __future__ import annotations

from importlib.metadata import entry_points

BUILTIN_MODELS = ("bert", "convnet", "mobilenet", "resnet14", "resnet20", "resnet32", "resnet56", "resnet8", "vit")
BUILTIN_DATASETS = ("digits", "mnist-5k")


def known_names(group: str, builtin: tuple[str, ...]) -> tuple[str, ...]:
    """Return the built-in names and those of an entry-point group; a plug-in is named here without being imported."""
    return tuple(sorted({*builtin, *(entry.name for entry in entry_points(group=group))}))

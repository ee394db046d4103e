"""Models a job may name: built-in ones, and entry points of the group ``pruneloop.models``."""

from __future__ import annotations

from functools import partial

from torch import nn

from domain.errors import FieldProblem, Invalid
from domain.job import ModelSpec
from pruning.models.plain import ConvNet, MobileNet
from pruning.models.resnet import ResNet
from pruning.models.vit import VisionTransformer
from pruning.plugins import Plugin, Registry

__all__ = ["MODELS", "build_model", "model_names", "model_plugins"]

MODELS: Registry[nn.Module] = Registry(
    "pruneloop.models",
    "model",
    "model.name",
    {
        "convnet": ConvNet,
        "mobilenet": MobileNet,
        "vit": VisionTransformer,
        **{f"resnet{6 * blocks + 2}": partial(ResNet, blocks) for blocks in (1, 2, 3, 5, 9)},
    },
)


def model_names() -> tuple[str, ...]:
    """Return the model names that work here, sorted."""
    return MODELS.names()


def model_plugins() -> tuple[Plugin, ...]:
    """Return every model name with its source, and the reason where a plug-in does not import."""
    return MODELS.plugins()


def build_model(spec: ModelSpec, registry: Registry[nn.Module] = MODELS) -> nn.Module:
    """Build a model with fresh weights, drawn from torch's current seed.

    Args:
        spec: The job's model; its weights are not loaded here.
        registry: Where names are looked up.

    Raises:
        Invalid: ``unknown_model``, ``broken_plugin``, ``bad_model_params`` or ``model_source_not_available``.
    """
    if spec.source == "onnx":
        message = (
            "Pruning an uploaded ONNX file is not available yet: name a built-in model, or install a plug-in whose entry"
            " point in the group `pruneloop.models` builds the network as a torch module."
        )
        raise Invalid(message, code="model_source_not_available", fields=[FieldProblem("model.source", message)])
    name = spec.name or ""
    factory = registry.factory(name)
    try:
        model: object = factory(**spec.params)
    except Exception as error:  # A boundary: a factory may be a plug-in's, and raises what it likes on bad parameters.
        message = f"Model {name!r} does not take the parameters {dict(spec.params)}: {error}"
        raise Invalid(message, code="bad_model_params", fields=[FieldProblem("model.params", message)]) from error
    if not isinstance(model, nn.Module):
        message = f"Model {name!r} gave a {type(model).__name__}, not a torch.nn.Module; mend the plug-in."
        raise Invalid(message, code="bad_model_params", fields=[FieldProblem("model.name", message)])
    return model

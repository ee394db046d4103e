"""Models a job may name: built-in ones, and entry points of the group ``pruneloop.models``."""

from __future__ import annotations

from functools import partial

from torch import nn

from domain.errors import FieldProblem, Invalid
from domain.job import ModelSpec
from domain.ports import ArtifactStore
from pruning.models.bert import bert_encoder
from pruning.models.from_file import check_file, open_file, stored_path
from pruning.models.plain import ConvNet, MobileNet
from pruning.models.resnet import ResNet
from pruning.models.vit import VisionTransformer
from pruning.plugins import Plugin, Registry

__all__ = ["MODELS", "build_model", "check_model", "model_names", "model_plugins"]

MODELS: Registry[nn.Module] = Registry(
    "pruneloop.models",
    "model",
    "model.name",
    {
        "bert": bert_encoder,
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


def check_model(spec: ModelSpec, artifacts: ArtifactStore) -> None:
    """Say what of an uploaded model cannot be used, before any work is done; of other sources there is nothing to look at yet.

    Raises:
        Invalid: ``bad_onnx`` or ``unsupported_onnx``, with every node that is not converted.
        NotFound: ``model_not_found``.
    """
    if spec.source == "onnx":
        check_file(stored_path(spec.artifact or "", artifacts))


def build_model(
    spec: ModelSpec, registry: Registry[nn.Module] = MODELS, *, artifacts: ArtifactStore | None = None
) -> nn.Module:
    """Build a model with fresh weights, drawn from torch's current seed; an ONNX file brings its own.

    Args:
        spec: The job's model; its weights are not loaded here.
        registry: Where names are looked up.
        artifacts: Where an uploaded file lies.

    Raises:
        Invalid: ``unknown_model``, ``broken_plugin``, ``bad_model_params``, ``bad_onnx`` or ``unsupported_onnx``.
        NotFound: ``model_not_found``.
    """
    if spec.source == "onnx":
        return open_file(stored_path(spec.artifact or "", artifacts).read_bytes())
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

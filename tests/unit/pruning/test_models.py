"""Models by name, plug-ins that work and that do not, and what a model costs."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from torch import nn

from domain.errors import Invalid, NotFound
from domain.job import ModelSpec
from pruning.cost import count_macs, count_params, layer_costs
from pruning.models import build_model, model_names
from pruning.plugins import Registry


def _registry(*entries: tuple[str, str]) -> Registry[nn.Module]:
    installed = [EntryPoint(name, value, "pruneloop.models") for name, value in entries]
    return Registry("pruneloop.models", "model", "model.name", {"own": lambda: nn.Linear(2, 2)}, installed)


OF_LIBRARIES = {"timm", "torchvision", "transformers"}  # their models have names of their own: tests/zoo


@pytest.mark.parametrize("name", sorted({*model_names()} - OF_LIBRARIES - {"bert"}))
def test_every_builtin_image_model_takes_its_params(name: str) -> None:
    size = {"image": 16, "dim": 8} if name == "vit" else {"width": 4}
    model = build_model(ModelSpec(name=name, params={**size, "in_channels": 3, "classes": 7}))
    assert model.eval()(torch.randn(2, 3, 16, 16)).shape == (2, 7)


def test_a_resnet_has_as_many_weighted_layers_as_its_name_says() -> None:
    for depth in (8, 14, 20, 32, 56):
        model = build_model(ModelSpec(name=f"resnet{depth}", params={"width": 2}))
        weighted = [
            name
            for name, module in model.named_modules()
            if isinstance(module, (nn.Conv2d, nn.Linear)) and "project" not in name
        ]
        assert len(weighted) == depth


def test_an_unknown_model_is_refused_with_the_known_names() -> None:
    with pytest.raises(Invalid, match="resnet8") as caught:
        build_model(ModelSpec(name="resnet9"))
    assert caught.value.code == "unknown_model"
    assert caught.value.fields[0].field == "model.name"


@pytest.mark.parametrize("params", [{"wdth": 3}, {"width": "wide"}, {"width": -1}])
def test_params_a_model_does_not_take_are_refused(params: dict[str, int | str]) -> None:
    with pytest.raises(Invalid) as caught:
        build_model(ModelSpec(name="resnet8", params=dict(params)))
    assert caught.value.code == "bad_model_params"


def test_a_file_that_was_never_uploaded_is_not_found() -> None:
    with pytest.raises(NotFound, match="upload the file") as caught:
        build_model(ModelSpec(source="onnx", artifact="sha256:" + "0" * 64))
    assert caught.value.code == "model_not_found"


def test_a_plugin_is_built_by_its_name() -> None:
    model = build_model(
        ModelSpec(source="plugin", name="line", params={"in_features": 3, "out_features": 2}),
        _registry(("line", "torch.nn:Linear")),
    )
    assert isinstance(model, nn.Linear)


def test_a_plugin_that_does_not_import_is_listed_and_breaks_nothing_else() -> None:
    registry = _registry(("line", "torch.nn:Linear"), ("broken", "no_such_package_anywhere:Net"))
    assert registry.names() == ("line", "own")
    broken = next(plugin for plugin in registry.plugins() if plugin.name == "broken")
    assert broken.error is not None and "no_such_package_anywhere" in broken.error
    assert registry.factory("own")().in_features == 2
    with pytest.raises(Invalid, match="no_such_package_anywhere") as caught:
        registry.factory("broken")
    assert caught.value.code == "broken_plugin"


def test_a_plugin_cannot_take_a_builtin_name() -> None:
    registry = _registry(("own", "torch.nn:Conv2d"))
    assert isinstance(registry.factory("own")(), nn.Linear)
    assert any(plugin.error for plugin in registry.plugins())


def test_a_plugin_that_gives_no_module_is_refused() -> None:
    with pytest.raises(Invalid, match=r"not a torch\.nn\.Module"):
        build_model(ModelSpec(source="plugin", name="odd"), _registry(("odd", "builtins:dict")))


def test_macs_are_exact_for_convolutions_groups_strides_and_linear_layers() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2),
        nn.Flatten(),
        nn.Linear(4 * 64, 5),
    )
    costs = layer_costs(model, torch.randn(3, 4, 8, 8))
    assert [cost.macs for cost in costs.values()] == [
        8 * 16 * 4 * 9,
        8 * 16 * 9,
        8 * 16 * (4 // 2) * 4,
        4 * 64 * 5,
    ]
    assert [cost.positions for cost in costs.values()] == [16, 16, 64, 1]


def test_a_layer_called_twice_counts_twice() -> None:
    shared = nn.Linear(4, 4)
    assert count_macs(nn.Sequential(shared, shared), torch.randn(2, 4)) == 32


def test_params_do_not_count_buffers() -> None:
    assert count_params(nn.BatchNorm2d(6)) == 12


def test_for_a_builtin_name_no_plugin_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_net.py").write_text("from torch import nn\ndef make(): return nn.Linear(3, 2)\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = _registry(("slow-net", "slow_net:make"))
    assert registry.factory("own")().in_features == 2
    assert "slow_net" not in sys.modules
    assert registry.factory("slow-net")().in_features == 3
    assert "slow_net" in sys.modules


def test_a_plugin_installed_after_the_first_look_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry: Registry[nn.Module] = Registry("pruneloop.models", "model", "model.name", {})
    with pytest.raises(Invalid, match="Unknown model"):
        registry.factory("late-net")
    (tmp_path / "late_net.py").write_text("from torch import nn\ndef make(): return nn.Linear(3, 2)\n")
    installed = tmp_path / "late_net-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: late-net\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[pruneloop.models]\nlate-net = late_net:make\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert registry.factory("late-net")().in_features == 3

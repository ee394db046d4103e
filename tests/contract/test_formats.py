"""The table of formats agrees with those who read and write them."""

from __future__ import annotations

import pytest

from bootstrap import capabilities
from domain.artifact import ArtifactKind
from domain.formats import FORMATS, format_of, why_not
from pruning.exporters import exporter_plugins, make_exporter
from workers.agent.runtimes.registry import BUILT_IN


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_a_runtime_reads_the_format_that_is_built_for_it(name: str) -> None:
    assert format_of(name) in BUILT_IN[name]().formats


def test_every_format_has_an_exporter_and_a_kind_and_may_be_asked_for() -> None:
    assert {plugin.name for plugin in exporter_plugins() if plugin.source == "builtin"} == set(FORMATS)
    assert set(capabilities().exports) >= set(FORMATS)
    for name in FORMATS:
        assert make_exporter(name).kind is ArtifactKind(name)


def test_a_plug_ins_format_is_left_to_its_exporter() -> None:
    assert why_not("mine", precision="int2", batch=99) is None
    assert why_not("onnx", precision="int8", batch=4096) is None

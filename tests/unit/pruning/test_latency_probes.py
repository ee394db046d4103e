"""The shapes that are timed before a search."""

from __future__ import annotations

from domain.candidate import BlockInfo
from pruning.latency_probes import NARROWEST, shapes
from tests.unit.search.surfaces import FEW, group


def block(name: str) -> BlockInfo:
    return BlockInfo(name=name, macs=1, params=1, weight_norm=1.0, output_change=0.1, sensitivity=0.0)


def test_probes_lie_at_the_corners_and_none_is_the_dense_model():
    found = shapes(FEW, (block("x"), block("y")))
    assert len({candidate.identity for candidate in found}) == len(found)
    assert not any(candidate.is_dense(list(FEW)) for candidate in found)
    narrowest = {g.name: round(g.channels * NARROWEST) for g in FEW}
    corners = {(candidate.dropped, candidate.widths == narrowest) for candidate in found}
    assert {((), True), (("x", "y"), True)} <= corners
    half = {g.name: g.channels // 2 for g in FEW}
    assert {name: width + 4 for name, width in half.items()} in [c.widths for c in found]  # how channels are packed
    assert half in [c.widths for c in found]
    assert any(c.dropped and c.widths == half for c in found)


def test_widths_are_steps_of_the_group_and_never_none():
    heads = group("heads", 6).model_copy(update={"granularity": 2})
    tiny, odd = group("tiny", 3), group("odd", 30)
    for candidate in shapes((heads, tiny, odd), ()):
        assert candidate.widths["heads"] in {2, 4, 6}
        assert candidate.widths["tiny"] == 3
        assert candidate.widths["odd"] % 4 == 0 and 4 <= candidate.widths["odd"] < 30


def test_where_there_is_nothing_to_prune_nothing_is_probed():
    assert shapes((), ()) == []
    assert shapes((group("tiny", 3),), ()) == []

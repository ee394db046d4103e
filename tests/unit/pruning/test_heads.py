"""Attention: declared heads go whole, the embedding goes with its norms and positions, the rest says why it stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from domain.candidate import ImportanceMix
from domain.job import ModelSpec
from domain.network import LayerInfo
from pruning.exporters import make_exporter
from pruning.groups import Groups, Role, find_groups, regroup
from pruning.heads import Heads
from pruning.importance import gather_evidence, mixed_importance
from pruning.members import Kind
from pruning.models import build_model
from pruning.network import describe_layers
from pruning.surgery import channels_to_remove, prune_to_widths, read_widths
from search.network import Network

PARAMS = {"image": 8, "patch": 2, "dim": 12, "depth": 2, "heads": 4, "head_dim": 5}


def _vit() -> nn.Module:
    model = build_model(ModelSpec(name="vit", params=dict(PARAMS)))
    for module in model.modules():  # unlike fresh layers, so that a wrong slice shows
        if isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model.eval()


def _example() -> Tensor:
    return torch.randn(3, 1, 8, 8)


def _scores(groups: Groups) -> dict[str, Tensor]:
    return {group.name: torch.rand(group.channels) for group in groups.groups}


def _reasons(groups: Groups) -> dict[str, str]:
    return {layer.name: layer.reason for layer in groups.unprunable}


def test_a_vision_transformer_has_its_embedding_its_heads_and_its_hidden_layers_as_groups() -> None:
    groups = find_groups(_vit(), _example())
    assert {group.name: (group.channels, group.info.granularity) for group in groups.groups} == {
        "embed.0": (12, None),
        "blocks.0.attention.query": (4, 1),
        "blocks.0.mlp.up": (24, None),
        "blocks.1.attention.query": (4, 1),
        "blocks.1.mlp.up": (24, None),
    }
    assert list(_reasons(groups)) == ["classifier"]
    embedding = groups.groups[0]
    assert embedding.info.is_residual
    assert {"positions", "norm", "blocks.1.attention.norm", "blocks.0.attention.value"} <= set(embedding.info.members)


def test_what_heads_do_between_their_layers_is_work_that_goes_with_them() -> None:
    model = _vit()
    groups = find_groups(model, _example())
    layers = {layer.name: layer for layer in describe_layers(model, groups, _example())}
    tokens = (PARAMS["image"] // PARAMS["patch"]) ** 2
    scores = layers["blocks.1.attention.scores"]
    assert scores.macs == 2 * tokens * tokens * 4 * 5  # query by key, weights by value
    assert scores.kept({"blocks.1.attention.query": 3}) == (5, tokens)
    assert scores.kept({"embed.0": 11}) == (20, tokens)
    assert not scores.is_packed and not layers["blocks.1.mlp.up"].is_packed and layers["embed.0"].is_packed
    network = Network([group.info for group in groups.groups], list(layers.values()))
    fewer, narrower = network.dense.copy(), network.dense.copy()
    fewer[network.names.index("blocks.1.attention.query")] = 2
    narrower[0] = 6
    whole, less, other = network.macs_share(np.array([network.dense, fewer, narrower]))
    total = sum(layer.macs for layer in layers.values())
    assert whole == 1.0 and less == pytest.approx(1 - sum(_half(layers, "blocks.1.attention")) / total)
    assert other > 0.5  # the products of heads stay


def _half(layers: dict[str, LayerInfo], owner: str) -> list[float]:
    return [layer.macs / 2 for name, layer in layers.items() if name.startswith(f"{owner}.")]


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_a_model_without_some_heads_is_the_model_in_which_nobody_reads_them(heads: int) -> None:
    dense, example = _vit(), _example()
    groups = find_groups(dense, example)
    scores = _scores(groups)
    inner = [group for group in groups.groups if not group.info.is_residual]
    widths = {group.name: heads if group.kind is Kind.HEADS else 7 for group in inner}
    pruned = prune_to_widths(dense, groups, widths, scores, example)
    assert read_widths(pruned, groups) == {"embed.0": 12, **widths}
    assert pruned.get_submodule("blocks.0.attention.query").out_features == 5 * heads
    for group in inner:
        removed = channels_to_remove(scores[group.name], widths[group.name])
        for member in group.of_role(Role.CONSUMES):
            deaf = [index for index, root in zip(member.index, member.root, strict=True) if root in removed]
            weight = dense.get_submodule(member.name).weight
            assert isinstance(weight, Tensor)
            weight.data[:, deaf] = 0
    with torch.no_grad():
        torch.testing.assert_close(pruned(example), dense(example), rtol=1e-4, atol=1e-5)


class _PartNorm(nn.Module):
    """A layer norm over some of its features, zero in the others."""

    def __init__(self, norm: nn.LayerNorm, kept: list[int]) -> None:
        super().__init__()
        self.norm, self.kept = norm, kept

    def forward(self, inputs: Tensor) -> Tensor:
        part = nn.functional.layer_norm(
            inputs[..., self.kept], [len(self.kept)], self.norm.weight[self.kept], self.norm.bias[self.kept]
        )
        return torch.zeros_like(inputs).index_copy(-1, torch.tensor(self.kept), part)


def test_a_narrower_embedding_computes_what_the_kept_features_compute_alone() -> None:
    dense, example = _vit(), _example()
    groups = find_groups(dense, example)
    scores = _scores(groups)
    pruned = prune_to_widths(dense, groups, {"embed.0": 7}, scores, example)
    assert pruned.get_parameter("positions").shape == (1, 16, 7)
    removed = channels_to_remove(scores["embed.0"], 7)
    kept = [index for index in range(12) if index not in removed]
    for name, module in list(dense.named_modules()):
        if isinstance(module, nn.LayerNorm):
            owner, _, leaf = name.rpartition(".")
            setattr(dense.get_submodule(owner), leaf, _PartNorm(module, kept))
    with torch.no_grad():
        torch.testing.assert_close(pruned(example), dense(example), rtol=1e-4, atol=1e-5)


def test_heads_are_found_again_on_a_narrower_model_and_cut_further() -> None:
    dense, example = _vit(), _example()
    groups = find_groups(dense, example)
    widths = {"embed.0": 9, "blocks.0.attention.query": 3, "blocks.0.mlp.up": 8}
    parent = prune_to_widths(dense, groups, widths, _scores(groups), example)
    again = regroup(parent, groups, example)
    assert {group.name: group.channels for group in again.groups} == {
        **{group.name: group.channels for group in groups.groups},
        **widths,
    }
    further = {**widths, "blocks.0.attention.query": 1, "blocks.1.attention.query": 2, "embed.0": 6}
    child = prune_to_widths(parent, again, further, _scores(again), example)
    assert read_widths(child, again) == {**read_widths(parent, again), **further}
    assert child(example).shape == (3, 10)


def test_every_criterion_scores_heads_and_the_embedding() -> None:
    dense, example = _vit(), _example()
    groups = find_groups(dense, example)
    evidence = gather_evidence(dense, groups, [(example, torch.tensor([0, 1, 2]))])
    for mix in (ImportanceMix(), ImportanceMix(l2=0, taylor=1), ImportanceMix(l2=0, activation=1)):
        scores = mixed_importance(dense, groups, mix, evidence)
        assert {name: len(values) for name, values in scores.items()} == {g.name: g.channels for g in groups.groups}
        assert all(bool((values > 0).all()) for values in scores.values())


def test_a_pruned_transformer_exports_to_a_file_that_gives_the_same() -> None:
    dense, example = _vit(), _example()
    groups = find_groups(dense, example)
    widths = {"embed.0": 7, "blocks.0.attention.query": 3, "blocks.1.mlp.up": 5}
    pruned = prune_to_widths(dense, groups, widths, _scores(groups), example)
    exporter = make_exporter("onnx")
    file = exporter.export(pruned, example)
    with torch.no_grad():
        torch.testing.assert_close(exporter.run(file, example, threads=1), pruned(example), rtol=1e-3, atol=1e-4)


class _Counted(nn.Module):
    """Attention whose forward needs the number of heads, named in ``count``; ``mixes`` heads before they are read."""

    def __init__(self, *, mixes: bool = False, count: str | None = "heads") -> None:
        super().__init__()
        self.heads, self.mixes, self.count = 4, mixes, count
        self.embed = nn.Linear(8, 6)
        self.query, self.key, self.value = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(6, 12)
        self.proj = nn.Linear(12, 6)
        self.head = nn.Linear(6, 3)

    def head_groups(self) -> tuple[Heads, ...]:
        return (Heads(makes=("query", "key", "value"), reads=("proj",), head_dim=3, count=self.count),)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.embed(inputs.flatten(0, 1))
        shape = (*tokens.shape[:2], self.heads, 3)
        query, key, value = (
            layer(tokens).reshape(shape).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        if self.mixes:
            mixed = mixed - mixed.mean(1, keepdim=True)
        return self.head((tokens + self.proj(mixed.transpose(1, 2).flatten(2))).mean(1))


def test_an_attribute_that_counts_heads_is_set_with_every_cut() -> None:
    dense, example = _Counted().eval(), _example()
    groups = find_groups(dense, example)
    pruned = prune_to_widths(dense, groups, {"query": 3}, _scores(groups), example)
    assert pruned.heads == 3 and dense.heads == 4
    again = regroup(pruned, groups, example)
    assert prune_to_widths(pruned, again, {"query": 1}, _scores(again), example).heads == 1


@pytest.mark.parametrize(
    ("model", "words"),
    [(_Counted(count=None), "does not run with fewer of its heads"), (_Counted(mixes=True), "not independent")],
)
def test_a_declaration_that_does_not_hold_is_refused_with_the_reason(model: nn.Module, words: str) -> None:
    groups = find_groups(model.eval(), _example())
    assert [group.name for group in groups.groups] == ["embed"]
    assert all(words in _reasons(groups)[name] for name in ("query", "key", "value"))


class _Packed(nn.Module):
    """torch's own attention, and a GroupNorm of one group behind a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.GroupNorm(1, 8)
        self.up = nn.Linear(8, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.wide = nn.Linear(6, 9)
        self.head = nn.Linear(9, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.up(self.norm(self.conv(inputs)).flatten(2).transpose(1, 2))
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.head(torch.relu(self.wide(mixed.mean(1))))


def test_packed_attention_and_a_norm_over_all_channels_are_refused_by_name() -> None:
    groups = find_groups(_Packed(), _example())
    reasons = _reasons(groups)
    assert [group.name for group in groups.groups] == ["wide"]
    assert "GroupNorm" in reasons["conv"]
    assert "MultiheadAttention" in reasons["up"]
    assert "MultiheadAttention" in reasons["attention.out_proj"]


class _Split(nn.Module):
    """Attention that takes the size of a head from the width: half the features would run, one less would not."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 2
        self.embed = nn.Linear(8, 6)
        self.query, self.key, self.value = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(6, 12)
        self.proj = nn.Linear(12, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.embed(inputs.flatten(0, 1))
        query, key, value = (
            layer(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.head((tokens + self.proj(mixed.transpose(1, 2).flatten(2))).mean(1))


def test_features_that_only_go_in_multiples_are_not_offered_one_by_one() -> None:
    groups = find_groups(_Split(), _example())
    assert [group.name for group in groups.groups] == ["embed"]
    assert "heads are not known" in _reasons(groups)["query"]


def test_a_class_token_is_part_of_the_embedding() -> None:
    class WithToken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = _vit()
            self.token = nn.Parameter(torch.randn(1, 1, 12))

        def forward(self, inputs: Tensor) -> Tensor:
            body = self.body
            tokens = body.embed(inputs).flatten(2).transpose(1, 2) + body.positions
            tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], 1)
            return body.classifier(body.norm(body.blocks(tokens))[:, 0])

    dense, example = WithToken().eval(), _example()
    groups = find_groups(dense, example)
    embedding = groups.groups[0]
    assert {"token", "body.positions"} <= {member.name for member in embedding.of_role(Role.SCALES)}
    pruned = prune_to_widths(dense, groups, {embedding.name: 5}, _scores(groups), example)
    assert pruned.get_parameter("token").shape == (1, 1, 5)
    assert pruned(example).shape == (3, 10)

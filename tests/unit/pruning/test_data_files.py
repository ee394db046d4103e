"""Data as files of users: folders of images, tables, what `datasets` saves; and everything that can be wrong with them."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
import torch
from PIL import Image

from client.files import pack_folder
from domain.artifact import ArtifactKind
from domain.errors import Invalid, PruneloopError
from domain.job import DataSpec
from pruning.datasets import load_data, state_of
from tests.unit.pruning.folder import FolderStore


def _png(value: int, size: tuple[int, int] = (8, 6), mode: str = "RGB", format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, (value, 255 - value, 0) if mode == "RGB" else value).save(buffer, format)
    return buffer.getvalue()


def _zip(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _spec(store: FolderStore, source: str, data: bytes, **params: Any) -> DataSpec:
    digest = store.put_bytes(data, ArtifactKind.DATA).digest
    return DataSpec(source=source, artifact=digest, params=params)  # type: ignore[arg-type]


def _classes(splits: tuple[str, ...] = ("train", "val", "test"), each: int = 4) -> dict[str, bytes]:
    values = {"ant": 10, "bee": 200}
    return {
        f"{split}/{name}/{number}.png": _png(value + number)
        for split in splits
        for name, value in values.items()
        for number in range(each)
    }


# --- images -----------------------------------------------------------------------------------------------------------
def test_a_folder_a_class_and_a_folder_a_split(store: FolderStore) -> None:
    splits = load_data(_spec(store, "images", _zip(_classes())), store)
    assert splits.train[0].shape == (8, 3, 6, 8) and splits.val[0].shape == (8, 3, 6, 8)
    assert splits.train[1] is not None and splits.train[1].tolist() == [0] * 4 + [1] * 4
    assert float(splits.train[0][0, 0, 0, 0]) == pytest.approx(10 / 255)
    assert "classes: ant, bee" in splits.how and "cut" not in splits.how


@pytest.mark.parametrize("prefix", ["", "flowers/"])
def test_splits_are_cut_where_there_are_none_and_a_folder_round_it_all_is_no_class(
    store: FolderStore, prefix: str
) -> None:
    files = {f"{prefix}{name.removeprefix('train/')}": data for name, data in _classes(("train",), each=20).items()}
    files |= {"__MACOSX/._x": b"junk", f"{prefix}.DS_Store": b"junk"}
    splits = load_data(_spec(store, "images", _zip(files)), store)
    assert [len(pair[0]) for _, pair in splits.named()] == [28, 6, 6]
    assert splits.test[1] is not None and splits.test[1].tolist().count(0) == 3
    assert "classes: ant, bee" in splits.how and "cut from train" in splits.how


def test_images_without_classes_have_no_labels(store: FolderStore) -> None:
    files = {f"{number}.jpg": _png(number, format="JPEG") for number in range(10)} | {"notes.txt": b"mine"}
    splits = load_data(_spec(store, "images", _zip(files)), store)
    assert not splits.has_labels and "without labels" in splits.how and "1 file(s)" in splits.how


def test_images_are_made_one_size_one_mode_and_normalised(store: FolderStore) -> None:
    files = {
        f"{number}.png": _png(100, size=(20 + number, 10), mode="L" if number % 2 else "RGB") for number in range(6)
    }
    params = {"size": [4, 8], "mode": "L", "mean": 0.5, "std": 0.25, "layout": "nhwc", "max_shift": 2}
    splits = load_data(_spec(store, "images", _zip(files), **params), store)
    assert splits.train[0].shape[1:] == (4, 8, 1) and splits.max_shift == 2
    grey = (100 / 255 - 0.5) / 0.25
    assert any(abs(float(image.mean()) - grey) < 0.02 for image in splits.train[0])
    cropped = _zip({"0.png": _halves(), "1.png": _halves(), "2.png": _halves(), "3.png": _halves()})
    for fit, edge in (("crop", 255), ("stretch", 0)):
        made = load_data(_spec(store, "images", cropped, size=4, mode="L", fit=fit), store).train[0]
        assert (float(made[0, 0, 0, 0]) * 255 > 128) == (edge == 255), fit


def _halves() -> bytes:
    """Black at both ends of a wide image, white in the middle."""
    pixels = np.zeros((8, 24), np.uint8)
    pixels[:, 8:16] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _bomb() -> bytes:
    """A PNG of a few kilobytes whose header promises 900 million pixels."""
    data = bytearray(_png(1, size=(2, 2)))
    data[16:24] = (30_000).to_bytes(4, "big") * 2
    return bytes(data)


@pytest.mark.parametrize(
    ("files", "params", "code", "words"),
    [
        ({"a/1.png": b"no image"}, {}, "data_image", "a/1.png"),
        ({"a/1.png": _bomb()}, {}, "data_image", "a/1.png"),
        ({"a/1.png": _png(1), "a/2.png": _png(1, size=(3, 3))}, {}, "data_shape", "give `size`"),
        ({"train/a/1.png": _png(1), "val/b/1.png": _png(1)}, {}, "data_shape", "class b"),
        ({"a/1.png": _png(1), "2.png": _png(1)}, {}, "data_shape", "lies elsewhere"),
        ({"val/a/1.png": _png(1), "test/a/1.png": _png(1)}, {}, "data_missing", "no folder train"),
        ({"a/notes.txt": b"x"}, {}, "data_missing", "no images"),
        ({"a/1.png": _png(1)}, {"size": 0}, "bad_data_params", "pixels"),
        ({"a/1.png": _png(1)}, {"colour": "RGB"}, "bad_data_params", "known: size"),
        ({"a/1.png": _png(1)}, {"mean": [0.5, 0.5]}, "bad_data_params", "3 of them"),
        ({"a/1.png": _png(1)}, {"std": 0}, "bad_data_params", "zero"),
        ({"../1.png": _png(1)}, {}, "bad_data", "leads outside"),
        ({"/etc/1.png": _png(1)}, {}, "bad_data", "leads outside"),
        ({"a/model.pkl": b"\x80\x04", "a/1.png": _png(1)}, {}, "bad_data", "pickle"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_folder_of_images_is_said(
    store: FolderStore, files: dict[str, bytes], params: dict[str, Any], code: str, words: str
) -> None:
    with pytest.raises(Invalid, match=words) as caught:
        load_data(_spec(store, "images", _zip(files), **params), store)
    assert caught.value.code == code and caught.value.fields[0].field.startswith("data.")


def test_a_zip_that_unpacks_to_a_thousand_times_its_size_is_refused_unread(store: FolderStore) -> None:
    bomb = _zip({"a/1.png": b"\0" * 40_000_000}, zipfile.ZIP_DEFLATED)
    with pytest.raises(Invalid, match="unpacks to") as caught:
        load_data(_spec(store, "images", bomb), store)
    assert caught.value.code == "bad_data"


def test_a_link_in_a_zip_is_refused(store: FolderStore) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo("a/1.png")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(Invalid, match="a link"):
        load_data(_spec(store, "images", buffer.getvalue()), store)


# --- tables -----------------------------------------------------------------------------------------------------------
def _table(rows: int = 40) -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "age": rng.integers(20, 60, rows),
            "height": rng.normal(170, 10, rows),
            "kind": [("ash", "oak")[number % 2] for number in range(rows)],
            "price": rng.normal(size=rows),
            "weight": rng.normal(size=rows),
            "part": [("train", "valid", "TEST")[min(2, number // 20)] for number in range(rows)],
            "pixels": pa.array([rng.random(4).tolist() for _ in range(rows)], pa.list_(pa.float32())),
        }
    )


def _csv(table: pa.Table) -> bytes:
    columns = [name for name in table.column_names if name != "pixels"]
    lines = [",".join(columns), *(",".join(str(row[name]) for name in columns) for row in table.to_pylist())]
    return ("\n".join(lines) + "\n").encode()


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pa_parquet.write_table(table, buffer)
    return buffer.getvalue()


def test_columns_of_a_csv_become_inputs_and_words_classes(store: FolderStore) -> None:
    params = {"inputs": ["age", "height"], "label": "kind", "split": "part"}
    splits = load_data(_spec(store, "csv", _csv(_table(60)), **params), store)
    assert [pair[0].shape for _, pair in splits.named()] == [(20, 2)] * 3
    assert splits.train[1] is not None and splits.train[1].tolist() == [0, 1] * 10
    assert "inputs: age, height" in splits.how and "classes: ash, oak" in splits.how


def test_several_label_columns_are_several_values_a_sample(store: FolderStore) -> None:
    params = {"inputs": "pixels", "label": ["price", "weight"], "shape": [1, 2, 2]}
    splits = load_data(_spec(store, "parquet", _parquet(_table()), **params), store)
    assert splits.train[0].shape == (28, 1, 2, 2)
    assert splits.train[1] is not None and splits.train[1].shape == (28, 2)
    assert splits.train[1].dtype == torch.float32


def test_tables_of_splits_lie_beside_one_another_and_all_columns_are_inputs(store: FolderStore) -> None:
    one = _csv(_table().select(["age", "height", "price"]))
    files = {f"{name}.csv": one for name in ("train", "validation", "test")}
    splits = load_data(_spec(store, "csv", _zip(files), label="price"), store)
    assert [pair[0].shape for _, pair in splits.named()] == [(40, 2)] * 3
    assert not load_data(_spec(store, "csv", one), store).has_labels


@pytest.mark.parametrize(
    ("data", "params", "code", "words"),
    [
        (b"a,b\n1,2\n3\n", {}, "data_not_table", "cannot be read as csv"),
        (b"a,b\n1,x\n2,y\n", {}, "data_columns", "column b holds"),
        (b"a,b\n1,\n2,3\n", {}, "data_columns", "gap"),
        (b"a,b\n1,2\n2,3\n", {"inputs": "c"}, "data_columns", "no column 'c'"),
        (b"a,b\n1,2\n2,3\n", {"label": ["a", "b"]}, "data_columns", "No column is left"),
        (b"a,b\n1,here\n2,there\n", {"split": "b"}, "data_columns", "'here'"),
        (b"a,b\n1,test\n2,test\n", {"split": "b"}, "data_missing", "no train split"),
        (b"a,b\n", {}, "data_empty", "no rows"),
        (b"a,b\n1,2\n2,3\n", {"shape": [3]}, "data_shape", "2 values"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(
    store: FolderStore, data: bytes, params: dict[str, Any], code: str, words: str
) -> None:
    with pytest.raises(Invalid, match=words) as caught:
        load_data(_spec(store, "csv", data, **params), store)
    assert caught.value.code == code


def test_a_parquet_file_that_is_damaged_or_has_ragged_lists_is_refused(store: FolderStore) -> None:
    with pytest.raises(Invalid) as caught:
        load_data(_spec(store, "parquet", b"PAR1" + b"\0" * 50 + b"PAR1"), store)
    assert caught.value.code == "data_not_table"
    ragged = _parquet(pa.table({"x": [[1.0, 2.0], [3.0], [1.0, 1.0]]}))
    with pytest.raises(Invalid, match="differ in length"):
        load_data(_spec(store, "parquet", ragged), store)


# --- what `datasets` saves ----------------------------------------------------------------------------------------------
def _saved(table: pa.Table, features: dict[str, Any], **state: Any) -> dict[str, bytes]:
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    name = "data-00000-of-00001.arrow"
    return {
        name: buffer.getvalue(),
        "state.json": json.dumps({"_data_files": [{"filename": name}], **state}).encode(),
        "dataset_info.json": json.dumps({"features": features}).encode(),
    }


def _pictures(rows: int = 10, *, embedded: bool = True) -> dict[str, bytes]:
    cells = [{"bytes": _png(20 * number) if embedded else None, "path": "/secret/x.png"} for number in range(rows)]
    table = pa.table({"image": cells, "label": [number % 2 for number in range(rows)], "name": ["x"] * rows})
    return _saved(table, {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog"]}})


def test_a_saved_dataset_of_images_is_read_with_its_classes(store: FolderStore) -> None:
    files = {f"set/{split}/{name}": data for split in ("train", "test") for name, data in _pictures().items()}
    files["set/dataset_dict.json"] = json.dumps({"splits": ["train", "test"]}).encode()
    splits = load_data(_spec(store, "huggingface", _zip(files), size=4), store)
    assert splits.test[0].shape == (10, 3, 4, 4) and splits.test[1] is not None
    assert splits.test[1].tolist() == [0, 1] * 5 and splits.test[1].dtype == torch.int64
    assert "classes: cat, dog" in splits.how and "val: " in splits.how


def test_a_saved_dataset_of_lists_is_read_and_shaped(store: FolderStore) -> None:
    table = pa.table({"ids": [[1, 2, 3]] * 12, "score": [0.5 * number for number in range(12)]})
    splits = load_data(_spec(store, "huggingface", _zip(_saved(table, {})), inputs="ids", label="score"), store)
    assert splits.train[0].shape == (8, 3) and splits.train[1] is not None and splits.train[1].dtype == torch.float32


@pytest.mark.parametrize(
    ("files", "params", "code", "words"),
    [
        (_pictures(embedded=False), {}, "data_image", "not followed"),
        ({"x.json": b"{}"}, {}, "data_not_dataset", "save_to_disk"),
        ({**_pictures(), "state.json": b"nonsense"}, {}, "data_not_dataset", "no JSON"),
        (_saved(pa.table({"x": [1]}), {}, _indices_data_files=[{"filename": "i"}]), {}, "data_not_dataset", "flatten_indices"),
        ({"state.json": b'{"_data_files": [{"filename": "../x.arrow"}]}'}, {}, "data_not_dataset", "not there"),
        (_saved(pa.table({"a": [1.0], "b": [2.0]}), {}), {}, "data_columns", "Name it"),
        (_pictures(), {"label": "kind"}, "data_columns", "no column 'kind'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_saved_dataset_is_said(
    store: FolderStore, files: dict[str, bytes], params: dict[str, Any], code: str, words: str
) -> None:
    with pytest.raises(Invalid, match=words) as caught:
        load_data(_spec(store, "huggingface", _zip(files), **params), store)
    assert caught.value.code == code


# --- paths ------------------------------------------------------------------------------------------------------------
def test_a_path_is_read_where_the_operator_allows_it_and_only_there(store: FolderStore, tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    for name, data in _classes().items():
        place = allowed / "insects" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/1.png").write_bytes(_png(1))
    (allowed / "out").symlink_to(tmp_path / "secret")
    (allowed / "insects/train/ant/link.png").symlink_to(tmp_path / "secret/1.png")
    spec = DataSpec(source="images", path="insects")
    splits = load_data(spec, store, folder=allowed)
    assert len(splits.train[0]) == 8 and "read from insects" in splits.how  # not the link
    before = state_of(spec, store, allowed)
    (allowed / "insects/train/ant/9.png").write_bytes(_png(9))
    assert state_of(spec, store, allowed) != before
    for path, code in (("out", "data_path_not_allowed"), ("nothing", "data_not_found")):
        with pytest.raises(PruneloopError) as caught:
            load_data(DataSpec(source="images", path=path), store, folder=allowed)
        assert caught.value.code == code
    with pytest.raises(Invalid, match="PRUNELOOP_DATASETS_DIR"):
        load_data(spec, store)


@pytest.mark.parametrize("path", ["/etc", "../x", "a/../../b", ""])
def test_a_job_cannot_name_a_path_that_leads_outside(path: str) -> None:
    with pytest.raises(ValueError, match="without"):
        DataSpec(source="images", path=path)


def test_a_file_is_given_once() -> None:
    for wrong in ({}, {"artifact": "sha256:" + "0" * 64, "path": "x"}):
        with pytest.raises(ValueError, match="not both"):
            DataSpec(source="csv", **wrong)  # type: ignore[arg-type]


def test_a_packed_folder_has_the_same_bytes_every_time_and_reads_as_the_folder_does(
    store: FolderStore, tmp_path: Path
) -> None:
    folder = tmp_path / "insects"
    for name, data in {**_classes(), ".hidden": b"x"}.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    packed = [tmp_path / "one.zip", tmp_path / "two.zip"]
    pack_folder(folder, packed[0])
    (folder / "train/ant/0.png").touch()
    pack_folder(folder, packed[1])
    assert packed[0].read_bytes() == packed[1].read_bytes()
    splits = load_data(_spec(store, "images", packed[0].read_bytes()), store)
    assert torch.equal(
        splits.train[0], load_data(DataSpec(source="images", path="insects"), store, folder=tmp_path).train[0]
    )

"""A check passes what is right, and names what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from pydantic import JsonValue

from workers.agent.checks import BadCheck, Check, WrongOutput, feeds_for, read_check, verify
from workers.agent.runtimes.base import Array, TensorSpec, UnreadableArtifact, random_feeds


class Doubling:
    """A session that doubles its input and is wrong by ``error`` times the largest value."""

    conditions: Mapping[str, JsonValue] = {}

    def __init__(self, batch: int | None = None, error: float = 0.0, name: str = "y") -> None:
        self.inputs = (TensorSpec("x", (batch, 2), "float32"),)
        self.error = error
        self.name = name
        self.x = np.zeros((1, 2), np.float32)
        self.batches: list[int] = []

    def bind(self, feeds: Mapping[str, Array]) -> None:
        self.x = feeds["x"]

    def run(self) -> None:
        self.batches.append(len(self.x))

    def outputs(self) -> dict[str, Array]:
        y = self.x * 2
        return {self.name: y + np.float32(self.error) * np.abs(y).max()}


def check(samples: int = 4) -> Check:
    x = np.arange(1, 2 * samples + 1, dtype=np.float32).reshape(samples, 2)
    return Check({"x": x}, {"y": x * 2})


def test_a_right_file_passes_slice_by_slice_of_its_batch() -> None:
    session = Doubling(batch=2)
    assert verify(session, check(5), batch=2, precision="fp32") == 0
    assert session.batches == [2, 2, 2]  # the last sample is repeated to fill the batch


@pytest.mark.parametrize(("precision", "error"), [("fp32", 0.01), ("fp16", 0.1), ("int8", 0.9)])
def test_a_wrong_file_is_caught_by_what_its_precision_explains(precision: str, error: float) -> None:
    with pytest.raises(WrongOutput, match="differs"):
        verify(Doubling(error=error), check(), batch=4, precision=precision)


@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-4), ("fp16", 0.01), ("int8", 0.1)])
def test_rounding_is_no_wrong_answer(precision: str, error: float) -> None:
    assert verify(Doubling(error=error), check(), batch=4, precision=precision) == pytest.approx(error, rel=0.05)


def _sigmoid(logits: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-logits)), np.float32)


class Sigmoid(Doubling):
    """A yes or no, sure of some samples; off by ``error`` before its last step."""

    def outputs(self) -> dict[str, Array]:
        return {"y": _sigmoid(self.x[:, :1] + np.float32(self.error))}


def test_one_sure_no_is_judged_beside_the_other_answers() -> None:
    """Alone in its batch it is next to 0, and any rounding is a large part of it."""
    x = np.array([[2.0, 0], [-0.5, 0], [-14.0, 0]], np.float32)
    yes = _sigmoid(x[:, :1])
    assert verify(Sigmoid(error=0.5), Check({"x": x}, {"y": yes}), batch=1, precision="int8") < 0.4
    only = Check({"x": x[2:]}, {"y": yes[2:]})  # 8e-7, next to which a sigmoid has no digits
    assert verify(Sigmoid(error=0.05), only, batch=1, precision="fp32") == 0
    with pytest.raises(WrongOutput, match="differs"):
        verify(Sigmoid(error=0.5), only, batch=1, precision="fp32")


def test_nan_is_wrong_in_every_precision() -> None:
    with pytest.raises(WrongOutput, match="NaN"):
        verify(Doubling(error=float("nan")), check(), batch=4, precision="int8")


def test_a_single_output_may_be_renamed_by_its_format_and_several_may_not() -> None:
    verify(Doubling(name="Identity:0"), check(), batch=4, precision="fp32")
    two = Check(check().inputs, {**check().outputs, "z": np.zeros((4, 2), np.float32)})
    with pytest.raises(WrongOutput, match="no output z"):
        verify(Doubling(), two, batch=4, precision="fp32")


def test_an_output_of_another_shape_is_wrong() -> None:
    with pytest.raises(WrongOutput, match="shape"):
        verify(Doubling(), Check(check().inputs, {"y": np.zeros((4, 3), np.float32)}), batch=4, precision="fp32")


def test_inputs_are_cut_or_repeated_to_the_batch() -> None:
    specs = (TensorSpec("x", (None, 2), "float32"),)
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert feeds_for(specs, {"x": x}, batch=2)["x"].tolist() == x[:2].tolist()
    assert feeds_for(specs, {"x": x}, batch=7)["x"].tolist() == [*x.tolist(), *x.tolist(), x[0].tolist()]


def test_a_file_with_another_batch_is_refused_with_the_mend() -> None:
    with pytest.raises(UnreadableArtifact, match="export it with batch 8"):
        feeds_for((TensorSpec("x", (1, 2), "float32"),), check().inputs, batch=8)


def test_inputs_are_not_made_up_for_another_batch() -> None:
    with pytest.raises(UnreadableArtifact, match="measure with batch 8"):
        random_feeds((TensorSpec("x", (8, 3), "float32"),), batch=1)


def test_made_up_inputs_hold_no_zero_and_no_denormal() -> None:
    feeds = random_feeds((TensorSpec("x", (None, 64), "float32"), TensorSpec("i", (4,), "int64")), batch=100)
    assert feeds["x"].shape == (100, 64)
    assert np.abs(feeds["x"]).min() >= 1e-3
    assert feeds["i"].min() >= 1


def test_a_check_is_read_from_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", input_x=np.ones((1, 2)), output_y=np.ones(1), unrelated=np.ones(3))
    read = read_check(tmp_path / "c.npz")
    assert set(read.inputs) == {"x"}
    assert set(read.outputs) == {"y"}


def test_pickles_and_rubbish_are_refused(tmp_path: Path) -> None:
    rubbish = tmp_path / "rubbish.npz"
    rubbish.write_bytes(b"PK\x03\x04 nothing")
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, input_x=np.array([{"a": 1}], dtype=object), output_y=np.ones(1))
    bare = tmp_path / "bare.npz"
    np.savez(bare, x=np.ones(1))
    for path in (rubbish, pickled, bare, tmp_path / "absent.npz"):
        with pytest.raises(BadCheck, match="export the artifact again"):
            read_check(path)

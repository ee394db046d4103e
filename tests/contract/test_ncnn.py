"""ncnn keeps the runtimes' contract, on a file written by hand: no converter stands between its numbers and numpy's."""

from __future__ import annotations

import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from domain.ncnn_file import PARAM, WEIGHTS, pack
from workers.agent.runtimes.base import Runtime, RuntimeMissing, TensorSpec, UnreadableArtifact
from workers.agent.runtimes.contract import KnownFile, RuntimeContract
from workers.agent.runtimes.ncnn import Ncnn

NET = """7767517
5 5
Input input 0 1 input 0=8 1=6 2=3
Convolution conv 1 1 input hidden 0=5 1=3 11=3 4=1 14=1 5=1 6=135
ReLU relu 1 1 hidden positive
Pooling mean 1 1 positive features 0=1 4=1
InnerProduct head 1 1 features output 0=4 1=1 2=20
"""


def known_net(folder: Path) -> KnownFile:
    """Write a small net of odd widths and return it with what numpy says it gives."""
    rng = np.random.default_rng(0)
    kernel, offset = rng.standard_normal((5, 3, 3, 3)), rng.standard_normal(5)
    head, bias = rng.standard_normal((4, 5)), rng.standard_normal(4)
    flag = struct.pack("<I", 0)  # weights as they are, in single precision
    parts = (flag, kernel, offset, flag, head, bias)
    weights = b"".join(part if isinstance(part, bytes) else part.astype("<f4").tobytes() for part in parts)
    path = folder / "net.ncnn"
    path.write_bytes(pack(NET, weights))
    inputs = rng.standard_normal((1, 3, 6, 8)).astype(np.float32)
    padded = np.pad(inputs[0].astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    hidden = np.maximum(np.einsum("oikl,iyxkl->oyx", kernel, windows) + offset[:, None, None], 0)
    return KnownFile(path, {"input": inputs}, {"output": (head @ hidden.mean((1, 2)) + bias)[None]})


class TestNcnn(RuntimeContract):
    def make_runtime(self) -> Runtime:
        return Ncnn()

    def make_file(self, folder: Path) -> KnownFile:
        return known_net(folder)


def load(path: Path, *, threads: int = 1, precision: str = "fp32", batch: int = 1):  # type: ignore[no-untyped-def]
    return Ncnn().load(path, threads=threads, precision=precision, batch=batch)


def test_what_changes_speed_is_told(tmp_path: Path) -> None:
    session = load(known_net(tmp_path).path, threads=2)
    assert session.inputs == (TensorSpec("input", (1, 3, 6, 8), "float32"),)
    assert session.conditions["num_threads"] == 2
    assert session.conditions["lightmode"] == 1
    assert session.conditions["computed_in"] == "fp32"
    assert not session.conditions["use_fp16_storage"]


def test_fp16_is_other_arithmetic_and_the_same_model(tmp_path: Path) -> None:
    file = known_net(tmp_path)
    session = load(file.path, precision="fp16")
    assert session.conditions["use_fp16_storage"] and session.conditions["use_fp16_arithmetic"]
    session.bind(file.feeds)
    session.run()
    wanted = file.outputs["output"]
    difference = np.abs(session.outputs()["output"] - wanted).max() / np.abs(wanted).max()
    assert 1e-7 < difference < 1e-2


def test_a_batch_is_refused_not_looped(tmp_path: Path) -> None:
    with pytest.raises(UnreadableArtifact, match="batch of 1") as caught:
        load(known_net(tmp_path).path, batch=2)
    assert caught.value.code == "batch_not_available"


def test_int8_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnreadableArtifact, match="fp32, fp16") as caught:
        load(known_net(tmp_path).path, precision="int8")
    assert caught.value.code == "precision_not_available"


def test_an_input_of_another_shape_is_refused_before_ncnn_sees_it(tmp_path: Path) -> None:
    session = load(known_net(tmp_path).path)
    with pytest.raises(UnreadableArtifact, match="takes"):
        session.bind({"input": np.zeros((1, 3, 8, 6), np.float32)})
    with pytest.raises(UnreadableArtifact, match="wants an input input"):
        session.bind({"x": np.zeros((1, 3, 6, 8), np.float32)})


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (NET.replace("InnerProduct head", "torch.addmm head"), "does not load the graph"),
        (NET.replace("2=20", "2=4000"), "not those of the graph"),
    ],
)
def test_what_ncnn_does_not_take_is_told(tmp_path: Path, graph: str, reason: str) -> None:
    path = known_net(tmp_path).path
    with zipfile.ZipFile(path) as archive:
        weights = archive.read(WEIGHTS)
    path.write_bytes(pack(graph, weights))
    with pytest.raises(UnreadableArtifact, match=reason):
        load(path)


def test_what_the_usual_tools_pack_is_read(tmp_path: Path) -> None:
    file = known_net(tmp_path)
    with zipfile.ZipFile(file.path) as archive:
        archive.extractall(tmp_path)
    again = tmp_path / "again.ncnn"
    with zipfile.ZipFile(again, "w") as archive:  # as `zip -0` does: the other order, other dates
        for name in (WEIGHTS, PARAM):
            archive.write(tmp_path / name, name)
    session = load(again)
    session.bind(file.feeds)
    session.run()
    np.testing.assert_allclose(session.outputs()["output"], file.outputs["output"], rtol=1e-4)


def test_the_library_is_loaded_when_it_is_needed_and_missing_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = "import sys, workers.agent.runtimes.registry; assert 'ncnn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    monkeypatch.setitem(sys.modules, "ncnn", None)
    info = Ncnn().probe()
    assert not info.available
    assert "pip install ncnn" in info.detail
    with pytest.raises(RuntimeMissing, match="pip install"):
        load(Path("none.ncnn"))

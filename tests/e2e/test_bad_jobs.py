"""Bad input that only building can find: the job fails soon, says why in words and in a code, and the system goes on."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from client.api import PruneloopClient
from domain.artifact import ArtifactKind
from domain.errors import Invalid
from domain.job import JobState, ModelSpec, Stage
from pruning.models import build_model
from tests.e2e.conftest import System

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

MODEL = {"name": "resnet8", "params": {"width": 8}}
BASE: dict[str, Any] = {"model": MODEL, "data": {"name": "digits"}, "targets": [{}], "budget": {"trials": 1}}


def _npz(labels: np.ndarray, inputs: np.ndarray | None = None) -> bytes:
    rng = np.random.default_rng(0)
    out = io.BytesIO()
    images = rng.random((len(labels), 1, 8, 8), dtype=np.float32) if inputs is None else inputs
    np.savez(out, train_inputs=images, train_labels=labels)
    return out.getvalue()


def _weights_with_nan(client: PruneloopClient, folder: Path) -> dict[str, Any]:
    model = build_model(ModelSpec.model_validate(MODEL))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["stem.0.weight" if "stem.0.weight" in state else next(iter(state))].view(-1)[0] = float("nan")
    save_file(state, folder / "weights.safetensors")
    ref = client.upload_artifact(folder / "weights.safetensors", ArtifactKind.WEIGHTS)
    return {"model": {**MODEL, "weights": ref.digest}}


def _weights_of_another_model(client: PruneloopClient, folder: Path) -> dict[str, Any]:
    save_file({"x": torch.zeros(3)}, folder / "other.safetensors")
    ref = client.upload_artifact(folder / "other.safetensors", ArtifactKind.WEIGHTS)
    return {"model": {**MODEL, "weights": ref.digest}}


def _data(content: Callable[[], bytes]) -> Callable[[PruneloopClient, Path], dict[str, Any]]:
    def make(client: PruneloopClient, folder: Path) -> dict[str, Any]:
        (folder / "data.npz").write_bytes(content())
        ref = client.upload_artifact(folder / "data.npz", ArtifactKind.DATA)
        return {"data": {"source": "npz", "artifact": ref.digest}}

    return make


def _labels_outside() -> bytes:
    return _npz(np.array([0, 1, 2, 12] * 50))


def _inputs_with_nan() -> bytes:
    images = np.zeros((200, 1, 8, 8), dtype=np.float32)
    images[7, 0, 0, 0] = np.nan
    return _npz(np.arange(200) % 10, images)


def _inputs_of_the_wrong_shape() -> bytes:
    return _npz(np.arange(200) % 10, np.zeros((200, 8), dtype=np.float32))


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (_weights_with_nan, "nan_weights"),
        (_weights_of_another_model, "weights_do_not_fit"),
        (_data(_labels_outside), "labels_out_of_range"),
        (_data(_inputs_with_nan), "data_not_finite"),
        (_data(_inputs_of_the_wrong_shape), "model_rejects_data"),
        (lambda client, folder: {"model": {"name": "resnet8", "params": {"width": -3}}}, "bad_model_params"),
    ],
    ids=["nan-weights", "other-weights", "labels-outside", "nan-inputs", "wrong-shape", "bad-params"],
)
def test_the_job_fails_and_says_why(
    system: System, tmp_path: Path, make: Callable[[PruneloopClient, Path], dict[str, Any]], code: str
) -> None:
    with system.client() as client:
        job = client.submit({**BASE, **make(client, tmp_path)})
        view = client.wait(job.id, timeout_s=120)
        assert view.state is JobState.FAILED
        assert isinstance(view.report["failure"], dict)
        assert view.report["failure"]["code"] == code, view.reason
        assert view.reason and len(view.reason) > 20
        assert not client.front(job.id).items


def test_a_target_that_no_device_matches_waits_with_a_reason_or_fails_if_asked_to(system: System) -> None:
    nowhere = {"device": {"labels": {"class": "submarine"}}}
    with system.client() as client:
        waiting = client.submit({**BASE, "targets": [nowhere]})
        failing = client.submit({**BASE, "targets": [nowhere], "when_no_device": "fail"})
        failed = client.wait(failing.id, timeout_s=60)
        assert failed.state is JobState.FAILED
        assert "submarine" in (failed.reason or "")
        deadline = time.monotonic() + 60
        while (view := client.job(waiting.id)).stage is not Stage.WAITING:
            assert time.monotonic() < deadline, view
            time.sleep(0.2)
        assert not view.state.is_terminal
        assert "submarine" in (view.reason or "")
        assert client.cancel(waiting.id).state is JobState.CANCELLED


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"targets": [{"runtime": "abacus"}]}, "runtime_not_available"),
        ({"exports": ["papyrus"]}, "export_not_available"),
        ({"objective": {"metric": "beauty"}}, "metric_not_available"),
        ({"data": {"name": "imagenet-1k"}}, "unknown_dataset"),
        ({"data": {"source": "npz", "artifact": f"sha256:{'0' * 64}"}}, "unknown_artifact"),
    ],
)
def test_what_the_installation_cannot_do_is_refused_at_the_door(
    system: System, change: dict[str, Any], code: str
) -> None:
    with system.client() as client, pytest.raises(Invalid) as caught:
        client.submit({**BASE, **change})
    assert caught.value.code == code
    assert caught.value.fields

""".pt2 files are torch.export's own, give what the module gives, and hold no pickle of ours."""

from __future__ import annotations

import io
import zipfile
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from pruning.exporters import ExportFailed
from pruning.exporters.pt2 import Pt2Exporter
from tests.contract.test_torch_files import pruned, text_net

# What torch itself writes as a pickle: a tuple of no example inputs, and no constants.
EMPTY = ("sample_inputs", "constants")


@pytest.mark.parametrize("name", ["convnet", "bert"])
def test_it_gives_what_the_module_gives_in_fp32_and_nearly_in_fp16(name: str) -> None:
    model, one = text_net() if name == "bert" else (pruned("convnet", width=8), torch.randn(1, 1, 28, 28))
    samples = torch.randint(1, 50, (5, 8)).float() if name == "bert" else torch.randn(5, 1, 28, 28)
    exporter = Pt2Exporter()
    told: dict[str, Any] = {"model": model, "example": one, "calibration": one, "hold": nullcontext}
    with torch.no_grad():
        file = exporter.export(model, one)
        assert len(exporter.check(file, one, model(one))) == 2
        torch.testing.assert_close(exporter.run(file, samples, threads=1), model(samples))
        half = exporter.run(exporter.in_precision(file, "fp16", **told), samples, threads=1)
        assert 1e-7 < float((half - model(samples)).abs().max()) < 0.02 * float(model(samples).abs().max())
        with pytest.raises(ExportFailed, match="fp32, fp16") as caught:
            exporter.in_precision(file, "int8", **told)
    assert caught.value.code == "precision_not_available"


def test_it_holds_no_weights_and_no_inputs_as_pickles() -> None:
    with torch.no_grad():
        file = Pt2Exporter().export(pruned("convnet", width=8), torch.randn(1, 1, 28, 28))
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        configs = [name for name in archive.namelist() if name.endswith("_config.json")]
        told = b"".join(archive.read(name) for name in configs)
        pickled = [name for name in archive.namelist() if archive.read(name)[:2] in (b"\x80\x02", b"PK")]
    assert configs
    assert b'"use_pickle": true' not in told
    assert all(any(part in name for part in EMPTY) for name in pickled), pickled

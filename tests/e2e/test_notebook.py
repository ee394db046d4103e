"""The notebook runs as it stands on the running system, and what it shows in the repository was printed by it."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.e2e.conftest import System

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples" / "prune_digits.ipynb"


@pytest.mark.e2e
@pytest.mark.timeout(1000)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client", "ignore::DeprecationWarning:zmq")
def test_the_notebook_leaves_with_a_file_that_gives_what_the_front_says(
    system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNELOOP_URL", system.url)
    monkeypatch.setenv("PRUNELOOP_TOKEN", system.token)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # Its last cell compares the accuracy of the downloaded file with the front's, so an end without an error says it all.
    NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "SUCCEEDED" in said and "as fast as the dense model here" in said
    assert list((tmp_path / "models").glob("*.onnx"))


def test_the_notebook_in_the_repository_shows_what_it_printed() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs), "the front as a picture"
    assert any("SUCCEEDED" in output.get("text", "") for output in outputs)
    text = NOTEBOOK.read_text()
    assert "/work" not in text and "/tmp" not in text and "/home" not in text

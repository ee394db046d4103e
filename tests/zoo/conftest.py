"""Tests against other people's libraries: `make test-zoo` installs them. Without it they are skipped by name."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from tests.unit.pruning.folder import FolderStore


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("PRUNELOOP_TEST_ZOO") == "1":
        return
    for item in items:
        if "tests/zoo" in str(item.path):
            item.add_marker(
                pytest.mark.skip(reason="timm, torchvision, transformers, datasets, torchmetrics: make test-zoo")
            )


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FolderStore:
    return FolderStore(tmp_path_factory.mktemp("artifacts"))

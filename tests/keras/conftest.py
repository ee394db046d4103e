from __future__ import annotations

import pytest

from tests.unit.pruning.folder import FolderStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FolderStore:
    return FolderStore(tmp_path_factory.mktemp("artifacts"))

"""What every runtime must do, as tests: subclass it in your own test suite, name your runtime and a file, and run pytest.

class TestMyRuntime(RuntimeContract):
    def make_runtime(self): return MyRuntime()
    def make_file(self, folder): return KnownFile(path=..., feeds={...}, outputs={...}, batch=1)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from domain.artifact import ArtifactKind
from workers.agent.checks import TOLERANCE
from workers.agent.runtimes.base import Array, Runtime, RuntimeSession, UnreadableArtifact, random_feeds


@dataclass(frozen=True)
class KnownFile:
    """A good fp32 file of the runtime's format: inputs for one run, and the outputs somebody else computed for them."""

    path: Path
    feeds: Mapping[str, Array]
    outputs: Mapping[str, Array]
    batch: int = 1


class RuntimeContract(ABC):
    """Nine promises of a runtime; ``tmp_path`` is pytest's."""

    @abstractmethod
    def make_runtime(self) -> Runtime: ...

    @abstractmethod
    def make_file(self, folder: Path) -> KnownFile: ...

    def test_it_is_a_runtime_and_says_what_it_loads(self) -> None:
        runtime = self.make_runtime()
        assert isinstance(runtime, Runtime)
        assert runtime.name
        assert runtime.formats
        assert set(runtime.formats) <= {str(kind) for kind in ArtifactKind}

    def test_the_probe_tells_name_version_and_formats(self) -> None:
        runtime = self.make_runtime()
        info = runtime.probe()
        assert info.available, info.detail
        assert info.name == runtime.name
        assert info.version
        assert set(info.formats) == set(runtime.formats)

    def test_a_good_file_gives_the_outputs_it_must(self, tmp_path: Path) -> None:
        file = self.make_file(tmp_path)
        _assert_right(self._loaded(file), file)

    def test_inputs_are_described_so_that_they_can_be_made_up(self, tmp_path: Path) -> None:
        file = self.make_file(tmp_path)
        session = self._loaded(file)
        assert {spec.name for spec in session.inputs} == set(file.feeds)
        session.bind(random_feeds(session.inputs, batch=file.batch))
        session.run()
        assert all(np.isfinite(array).all() for array in session.outputs().values())

    def test_running_again_gives_the_same(self, tmp_path: Path) -> None:
        file = self.make_file(tmp_path)
        session = self._loaded(file)
        session.bind(file.feeds)
        session.run()
        first = session.outputs()
        session.run()
        for name, array in session.outputs().items():
            np.testing.assert_array_equal(array, first[name])

    def test_outputs_are_copies(self, tmp_path: Path) -> None:
        file = self.make_file(tmp_path)
        session = self._loaded(file)
        session.bind(file.feeds)
        session.run()
        kept = session.outputs()
        before = {name: array.copy() for name, array in kept.items()}
        session.bind(random_feeds(session.inputs, batch=file.batch, seed=1))
        session.run()
        for name, array in kept.items():
            np.testing.assert_array_equal(array, before[name])

    def test_two_sessions_of_one_file_do_not_disturb_each_other(self, tmp_path: Path) -> None:
        file = self.make_file(tmp_path)
        first, second = self._loaded(file), self._loaded(file)
        second.bind(random_feeds(second.inputs, batch=file.batch, seed=1))
        second.run()
        _assert_right(first, file)

    def test_conditions_name_the_runtime_and_its_version(self, tmp_path: Path) -> None:
        session = self._loaded(self.make_file(tmp_path))
        assert session.conditions["runtime"] == self.make_runtime().name
        assert session.conditions["runtime_version"]

    def test_files_that_are_broken_are_refused_by_a_reason(self, tmp_path: Path) -> None:
        file = self.make_file(tmp_path)
        data = file.path.read_bytes()
        for broken in (b"", b"not a model at all", data[: len(data) // 2], bytes(len(data))):
            path = tmp_path / f"broken-{len(broken)}{file.path.suffix}"
            path.write_bytes(broken)
            try:
                session = self.make_runtime().load(path, threads=1, precision="fp32", batch=file.batch)
                session.bind(file.feeds)
            except UnreadableArtifact as error:
                assert error.message
            else:
                raise AssertionError(f"{len(broken)} bytes that are no model were loaded")

    def _loaded(self, file: KnownFile) -> RuntimeSession:
        session = self.make_runtime().load(file.path, threads=1, precision="fp32", batch=file.batch)
        assert isinstance(session, RuntimeSession)
        return session


def _assert_right(session: RuntimeSession, file: KnownFile) -> None:
    session.bind(file.feeds)
    session.run()
    given = session.outputs()
    for name, wanted in file.outputs.items():
        np.testing.assert_allclose(given[name], wanted, rtol=0, atol=TOLERANCE["fp32"] * float(np.abs(wanted).max()))

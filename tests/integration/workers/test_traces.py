"""Request, search, build and measurement of a job are spans of one trace, and without a collector there is none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from domain.errors import Unavailable
from domain.outcome import Blame, Failed
from domain.traces import root_span_id_of, trace_id_of
from tests.integration.api.conftest import ADMIN, make_app, serving
from tests.integration.db.conftest import *  # noqa: F403 - the tables' fixtures
from tests.integration.db.samples import LEASE_S, Seeds, measured, prepare, spec
from tests.unit.api.fakes import FakeLauncher
from workers.build import BuildWork
from workers.search import SearchWork
from workers.tracing import configure_tracing, job_span


@pytest.fixture(scope="module")
def provider() -> Iterator[tuple[TracerProvider, InMemorySpanExporter]]:
    """The process's one provider: OpenTelemetry lets it be set once."""
    exporter = InMemorySpanExporter()
    made = configure_tracing("test", None, exporter)
    assert trace.get_tracer_provider() is made
    yield made, exporter
    made.shutdown()


@pytest.fixture
def spans(provider: tuple[TracerProvider, InMemorySpanExporter]) -> InMemorySpanExporter:
    provider[1].clear()
    return provider[1]


def named(exporter: InMemorySpanExporter, name: str) -> ReadableSpan:
    found = [span for span in exporter.get_finished_spans() if span.name == name]
    assert len(found) == 1, [span.name for span in exporter.get_finished_spans()]
    return found[0]


class FailingBuilder:
    def build(self, *_: object, **__: object) -> Failed:
        return Failed(stage="prune", reason="nothing left", blame=Blame.CANDIDATE, retryable=False)


def test_all_of_a_job_is_one_trace(
    spans: InMemorySpanExporter, store: Any, seeds: Seeds, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store.set_token("admin", ADMIN, frozenset({"admin"}))
    box = seeds.device(token="pld_device")
    app = make_app(store, FakeLauncher(), tmp_path_factory.mktemp("artifacts"))
    with serving(app) as url, httpx.Client(base_url=url, trust_env=False, timeout=30) as http:
        answer = http.post(
            "/v1/jobs", content=spec("traced").model_dump_json(), headers={"Authorization": f"Bearer {ADMIN}"}
        )
        assert answer.status_code == 201, answer.text
        job_id = answer.json()["id"]

        def search(lease: Any, until: object) -> None:
            store.add_build(lease, prepare())
            seeds.measurement(lease)
            store.release_search(lease)
            drained.append(True)

        drained: list[bool] = []
        loop = type("Loop", (), {"run": staticmethod(search)})()
        SearchWork(store, cast(Any, loop), "s1", lambda: bool(drained)).run()
        BuildWork(store, cast(Any, FailingBuilder()), FakeLauncher(), cast(Any, None), "b1", lambda: False).run()
        claim = store.claim_measurement(box.id, lease_s=LEASE_S)
        told = http.put(
            f"/v1/measurements/{claim.measurement_id}/outcome",
            content=f'{{"attempt": {claim.attempt}, "outcome": {measured().model_dump_json()}}}',
            headers={"Authorization": "Bearer pld_device"},
        )
        assert told.status_code == 204, told.text
    root = named(spans, "job")
    assert root.context is not None and root.parent is None
    assert (root.context.trace_id, root.context.span_id) == (trace_id_of(job_id), root_span_id_of(job_id))
    for name in ("search", "build", "measurement"):
        span = named(spans, name)
        assert span.context is not None and span.parent is not None
        assert span.context.trace_id == root.context.trace_id and span.parent.span_id == root.context.span_id, name
        assert span.attributes is not None and span.attributes["pruneloop.job_id"] == job_id
    assert named(spans, "build").status.status_code is trace.StatusCode.ERROR
    measurement = named(spans, "measurement")
    assert measurement.attributes is not None and measurement.attributes["pruneloop.device_id"] == box.id
    assert measurement.start_time is not None and measurement.end_time is not None
    assert measurement.end_time > measurement.start_time
    request = named(spans, "POST /v1/jobs")
    assert request.attributes is not None and request.attributes["pruneloop.job_id"] == job_id
    assert [link.context.trace_id for link in request.links] == [root.context.trace_id]
    assert [link.context.span_id for link in root.links] == [request.context.span_id]  # type: ignore[union-attr]
    every = "".join(span.to_json() for span in spans.get_finished_spans())
    assert ADMIN not in every and "pld_device" not in every


def test_another_job_is_another_trace(spans: InMemorySpanExporter) -> None:
    for job_id in ("job_a", "job_b"):
        with job_span("build", job_id):
            pass
    ids = {span.context.trace_id for span in spans.get_finished_spans() if span.context is not None}
    assert ids == {trace_id_of("job_a"), trace_id_of("job_b")}


def test_nothing_is_configured_without_an_endpoint() -> None:
    assert configure_tracing("api", None) is None
    assert configure_tracing("api", "") is None


def test_an_endpoint_without_the_extra_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(Unavailable, match=r"pruneloop\[otel\]"):
        configure_tracing("api", "http://collector:4318")

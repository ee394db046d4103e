"""Spans of what is done for a job, in the job's trace; where OpenTelemetry is not installed or not configured, nothing at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from domain.errors import Unavailable
from domain.traces import chosen_ids, root_span_id_of, trace_id_of

trace: Any
try:
    from opentelemetry import trace
except ImportError:  # an image without the extra: spans are then nobody's business
    trace = None


@contextmanager
def job_span(name: str, job_id: str, **attributes: str | int) -> Iterator[Any]:
    """Record a span below a job's first one; yields it, or None where none is recorded."""
    if trace is None:
        yield None
        return
    tracer = trace.get_tracer("pruneloop")
    named = {f"pruneloop.{key}": value for key, value in {"job_id": job_id, **attributes}.items()}
    with tracer.start_as_current_span(name, context=job_context(job_id), attributes=named) as span:
        yield span


def job_context(job_id: str) -> Any:
    """Return the context below which everything of a job hangs, whoever recorded its first span."""
    root = trace.SpanContext(
        trace_id_of(job_id), root_span_id_of(job_id), is_remote=True, trace_flags=trace.TraceFlags(1)
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(root))


def fail(span: Any, reason: str) -> None:
    """Mark a span as failed."""
    if span is not None:
        span.set_status(trace.Status(trace.StatusCode.ERROR, reason))


def configure_tracing(role: str, endpoint: str | None, exporter: Any = None) -> Any:
    """Send this process's spans to an OTLP endpoint; further ``OTEL_*`` variables are read by OpenTelemetry itself.

    Args:
        role: api, search or build: the service is ``pruneloop-<role>``.
        endpoint: Base URL of a collector, http; None: nothing is recorded.
        exporter: Where spans go instead, at once; for tests.

    Returns:
        The provider that was set; None where there is none.

    Raises:
        Unavailable: ``no_otel`` where an endpoint is named and the extra is not installed.
    """
    if not endpoint and exporter is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
    except ImportError as error:
        raise Unavailable(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed; install `pruneloop[otel]` or unset it.",
            code="no_otel",
        ) from error

    class JobIds(RandomIdGenerator):
        def generate_trace_id(self) -> int:
            chosen = chosen_ids()
            return super().generate_trace_id() if chosen is None else chosen[0]

        def generate_span_id(self) -> int:
            chosen = chosen_ids()
            return super().generate_span_id() if chosen is None else chosen[1]

    provider = TracerProvider(resource=Resource.create({"service.name": f"pruneloop-{role}"}), id_generator=JobIds())
    processor = BatchSpanProcessor(OTLPSpanExporter()) if exporter is None else SimpleSpanProcessor(exporter)
    provider.add_span_processor(processor)
    trace.set_tracer_provider(provider)
    return provider

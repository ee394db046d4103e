"""What the API tells of a job in its trace: the first span, and each measurement once its outcome has come.

FastAPI records the requests; these spans say what they were about. Without a configured provider all of it is a no-op.
"""

from __future__ import annotations

from fastapi.telemetry import TelemetryConfig
from opentelemetry import context as otel_context
from opentelemetry import trace

from domain.job import Job
from domain.measurement import Measurement, MeasurementOutcome
from domain.outcome import Failed
from domain.traces import choosing_root_of, root_span_id_of, trace_id_of

TELEMETRY: TelemetryConfig = {
    "metrics": False,  # /metrics tells the product's own
    "logs": False,  # they hold exception messages; ours are scrubbed
    "operation_spans": False,
    "exclude": lambda scope: scope["path"] in {"/healthz", "/readyz", "/metrics"},
}


def tell_job(job: Job) -> None:
    """Record the first span of a new job's trace, and tie it to the request that made it."""
    request = trace.get_current_span()
    request.set_attribute("pruneloop.job_id", job.id)
    links = [trace.Link(request.get_span_context())] if request.get_span_context().is_valid else []
    with choosing_root_of(job.id):
        tracer = trace.get_tracer("pruneloop")
        # An empty context: a span without a parent begins a trace, and so has the ids chosen for it.
        root = tracer.start_span(
            "job",
            context=otel_context.Context(),
            links=links,
            attributes={"pruneloop.job_id": job.id, "pruneloop.job": job.name},
        )
    root.end()
    request.add_link(root.get_span_context())


def tell_measurement(measurement: Measurement, device_id: str, attempt: int, outcome: MeasurementOutcome) -> None:
    """Record a measurement as a span from its claim to now, its stages as attributes."""
    if measurement.started_at is None:
        return
    root = trace.SpanContext(
        trace_id_of(measurement.job_id),
        root_span_id_of(measurement.job_id),
        is_remote=True,
        trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
    )
    request = trace.get_current_span().get_span_context()
    span = trace.get_tracer("pruneloop").start_span(
        "measurement",
        context=trace.set_span_in_context(trace.NonRecordingSpan(root)),
        start_time=int(measurement.started_at.timestamp() * 1e9),
        links=[trace.Link(request)] if request.is_valid else [],
        attributes={
            "pruneloop.job_id": measurement.job_id,
            "pruneloop.measurement_id": measurement.id,
            "pruneloop.device_id": device_id,
            "pruneloop.attempt": attempt,
            "pruneloop.runtime": measurement.request.runtime,
        },
    )
    if isinstance(outcome, Failed):
        span.set_status(trace.Status(trace.StatusCode.ERROR, f"{outcome.stage}: {outcome.reason}"))
    else:
        span.set_attributes({f"pruneloop.stage.{name}_s": seconds for name, seconds in outcome.stages_s.items()})
    span.end()

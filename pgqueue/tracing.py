"""Spans of OpenTelemetry: enqueue, dispatch, execute, complete. W3C trace context travels in the job's headers.

Does something only in a process that has set up a tracer provider; in others it costs a look-up a batch, and
OpenTelemetry is not even loaded. Spans name ids, types and outcomes: no payload, no result, no text of an error.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pgqueue.job import EncodedJob, Job
from pgqueue.outcome import Outcome
from pgqueue.version import __version__

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanKind, Tracer

TRACEPARENT = "traceparent"
PARTS = frozenset({TRACEPARENT, "tracestate"})


def active() -> bool:
    """True if this process records spans."""
    api = sys.modules.get("opentelemetry.trace")  # where nobody loaded it, nobody has set it up
    if api is None:
        return False
    return not isinstance(api.get_tracer_provider(), api.ProxyTracerProvider | api.NoOpTracerProvider)


class Enqueuing:
    """The span of one enqueue, of one job or of a batch."""

    def __init__(self, span: Span | None) -> None:
        self._span = span

    def made(self, jobs: Sequence[Job]) -> None:
        """These are the jobs."""
        if self._span is not None and len(jobs) == 1:
            self._span.set_attribute("messaging.message.id", str(jobs[0].id))
            self._span.set_attribute("pgqueue.existing", jobs[0].existing)


NOT_TRACED = Enqueuing(None)


@contextlib.contextmanager
def enqueuing(batch: Sequence[EncodedJob]) -> Iterator[Enqueuing]:
    """Around an enqueue: the jobs take the span's context with them, unless their headers have one already."""
    if not batch or not active():
        yield NOT_TRACED
        return
    from opentelemetry.trace import SpanKind

    first = batch[0]
    attributes: dict[str, Any] = _of_job(first.type, first.queue)
    if len(batch) > 1:
        attributes["messaging.batch.message_count"] = len(batch)
    span = _start("enqueue", first.type, SpanKind.PRODUCER, None, attributes)
    carried = _carrier(span)
    for new in batch:
        if TRACEPARENT not in (new.headers or {}):
            new.headers = {**(new.headers or {}), **carried}
    try:
        yield Enqueuing(span)
    except BaseException as error:
        _fail(span, type(error).__name__)
        raise
    finally:
        span.end()


def dispatched(jobs: Sequence[Job], began: int) -> None:
    """Jobs that brought a context were dispatched; the span began at `began` (ns). They carry its context on, here."""
    if not active():
        return
    for job in jobs:
        if job.headers is None or TRACEPARENT not in job.headers:
            continue
        span = _start("dispatch", job.type, None, _context(job.headers), _of_run(job), began)
        if job.started_at is not None and job.run_at is not None:
            span.set_attribute("pgqueue.wait_seconds", (job.started_at - job.run_at).total_seconds())
        span.end()
        job.headers = {**job.headers, **_carrier(span)}


def executing(job: Job) -> Span:
    """A run begins: its span, whose context the job carries on to the handler."""
    from opentelemetry.trace import SpanKind

    span = _start("execute", job.type, SpanKind.CONSUMER, _context(job.headers or {}), _of_run(job))
    job.headers = {**(job.headers or {}), **_carrier(span)}
    return span


def enter(span: Span) -> None:
    """In the task of a run: spans that its handler makes are children of `span`."""
    from opentelemetry import context, trace

    context.attach(trace.set_span_in_context(span))


def executed(span: Span, outcome: Outcome) -> None:
    """The run has ended."""
    _tell(span, outcome)
    span.end()
    outcome.span = span


def completed(outcomes: Sequence[Outcome], stale: set[tuple[int, int]], began: int) -> None:
    """Outcomes were written, or (`stale`, by id and attempt) fenced off; that began at `began` (ns)."""
    if not active():
        return
    from opentelemetry.trace import set_span_in_context

    for outcome in outcomes:
        if outcome.span is not None:
            late = (outcome.id, outcome.attempt) in stale
            attributes = {"messaging.message.id": str(outcome.id), "pgqueue.stale": late}
            parent = set_span_in_context(outcome.span)
            span = _start("complete", outcome.type, None, parent, attributes, began)
            _tell(span, outcome)
            span.end()


def now() -> int:
    """The time of spans."""
    return time.time_ns()


def _tracer() -> Tracer:
    from opentelemetry import trace

    return trace.get_tracer("pgqueue", __version__)


def _start(
    operation: str,
    job_type: str,
    kind: SpanKind | None,
    parent: Context | None,
    attributes: Mapping[str, Any],
    began: int | None = None,
) -> Span:
    from opentelemetry.trace import SpanKind

    given = {"messaging.operation.name": operation, "pgqueue.job.type": job_type, **attributes}
    return _tracer().start_span(
        f"{operation} {job_type}", parent, kind or SpanKind.INTERNAL, attributes=given, start_time=began
    )


def _of_job(job_type: str, queue: str) -> dict[str, Any]:
    return {"messaging.system": "pgqueue", "messaging.destination.name": queue, "pgqueue.job.type": job_type}


def _of_run(job: Job) -> dict[str, Any]:
    return {
        **_of_job(job.type, job.queue),
        "messaging.message.id": str(job.id),
        "pgqueue.attempt": job.attempt,
        "pgqueue.worker": str(job.worker_id),
        "pgqueue.epoch": job.epoch or 0,
    }


def _tell(span: Span, outcome: Outcome) -> None:
    span.set_attribute("pgqueue.state", outcome.state.value)
    if outcome.reason is not None:
        span.set_attribute("pgqueue.reason", outcome.reason.value)
    if outcome.error is not None:
        _fail(span, str(outcome.error.get("class")))


def _fail(span: Span, what: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", what)
    span.set_status(Status(StatusCode.ERROR, what))


def _carrier(span: Span) -> dict[str, str]:
    from opentelemetry.trace import set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, set_span_in_context(span))
    return carrier


def _context(headers: Mapping[str, str]) -> Context:
    """What the headers say alone: what runs beside in this process has nothing to do with it."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {key: value for key, value in headers.items() if key in PARTS}
    return TraceContextTextMapPropagator().extract(carrier, Context())

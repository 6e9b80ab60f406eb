"""OpenTelemetry: one trace from enqueue to complete, through the job's headers; nothing where nobody set it up."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support import eventually, finished
from web_tools import served

from pgqueue import AsyncQueue, NewJob, Registry, Settings, Worker, tracing

STEPS = ("enqueue", "dispatch", "execute", "complete")


@pytest.fixture
def spans(monkeypatch):
    """Record spans for the length of one test; gives those that have ended, by name."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield lambda: {span.name: span for span in exporter.get_finished_spans()}
    provider.shutdown()


@pytest.fixture
def registry():
    made = Registry()

    @made.executor("well")
    async def well(job, _context):
        with trace.get_tracer("handler").start_as_current_span("within well"):
            return job.headers["traceparent"]

    @made.executor("in_thread")
    def in_thread(_job, _context):
        trace.get_tracer("handler").start_span("within in_thread").end()

    @made.executor("badly")
    async def badly(_job, _context):
        raise ValueError("a secret of the payload")

    return made


def chain_of(spans, job_type):
    """The four spans of one job, once all have ended."""
    names = [f"{step} {job_type}" for step in STEPS]
    found = eventually(lambda: all(name in spans() for name in names) and spans(), 30, f"{names} in {list(spans())}")
    return [found[name] for name in names]


def assert_one_line(chain):
    """Each is the next one's parent, in one trace."""
    assert len({span.context.trace_id for span in chain}) == 1
    for parent, child in itertools.pairwise(chain):
        assert child.parent is not None
        assert child.parent.span_id == parent.context.span_id


def test_one_trace_leads_from_the_caller_through_enqueue_dispatch_execute_and_complete(spans, registry, started, queue):
    started(registry)
    with trace.get_tracer("service").start_as_current_span("request"):
        job = queue.enqueue("well", {"secret": 1}, headers={"mine": "too"})
    result = finished(queue, job).result
    chain = chain_of(spans, "well")
    assert_one_line(chain)
    enqueue, dispatch, execute, complete = chain
    assert enqueue.parent.span_id == spans()["request"].context.span_id
    assert spans()["within well"].parent.span_id == execute.context.span_id
    assert result.startswith(f"00-{execute.context.trace_id:032x}-{execute.context.span_id:016x}-")
    stored = queue.get(job.id).headers
    assert stored["mine"] == "too"
    assert stored["traceparent"].startswith(f"00-{enqueue.context.trace_id:032x}-{enqueue.context.span_id:016x}-")
    assert {span.attributes["messaging.message.id"] for span in chain} == {str(job.id)}
    assert dispatch.attributes["pgqueue.wait_seconds"] >= 0
    assert execute.attributes["pgqueue.attempt"] == 1
    assert complete.attributes["pgqueue.state"] == "completed"
    assert complete.attributes["pgqueue.stale"] is False
    assert "secret" not in "".join(span.to_json() for span in spans().values())


def test_threads_failures_batches_and_async_queues_are_traced_too(dsn, spans, registry, started, queue):
    started(registry)

    async def enqueue():
        async with AsyncQueue(dsn) as made:
            return await made.enqueue_many([NewJob("in_thread"), NewJob("badly")])

    for job in asyncio.run(enqueue()):
        finished(queue, job)
    eventually(lambda: {"complete badly", "complete in_thread", "within in_thread"} <= spans().keys())
    batch = spans()["enqueue in_thread"]
    assert batch.attributes["messaging.batch.message_count"] == 2
    for job_type in ("in_thread", "badly"):
        assert_one_line([batch, *(spans()[f"{step} {job_type}"] for step in STEPS[1:])])
    assert spans()["within in_thread"].parent.span_id == spans()["execute in_thread"].context.span_id
    failed = spans()["execute badly"]
    assert failed.status.status_code is trace.StatusCode.ERROR
    assert (failed.attributes["error.type"], failed.attributes["pgqueue.reason"]) == ("ValueError", "error")
    assert "a secret" not in "".join(span.to_json() for span in spans().values())


def test_a_job_of_the_http_api_keeps_the_context_it_was_given_to_a_worker_elsewhere(
    dsn, spans, registry, started, queue
):
    theirs = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    started(registry, execute=False)
    worker = Worker(Settings(database_url=dsn), registry)
    worker.start()
    try:
        with served(dsn, registry) as api:
            answer = api.http.post("/api/jobs", json={"type": "well", "options": {"headers": {"traceparent": theirs}}})
            mine = api.http.post("/api/jobs", json={"type": "in_thread"})
        finished(queue, queue.get(int(answer.json()["job_id"])))
        finished(queue, queue.get(int(mine.json()["job_id"])))
        eventually(lambda: {"complete well", "complete in_thread"} <= spans().keys())
    finally:
        worker.stop()
    found = spans()
    for name in ("dispatch well", "execute well"):
        assert found[name].parent.trace_id == int(theirs.split("-")[1], 16)
        assert found[name].parent.span_id == int(theirs.split("-")[2], 16)
    for name in ("dispatch in_thread", "execute in_thread"):
        assert found[name].parent.span_id == found["enqueue in_thread"].context.span_id
    assert found["complete well"].parent.span_id == found["execute well"].context.span_id


def test_an_enqueue_that_fails_ends_its_span_with_the_error(spans, queue, sql):
    sql("DROP TABLE pgqueue.jobs CASCADE")
    with pytest.raises(Exception, match="jobs"):
        queue.enqueue("well")
    span = spans()["enqueue well"]
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.attributes["error.type"]


def test_without_a_provider_nothing_is_carried_and_nothing_is_loaded(queue):
    assert not tracing.active()
    assert queue.enqueue("well").headers is None
    code = "import sys, pgqueue.cli, pgqueue.queue, pgqueue.worker; print('opentelemetry' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"

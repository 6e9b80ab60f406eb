"""`context.complete_in`: the fenced completion inside a handler's own transaction, sync or awaited.

Promises that the job's end and the handler's effects commit together or not at all, and that a run that is no longer
its job's own gets an error instead. Whoever holds the row is waited for. Tells the context, not the worker: what
became of the transaction is read from the row when the run's outcome is written.
"""

from __future__ import annotations

from typing import Any, Protocol

from pgqueue import callers
from pgqueue.job import Job, JobState
from pgqueue.outcome import Outcome
from pgqueue.store import operations
from pgqueue.store.statement import Operation
from pgqueue.worker.results import encode_result


class CompletedRun(Protocol):
    """What is asked of a context, here or in a process of its own."""

    job: Job
    worker_id: Any
    schema: str
    store_result: bool
    completed_in: bool


def complete_in(run: CompletedRun, connection: object, result: Any) -> Any:
    """End `run` on `connection`; a coroutine for an async one."""
    text = encode_result(result, run.job) if run.store_result else None
    outcome = Outcome(run.job.id, run.job.attempt, JobState.COMPLETED, result=text, max_attempts=run.job.max_attempts)

    def operation(_copy: bool) -> Operation[None]:
        return operations.complete(outcome, run.worker_id)

    if callers.is_async(connection):

        async def completed() -> None:
            await callers.arun_on(connection, operation, run.schema, _nobody)
            run.completed_in = True

        return completed()
    callers.run_on(connection, operation, run.schema, _nobody)
    run.completed_in = True
    return None


def _nobody() -> None:
    """Nobody is to be woken by the commit but those that the settling tells."""

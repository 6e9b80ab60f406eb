"""Runs jobs through an executor pool, without a dispatcher or a database."""

from __future__ import annotations

import asyncio
import json
from uuid import uuid4

from pgqueue.job import Job, JobState
from pgqueue.outcome import Outcome
from pgqueue.resources import Resources
from pgqueue.worker.executor import ExecutorPool

CONCURRENCY = 4


def executed(registry, *types: str, resources=None, **options) -> list[Outcome]:
    """One job of each of these types, as many at once as there are slots; their outcomes in that order."""
    outcomes: list[Outcome] = []

    async def run() -> None:
        pool = ExecutorPool(
            registry, CONCURRENCY, "here", lambda ended: outcomes.extend(outcome for outcome, _ in ended)
        )
        pool.resources = Resources(resources)
        jobs = [dispatched(job_type, number, **options) for number, job_type in enumerate(types, 1)]
        for first in range(0, len(jobs), CONCURRENCY):
            pool.execute(jobs[first : first + CONCURRENCY], uuid4())
            assert await pool.wait_idle(30)
        await pool.close()

    asyncio.run(run())
    return sorted(outcomes, key=lambda outcome: outcome.id)


def dispatched(job_type: str, number: int = 1, payload=None, **fields) -> Job:
    """A job as dispatch hands it over: its payload is text."""
    return Job(number, job_type, json.dumps(payload or {}), state=JobState.PROCESSING, **{"attempt": 1, **fields})

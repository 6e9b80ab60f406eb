"""The SQL of docs/monitoring.md gives the figures that `Inspector` gives."""

from __future__ import annotations

import re
from pathlib import Path

from support import eventually, finished

from pgqueue import Inspector, Registry

DOCUMENT = (Path(__file__).parents[1] / "docs/monitoring.md").read_text(encoding="utf-8")
STATEMENTS = dict(re.findall(r"<!-- figures: (\w+) -->\n```sql\n(.*?)```", DOCUMENT, re.DOTALL))


async def broken(job, context):
    raise ValueError("no")


async def fine(job, context):
    return None


def test_the_documents_sql_gives_the_inspectors_figures(dsn, sql, queue, started):
    registry = Registry()
    registry.register("fine", fine)
    registry.register("broken", broken)
    registry.register("retried", broken, max_attempts=2, backoff="fixed:3600")
    dispatcher = started(registry)
    ended = [queue.enqueue(job_type) for job_type in ("fine", "fine", "fine", "broken", "broken")]
    for job in ended:
        finished(queue, job, 60)
    retried = queue.enqueue("retried")
    eventually(lambda: queue.get(retried.id).state == "scheduled", 60)
    dispatcher.stop()
    queue.enqueue("later", delay=3600)
    for number in range(4):
        queue.enqueue("nobody", {"number": number}, queue="far")
    with Inspector(dsn) as inspector:
        counts, overview = inspector.counts(), inspector.overview()
    names = ("processing", "pending", "scheduled", "retrying", "failed")
    ((processing, pending, scheduled, retrying, failed),) = sql(STATEMENTS["counts"])
    assert dict(zip(names, (processing, pending, scheduled, retrying, failed), strict=True)) == {
        name: counts[name] for name in names
    }
    assert (processing, pending, scheduled, retrying, failed) == (0, 4, 2, 1, 2)
    assert float(sql(STATEMENTS["rate"])[0][0]) * 60 == 3
    assert 0 < float(sql(STATEMENTS["oldest"])[0][0]) < 600
    assert overview.oldest_pending is not None
    assert sql(STATEMENTS["lanes"]) == [("far", "nobody", 4)]
    ((job_type, reason, error, number, _latest),) = sql(STATEMENTS["failures"])
    assert (job_type, reason, error, number) == ("broken", "error", "ValueError", 2)

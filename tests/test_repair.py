"""A job that is assigned to the leader's own worker without its knowing: given back, and run after all."""

from __future__ import annotations

import threading

from schedule_tools import registry_of
from support import eventually

from pgqueue import Dispatcher, NewJob, Settings


def test_a_job_its_worker_never_heard_of_is_run_though_there_is_a_dispatch_at_every_moment(dsn, queue, sql):
    """As a claim leaves it whose answer was lost. It is found while others come and go without a pause."""
    ended = threading.Event()

    def enqueue_on():
        while not ended.is_set():
            queue.enqueue_many([NewJob("other") for _ in range(200)])
            eventually(lambda: queue.counts()["pending"] < 400)

    settings = Settings(database_url=dsn, concurrency=50, heartbeat_interval=0.2)
    dispatcher = Dispatcher(settings, registry_of("other", "lost"))
    dispatcher.start()
    producer = threading.Thread(target=enqueue_on)
    try:
        eventually(lambda: sql("SELECT 1 FROM pgqueue.workers"))
        producer.start()
        eventually(lambda: queue.counts()["completed"] > 400)
        lost = queue.enqueue("lost", delay=3600)
        sql(
            """UPDATE pgqueue.jobs SET state = 'processing', attempt = 1, started_at = now(), epoch = 1,
                      worker_id = (SELECT id FROM pgqueue.workers) WHERE id = %s""",
            lost.id,
        )
        ended_job = eventually(lambda: (job := queue.get(lost.id)).state == "completed" and job)
        assert (ended_job.attempt, ended_job.released) == (2, 1)
        assert queue.counts()["failed"] == 0
    finally:
        ended.set()
        producer.join()
        dispatcher.stop()
    assert sql("SELECT count(*) FROM pgqueue.finished_jobs WHERE attempt > 1")[0][0] == 1, "and nothing else given back"

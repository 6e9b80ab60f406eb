"""A heartbeat that hangs stops its jobs before anybody else may run them, and a late answer revives nobody."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading

import pytest
from support import eventually
from test_fencing import LossyProxy, nothing, registry_of, running

LEASE = 3.0


class FreezingProxy(LossyProxy):
    """Between a client and the server; while frozen it takes what is sent, connections too, and passes nothing on."""

    def __init__(self, dsn):
        self._flowing = threading.Event()
        self._flowing.set()
        super().__init__(dsn)

    def freeze(self):
        self._flowing.clear()

    def thaw(self):
        self._flowing.set()

    def close(self):
        self.thaw()
        super().close()

    def _forward(self, client, server, dropping):
        self._pass_on(client, server)

    def _back(self, server, client, dropping):
        self._pass_on(server, client)

    def _pass_on(self, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flowing.wait()
                target.sendall(data)
            self._flowing.wait()
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy(dsn):
    made = FreezingProxy(dsn)
    yield made
    made.close()


def test_jobs_of_a_frozen_connection_are_stopped_within_the_lease_and_run_again_under_a_new_worker(
    dsn, queue, sql, proxy, caplog
):
    caplog.set_level(logging.WARNING)
    entered, stopped = threading.Event(), threading.Event()
    workers = []

    async def waits(job, context):
        workers.append(context.worker_id)
        entered.set()
        if job.attempt == 1:
            try:
                await asyncio.sleep(60)
            finally:
                stopped.set()

    with running(
        proxy.dsn,
        registry_of(waits=waits),
        heartbeat_interval=0.3,
        worker_lease_duration=LEASE,
        leader_lease_duration=1.0,
    ):
        job = queue.enqueue("waits", max_attempts=2)
        assert entered.wait(10)
        before = sql("SELECT heartbeat_at FROM pgqueue.workers WHERE id = %s", workers[0])
        eventually(lambda: sql("SELECT heartbeat_at FROM pgqueue.workers WHERE id = %s", workers[0]) != before)
        proxy.freeze()
        try:
            assert stopped.wait(LEASE)
            left = sql(
                "SELECT extract(epoch FROM expires_at - clock_timestamp())::float8 FROM pgqueue.workers WHERE id = %s",
                workers[0],
            )[0][0]
            assert left > 0, "the handler went on after its worker's lease was over"
            assert queue.get(job.id).state == "processing"
        finally:
            proxy.thaw()
        eventually(lambda: queue.get(job.id).state == "completed", 20, "the second run")
        # The beat that hung was answered in the end; the worker that was lost must not live on by it.
        assert workers[1] != workers[0]
        living = {row[0] for row in sql("SELECT id FROM pgqueue.workers WHERE NOT dead")}
        assert workers[1] in living
        eventually(
            lambda: not sql("SELECT 1 FROM pgqueue.workers WHERE id = %s AND expires_at > now()", workers[0]),
            LEASE + 12,
        )
    assert queue.get(job.id).attempt == 2
    assert len(workers) == 2
    assert sum("is lost" in record.getMessage() for record in caplog.records) == 1, "the new worker was lost as well"


def test_a_lock_on_the_leader_row_for_less_than_the_lease_moves_no_epoch(dsn, queue, sql):
    with running(dsn, registry_of(job=nothing), leader_lease_duration=6) as dispatcher:
        eventually(lambda: dispatcher.is_leader)
        epoch = dispatcher.epoch
        lease = "SELECT expires_at FROM pgqueue.leader"
        before = sql(lease)
        eventually(lambda: sql(lease) != before)
        before = sql(lease)
        # The server lets go by itself, whatever holds this process up.
        sql("SELECT pg_sleep(3) FROM (SELECT FROM pgqueue.leader FOR UPDATE) AS held")
        job = queue.enqueue("job")
        eventually(lambda: queue.get(job.id).state == "completed")
        eventually(lambda: sql(lease) != before, message="the lease is renewed")
        assert dispatcher.epoch == epoch
        assert sql("SELECT epoch FROM pgqueue.leader")[0][0] == epoch

"""Execution: the executor pool, the completer, the heartbeat, and the workers made of them."""

from __future__ import annotations

from pgqueue.worker.context import JobContext
from pgqueue.worker.remote import RemoteWorker
from pgqueue.worker.worker import LocalWorker

__all__ = ["JobContext", "LocalWorker", "RemoteWorker"]

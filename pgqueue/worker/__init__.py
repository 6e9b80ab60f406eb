"""Execution: the executor pool, the completer, the heartbeat, and the worker made of them."""

from __future__ import annotations

from pgqueue.worker.context import JobContext
from pgqueue.worker.worker import LocalWorker

__all__ = ["JobContext", "LocalWorker"]

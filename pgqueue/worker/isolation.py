"""Runs the handlers of `isolation="process"`: one process per slot, started when first needed, then kept.

Owns the children: starts, feeds, stops and reaps them, on the event loop alone. Promises that a child which crashes,
is killed or answers nonsense ends its own job and no other, and that a run that is cancelled is over, its process
group with it, when `run` returns. The children end with the thread that runs the loop.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from pgqueue import logs, validation
from pgqueue.errors import ConfigurationError
from pgqueue.job import Job
from pgqueue.resources import Resource, references
from pgqueue.worker.context import JobContext
from pgqueue.worker.isolated import BEGUN, LENGTH, REPORT
from pgqueue.worker.isolation_answers import (
    IsolatedError,
    ProcessDiedError,
    death_message,
    error_of,
    heed,
    read_answer,
    value_of,
)

__all__ = ["GRACE", "IsolatedError", "ProcessDiedError", "ProcessPool"]

GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL."""
MAX_FRAME_BYTES = 8 * 1024 * 1024
_PROGRAM = str(Path(__file__).with_name("isolated.py"))


class _Handler:
    """A handler as it is sent: pickled by reference, once per type."""

    def __init__(self, key: int, execute: Callable[..., Any], model: Any, pickled: bytes) -> None:
        self.key = key
        self.execute = execute
        self.model = model
        self.text = base64.b64encode(pickled).decode()


class _Child(asyncio.Protocol):
    """One process and the socket to it; one request at a time."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.begun = False
        self.loaded: set[int] = set()
        self.context: JobContext | None = None
        self._loop = loop
        self._reply: asyncio.Future[bytes | None] | None = None
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                # On the loop's own thread: the kernel's parent-death signal is bound to the thread that starts it.
                self.process = subprocess.Popen(
                    [sys.executable, "-P", _PROGRAM, str(theirs.fileno()), str(os.getpid())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        self._socket = ours

    async def connect(self, resources: dict[str, str]) -> None:
        """Take up the socket and tell the child where the modules are, and how resources are made."""
        self._socket.setblocking(False)
        try:
            await self._loop.create_connection(lambda: self, sock=self._socket)
        except BaseException:
            self._socket.close()
            self.connection_lost(None)
            raise
        level = logging.getLogger().getEffectiveLevel()
        self.send({"path": sys.path, "level": level, "format": logs.current_format(), "resources": resources})

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a socket's
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._received)
            if length > MAX_FRAME_BYTES or self._reply is None or self._reply.done():
                self.kill()  # it does not keep to the protocol: no more is believed
                self._received.clear()
            elif self._received.startswith(BEGUN):
                del self._received[: LENGTH.size]
                self.begun = True
            elif len(self._received) < LENGTH.size + length:
                return
            else:
                frame = bytes(self._received[LENGTH.size : LENGTH.size + length])
                del self._received[: LENGTH.size + length]
                if frame.startswith(REPORT):
                    heed(read_answer(frame), self.context)
                else:
                    self._reply.set_result(frame)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if not self.closed.done():
            self.closed.set_result(None)
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(None)

    def send(self, message: dict[str, Any]) -> None:
        """Send one frame; lost if the child is gone, which `ask` notices."""
        frame = json.dumps(message).encode()
        if self._transport is not None:
            self._transport.write(LENGTH.pack(len(frame)) + frame)

    async def ask(self, request: dict[str, Any]) -> bytes | None:
        """The answer's frame; None if the child died. When this is cancelled the answer may still come."""
        self.begun = False
        self._reply = self._loop.create_future()
        if self.closed.done():
            return None
        self.send(request)
        await asyncio.wait((self._reply,))
        return self._reply.result()

    def last_words(self) -> bytes | None:
        """The answer of a request whose asker was cancelled, if it came."""
        return self._reply.result() if self._reply is not None and self._reply.done() else None

    def signal(self, number: int) -> None:
        """Signal the child's process group; its number is ours until the child is reaped."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End it and what it started; one that is dying already keeps its own exit status."""
        self.signal(signal.SIGKILL)

    async def reap(self) -> int:
        """Kill what is left, wait for its end, and return its exit code."""
        self.kill()
        while self.process.poll() is None:  # noqa: ASYNC110 - it is dying; a thread's wait would cost more
            await asyncio.sleep(0.001)
        if self._transport is not None:
            self._transport.abort()
        return self.process.returncode


class ProcessPool:
    """Runs up to `concurrency` jobs at once, each in a process of its own, on the event loop it is used in.

    Args:
        concurrency: how many processes at most; they start when first needed and stay.
        memory_limit: bytes of address space that a process may have while a job runs, interpreter and imports
            included; None: no limit. More raises MemoryError in the handler.
        grace: seconds between SIGTERM and SIGKILL.
        resources: what a handler may ask its context for, or what `references` made of it; each process makes its own.
    """

    def __init__(
        self,
        concurrency: int,
        *,
        memory_limit: int | None = None,
        grace: float = GRACE,
        resources: Iterable[Resource[Any]] | Mapping[str, str] = (),
    ) -> None:
        self._slots = asyncio.Semaphore(concurrency)
        self._memory_limit = memory_limit
        self._grace = grace
        self._resources = resources
        self._idle: list[_Child] = []
        self._children: set[_Child] = set()
        self._handlers: dict[str, _Handler] = {}
        self._shipped = 0
        self._closed = False

    @property
    def process_ids(self) -> list[int]:
        """The processes that live now."""
        return [child.process.pid for child in self._children if child.process.poll() is None]

    def prepare(self, job_type: str, execute: Callable[..., Any], payload_model: Any = None) -> None:
        """Make the handler of `job_type` ready to be sent; `run` does so too, this says early what is wrong.

        Raises:
            ConfigurationError: it cannot be pickled, so no process could get it.
        """
        self._handler(job_type, execute, payload_model)

    async def run(
        self,
        execute: Callable[..., Any],
        job: Job,
        *,
        payload_model: Any = None,
        worker_id: UUID | None = None,
        deadline: float | None = None,
        memory_limit: int | None = None,
        context: JobContext | None = None,
    ) -> Any:
        """Run `execute(job, context)` in a process and return its result, as JSON makes it.

        When the awaiting task is cancelled, the process group gets SIGTERM, after `grace` seconds SIGKILL, and then
        the cancellation goes on; cancelled again: SIGKILL at once. A handler that ends well within the grace time
        has done its job: its result is returned instead.

        Args:
            execute: the handler, `async def` or `def`; sent by reference, so it must be importable.
            job: the job, its payload decoded.
            payload_model: what `context.payload` is made of.
            worker_id: for the context.
            deadline: for the context, on `time.monotonic()`'s clock; None: the job's timeout from now.
            memory_limit: bytes, instead of the pool's.
            context: told what the handler says before it ends.

        Raises:
            IsolatedError: the handler raised; also an instance of the class that was raised, where that is known here.
            ProcessDiedError: the process died under the handler.
            Retry, Snooze, Discard, Cancel, InvalidPayloadError: the handler raised or returned it.
            ConfigurationError: the handler cannot be pickled, or not be imported in the process.
        """
        handler = self._handler(job.type, execute, payload_model)
        if deadline is None and job.timeout:
            deadline = time.monotonic() + job.timeout
        request = {
            "handler": handler.key,
            "job": job_text(job),
            "worker_id": None if worker_id is None else str(worker_id),
            "deadline": deadline,
            "memory_limit": memory_limit or self._memory_limit,
            "schema": "pgqueue" if context is None else context.schema,
            "store_result": context is None or context.store_result,
        }
        async with self._slots:
            while True:
                child, fresh = await self._take()
                child.context = context
                sent = request if handler.key in child.loaded else {**request, "pickled": handler.text}
                try:
                    frame = await child.ask(sent)
                except asyncio.CancelledError:
                    answer = await self._terminate(child)
                    if answer.get("kind") != "result":
                        raise
                    return value_of(answer, job)
                if frame is not None:
                    return await self._finish(child, handler, job, frame)
                code = await self._end(child)
                if fresh or child.begun:
                    raise ProcessDiedError(death_message(code), code)
                # It died between two jobs: this one has not begun, another process takes it.

    async def close(self) -> None:
        """End every process: SIGTERM, and SIGKILL for those still there after the grace time."""
        self._closed = True
        children = list(self._children)
        for child in children:
            child.signal(signal.SIGTERM)
        try:
            if children:
                await asyncio.wait([child.closed for child in children], timeout=self._grace)
        finally:
            for child in children:
                child.kill()
        for child in children:
            await self._end(child)
        self._idle.clear()

    async def _take(self) -> tuple[_Child, bool]:
        """A child that waits for work, or a fresh one; and whether it is fresh."""
        for gone in [one for one in self._children if one.closed.done()]:
            gone.kill()
            if gone.process.poll() is not None:
                self._children.discard(gone)
        while self._idle:
            child = self._idle.pop()
            if not child.closed.done():
                return child, False
            await self._end(child)
        if self._closed:
            raise ProcessDiedError("the processes are shut down")
        child = _Child()
        self._children.add(child)
        try:
            await child.connect(references(self._resources))
        except BaseException:
            child.kill()
            raise
        return child, True

    async def _finish(self, child: _Child, handler: _Handler, job: Job, frame: bytes) -> Any:
        answer = read_answer(frame)
        heed(answer, child.context)
        kind = answer.get("kind")
        if kind not in ("result", "unloadable", "signal", "error"):
            await self._end(child)
            raise ProcessDiedError("the process sent an answer that cannot be read")
        if kind != "unloadable":
            child.loaded.add(handler.key)
        value = value_of(answer, job) if kind == "result" else error_of(answer, job)
        if isinstance(value, MemoryError) or self._closed:
            await self._end(child)  # what filled it may still be held
        else:
            self._idle.append(child)
        if kind != "result":
            raise value
        return value

    async def _terminate(self, child: _Child) -> dict[str, Any]:
        """Stop the process and return what it answered in its grace time."""
        child.signal(signal.SIGTERM)
        try:
            await asyncio.wait((child.closed,), timeout=self._grace)
        finally:
            child.kill()
        await self._end(child)
        answer = read_answer(child.last_words())
        heed(answer, child.context)
        return answer

    async def _end(self, child: _Child) -> int:
        code = await child.reap()
        self._children.discard(child)
        return code

    def _handler(self, job_type: str, execute: Callable[..., Any], model: Any) -> _Handler:
        known = self._handlers.get(job_type)
        if known is not None and known.execute == execute and known.model is model:
            return known
        try:
            owner = getattr(execute, "__self__", execute)
            if getattr(owner, "__module__", None) == "__main__":
                raise pickle.PicklingError("it is defined in the program itself, __main__")
            pickled = pickle.dumps((execute, model))
        except Exception as error:  # noqa: BLE001 - attributes may raise anything when they are pickled
            raise ConfigurationError(
                f"executor of {job_type!r}, {validation.shorten(execute)}, cannot be sent to a process ({error}): "
                "with isolation='process' it must be a function at the top level of a module that can be imported, "
                "or an object whose class is and whose attributes can be pickled; "
                "move it there and open connections inside the handler, or use isolation='inline'"
            ) from None
        self._shipped += 1
        known = self._handlers[job_type] = _Handler(self._shipped, execute, model, pickled)
        return known


def job_text(job: Job) -> str:
    """The job as JSON, for `isolated.job_of`."""
    return json.dumps({field.name: getattr(job, field.name) for field in fields(Job)}, default=_plain)


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)

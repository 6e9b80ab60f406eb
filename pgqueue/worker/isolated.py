"""The process of one slot of `isolation="process"`: takes one job at a time from its parent, runs it, answers.

Run by path, so that the child pays for the standard library, the handler's module and little else. Frames are a
4-byte length and JSON; an empty one says that a job has begun, others before the answer what its handler reports.
Promises to outlive its parent by no more than the running job, on Linux not at all; whatever a handler raises or
returns becomes an answer of bounded size.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import faulthandler
import inspect
import json
import logging
import os
import pickle
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime
from types import FrameType
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from pgqueue.job import Job
    from pgqueue.resources import LazyResources

# Nothing of pgqueue is imported up here: where it is, sys.path, is the first thing the parent says.

LENGTH = struct.Struct(">I")
BEGUN = LENGTH.pack(0)
REPORT = b'{"kind": "report"'  # what a frame begins with that is no answer
REPORT_EVERY = 0.1  # seconds between frames that say how far a run is
MAX_RESULT_CHARACTERS = 1024 * 1024
"""A larger result does not travel to the parent, which would not store it either."""
PR_SET_PDEATHSIG = 1


class Cancellation:
    """Says that this run should stop: `is_set()` from anywhere, `await wait()` on the event loop."""

    def __init__(self) -> None:
        self._set = False
        self._event = asyncio.Event()
        self._running: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None

    def is_set(self) -> bool:
        """True once the run was told to stop."""
        return self._set

    async def wait(self) -> None:
        """Return when the run is told to stop."""
        await self._event.wait()

    def set(self) -> None:
        """Tell the run to stop; called by the signal handler, in the middle of anything."""
        self._set = True
        if self._running is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just been closed
                self._running[0].call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._event.set()
        if self._running is not None:
            self._running[1].cancel()

    async def guard(self, awaitable: Awaitable[Any]) -> Any:
        """Await a handler; it is cancelled when the run is told to stop."""
        task = asyncio.current_task()
        if task is not None:
            self._running = asyncio.get_running_loop(), task
        try:
            if self._set:
                self._wake()
            return await awaitable
        finally:
            self._running = None


class IsolatedContext:
    """What a handler in a process of its own is given beside its job: the plain part of `JobContext`.

    Attributes:
        job: the job; `max_attempts` and `timeout` are the resolved values.
        attempt: this run's number, 1 at first.
        deadline: when the run times out, on `time.monotonic()`'s clock; None without a limit.
        cancelled: set when the run should stop: its time is up, or the worker is stopping; SIGKILL follows.
        worker_id: the worker that runs it; None where the pool was not told.
        payload: the payload, as the model its type was registered with; without one the JSON object.
        fencing_token: (job id, attempt): unique to this run, growing per job.
        logger: carries job id, type and attempt; written to stderr.
    """

    def __init__(self, job: Job, payload: Any, request: dict[str, Any], child: Child) -> None:
        worker_id = request["worker_id"]
        self.job = job
        self.attempt = job.attempt
        self.deadline = request["deadline"]
        self.cancelled = Cancellation()
        self.worker_id = None if worker_id is None else UUID(worker_id)
        self.payload = payload
        self._child = child
        self.fencing_token = job.id, job.attempt
        fields = {"job_id": job.id, "job_type": job.type, "attempt": job.attempt}
        self.logger = logging.LoggerAdapter(logging.getLogger("pgqueue.job"), fields)
        self.schema, self.store_result = request["schema"], request["store_result"]
        self.unsaid: dict[str, Any] | None = None
        self._reported_at, self._completed_in = 0.0, False

    def progress(self, percent: float, message: str | None = None) -> None:
        """As `JobContext.progress`: say how far the run is."""
        from pgqueue.validation import check_progress

        percent, message = check_progress(percent, message)
        self.unsaid = said = {"percent": percent, "message": message}
        if time.monotonic() - self._reported_at >= REPORT_EVERY:
            self._reported_at, self.unsaid = time.monotonic(), None
            self._child.report(self, progress=said)

    def complete_in(self, connection: object, result: Any = None) -> Any:
        """As `JobContext.complete_in`: complete the job in the handler's own transaction."""
        from pgqueue.worker.completion import complete_in

        return complete_in(self, connection, result)

    @property
    def completed_in(self) -> bool:
        """True once `complete_in` did its part."""
        return self._completed_in

    @completed_in.setter
    def completed_in(self, value: bool) -> None:
        self._completed_in = value
        self._child.report(self, completed_in=value)

    @property
    def resources(self) -> LazyResources:
        """What the registry's resources are here, each made when first asked for, once per process."""
        return self._child.resources

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"context.{name} does not exist with isolation='process': "
            "the handler runs in a process of its own; make what it needs inside the handler"
        )


class Child:
    """The loop that answers the parent, and its signal handler.

    Attributes:
        references: the ways to the factories of resources, by name; part of the first thing the parent says.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.references: dict[str, str] = {}
        self.bind_logs: Callable[[IsolatedContext], None] = lambda _: None
        self._resources: LazyResources | None = None
        self._pid = os.getpid()
        self._sending = threading.Lock()
        self._handlers: dict[int, tuple[Any, Any]] = {}
        self._context: IsolatedContext | None = None
        self._busy = self._terminated = False

    @property
    def resources(self) -> LazyResources:
        """This process's resources."""
        if self._resources is None:
            from pgqueue.resources import LazyResources

            self._resources = LazyResources(self.references)
        return self._resources

    def close(self) -> None:
        """Close the resources that were made; SIGTERM has done its work by now, SIGKILL bounds the time."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self._resources is not None and self._pid == os.getpid():  # a fork's are its parent's
            self._resources.close()

    def serve(self) -> None:
        """Answer until the parent closes its end, or SIGTERM."""
        signal.signal(signal.SIGTERM, self._terminate)
        while (request := self.receive()) is not None:
            self._busy = True
            self._connection.sendall(BEGUN)
            signal.signal(signal.SIGTERM, self._terminate)  # the last handler may have set its own
            answer = self._answer(request)
            with self._sending:
                context, self._context = self._context, None
                if context is not None and context.unsaid is not None:
                    answer["progress"] = context.unsaid
                self._send(answer)
            self._busy = False
            if self._terminated:
                return

    def _send(self, message: dict[str, Any]) -> None:
        frame = json.dumps(message).encode()
        self._connection.sendall(LENGTH.pack(len(frame)) + frame)

    def report(self, context: IsolatedContext, **said: Any) -> None:
        """Tell the parent what the handler says before it ends."""
        with self._sending:
            if context is self._context:  # else the run is over, and a thread of its handler is not
                self._send({"kind": "report", **said})

    def _terminate(self, _number: int, _frame: FrameType | None) -> None:
        self._terminated = True
        if not self._busy:
            raise SystemExit
        if self._context is not None:
            self._context.cancelled.set()

    def receive(self) -> dict[str, Any] | None:
        """What the parent says next; None at its end."""
        head = self._exactly(LENGTH.size)
        body = None if head is None else self._exactly(LENGTH.unpack(head)[0])
        return None if body is None else json.loads(body)

    def _exactly(self, size: int) -> bytes | None:
        received = bytearray()
        while len(received) < size:
            try:
                part = self._connection.recv(min(size - len(received), 1 << 20))
            except ConnectionError:
                return None
            if not part:
                return None
            received += part
        return bytes(received)

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            execute, model = self._load(request)
        except BaseException as error:  # noqa: BLE001 - an import may raise anything; it ends this job alone
            return {**described(error), "kind": "unloadable"}
        try:
            job = job_of(json.loads(request["job"]))
            self._context = context = IsolatedContext(job, fitted_payload(model, job.payload), request, self)
            self.bind_logs(context)
            if self._terminated:
                context.cancelled.set()
            with _memory_limited(request["memory_limit"]):
                result = execute(job, context)
                if inspect.isawaitable(result):
                    result = asyncio.run(context.cancelled.guard(result))
            return encoded(result)
        except BaseException as error:  # noqa: BLE001 - a handler may raise anything, SystemExit included
            return described(error)

    def _load(self, request: dict[str, Any]) -> tuple[Any, Any]:
        key = request["handler"]
        if key not in self._handlers:
            self._handlers[key] = pickle.loads(base64.b64decode(request["pickled"]))  # noqa: S301 - the parent's own
        return self._handlers[key]


def encoded(result: Any) -> dict[str, Any]:
    """The answer for what a handler returned; what is no JSON is sent as its repr."""
    from pgqueue.outcome import SIGNALS, storable_text

    if isinstance(result, SIGNALS):
        return described(result)
    try:
        text = json.dumps(result, allow_nan=False, separators=(",", ":"))
    except (ValueError, TypeError, RecursionError):
        text = json.dumps(storable_text(repr(result), 1000))
    if len(text) > MAX_RESULT_CHARACTERS:
        return {"kind": "result", "text": "null", "oversize": len(text)}
    return {"kind": "result", "text": text}


def described(error: BaseException) -> dict[str, Any]:
    """The answer for what a handler raised: class, message and traceback, trimmed and without locals."""
    answer: dict[str, Any] = {"kind": "error", "classes": [], "message": "could not be described", "traceback": ""}
    try:
        from pgqueue.errors import InvalidPayloadError
        from pgqueue.outcome import (
            MAX_MESSAGE_CHARACTERS,
            MAX_TRACEBACK_CHARACTERS,
            SIGNALS,
            Retry,
            Snooze,
            storable_text,
        )

        kinds = [kind for kind in type(error).__mro__ if issubclass(kind, BaseException)][:32]
        answer["classes"] = [(str(kind.__module__), str(kind.__qualname__)) for kind in kinds]
        if isinstance(error, SIGNALS):
            answer["kind"] = "signal"
            answer["class"] = next(kind.__name__ for kind in SIGNALS if isinstance(error, kind))
            if isinstance(error, Retry):
                answer["seconds"] = error.after
            if isinstance(error, Snooze):
                answer["seconds"] = error.delay
        elif isinstance(error, InvalidPayloadError):
            answer["path"] = str(error.path)
        if (own := error.__traceback__) is not None:
            lines = traceback.format_exception(type(error), error, own.tb_next, limit=-20)
            answer["traceback"] = storable_text("".join(lines)[-MAX_TRACEBACK_CHARACTERS:], MAX_TRACEBACK_CHARACTERS)
        answer["message"] = f"<{type(error).__name__} whose message could not be made>"
        answer["message"] = storable_text(str(error) or type(error).__name__, MAX_MESSAGE_CHARACTERS)
    except Exception:  # noqa: BLE001, S110 - an error's own __str__ may fail; what is known of it is sent
        pass
    return answer


def job_of(record: dict[str, Any]) -> Job:
    """The job that a record stands for."""
    from pgqueue.job import Job, JobState

    for field in dataclasses.fields(Job):
        value = record.get(field.name)
        if value is None:
            continue
        if "datetime" in str(field.type):
            record[field.name] = datetime.fromisoformat(value)
        elif "UUID" in str(field.type):
            record[field.name] = UUID(value)
        elif "JobState" in str(field.type):
            record[field.name] = JobState(value)
    return Job(**record)


def fitted_payload(model: Any, payload: dict[str, Any]) -> Any:
    """As the executor does before it sends the job: the model itself does not travel."""
    if model is None:
        return payload
    return model.model_validate(payload) if hasattr(model, "model_validate") else model(**payload)


@contextlib.contextmanager
def _memory_limited(limit: int | None) -> Iterator[None]:
    """Bound the address space while the handler runs; its result or error is described without the bound."""
    if limit is None:
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        raise SystemExit


def main(descriptor: int, parent: int) -> None:
    """Serve the parent at the other end of `descriptor`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with(parent)
    faulthandler.enable()
    connection = socket.socket(fileno=descriptor)
    connection.set_inheritable(False)

    def forget() -> None:
        # A handler's own fork must neither hold the pipe open after this process died nor ignore its signals.
        connection.close()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    os.register_at_fork(after_in_child=forget)
    child = Child(connection)
    hello = child.receive()
    if hello is None:
        return
    child.references = hello["resources"]
    sys.path[:] = hello["path"]
    from pgqueue import logs

    logs.configure(hello["level"], hello["format"])
    child.bind_logs = logs.bind
    try:
        child.serve()
    finally:
        child.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

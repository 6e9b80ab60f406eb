"""What runs on a node of an engine: finds a handler by its import path, runs it, answers in JSON.

Imported on the node, where no worker and no database is. Promises that whatever a handler raises or returns becomes
an answer of bounded size, that a request meant for another process is refused, and that a run told to stop before it
began never begins. Plain handlers run in the thread the engine gives, coroutines on a loop of their own in it.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import importlib
import inspect
import json
import signal
import threading
import time
from collections.abc import Awaitable, Mapping
from typing import Any
from uuid import UUID, uuid4

from pgqueue.resources import LazyResources
from pgqueue.store.jobs import Progress
from pgqueue.version import __version__
from pgqueue.worker.isolated import Cancellation, IsolatedContext, described, encoded, fitted_payload, job_of

PROTOCOL = 1
"""Rises with each change of what travels: nodes and workers may run different versions of pgqueue otherwise."""
PROCESS = uuid4().hex
"""Names this process; one that is started anew at the same address has another."""
OVERTIME = 1.0  # seconds past its deadline after which a run is told to stop, if nobody else has
MAX_TOLD = 10_000

_lock = threading.Lock()
_running: dict[str, Cancellation] = {}
_told: dict[str, None] = {}


def introduce() -> dict[str, Any]:
    """What a worker wants to know of this process before it sends jobs."""
    return {"process": PROCESS, "protocol": PROTOCOL, "version": __version__}


def cancel(token: str) -> bool:
    """Tell a run to stop; True if it has begun here. One that has not never will."""
    with _lock:
        cancellation = _running.get(token)
        if cancellation is None:
            _told[token] = None
            while len(_told) > MAX_TOLD:
                del _told[next(iter(_told))]
            return False
    cancellation.set()
    return True


def run(text: str) -> str:
    """Run what a request says; the answer."""
    request = json.loads(text)
    if request["process"] not in {None, PROCESS}:
        return json.dumps({"kind": "elsewhere"})
    return json.dumps(_answer(request))


def run_interruptible(text: str) -> str:
    """The same in a process's main thread, where SIGINT tells the run to stop."""
    token = json.loads(text)["token"]
    before = signal.signal(signal.SIGINT, lambda _number, _frame: cancel(token))
    try:
        return run(text)
    finally:
        signal.signal(signal.SIGINT, before)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        execute = found(request["handler"])
        model = None if request["model"] is None else found(request["model"])
    except BaseException as error:  # noqa: BLE001 - an import may raise anything; it ends this job alone
        return {**described(error), "kind": "unloadable"}
    token, seconds = request["token"], request["seconds"]
    cancellation = Cancellation()
    with _lock:
        if token in _told:
            del _told[token]
            return {"kind": "stopped"}
        _running[token] = cancellation
    node = _Node(request)
    timer = None if seconds is None else threading.Timer(seconds + OVERTIME, cancellation.set)
    try:
        if timer is not None:
            timer.daemon = True
            timer.start()
        if request["isolated"]:
            return encoded(asyncio.run(_guarded(cancellation, _in_process(request, execute, model, node)))) | node.said
        context = _context(request, model, cancellation, node)
        result = execute(context.job, context)
        if inspect.isawaitable(result):
            result = asyncio.run(_guarded(cancellation, result))
        return encoded(result) | node.said
    except BaseException as error:  # noqa: BLE001 - a handler may raise anything, SystemExit included
        return described(error) | node.said
    finally:
        if timer is not None:
            timer.cancel()
        with _lock:
            del _running[token]


async def _guarded(cancellation: Cancellation, awaitable: Awaitable[Any]) -> Any:
    if threading.current_thread() is threading.main_thread():  # see run_interruptible: a loop that waits must wake up
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, cancellation.set)
    return await cancellation.guard(awaitable)


def _context(request: dict[str, Any], model: Any, cancellation: Cancellation, node: Any) -> RemoteContext:
    job = job_of(json.loads(request["job"]))
    plain = {**request, "deadline": _deadline(request)}
    context = RemoteContext(job, fitted_payload(model, job.payload), plain, node)
    context.cancelled = cancellation
    return context


async def _in_process(request: dict[str, Any], execute: Any, model: Any, node: _Node) -> Any:
    """In a process of its own on this node, which a cancellation ends."""
    from pgqueue.worker.context import JobContext
    from pgqueue.worker.isolation import ProcessPool

    job, worker_id = job_of(json.loads(request["job"])), UUID(request["worker_id"])

    def report(said: Progress) -> None:
        node.report(progress={"percent": said.percent, "message": said.message})

    context = JobContext(job, worker_id, schema=request["schema"], report=report)
    context.store_result = request["store_result"]
    pool = ProcessPool(1, resources=request["resources"])
    try:
        return await pool.run(
            execute,
            job,
            payload_model=model,
            worker_id=worker_id,
            deadline=_deadline(request),
            memory_limit=request["memory_limit"],
            context=context,
        )
    finally:
        if context.completed_in:
            node.report(completed_in=True)
        await pool.close()


def _deadline(request: dict[str, Any]) -> float | None:
    """On this machine's clock: that of the worker does not hold here."""
    return None if request["seconds"] is None else time.monotonic() + float(request["seconds"])


def found(path: str) -> Any:
    """What `module:name` names."""
    module, _, name = path.partition(":")
    place: Any = importlib.import_module(module)
    for part in name.split("."):
        place = getattr(place, part)
    return place


class RemoteContext(IsolatedContext):
    """What a handler on a node is given beside its job: the plain part of `JobContext`.

    Its progress travels with the answer, so only the last is seen.
    """

    def progress(self, percent: float, message: str | None = None) -> None:
        """As `JobContext.progress`; shown when the run has ended."""
        self._reported_at = 0.0
        super().progress(percent, message)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"context.{name} does not exist on a node of an engine: make what the handler needs inside the handler"
        )


class _Node:
    """What a context asks this process for, and what it said before the run's end: part of the answer."""

    def __init__(self, request: dict[str, Any]) -> None:
        self._references = request["resources"]
        self.said: dict[str, Any] = {}

    def report(self, _context: object = None, **said: Any) -> None:
        self.said |= said

    @property
    def resources(self) -> LazyResources:
        return _resources(tuple(sorted(self._references.items())))


class _SharedResources(LazyResources):
    """Each made once, whichever of the node's threads asks first."""

    def __init__(self, references: Mapping[str, str]) -> None:
        super().__init__(references)
        self._making = threading.RLock()

    def _missing(self, name: Any) -> Any:
        with self._making:
            return self._values[name] if name in self._values else super()._missing(name)


@functools.lru_cache(64)
def _resources(references: tuple[tuple[str, str], ...]) -> _SharedResources:
    made = _SharedResources(dict(references))
    atexit.register(made.close)
    return made

"""`backend="dask"`: jobs as tasks of a Dask cluster, through distributed's asynchronous client.

pgqueue names the node of each run, the one with the most free threads, and its process: so a run that was lost with
its node can begin nowhere else, whatever the scheduler's `allowed-failures`, and each attempt runs at most once.
Promises that the runs of a node or scheduler that is gone end as lost, and that a scheduler that comes back is used
again. A thread cannot be killed: one that does not stop when told keeps its place until it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from typing import Any

from pgqueue.errors import BackendUnavailableError, ConfigurationError
from pgqueue.job import Job
from pgqueue.outcome import JobLostError, JobReleasedError
from pgqueue.registry import Registration
from pgqueue.worker.backends import remote_task
from pgqueue.worker.backends.remote import PATIENCE, STOP_TIMEOUT, RemoteBackend
from pgqueue.worker.context import JobContext

try:
    import distributed
except ImportError as error:
    raise ConfigurationError(f"backend 'dask' cannot be imported ({error}): pip install 'pgqueue[dask]'") from None

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5.0
LOOK_EVERY = 0.5  # seconds between looks at which nodes there are
LOOK_TIMEOUT = 10.0
TELL_TIMEOUT = 2.0  # seconds a node has to hear that a run should stop
CLOSE_TIMEOUT = 5.0


class _Node:
    """One worker process of the cluster.

    `directory` is made anew at each start of a process; `process` is None until it has introduced itself.
    """

    def __init__(self, address: str, directory: str) -> None:
        self.address = address
        self.directory = directory
        self.threads = 0
        self.ready = False
        self.process: str | None = None
        self.runs: set[_Run] = set()
        self.introduction: asyncio.Task[None] | None = None

    @property
    def free(self) -> int:
        """How many more runs have a thread."""
        return self.threads - len(self.runs) if self.ready and self.process is not None else 0


class _Run:
    """One run on a node, and what the node says of it.

    `abandoned`: nobody waits for it any more, but it holds a thread.
    """

    def __init__(self, node: _Node, token: str, future: Any) -> None:
        self.node = node
        self.token = token
        self.future = future
        self.answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.following: asyncio.Task[None] | None = None
        self.abandoned = False


class DaskBackend(RemoteBackend):
    """Runs handlers on the nodes of a Dask cluster.

    Args:
        scheduler: its address, `tcp://host:8786` or `tls://…`; certificates are Dask's own configuration.
        references: as `RemoteBackend` takes them.
    """

    name = "dask"

    def __init__(self, scheduler: str | None, references: Mapping[str, str]) -> None:
        super().__init__(references)
        if scheduler is None:
            raise ConfigurationError(
                "backend 'dask' has no scheduler: set dask_scheduler (--scheduler tcp://host:8786)"
            )
        self._scheduler = scheduler
        self._client: Any = None
        self._nodes: dict[str, _Node] = {}
        self._refused: set[tuple[str, str]] = set()
        self._runs: dict[tuple[int, int], _Run] = {}
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._capacity = 0
        self._on_capacity: Callable[[], None] = lambda: None
        self._keeper: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def open(self, on_capacity: Callable[[], None]) -> None:
        """Connect, and meet the nodes."""
        self._on_capacity = on_capacity
        try:
            self._client = await self._connect()
            await self._look()
        except (OSError, ValueError) as error:
            await self._leave_client()
            raise BackendUnavailableError(
                f"the Dask scheduler {self._scheduler} cannot be reached: {_said(error)}"
            ) from error
        await asyncio.gather(*(node.introduction for node in self._nodes.values() if node.introduction is not None))
        logger.info("dask: %s, %d nodes, %d threads", self._scheduler, len(self._nodes), self._capacity)
        self._keeper = asyncio.create_task(self._keep(), name="dask")

    def capacity(self) -> int:
        """The threads of all nodes, without those that runs were left to."""
        return self._capacity

    async def submit(self, registration: Registration, job: Job, context: JobContext) -> Any:
        """Run it on the node with the most free threads."""
        node = await self._place()
        token, text = self.request(registration, job, context, node.process)
        try:
            future = self._client.submit(
                remote_task.run,
                text,
                key=f"pgqueue-{job.type}-{token}",
                pure=False,
                retries=0,
                workers=[node.address],
                allow_other_workers=False,
            )
        except (OSError, distributed.client.ClosedClientError) as error:
            raise JobReleasedError from error  # it never left this process
        run = self._runs[job.id, job.attempt] = _Run(node, token, future)
        node.runs.add(run)
        run.following = asyncio.create_task(self._follow(run))
        try:
            return self.value(await asyncio.shield(run.answer), job, context)
        finally:
            del self._runs[job.id, job.attempt]
            if not run.answer.done():
                run.abandoned = True
                self._count()
                logger.warning(
                    "thread of job %d (%s) on %s goes on after the job was stopped", job.id, job.type, node.address
                )

    async def cancel(self, job: Job) -> None:
        """Set the run's flag on its node; one that has not begun never will."""
        run = self._runs.get((job.id, job.attempt))
        if run is None or run.answer.done():
            return
        if await self._tell(run):
            await asyncio.wait({run.answer}, timeout=STOP_TIMEOUT)
        else:
            run.answer.cancel()
            self._over(run)

    async def close(self) -> None:
        """Leave the cluster; it forgets what has not begun."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._lose_all("this process left the cluster")
        await self._leave_client()
        if self._closing:
            await asyncio.wait(self._closing, timeout=CLOSE_TIMEOUT)

    # Nodes.

    async def _connect(self) -> Any:
        return await distributed.Client(
            self._scheduler, asynchronous=True, timeout=CONNECT_TIMEOUT, set_as_default=False, name="pgqueue"
        )

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                if self._client is None:
                    self._client = await self._connect()
                    logger.info("dask: connected to %s again", self._scheduler)
                elif self._client.status != "running":
                    raise ConnectionError("the connection was lost")
                await self._look()
            except Exception as error:  # noqa: BLE001 - whatever it is, the scheduler cannot be talked to
                if self._client is not None:
                    logger.warning("dask: %s is away: %s", self._scheduler, _said(error))
                self._lose_all("the scheduler is away")
                await self._leave_client()

    async def _look(self) -> None:
        """Which nodes are there now."""
        async with asyncio.timeout(LOOK_TIMEOUT):
            seen = (await self._client.scheduler.identity(n_workers=-1))["workers"]
        for node in list(self._nodes.values()):
            found = seen.get(node.address)
            if found is None or found["local_directory"] != node.directory:
                self._lose(node, f"node {node.address} of the Dask cluster is gone")
        for address, found in seen.items():
            directory = found["local_directory"]
            node = self._nodes.get(address) or self._nodes.setdefault(address, _Node(address, directory))
            node.threads, node.ready = found["nthreads"], found["status"] == "running"
            if node.ready and node.process is None and node.introduction is None:
                node.introduction = asyncio.create_task(self._introduce(node))
        self._count()

    async def _introduce(self, node: _Node) -> None:
        """Ask the node which process it is; one that does not have pgqueue gets no jobs."""
        if (node.address, node.directory) in self._refused:
            return
        try:
            async with asyncio.timeout(LOOK_TIMEOUT):
                (said,) = (await self._client.run(remote_task.introduce, workers=[node.address])).values()
            if said["protocol"] != remote_task.PROTOCOL:
                raise ImportError(f"its pgqueue {said['version']} is of another protocol")
        except (OSError, ValueError) as error:
            logger.debug("dask: node %s does not answer: %s", node.address, error)
            node.introduction = None  # again at the next look
            return
        except Exception as error:  # noqa: BLE001 - whatever importing pgqueue raised there
            self._refused.add((node.address, node.directory))
            logger.warning("dask: node %s gets no jobs: pgqueue cannot be used there: %s", node.address, _said(error))
            return
        node.process = said["process"]
        self._count()

    def _count(self) -> None:
        """The capacity anew; tell of it, and give places to those that wait."""
        nodes = [node for node in self._nodes.values() if node.ready and node.process is not None]
        before, self._capacity = (
            self._capacity,
            sum(max(0, node.threads - sum(run.abandoned for run in node.runs)) for node in nodes),
        )
        for waiter in list(self._waiting)[: sum(max(0, node.free) for node in nodes)]:
            if not waiter.done():
                waiter.set_result(None)
        if self._capacity > before:
            self._on_capacity()

    async def _place(self) -> _Node:
        """The node with the most free threads."""
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while True:
            node = max(self._nodes.values(), key=lambda node: node.free, default=None)
            if node is not None and node.free > 0 and self._client is not None:
                return node
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                async with asyncio.timeout_at(deadline):
                    await waiter
            except TimeoutError:
                raise JobReleasedError("no node of the Dask cluster has a free thread") from None
            finally:
                self._waiting.remove(waiter)

    # Runs.

    async def _follow(self, run: _Run) -> None:
        """Until the cluster says how the run ended."""
        try:
            text = await run.future
        except (OSError, CancelledError, distributed.scheduler.KilledWorker) as error:
            _end(run, JobLostError(f"the run's node or result is lost: {_said(error)}"))
            await self._tell(run)  # the node may live, and the cluster may have forgotten the run all the same
        except Exception as error:  # noqa: BLE001 - the task itself catches everything: this is the cluster's trouble
            _end(run, error)
        else:
            if not run.answer.done():
                run.answer.set_result(text)
        run.following = None
        self._over(run)

    def _over(self, run: _Run) -> None:
        """The run holds no thread any more, or its node is gone."""
        run.node.runs.discard(run)
        if run.following is not None:
            run.following.cancel()
        with contextlib.suppress(Exception):  # the client may be closed
            run.future.release()
        self._count()

    def _lose(self, node: _Node, why: str) -> None:
        del self._nodes[node.address]
        if node.introduction is not None:
            node.introduction.cancel()
        for run in list(node.runs):
            _end(run, JobLostError(why))
            self._over(run)

    def _lose_all(self, why: str) -> None:
        for node in list(self._nodes.values()):
            self._lose(node, why)
        self._capacity = 0

    async def _tell(self, run: _Run) -> bool:
        """Tell the run to stop; True if it has begun, as far as is known."""
        try:
            async with asyncio.timeout(TELL_TIMEOUT):
                said = await self._client.run(
                    remote_task.cancel, run.token, workers=[run.node.address], on_error="ignore"
                )
        except (OSError, ValueError, AttributeError) as error:
            logger.debug("dask: node %s was not told of a stop: %s", run.node.address, error)
            return True
        return bool(said.get(run.node.address, True))

    async def _leave_client(self) -> None:
        """Let go of the client; one whose scheduler is away takes its time, and nobody waits for it."""
        client, self._client = self._client, None
        if client is not None:
            task = asyncio.create_task(_close(client))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


async def _close(client: Any) -> None:
    with contextlib.suppress(Exception):
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await client.close(timeout=CLOSE_TIMEOUT)


def _end(run: _Run, error: BaseException) -> None:
    if not run.answer.done():
        run.answer.set_exception(error)
        run.answer.exception()  # it may be abandoned: nobody asks


def _said(error: BaseException) -> str:
    """One line: distributed's errors come in several."""
    return " ".join(str(error).split()) or type(error).__name__

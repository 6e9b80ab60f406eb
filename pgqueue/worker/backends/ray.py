"""`backend="ray"`: jobs as tasks of a Ray cluster, one CPU each.

Ray runs each at most once (`max_retries=0`); a run whose process or node died under it ends as lost. One that is told
to stop gets SIGINT, and is killed when it does not stop: Ray runs it in a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

from pgqueue.errors import BackendUnavailableError, ConfigurationError
from pgqueue.job import Job
from pgqueue.outcome import JobLostError, JobReleasedError
from pgqueue.registry import Registration
from pgqueue.worker.backends import remote_task
from pgqueue.worker.backends.remote import STOP_TIMEOUT, RemoteBackend
from pgqueue.worker.context import JobContext

try:
    import ray
    import ray.exceptions
except ImportError as error:
    raise ConfigurationError(f"backend 'ray' cannot be imported ({error}): pip install 'pgqueue[ray]'") from None

logger = logging.getLogger(__name__)

LOOK_EVERY = 1.0  # seconds between looks at how many CPUs there are
KNOCK_TIMEOUT = 5.0
CONNECT_TIMEOUT = 60.0
CLOSE_TIMEOUT = 10.0


class RayBackend(RemoteBackend):
    """Runs handlers on a Ray cluster. A process has one connection to one cluster: what is there already is used.

    Args:
        address: of its head, `host:6379`, or `auto` for the cluster of this machine.
        references: as `RemoteBackend` takes them.
    """

    name = "ray"

    def __init__(self, address: str | None, references: Mapping[str, str]) -> None:
        super().__init__(references)
        if address is None:
            raise ConfigurationError("backend 'ray' has no address: set ray_address (--address host:6379, or auto)")
        self._address = address
        self._task: Any = None
        self._runs: dict[tuple[int, int], Any] = {}
        self._capacity = 0
        self._on_capacity: Callable[[], None] = lambda: None
        self._keeper: asyncio.Task[None] | None = None
        self._ours = False

    async def open(self, on_capacity: Callable[[], None]) -> None:
        """Connect."""
        self._on_capacity = on_capacity
        try:
            await self._knock()
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await asyncio.to_thread(self._connect)
                await self._look()
        except Exception as error:  # Ray raises what it likes
            raise BackendUnavailableError(
                f"the Ray cluster {self._address} cannot be reached: {_said(error)}"
            ) from error
        self._task = ray.remote(max_retries=0, retry_exceptions=False, num_cpus=1)(remote_task.run_interruptible)
        logger.info("ray: %s, %d CPUs", self._address, self._capacity)
        self._keeper = asyncio.create_task(self._keep(), name="ray")

    def capacity(self) -> int:
        """The CPUs of the cluster."""
        return self._capacity

    async def submit(self, registration: Registration, job: Job, context: JobContext) -> Any:
        """Run it where Ray likes."""
        if self._task is None or self._capacity == 0:
            raise JobReleasedError("the Ray cluster is away")
        _token, text = self.request(registration, job, context, None)
        reference = self._task.options(name=f"pgqueue-{job.type}").remote(text)
        self._runs[job.id, job.attempt] = reference
        try:
            answer = await reference
        except ray.exceptions.TaskCancelledError:
            raise asyncio.CancelledError from None
        except ray.exceptions.RayError as error:
            raise JobLostError(f"the run's process or node died: {_said(error)}") from None
        finally:
            del self._runs[job.id, job.attempt]
        return self.value(answer, job, context)

    async def cancel(self, job: Job) -> None:
        """SIGINT; the process is killed when the run has not stopped in time."""
        reference = self._runs.get((job.id, job.attempt))
        if reference is None:
            return
        for force in (False, True):
            logger.debug("ray: job %d is told to stop%s", job.id, ", by a kill" if force else "")
            await asyncio.to_thread(_cancel, reference, force)
            with contextlib.suppress(TimeoutError, ray.exceptions.RayError):
                async with asyncio.timeout(STOP_TIMEOUT):
                    await reference
                return

    async def close(self) -> None:
        """Leave the cluster, unless it was there before."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._capacity = 0
        if self._ours:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await asyncio.to_thread(ray.shutdown)

    async def _knock(self) -> None:
        """Does anything listen? Ray itself would ask for a minute, in a thread that cannot be stopped."""
        host, colon, port = self._address.removeprefix("ray://").rpartition(":")
        if colon and port.isdecimal():
            async with asyncio.timeout(KNOCK_TIMEOUT):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            writer.close()

    def _connect(self) -> None:
        if not ray.is_initialized():
            ray.init(address=self._address, log_to_driver=False, logging_level=logging.WARNING)
            self._ours = True

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                async with asyncio.timeout(LOOK_EVERY * 5):
                    await self._look()
            except Exception as error:  # noqa: BLE001 - Ray raises what it likes
                if self._capacity:
                    logger.warning("ray: %s is away: %s", self._address, _said(error))
                self._capacity = 0

    async def _look(self) -> None:
        resources = await asyncio.to_thread(ray.cluster_resources)
        before, self._capacity = self._capacity, int(resources.get("CPU", 0))
        if self._capacity > before:
            self._on_capacity()


def _cancel(reference: Any, force: bool) -> None:
    with contextlib.suppress(Exception):  # it has just ended
        ray.cancel(reference, force=force, recursive=force)


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__

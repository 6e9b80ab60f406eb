"""`Inspector`: the one read-only look-up service that CLI, web and metrics read. Writes nothing.

Keeps one connection, made at first use and made again when it was lost.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID

from pgqueue import doctor, store, validation
from pgqueue.config import Settings
from pgqueue.doctor import Finding
from pgqueue.errors import InvalidArgumentError, JobNotFoundError, NotFoundError
from pgqueue.explain import Explanation, explain_job
from pgqueue.job import LIVE_STATES, Job, JobState
from pgqueue.job_filter import JobFilter
from pgqueue.registry import Registry
from pgqueue.rules import DEFAULT_WEIGHT
from pgqueue.scaling import Load
from pgqueue.single_session import SingleSession
from pgqueue.store import Statement
from pgqueue.store.acts import Failure
from pgqueue.store.configuration import QueueConfig, TypeConfig
from pgqueue.store.dependencies import Relative
from pgqueue.store.inbox import InboxLine
from pgqueue.store.leader import Election, LeaderInfo, Standby
from pgqueue.store.listing import AuditLine, Page
from pgqueue.store.schedules import Schedule
from pgqueue.store.statistics import Overview, Quantiles, Recent, Totals
from pgqueue.store.workers import WorkerInfo

T = TypeVar("T")
MAX_PAGE = 500


class Inspector:
    """What is in the queue and who works on it.

    Args:
        database_url: `postgresql://…`; None: the settings', else the embedded server.
        settings: read from pgqueue.toml and PGQUEUE_* if None.
        statement_timeout: seconds any one statement may take; None: as the server says. For readers that must not
            load the database; behind a pooler in transaction mode it does not hold.

    Raises (from every method):
        DatabaseUnavailableError, SchemaError, DatabaseError.
    """

    def __init__(
        self,
        database_url: str | None = None,
        *,
        settings: Settings | None = None,
        statement_timeout: float | None = None,
    ) -> None:
        self._session = SingleSession(database_url, settings, statement_timeout)

    def job(self, job_id: int) -> Job:
        """One job, live or finished; JobNotFoundError without."""
        found = self._run(store.jobs.get(validation.check_id(job_id)))
        if found is None:
            raise JobNotFoundError(f"there is no job {job_id}")
        return found

    def jobs(
        self,
        *,
        state: str | None = None,
        job_type: str | None = None,
        queue: str | None = None,
        before: int | None = None,
        limit: int = 50,
        where: JobFilter | None = None,
    ) -> Sequence[Job]:
        """Jobs, newest first; the next page is `before` the last one's id.

        `where` stands for state, type and queue, and chooses by reason, error and age as well.

        Raises:
            InvalidArgumentError: no such state, or a limit outside 1 to 500.
        """
        if state is not None and state not in set(JobState):
            raise InvalidArgumentError(f"invalid state {state!r}: must be one of {', '.join(JobState)}")
        validation.check_integer(limit, "limit", 1, MAX_PAGE)
        if before is not None:
            validation.check_id(before, "before")
        if where is not None:
            return self._run(store.acts.list_matching(where, before=before, limit=limit))
        return self._run(store.jobs.list_jobs(state=state, job_type=job_type, queue=queue, before=before, limit=limit))

    def page(self, where: JobFilter, *, retrying: bool = False, before: int | None = None, limit: int = 50) -> Page:
        """As `jobs`, without payloads and results: what a list shows; `retrying`: of the scheduled those tried before.

        Looks through some 10 000 jobs at a time and no longer than takes a moment: where few of many match, the page
        may be short, and goes on `before` what it `reached`.

        Raises:
            InvalidArgumentError: a limit outside 1 to 500, or a `before` that is no id.
        """
        validation.check_integer(limit, "limit", 1, MAX_PAGE)
        if before is not None:
            validation.check_id(before, "before")
        return self._session.drive(lambda: store.listing.page(where, retrying=retrying, before=before, limit=limit))

    def records(self, ids: Sequence[int]) -> list[Job]:
        """These jobs, those of them that are there, newest first."""
        return self._run(store.listing.records(ids))

    def audit(self, job_id: int) -> list[AuditLine]:
        """Who did what with a job, the newest first; of the latest acts alone."""
        return self._run(store.listing.audit_of(str(validation.check_id(job_id))))

    def failures(
        self, *, job_type: str | None = None, queue: str | None = None, limit: int = 50, latest: int | None = None
    ) -> list[Failure]:
        """Failed jobs by the fingerprint of their last error, the most frequent first; `latest`: of so many alone."""
        validation.check_integer(limit, "limit", 1, MAX_PAGE)
        return self._run(store.acts.failures(job_type=job_type, queue=queue, limit=limit, latest=latest))

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state, exactly, and `retrying`: those scheduled after an error or a loss."""
        counts = self._run(store.statistics.counts())
        return {**counts, "retrying": self._run(store.live_jobs.retrying(most=None))}

    def totals(self) -> Totals:
        """As `counts`, but no dearer the more there is: above 100 000 an estimate, which is said to be one."""
        return self._session.drive(store.statistics.totals)

    def overview(self) -> Overview:
        """Retrying jobs, the oldest pending job's age in seconds; what ended in the last minute, its waits and runs.

        Of retrying jobs no more are counted than are among the 100 000 that are due first.
        """
        return self._session.drive(store.statistics.overview)

    def recent(self, window: float, step: float) -> list[Recent]:
        """What finished within the last `window` seconds, by steps of so many; where it was very much, the latest."""
        return self._session.drive(lambda: store.statistics.recent(window, step))[0]

    def statistics(self, leader_name: str) -> dict[str, Any]:
        """The queue in figures, as CLI and web show them: `totals`, `overview`, and who leads by this name.

        `estimated` names the states whose number is an estimate; `oldest_pending` is in seconds.
        """
        totals, overview = self.totals(), self.overview()
        lease = next((one for one in self.leader() if one.name == leader_name), None)
        return {
            **totals.counts,
            "retrying": totals.retrying,
            "estimated": sorted(totals.estimated),
            "jobs_per_second": round(overview.completed_last_minute / 60, 3),
            "failures_per_second": round(overview.failed_last_minute / 60, 3),
            "oldest_pending": overview.oldest_pending,
            "wait": _named(overview.wait),
            "run": _named(overview.run),
            "leader": lease.holder if lease is not None and lease.alive else None,
            "epoch": lease.epoch if lease is not None else 0,
        }

    def enqueued(self) -> tuple[int, datetime]:
        """How many jobs were enqueued so far, by whomever, rolled-back ones too; and the database's time."""
        return self._run(store.statistics.enqueued())

    def load(self, window: float = 600.0, *, job_type: str | None = None, queue: str | None = None) -> Load:
        """Arrivals and run times of the last `window` seconds, the backlog and the slots: what `scaling.advise` reads.

        Raises:
            InvalidArgumentError: the window is below a second.
        """
        if not validation.check_seconds(window, "window") >= 1:
            raise InvalidArgumentError(f"invalid window {window:g}: must be at least 1 second")
        return self._run(store.statistics.load(window, job_type=job_type, queue=queue))

    def types(self) -> list[dict[str, Any]]:
        """Every type declared, configured or present, with its limit in force and its live jobs by state.

        `estimated` names the states whose number is an estimate: of more than 1000 pending jobs in one queue, where
        more than 100 000 jobs live.
        """
        configs = {config.name: config for config in self._run(store.configuration.read_types())}
        live = self._live("type")
        served = {name for worker in self.workers() if not worker.dead for name in worker.types}
        return [
            {
                "type": name,
                "limit": config.limit,
                "limit_from": config.said_by("max_concurrency") or "none",
                "max_attempts": config.rules.max_attempts,
                "timeout": config.rules.timeout,
                "rules": config.rules.as_json(),
                "operator": config.operator,
                "paused": config.paused,
                "resume_at": config.resume_at,
                "has_executor": name in served,
                **(live.get(name) or _none_live()),
            }
            for name in sorted(configs.keys() | live.keys())
            for config in [configs.get(name) or TypeConfig(name)]
        ]

    def queues(self) -> list[dict[str, Any]]:
        """Every queue configured or present, with its live jobs by state; `estimated` as in `types`."""
        configs = {config.name: config for config in self._run(store.configuration.read_queues())}
        live = self._live("queue")
        return [
            {
                "queue": name,
                "weight": config.rules.weight or DEFAULT_WEIGHT,
                "rules": config.rules.as_json(),
                "operator": config.operator,
                "leader": config.leader,
                "paused": config.paused,
                "resume_at": config.resume_at,
                **(live.get(name) or _none_live()),
            }
            for name in sorted(configs.keys() | live.keys())
            for config in [configs.get(name) or QueueConfig(name)]
        ]

    def schedules(self) -> list[Schedule]:
        """Every schedule, by name."""
        return self._run(store.schedules.read_schedules())

    def workers(self) -> list[WorkerInfo]:
        """Every worker that is alive or died within a day."""
        return self._run(store.workers.list_workers())

    def worker(self, worker_id: UUID | str) -> WorkerInfo:
        """One worker; NotFoundError without."""
        number = validation.check_uuid(worker_id, "worker id")
        for worker in self.workers():
            if worker.id == number:
                return worker
        raise NotFoundError(f"there is no worker {number}: `pgqueue workers list` shows those there are")

    def worker_jobs(self, worker_id: UUID | str) -> list[dict[str, Any]]:
        """The jobs a worker holds: id, type, queue and attempt of each."""
        number = validation.check_uuid(worker_id, "worker id")
        return [
            {"id": job.id, "type": job.type, "queue": job.queue, "attempt": job.attempt}
            for job in self._run(store.jobs.assigned(number))
        ]

    def leader(self) -> list[LeaderInfo]:
        """Every lease: who leads, since when, in which epoch."""
        return self._run(store.leader.show())

    def standbys(self) -> list[Standby]:
        """The dispatchers that are connected and do not lead; behind a transaction pooler, none is seen."""
        return self._run(store.leader.standbys())

    def inboxes(self, *, limit: int = 50) -> list[InboxLine]:
        """Who was told anything, by name, with how many of the latest are unread."""
        return self._run(store.inbox.recipients(validation.check_integer(limit, "limit", 1, MAX_PAGE)))

    def elections(self, leader_name: str | None = None, *, limit: int = 20) -> list[Election]:
        """Who led when, the newest first: the latest terms of one leader, or of all.

        Raises:
            InvalidArgumentError: a limit outside 1 to 500.
        """
        return self._run(store.leader.elections(leader_name, validation.check_integer(limit, "limit", 1, MAX_PAGE)))

    def parents(self, job_id: int, *, limit: int = 100) -> list[Relative]:
        """What a job waits or waited for, in the order of the ids."""
        number = validation.check_id(job_id)
        return self._run(
            store.dependencies.parents(number, limit=validation.check_integer(limit, "limit", 1, MAX_PAGE))
        )

    def children(self, job_id: int, *, limit: int = 100) -> list[Relative]:
        """What waits or waited for a job, in the order of the ids."""
        number = validation.check_id(job_id)
        return self._run(
            store.dependencies.children(number, limit=validation.check_integer(limit, "limit", 1, MAX_PAGE))
        )

    def explain(self, job_id: int) -> Explanation:
        """Why the job is not running, or where it is: one answer from live data; JobNotFoundError without the job."""
        number = validation.check_id(job_id)
        return self._session.drive(lambda: explain_job(number))

    def doctor(self, checks: Collection[str] | None = None, registry: Registry | None = None) -> list[Finding]:
        """Check the queue and its database; the worst findings first, each with its remedy. docs/doctor.md lists them.

        On a connection of its own, in transactions that only read, each bounded to seconds.

        Args:
            checks: the codes of the checks to run; None: all.
            registry: the application's; with it two checks more: its payload models, and what its executors need.

        Raises:
            InvalidArgumentError: there is no such check, or it needs the registry.
        """
        chosen = doctor.chosen(checks, registry)
        return doctor.examine(self._session.url, self._session.settings, chosen, registry)

    def close(self) -> None:
        """Give the connection back; harmless twice."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _live(self, column: str) -> dict[str, dict[str, Any]]:
        """Live jobs by state, of each type or queue; `retrying` are among the scheduled."""
        live: dict[str, dict[str, Any]] = {}
        for one in self._session.drive(store.live_jobs.live):
            states = live.setdefault(getattr(one, column), _none_live())
            states[one.state] += one.number
            states["retrying"] += one.retrying
            if one.estimated and one.state not in states["estimated"]:
                states["estimated"].append(one.state)
        return live

    def _run(self, statement: Statement[T]) -> T:
        return self._session.run(statement)


def _none_live() -> dict[str, Any]:
    return {**{state.value: 0 for state in LIVE_STATES}, "retrying": 0, "estimated": []}


def _named(quantiles: Quantiles | None) -> dict[str, float] | None:
    return None if quantiles is None else dict(zip(("p50", "p95", "p99"), quantiles, strict=True))

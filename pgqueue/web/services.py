"""What the routes share: the clients, the registry, and how a request becomes an act with its audit row.

One act is one transaction: what it does, the audit row with the principal's name, and the kept answer commit together.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request
from pydantic import TypeAdapter, ValidationError

from pgqueue import job as job_module
from pgqueue.config import Settings
from pgqueue.inspector import Inspector
from pgqueue.job import EncodedJob, Job, JobOptions, NewJob
from pgqueue.job_filter import JobFilter
from pgqueue.registry import Registry
from pgqueue.store.idempotency_keys import RequestKey, once
from pgqueue.store.statement import Operation
from pgqueue.web.client import Readers, WebQueue
from pgqueue.web.models import FilterBody, NewJobBody
from pgqueue.web.problems import ProblemError, flaws_of
from pgqueue.web.tokens import Principal, Scope
from pgqueue.web.watch import DatabaseWatch

T = TypeVar("T")
HIDDEN = ("payload", "result", "headers")
HIDDEN_OF_ERRORS = ("message", "traceback")
ID_KEYS = frozenset({"job_id", "jobs"})
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[!-~]+$",
        description="The same key again gets the same answer, and nothing is done twice.",
    ),
]


@dataclasses.dataclass
class Services:
    """Made once for a server."""

    settings: Settings
    registry: Registry
    queue: WebQueue
    readers: Readers
    watch: DatabaseWatch

    async def act_once(
        self, request: Request, principal: Principal, key: str | None, operation: Callable[[], Operation[Any]]
    ) -> tuple[Any, bool]:
        """Do it, with an Idempotency-Key at most once. The answer (plain JSON), and whether it is a first request's."""
        kept = None
        if key is not None:
            body = await request.body()
            digest = hashlib.sha256(f"{request.method} {request.url.path}\n".encode() + body).digest()
            kept = RequestKey(principal.name, key, digest, self.settings.api_idempotency_lifetime)
        return await self.queue.act(lambda: once(kept, operation()), repeatable=kept is not None)

    async def look(self, read: Callable[[Inspector], T]) -> T:
        """What the Inspector says."""
        return await self.readers.read(read)

    def new_job(self, body: NewJobBody, principal: Principal, place: tuple[str, ...] = ("body",)) -> EncodedJob:
        """A request's job, checked by pgqueue's rules and its type's payload model.

        Raises:
            ProblemError: 403, the token is not for it; 422, the payload does not fit.
            InvalidArgumentError: a value breaks a rule.
        """
        given = body.options.model_dump()
        if given["after"] is not None:
            given["after"] = [int(parent) for parent in given["after"]]
        options = JobOptions(**given)
        self.demand(principal, body.type, options.queue or job_module.DEFAULT_QUEUE)
        self.check_payload(body.type, body.payload, (*place, "payload"))
        new = NewJob(body.type, body.payload, options=options)
        return job_module.encode(new, max_payload_bytes=self.settings.max_payload_bytes)

    def check_payload(self, job_type: str, payload: dict[str, Any], place: tuple[str, ...]) -> None:
        """Raise a 422 that names the field if the payload does not fit the type's model."""
        registration = self.registry.get(job_type)
        if registration is None or registration.payload_model is None:
            return
        try:
            TypeAdapter(registration.payload_model).validate_python(payload)
        except ValidationError as error:
            flaws = flaws_of(error, place)
            first = flaws[0]
            raise ProblemError(422, f"{'.'.join(first['loc'])}: {first['msg']}", errors=flaws) from None

    @staticmethod
    def demand(principal: Principal, job_type: str, queue: str) -> None:
        """Raise a 403 unless the token is for such jobs."""
        if not principal.is_for(job_type, queue):
            raise ProblemError(403, f"this token is not for jobs of type {job_type} in queue {queue}")

    @staticmethod
    def demand_all(principal: Principal, what: str) -> None:
        """Raise a 403 for a token that is for some types or queues alone; `what` is of all of them."""
        if not principal.is_for_all:
            raise ProblemError(403, f"this token is for some types or queues alone; {what} is of all")

    @staticmethod
    def narrow_to(principal: Principal, job_type: str | None, queue: str | None) -> None:
        """Raise a 403 where a filter by these chooses what the token is not for."""
        for allowed, name, value in ((principal.types, "type", job_type), (principal.queues, "queue", queue)):
            if allowed is not None and value not in allowed:
                raise ProblemError(403, f"this token needs a filter by {name}: one of {', '.join(sorted(allowed))}")

    def narrow(self, principal: Principal, where: JobFilter) -> JobFilter:
        """The filter as the token may use it: without the scope payload, an error's message is not looked into.

        Raises:
            ProblemError: 403, it chooses what the token is not for, or looks into payloads it may not see.
        """
        self.narrow_to(principal, where.type, where.queue)
        if principal.may(Scope.PAYLOAD):
            return where
        if where.text is not None:
            raise ProblemError(403, f"to look for a text takes the scope {Scope.PAYLOAD}")
        return where if where.error is None else dataclasses.replace(where, in_messages=False)

    def chosen(self, principal: Principal, body: FilterBody) -> JobFilter:
        """The filter of an act on many.

        Raises:
            ProblemError: 422, it is empty; 403, as `narrow`.
        """
        where = JobFilter(**body.model_dump())
        if all(value is None for value in where.as_params().values()):
            raise ProblemError(422, "the filter is empty: say which jobs")
        return self.narrow(principal, where)

    async def job(self, principal: Principal, job_id: int) -> Job:
        """The job, if the token is for it."""
        job = await self.queue.get(job_id)
        self.demand(principal, job.type, job.queue)
        return job


def view(job: Job, principal: Principal) -> dict[str, Any]:
    """The job as the API shows it to this principal."""
    record = job.as_dict()
    record.pop("existing", None)
    record.pop("replaced", None)
    record["job_id"] = str(record.pop("id"))
    if record.get("replay_of") is not None:
        record["replay_of"] = str(record["replay_of"])
    if not principal.may(Scope.PAYLOAD):
        record.update(dict.fromkeys(HIDDEN))
        if record.get("progress"):
            record["progress"] = {**record["progress"], "message": None}
        record["errors"] = [{**one, **dict.fromkeys(HIDDEN_OF_ERRORS)} for one in record["errors"]]
    return record


def with_text_ids(details: Any) -> Any:
    """What an explanation or a finding is made of, the ids in its `job_id` and `jobs` as text, at any depth."""
    if isinstance(details, dict):
        return {name: _texts(value) if name in ID_KEYS else with_text_ids(value) for name, value in details.items()}
    return [with_text_ids(one) for one in details] if isinstance(details, list) else details


def _texts(ids: Any) -> Any:
    if isinstance(ids, list):
        return [str(one) for one in ids]
    return None if ids is None else str(ids)


def _services(request: Request) -> Services:
    found: Services | None = request.app.state.services
    if found is None:
        raise ProblemError(503, "this server has no client of the queue")
    return found


Served = Annotated[Services, Depends(_services)]

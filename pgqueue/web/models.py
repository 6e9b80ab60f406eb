"""The API's bodies as pydantic models: what OpenAPI shows. Job ids are strings: they may pass 2^53.

Only shapes; what a value may be is pgqueue's own rules (validation.py, job.py), which every way in shares.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from pgqueue.job import MAX_ATTEMPTS_LIMIT, MAX_PRIORITY, MIN_PRIORITY, JobState, Reason
from pgqueue.validation import MAX_LANE_BYTES, MAX_SECONDS

MAX_BULK = 1000
MOST_REPLAYED = 2**53

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/-]{1,128}$", strict=True)]
Text = Annotated[str, Field(min_length=1, max_length=1024, strict=True)]
ConcurrencyKey = Annotated[
    str, Field(min_length=1, max_length=MAX_LANE_BYTES, strict=True, description="at most 1000 bytes of UTF-8")
]
JobId = Annotated[str, Field(pattern=r"^[0-9]{1,19}$", examples=["4711"])]
Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS, strict=True, allow_inf_nan=False)]
QuerySeconds = Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)]
Priority = Annotated[int, Field(ge=MIN_PRIORITY, le=MAX_PRIORITY, strict=True)]


class Body(BaseModel):
    """What a client sends: an unknown key is refused, as it is a mistake."""

    model_config = ConfigDict(extra="forbid")


class Options(Body):
    """Enqueue's options; what is absent is the type's, or the default."""

    queue: Name | None = None
    priority: Priority | None = Field(default=None, description="the lower runs first")
    delay: Seconds | None = Field(default=None, description="seconds until it may run; not with run_at")
    run_at: AwareDatetime | None = None
    max_attempts: Annotated[int, Field(ge=1, le=MAX_ATTEMPTS_LIMIT, strict=True)] | None = None
    timeout: Seconds | None = Field(default=None, description="seconds a run may take; 0: no limit")
    unique_key: Text | None = None
    concurrency_key: ConcurrencyKey | None = None
    unique_scope: Literal["live", "pending"] | None = None
    unique_window: Seconds | None = None
    on_conflict: Literal["existing", "raise", "replace"] | None = None
    expires_at: AwareDatetime | None = None
    backoff: Text | None = Field(default=None, description="such as fixed:5 or exponential:1:3600")
    headers: dict[str, str] | None = None
    after: list[JobId] | None = Field(default=None, max_length=MAX_BULK, description="jobs that come first")
    on_failure: Literal["cancel", "run", "wait"] | None = Field(default=None, description="where one of these fails")
    tags: list[Text] | None = Field(
        default=None, max_length=100, description="what it needs of a worker; at most 1000 bytes together"
    )


class NewJobBody(Body):
    """A job to be enqueued."""

    type: Name
    payload: dict[str, Any] = Field(default_factory=dict)
    options: Options = Options()


class NewJobsBody(Body):
    """Jobs to be enqueued, all or none."""

    jobs: list[NewJobBody] = Field(min_length=1, max_length=MAX_BULK)


class Enqueued(BaseModel):
    """A job that was enqueued, or that has its unique key already (then the code is 200)."""

    job_id: JobId
    status: JobState


class EnqueuedMany(BaseModel):
    """In the order of the request."""

    jobs: list[Enqueued]


class JobError(BaseModel):
    """One run's error; `message` and `traceback` take the scope `payload`."""

    model_config = ConfigDict(extra="allow")


class JobView(BaseModel):
    """A job; `payload`, `result`, `headers` and the texts of errors are null without the scope `payload`."""

    model_config = ConfigDict(extra="allow")

    job_id: JobId
    type: str
    queue: str
    state: JobState
    priority: int
    attempt: int
    max_attempts: int | None
    payload: dict[str, Any] | None
    result: Any = None
    reason: str | None
    run_at: str | None
    created_at: str | None
    started_at: str | None
    finished_at: str | None
    replay_of: JobId | None
    errors: list[JobError]


class JobPage(BaseModel):
    """Newest first; `next` is the `before` of the next page, null on the last."""

    jobs: list[JobView]
    next: JobId | None


class ReplayBody(Body):
    """Another payload for the new job; null: the old one's."""

    payload: dict[str, Any] | None = None


class RescheduleBody(Body):
    """Another due time; neither: now."""

    delay: Seconds | None = None
    run_at: AwareDatetime | None = None


class PriorityBody(Body):
    """Another priority."""

    priority: Priority


class FilterBody(Body):
    """Which jobs; at least one field, each narrows it."""

    state: JobState | None = None
    type: Name | None = None
    queue: Name | None = None
    reason: Reason | None = None
    error: Text | None = Field(
        default=None,
        description="the last error's fingerprint, or a part of its class or, with the scope payload, of its message",
    )
    key: Text | None = Field(default=None, description="exactly this unique or concurrency key")
    tag: Text | None = None
    text: Text | None = Field(default=None, description="a part of the payload's JSON; takes the scope payload")
    older_than: Seconds | None = None
    newer_than: Seconds | None = None


class BulkBody(Body):
    """An act on all jobs that `filter` chooses; with `dry_run` they are only counted."""

    filter: FilterBody
    dry_run: bool = Field(default=False, strict=True)


class BulkReplayBody(BulkBody):
    """`limit`: the oldest so many; `rate`: so many a second."""

    limit: Annotated[int, Field(ge=1, le=MOST_REPLAYED, strict=True)] | None = None
    rate: Annotated[float, Field(ge=0.001, le=1e6, strict=True, allow_inf_nan=False)] | None = None


class BulkDone(BaseModel):
    """`matched` by the filter; `done` is 0 in a dry run."""

    dry_run: bool
    matched: int
    done: int


class PauseBody(Body):
    """For so many seconds; null: until resumed."""

    seconds: Seconds | None = None


class RulesBody(Body):
    """`set`: the operator's word, null lifts the code's; `reset`: names that go back to the code's."""

    set: dict[str, Any] = Field(default_factory=dict, examples=[{"max_concurrency": 3}])
    reset: list[str] = Field(default_factory=list)


class ScheduleBody(Body):
    """A schedule to be made: when it fires, and which job; what is absent is the default."""

    name: Name
    cron: Text = Field(examples=["*/5 * * * *"], description="five fields, an alias such as @daily, or @every 5m")
    type: Name
    tz: Text | None = Field(default=None, examples=["Europe/Berlin"], description="whose clock counts; none: UTC")
    payload: dict[str, Any] | None = None
    queue: Name | None = None
    priority: Priority | None = None
    max_attempts: Annotated[int, Field(ge=1, le=MAX_ATTEMPTS_LIMIT, strict=True)] | None = None
    timeout: Seconds | None = None
    unique_key: Text | None = None
    concurrency_key: ConcurrencyKey | None = None
    missed: Literal["skip", "last", "all"] | None = Field(default=None, description="fires nobody was there for")
    max_age: Seconds | None = Field(default=None, description="seconds; an older missed fire is not made up for")
    overlap: Literal["allow", "skip", "queue"] | None = Field(default=None, description="while a job of it is live")
    jitter: Seconds | None = Field(default=None, description="seconds by which each job may start later")
    enabled: bool | None = None


class ReadBody(Body):
    """Whose notifications are read; without `ids` all of them."""

    recipient: Text
    ids: list[JobId] | None = Field(default=None, max_length=MAX_BULK)


class NotificationView(BaseModel):
    """One notification of one recipient."""

    id: str
    recipient: str
    job_id: str
    event_type: str
    title: str
    message: str
    priority: str
    tags: list[str]
    at: AwareDatetime
    read_at: AwareDatetime | None


class NotificationPage(BaseModel):
    """Some notifications; `unread` counts all the recipient's, `next` is for `before`."""

    notifications: list[NotificationView]
    unread: int
    next: str | None


class NotificationsRead(BaseModel):
    """How many had not been read."""

    read: int


class LimitBody(Body):
    """How many jobs of the type may be processing at once; null: no limit."""

    max_concurrency: Annotated[int, Field(ge=1, le=1_000_000, strict=True)] | None


class Problem(BaseModel):
    """Why a request was refused (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[dict[str, Any]] | None = None


Record = dict[str, Any]
"""A row of what `pgqueue … --json` prints."""

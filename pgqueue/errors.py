"""Every error pgqueue raises; the one place to look them up.

    PgQueueError
    ├── ConfigurationError (ValueError)      exit 2: a setting, flag or file is wrong; names key, value, rule
    ├── InvalidArgumentError (ValueError)    exit 2: a call's argument breaks a rule; names value and rule
    │   ├── InvalidNameError                 a queue, type or schema name
    │   ├── InvalidPayloadError              `.path` names the place in the payload
    │   └── UnsupportedConnectionError       a connection or driver pgqueue cannot enqueue on
    ├── DatabaseError                        exit 1: the server refused a statement
    │   ├── DatabaseUnavailableError         exit 3: no connection, or it was lost
    │   ├── EnqueueUncertainError            a COMMIT got no answer: the job may or may not exist
    │   └── SchemaError                      exit 4: schema missing, old, or too new; names the command
    ├── EmbeddedServerError                  exit 3: the embedded PostgreSQL could not be run
    ├── BackendUnavailableError              exit 3: the engine that is to run jobs cannot be reached
    ├── JobNotFoundError (LookupError)       exit 5
    ├── NotFoundError (LookupError)          exit 5: no schedule, trigger, worker or token has this name
    ├── ConflictError                        exit 6: the state of things forbids it
    │   ├── DuplicateJobError                a unique key is taken, and on_conflict is `raise`; `.job_id` has it
    │   ├── QueueFullError                   the queue's backlog is at its cap
    │   └── StaleRunError                    a run is no longer its job's own: it must undo what it did
    ├── WaitTimeoutError (TimeoutError)      exit 7
    ├── NotLeaderError                       a fenced write was refused: this process does not lead (any more)
    ├── TriggerError                         a trigger failed, and emit was asked to say so
    ├── UnknownJobTypeError                  a job's type has no executor here
    ├── UnknownResourceError (LookupError)   a handler asked for a resource that nobody declared
    ├── StartupError                         a resource could not be made, or a start-up hook failed: nothing ran
    ├── MailError                            a mail could not be sent; another try may do
    │   └── MailRefusedError                 the mail server refused it for good
    ├── PlanningError                        a task could not be planned, or its planning not be started
    └── WorkspaceError                       workspace or session set-up failed; the job fails with it

Messages say what happened, name the value, and say the rule or the remedy. Passwords never appear in them.
"""

from __future__ import annotations


class PgQueueError(Exception):
    """Base of every error that pgqueue raises on purpose."""

    exit_code = 1


class ConfigurationError(PgQueueError, ValueError):
    """A setting, flag or file is wrong."""

    exit_code = 2


class InvalidArgumentError(PgQueueError, ValueError):
    """An argument of a call breaks a stated rule; nothing was done."""

    exit_code = 2


class InvalidNameError(InvalidArgumentError):
    """A queue, type, leader or schema name breaks the naming rule."""


class InvalidPayloadError(InvalidArgumentError):
    """A payload cannot be stored as a JSON object.

    Attributes:
        path: where in the payload, as `$.key[0]`; `$` is the payload itself.
    """

    def __init__(self, message: str, *, path: str = "$") -> None:
        super().__init__(f"{message} (at {path})")
        self.path = path


class UnsupportedConnectionError(InvalidArgumentError):
    """The connection given to enqueue is of a kind or driver that pgqueue does not speak."""


class DatabaseError(PgQueueError):
    """The server refused a statement."""


class DatabaseUnavailableError(DatabaseError):
    """No connection to the database could be made, or it was lost."""

    exit_code = 3


class EnqueueUncertainError(DatabaseError):
    """The connection broke while an enqueue committed: the job may or may not exist.

    pgqueue never repeats such an enqueue by itself; repeat it with a `unique_key` to make that safe.
    """

    exit_code = 3


class SchemaError(DatabaseError):
    """pgqueue's schema is missing, older than this code needs, or too new for it."""

    exit_code = 4


class EmbeddedServerError(PgQueueError):
    """The embedded PostgreSQL could not be found, started or stopped."""

    exit_code = 3


class BackendUnavailableError(PgQueueError):
    """The engine that is to run jobs, a Dask or Ray cluster, cannot be reached."""

    exit_code = 3


class JobNotFoundError(PgQueueError, LookupError):
    """No job has this id, neither in the hot table nor in the history."""

    exit_code = 5


class NotFoundError(PgQueueError, LookupError):
    """No schedule, trigger, worker or live token has this name or id."""

    exit_code = 5


class ConflictError(PgQueueError):
    """The state of things forbids what was asked."""

    exit_code = 6


class DuplicateJobError(ConflictError):
    """A job's unique key is held by another, and the enqueue asked to be told so.

    Attributes:
        job_id: the job that holds the key.
    """

    def __init__(self, message: str, *, job_id: int) -> None:
        super().__init__(message)
        self.job_id = job_id


class QueueFullError(ConflictError):
    """The queue holds as many pending jobs as it may; nothing was enqueued."""


class StaleRunError(ConflictError):
    """A run is no longer its job's own: it was given up for lost, or is over; what it did must be undone."""


class WaitTimeoutError(PgQueueError, TimeoutError):
    """What was waited for did not happen in time."""

    exit_code = 7


class NotLeaderError(PgQueueError):
    """A fenced write was refused: this process does not hold the lease (any more)."""


class TriggerError(PgQueueError):
    """A trigger of an event failed, and `emit` was asked to raise; none of the event's jobs was made."""


class UnknownJobTypeError(PgQueueError):
    """A job's type has no executor here."""


class UnknownResourceError(PgQueueError, LookupError):
    """A handler asked for a resource that was not declared."""


class StartupError(PgQueueError):
    """A resource could not be made, or a start-up hook failed; no job was run."""


class MailError(PgQueueError):
    """A mail could not be sent; another try may do."""


class MailRefusedError(MailError):
    """The mail server refused a mail for good: another try will not do.

    Attributes:
        code: the server's reply, 500 to 599.
    """

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


class PlanningError(PgQueueError):
    """A task could not be planned, or its planning could not be started."""


class WorkspaceError(PgQueueError):
    """A workspace or session could not be set up."""

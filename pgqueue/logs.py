"""Log lines of pgqueue's own processes: key=value for people, JSON for programs; by structlog, over Python's logging.

What others wrote cannot forge a line or a colour: control characters are escaped, passwords masked. While a handler
runs, whatever it and its libraries log carries the job's id, type, attempt, worker and epoch; no payload is ever added.
Programs that use pgqueue as a library keep their own logging. structlog is loaded with the first line that is written.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, MutableMapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor

Format = Literal["text", "json"]
CHATTY = ("alembic", "asyncio", "psycopg", "sqlalchemy")
NOT_TOLD = ("color_message", "_record", "_from_structlog")


class BoundRun(Protocol):
    """What is told of a run: the context of its handler, here or in a process of its own."""

    job: Any
    worker_id: Any


RUN: ContextVar[BoundRun | None] = ContextVar("pgqueue_run", default=None)
"""The run whose handler this is."""

_format: Format = "text"


def current_format() -> Format:
    """How this process writes its lines."""
    return _format


def configure(level: int | str, form: Format = "text") -> None:
    """Send log lines of `level` and above to stderr; libraries only warn, unless it is DEBUG."""
    global _format  # noqa: PLW0603 - one process has one log
    _format = form
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(form))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    debugging = logging.getLogger().level <= logging.DEBUG
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.DEBUG if debugging else logging.WARNING)
    # Set here and not inherited: whoever asks whether pgqueue debugs gets the answer of this command line.
    logging.getLogger("pgqueue").setLevel(level)


def talk_line(message: str, level: str = "info") -> str:
    """What a command says to people, `message`, as a line of a log of JSON."""
    import json
    from datetime import UTC, datetime

    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"timestamp": time, "level": level, "logger": "pgqueue.cli", "event": message})


def take_in_structlog() -> None:
    """Have structlog's own loggers, where handlers use them unconfigured, end in these lines too."""
    import structlog

    if structlog.is_configured():
        return
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def bind(run: BoundRun) -> None:
    """In a process that runs one job at a time: what is logged from here on is this run's."""
    RUN.set(run)
    if "structlog" in sys.modules:  # its handler may log with it
        take_in_structlog()


class LineFormatter(logging.Formatter):
    """One line per message; a traceback's lines are indented below it, or inside the JSON.

    Args:
        form: `text` or `json`.
    """

    def __init__(self, form: Format = "text") -> None:
        super().__init__()
        self._form = form
        self._inner: logging.Formatter | None = None

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        if self._inner is None:
            self._inner = _formatter(self._form)
        return self._inner.format(record)


def printable(text: str) -> str:
    """`text` with everything that is not printable (control, bidirectional, surrogate) as a backslash escape."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def _formatter(form: Format) -> logging.Formatter:
    import structlog

    shared: list[Processor] = [structlog.contextvars.merge_contextvars, structlog.stdlib.ExtraAdder(), _bound]
    last: list[Processor] = [structlog.processors.format_exc_info, _clean]
    if form == "json":
        last += [_head, structlog.processors.JSONRenderer()]
    else:
        last.append(_Text(structlog.processors.LogfmtRenderer()))
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[_bound, *last])


def _bound(_logger: Any, _name: str, event: EventDict) -> EventDict:
    """Which run it belongs to."""
    run = RUN.get()
    if run is not None:
        event.setdefault("job_id", run.job.id)
        event.setdefault("job_type", run.job.type)
        event.setdefault("attempt", run.job.attempt)
        event.setdefault("worker", str(run.worker_id))
        event.setdefault("epoch", run.job.epoch)
    return event


def _clean(_logger: Any, _name: str, event: EventDict) -> EventDict:
    """Passwords masked, control characters escaped; a traceback keeps its lines."""
    from pgqueue.config import mask_password

    for key, value in event.items():
        if key in NOT_TOLD or value is None or isinstance(value, bool | int | float):
            continue
        text = mask_password(value if isinstance(value, str) else str(value))
        event[key] = "\n".join(map(printable, text.splitlines())) if key == "exception" else printable(text)
    return event


def _head(_logger: Any, _name: str, event: EventDict) -> EventDict:
    """Time (ISO 8601, UTC), level, logger and message first."""
    from datetime import UTC, datetime

    record = event["_record"]
    head = {
        "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": event.pop("event"),
    }
    return head | {printable(key): value for key, value in event.items() if key not in NOT_TOLD}


class _Text:
    """`2026-11-25 23:58:09,123 INFO leader (epoch 7) key=value …`."""

    def __init__(self, pairs: Callable[..., Any]) -> None:
        self._pairs = pairs
        self._times = logging.Formatter()

    def __call__(self, logger: Any, name: str, event: MutableMapping[str, Any]) -> str:
        record = event["_record"]
        message, traceback = event.pop("event"), event.pop("exception", "")
        pairs = {"_".join(printable(key).split()): value for key, value in event.items() if key not in NOT_TOLD}
        line = f"{self._times.formatTime(record)} {record.levelname} {message}"
        if pairs:
            line += " " + str(self._pairs(logger, name, pairs))
        return "\n".join([line, *(f"  {below}" for below in traceback.splitlines())])

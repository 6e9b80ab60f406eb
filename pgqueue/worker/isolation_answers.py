"""What a handler's process answers, as the worker understands it: results, and exceptions made again here.

Owns the errors that stand for what went wrong in another process. Promises that no answer breaks the reader: what
cannot be read is an error of its job alone.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import signal
import sys
from collections.abc import Callable
from typing import Any

from pgqueue import validation
from pgqueue.errors import ConfigurationError, InvalidArgumentError, InvalidPayloadError
from pgqueue.job import Job
from pgqueue.outcome import Cancel, Discard, JobCrashedError, Retry, Snooze
from pgqueue.worker.context import JobContext

logger = logging.getLogger(__name__)


class RemoteTraceback(Exception):  # noqa: N818 - the text of one, shown as a cause
    """A traceback of another process; `str()` is its text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}" if self.args else ""


class IsolatedError(Exception):
    """Stands for what a handler raised in its process; also an instance of that class where it can be had here.

    Attributes:
        class_name: the name of the class that was raised there; `type(error).__name__` says the same.
        message: its message.
        traceback_text: its traceback, trimmed, without locals.
    """

    def __init__(self, class_name: str, message: str, traceback_text: str) -> None:
        BaseException.__init__(self, message)
        self.class_name = class_name
        self.message = message
        self.traceback_text = traceback_text

    def __str__(self) -> str:
        return self.message


class ProcessDiedError(JobCrashedError):
    """Stands for a run whose process died under it; counts as a loss, so a job that always crashes ends.

    Attributes:
        exit_code: what the process exited with, minus the signal's number if one killed it; None if it was ended here.
    """

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def death_message(code: int) -> str:
    """What a process died of, by its exit code; a signal is a negative one."""
    if code >= 0:
        return f"process exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "real-time signal"
    hint = ": out of memory, or killed by hand" if -code == signal.SIGKILL else ""
    return f"process died by signal {-code} ({name}){hint}"


def read_answer(frame: bytes | None) -> dict[str, Any]:
    """What a frame says; an empty one if it says nothing that can be read."""
    try:
        answer = {} if frame is None else json.loads(frame)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def heed(answer: dict[str, Any], context: JobContext | None) -> None:
    """Tell the context what a handler said in its process: how far it is, that it completed the job itself."""
    if context is None:
        return
    said = answer.get("progress")
    if isinstance(said, dict):
        with contextlib.suppress(InvalidArgumentError):
            context.progress(said.get("percent", -1), said.get("message"))
    if answer.get("completed_in") is True:
        context.completed_in = True


def value_of(answer: dict[str, Any], job: Job) -> Any:
    """The result that an answer of kind `result` brings; None for one too large."""
    if "oversize" in answer:
        logger.warning(
            "result of job %d (%s) has %s bytes, which is too many to store", job.id, job.type, answer["oversize"]
        )
        return None
    text = str(answer.get("text"))
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # deeper than this process reads
        return validation.shorten(text)


def error_of(answer: dict[str, Any], job: Job) -> Exception:
    """The exception that an answer stands for; its cause is the child's traceback."""
    try:
        error = _made(answer, job)
    except Exception:  # noqa: BLE001 - whatever the child says, it is an answer
        error = IsolatedError("Exception", "could not be described", "")
    if answer.get("traceback"):
        error.__cause__ = RemoteTraceback(str(answer["traceback"]))
    return error


def _made(answer: dict[str, Any], job: Job) -> Exception:
    message, classes = str(answer["message"]), [(str(module), str(name)) for module, name in answer["classes"]]
    name = classes[0][1].rpartition(".")[2] if classes else "Exception"
    if answer["kind"] == "unloadable":
        return ConfigurationError(
            f"executor of {job.type!r} cannot be loaded in its process ({name}: {message}): "
            "with isolation='process' its module must be one that can be imported there"
        )
    match answer.get("class"):
        case "Retry":
            return Retry(answer["seconds"], message)
        case "Snooze":
            return Snooze(answer["seconds"])
        case "Discard":
            return Discard(message)
        case "Cancel":
            return Cancel(message)
    if "path" in answer:
        path = str(answer["path"])
        return InvalidPayloadError(message.removesuffix(f" (at {path})"), path=path)
    return _class_of(tuple(classes), name)(name, message, str(answer.get("traceback", "")))


@functools.lru_cache(256)
def _class_of(classes: tuple[tuple[str, str], ...], name: str) -> Callable[[str, str, str], IsolatedError]:
    """A class of this name that is also the nearest of `classes` there is here: retry policies go by class."""
    for module, qualified in classes:
        known: Any = sys.modules.get(module)
        for part in qualified.split("."):
            known = getattr(known, part, None)
        if not (isinstance(known, type) and issubclass(known, Exception)):
            continue
        if known is Exception or issubclass(known, StopIteration | StopAsyncIteration):
            break  # a coroutine cannot raise the latter
        with contextlib.suppress(Exception):  # it cannot be subclassed
            made = type(name, (IsolatedError, known), {"__module__": module})
            made("", "", "")
            return made
    return type(name, (IsolatedError,), {"__module__": __name__})

"""A handler's result as what PostgreSQL can store."""

from __future__ import annotations

import json
import logging
from typing import Any

from pgqueue.job import Job
from pgqueue.outcome import storable_text

logger = logging.getLogger(__name__)

MAX_RESULT_BYTES = 64 * 1024
"""A larger result is not stored; the job completes all the same."""


def encode_result(result: Any, job: Job) -> str | None:
    """A handler's result as JSON text PostgreSQL can store; None for None, or for one that is too large."""
    if result is None:
        return None
    try:
        text = json.dumps(result, allow_nan=False, separators=(",", ":"))
    except (ValueError, TypeError, RecursionError):
        text = json.dumps(storable_text(repr(result), 1000))
    if "\\u0000" in text or "\\ud" in text:
        text = json.dumps(_storable(json.loads(text)))
    if len(text) > MAX_RESULT_BYTES:
        logger.warning(
            "result of job %d (%s) has %d bytes, at most %d are stored",
            job.id,
            job.type,
            len(text),
            MAX_RESULT_BYTES,
        )
        return None
    return text


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return storable_text(value, len(value) + 1)
    if isinstance(value, list):
        return [_storable(item) for item in value]
    if isinstance(value, dict):
        return {_storable(key): _storable(item) for key, item in value.items()}
    return value

"""What may be a name, a payload, a number, a callback: the one validator, used by every way in.

Promises that what passes can be stored by PostgreSQL and read back by any worker, and that a refusal names
the value and the rule before anything is stored. Knows no database and no defaults besides the limits below.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from pgqueue.errors import ConfigurationError, InvalidArgumentError, InvalidNameError, InvalidPayloadError

NAME_RULE = "1 to 128 characters of A-Z a-z 0-9 _ . : / -"
MAX_PAYLOAD_BYTES = 1024 * 1024
MOST_PAYLOAD_BYTES = 256 * 1024 * 1024  # what settings or a queue may raise it to
MAX_PAYLOAD_DEPTH = 64
MAX_INTEGER_BITS = 4096  # json.loads refuses integers of more than 4 300 digits; this is 1 233
MAX_SECONDS = 10 * 366 * 86_400.0  # ten years: what a delay or timeout may be at most
MAX_KEY_BYTES = 1024 * 1024
MAX_LANE_BYTES = 1000  # of a concurrency key, and of a job's tags: one row of an index has both, in 2 704 bytes
MAX_HEADER_BYTES = 16 * 1024
MAX_PROGRESS_CHARACTERS = 500

_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_TAG = re.compile(r"[A-Za-z0-9_.:/=-]{1,128}")
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,47}")
_write_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_names: set[str] = set()  # seen and found valid: a program enqueues the same few
MOST_NAMES = 1_000
_SCALARS = frozenset({str, float, bool, type(None)})  # plain integers are looked at one by one


def check_name(value: object, what: str) -> str:
    """Return `value` if it is a valid queue, type or leader name.

    Raises:
        InvalidNameError: it is not `[A-Za-z0-9_.:/-]{1,128}`.
    """
    if type(value) is str and value in _names:
        return value
    if isinstance(value, str) and _NAME.fullmatch(value):
        if len(_names) < MOST_NAMES:
            _names.add(str(value))
        return str(value)
    raise InvalidNameError(f"invalid {what} {shorten(value)}: must be {NAME_RULE}")


def check_tag(value: object, what: str = "tag") -> str:
    """Return `value` if it is a valid tag: a name, or a name with a value, such as `region=eu`.

    Raises:
        InvalidNameError: it is not `[A-Za-z0-9_.:/=-]{1,128}`.
    """
    if isinstance(value, str) and _TAG.fullmatch(value):
        return str(value)
    raise InvalidNameError(f"invalid {what} {shorten(value)}: must be {NAME_RULE} or =")


def check_tags(value: object) -> list[str]:
    """Return a job's tags in the one way they are stored: sorted, each once.

    Raises:
        InvalidArgumentError, InvalidNameError: not a list of tags, or more of them than an index takes.
    """
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InvalidArgumentError(f"invalid tags {shorten(value)}: must be a list of tags")
    tags = sorted({check_tag(tag) for tag in value})
    if (size := len(join_tags(tags))) > MAX_LANE_BYTES:  # they are ASCII
        raise InvalidArgumentError(
            f"invalid tags {shorten(tags)}: {size} bytes with commas between them, at most {MAX_LANE_BYTES} are allowed"
        )
    return tags


def join_tags(tags: Iterable[str]) -> str:
    """Tags as the table has them."""
    return ",".join(tags)


def split_tags(text: str) -> list[str]:
    """Tags from the table."""
    return text.split(",") if text else []


def check_schema_name(value: object) -> str:
    """Return `value` if it can be the name of pgqueue's schema; it is written into SQL, so the rule is strict."""
    if isinstance(value, str) and _SCHEMA.fullmatch(value):
        return value
    raise InvalidNameError(
        f"invalid schema {shorten(value)}: must be 1 to 48 characters of a-z 0-9 _, not starting with a digit"
    )


def check_uuid(value: object, what: str) -> UUID:
    """Return `value`, a UUID or its text, as a UUID."""
    try:
        return value if isinstance(value, UUID) else UUID(str(value))
    except ValueError:
        raise InvalidArgumentError(f"invalid {what} {shorten(value)}: must be a UUID") from None


def check_seconds(value: object, what: str) -> float:
    """Return `value` (seconds; a number or timedelta) as a float between 0 and ten years."""
    number = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= MAX_SECONDS:
        raise InvalidArgumentError(
            f"invalid {what} {shorten(value)}: must be a number of seconds between 0 and {MAX_SECONDS:.0f}"
        )
    return float(number)


def check_integer(value: object, what: str, low: int, high: int) -> int:
    """Return `value` if it is an integer from `low` to `high`, both included."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidArgumentError(f"invalid {what} {shorten(value)}: must be an integer from {low} to {high}")
    return int(value)


def check_id(value: object, what: str = "job id") -> int:
    """Return `value` if it can be a row's id."""
    return check_integer(value, what, 1, 2**63 - 1)


def check_aware(value: object, what: str) -> datetime:
    """Return `value` if it is a datetime with a zone, between the years 2 and 9998: any zone can show it then."""
    if not isinstance(value, datetime):
        raise InvalidArgumentError(f"invalid {what} {shorten(value)}: must be a datetime with a time zone")
    if value.utcoffset() is None:
        raise InvalidArgumentError(
            f"invalid {what} {value.isoformat()}: has no time zone; add one, such as timezone.utc"
        )
    if not 2 <= value.year <= 9998:
        raise InvalidArgumentError(f"invalid {what} {value.isoformat()}: must be between the years 2 and 9998")
    return value


def check_callback(function: Any, what: str, *arguments: str) -> Any:
    """Return `function` if it can be called with so many arguments, as far as it says what it takes.

    Raises:
        ConfigurationError: it cannot.
    """
    rule = f"must be a function ({', '.join(arguments)})"
    if not callable(function):
        raise ConfigurationError(f"{what} {shorten(function)} {rule}")
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        raise ConfigurationError(f"{what} {shorten(function)} {rule}: {error}") from None
    except ValueError:  # a builtin that does not say
        pass
    return function


def check_key(value: object, what: str, max_bytes: int = MAX_KEY_BYTES) -> str:
    """Return `value` if it can be a key: text PostgreSQL can store, not empty, of at most `max_bytes` in UTF-8."""
    if not isinstance(value, str) or not value:
        raise InvalidArgumentError(f"invalid {what} {shorten(value)}: must be text of at least one character")
    if flaw := _text_flaw(value):
        raise InvalidArgumentError(f"invalid {what} {shorten(value)}: {flaw}")
    if (size := len(value.encode())) > max_bytes:
        raise InvalidArgumentError(f"invalid {what} {shorten(value)}: {size} bytes, at most {max_bytes} are allowed")
    return str(value)


def check_concurrency_key(value: object) -> str:
    """Return `value` if it can be a concurrency key: unlike a unique key, which is hashed, it stands in indexes."""
    return check_key(value, "concurrency_key", MAX_LANE_BYTES)


def payload_object(payload: object) -> dict[str, Any]:
    """The JSON object a payload stands for: a mapping, a pydantic model (by alias) or a dataclass instance.

    Raises:
        InvalidPayloadError: it is none of these, or it cannot be turned into one.
    """
    if payload is None:
        return {}
    if isinstance(payload, dict):
        return payload
    try:
        if isinstance(payload, type):
            pass
        elif callable(dump := getattr(payload, "model_dump", None)):
            dumped = dump(mode="json", by_alias=True)
            if isinstance(dumped, dict):
                return dumped
        elif dataclasses.is_dataclass(payload) and not isinstance(payload, type):
            return dataclasses.asdict(payload)
        elif isinstance(payload, Mapping):
            return dict(payload)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidPayloadError(
            f"{type(payload).__name__} cannot be written as JSON: {shorten(str(error))}"
        ) from None
    raise InvalidPayloadError(
        f"payload is {type(payload).__name__}: must be a JSON object (dict), a pydantic model or a dataclass"
    )


def encode_payload(payload: dict[str, Any], max_bytes: int = MAX_PAYLOAD_BYTES) -> str:
    """`payload` as compact JSON text that PostgreSQL stores and every worker can read.

    Args:
        payload: the JSON object.
        max_bytes: the most UTF-8 bytes the text may have.

    Raises:
        InvalidPayloadError: not storable; `.path` says where.
    """
    try:
        # A flat object of plain scalars needs no walk: what is left to refuse shows in the text itself.
        for key, value in payload.items():
            kind = type(value)
            if type(key) is str and (kind in _SCALARS or (kind is int and value.bit_length() <= MAX_INTEGER_BITS)):
                continue
            _walk(payload)
            break
        text = _write_json(payload)
        size = len(text) if text.isascii() else len(text.encode())
        if "\\u0000" in text:
            _walk(payload)
    except InvalidPayloadError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        _walk(payload)
        raise InvalidPayloadError(f"payload cannot be written as JSON: {error}") from None
    if size > max_bytes:
        raise InvalidPayloadError(f"payload has {size} bytes of JSON: at most {max_bytes} are allowed")
    return text


def _walk(payload: dict[str, Any]) -> None:
    """Raise for the first place in `payload` that breaks a rule; iterative, so depth cannot exhaust the stack."""
    stack: list[tuple[object, str, int]] = [(payload, "$", 1)]
    while stack:
        value, path, depth = stack.pop()
        if isinstance(value, str):
            if flaw := _text_flaw(value):
                raise InvalidPayloadError(flaw, path=path)
        elif value is None or isinstance(value, bool):
            continue
        elif isinstance(value, int):
            if value.bit_length() > MAX_INTEGER_BITS:
                raise InvalidPayloadError(
                    f"integer of {value.bit_length()} bits: at most {MAX_INTEGER_BITS} are allowed", path=path
                )
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise InvalidPayloadError(f"{value} is not a JSON number", path=path)
        elif isinstance(value, dict | list | tuple):
            if depth > MAX_PAYLOAD_DEPTH:
                raise InvalidPayloadError(f"nested deeper than {MAX_PAYLOAD_DEPTH} levels", path=path)
            if isinstance(value, dict):
                for key, item in reversed(value.items()):
                    if not isinstance(key, str):
                        raise InvalidPayloadError(f"key {shorten(key)} is not text", path=path)
                    place = f"{path}.{shorten(key, 40).strip(chr(39))}"
                    stack.append((item, place, depth + 1))
                    stack.append((key, place, depth))
            else:
                stack.extend((item, f"{path}[{n}]", depth + 1) for n, item in reversed(list(enumerate(value))))
        else:
            raise InvalidPayloadError(f"{type(value).__name__} is not a JSON value", path=path)


def _text_flaw(text: str) -> str | None:
    if "\0" in text:
        return "text holds a NUL character, which PostgreSQL cannot store"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "text holds a lone surrogate, which is not UTF-8"
    return None


def shorten(value: object, limit: int = 80) -> str:
    """`repr(value)`, ASCII and at most `limit` characters: safe to print in an error or a log line."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):
        text = f"<{type(value).__name__}>"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def check_progress(percent: object, message: object) -> tuple[float, str | None]:
    """Return how far a run says it is, the message made storable and cut to 500 characters."""
    if isinstance(percent, bool) or not isinstance(percent, int | float) or not 0 <= percent <= 100:
        raise InvalidArgumentError(f"invalid percent {shorten(percent)}: must be a number from 0 to 100")
    if message is not None and not isinstance(message, str):
        raise InvalidArgumentError(f"invalid message {shorten(message)}: must be text")
    if message is not None:
        message = message.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
    return float(percent), message and message[:MAX_PROGRESS_CHARACTERS]


def check_headers(value: object) -> dict[str, str]:
    """Return `value` if it is text by text, and small."""
    if not isinstance(value, Mapping) or not all(
        isinstance(key, str) and isinstance(text, str) for key, text in value.items()
    ):
        raise InvalidArgumentError(f"invalid headers {shorten(value)}: must be text by text")
    headers = dict(value)
    encode_payload(headers, MAX_HEADER_BYTES)
    return headers

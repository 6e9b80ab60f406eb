"""What may be a payload and what may be a name, value by value."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
from datetime import datetime
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel
from soak import say

from pgqueue.errors import InvalidNameError, InvalidPayloadError
from pgqueue.validation import (
    MAX_INTEGER_BITS,
    MAX_PAYLOAD_BYTES,
    MAX_PAYLOAD_DEPTH,
    check_name,
    check_schema_name,
    encode_payload,
    payload_object,
    shorten,
)

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("abé\\\t\n\"'😀"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


class Address(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)
    street_name: str
    extra: Any = None


@dataclasses.dataclass
class Point:
    x: int
    inner: Any = None


def nested(depth: int) -> dict[str, Any]:
    value: Any = 1
    for level in range(depth - 1):
        value = [value] if level % 2 else {"k": value}
    return {"k": value}


@given(st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=5))
def test_a_storable_object_is_written_as_the_json_it_is(payload):
    stored = "\0" not in json.dumps(payload, ensure_ascii=False) and "\\u0000" not in json.dumps(payload)
    try:
        json.dumps(payload, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        stored = False
    if stored:
        assert json.loads(encode_payload(payload)) == payload
    else:
        with pytest.raises(InvalidPayloadError):
            encode_payload(payload)


EDGES = (
    0, -1, 2**63, 10**300, 1e308, -1e308, 5e-324, 1.5, True, None, "", "\\u0000", "tab\there", "\x7f\u2028😀", [], {},
)  # fmt: skip


def test_numbers_and_texts_at_the_edge_survive():
    for value in EDGES:
        assert json.loads(encode_payload({"k": value, "nested": [value]})) == {"k": value, "nested": [value]}
    bits = max(value.bit_length() for value in EDGES if isinstance(value, int))
    largest = max(value for value in EDGES if isinstance(value, float))
    say(f"{len(EDGES)} values come back as they were, the largest an integer of {bits} bits and a float of {largest:g}")


def test_minus_zero_keeps_its_sign():
    assert math.copysign(1, json.loads(encode_payload({"k": -0.0}))["k"]) == -1


def test_tuples_are_lists():
    assert encode_payload({"k": (1, (2, 3))}) == '{"k":[1,[2,3]]}'


@pytest.mark.parametrize(
    ("payload", "path"),
    [
        ({"a": float("nan")}, "$.a"),
        ({"a": [1, float("inf")]}, "$.a[1]"),
        ({"a": {"b": ["x\0y"]}}, "$.a.b[0]"),
        ({"a": "\ud83d"}, "$.a"),
        ({"a": [{"b": "\udc00"}]}, "$.a[0].b"),
        ({"n\0": 1}, "$.n\\x00"),
        ({1: "x"}, "$"),
        ({"a": {None: 1}}, "$.a"),
        ({"a": {True: 1}}, "$.a"),
        ({"a": {1, 2}}, "$.a"),
        ({"a": b"bytes"}, "$.a"),
        ({"a": [datetime.now().astimezone()]}, "$.a[0]"),
        ({"a": 1j}, "$.a"),
        ({"a": object()}, "$.a"),
        ({"a": 2**MAX_INTEGER_BITS}, "$.a"),
        ({"a": [-(2**MAX_INTEGER_BITS)]}, "$.a[0]"),
        ({"a": 10**5000}, "$.a"),
    ],
)
def test_a_value_that_cannot_be_stored_is_refused_at_its_path(payload, path):
    with pytest.raises(InvalidPayloadError) as caught:
        encode_payload(payload)
    assert caught.value.path == path
    assert path in str(caught.value)


@pytest.mark.parametrize("value", [2**MAX_INTEGER_BITS - 1, -(2**MAX_INTEGER_BITS) + 1])
def test_the_largest_integer_is_the_same_nested_or_not(value):
    assert json.loads(encode_payload({"a": value, "b": [value]})) == {"a": value, "b": [value]}


def test_depth_64_passes_and_65_is_refused():
    assert json.loads(encode_payload(nested(MAX_PAYLOAD_DEPTH)))
    with pytest.raises(InvalidPayloadError, match="deeper than 64 levels"):
        encode_payload(nested(MAX_PAYLOAD_DEPTH + 1))


def test_a_payload_that_contains_itself_or_is_bottomless_is_refused():
    endless: dict[str, Any] = {}
    endless["k"] = endless
    for payload in (endless, nested(100_000)):
        with pytest.raises(InvalidPayloadError, match="deeper"):
            encode_payload(payload)


def test_size_at_the_limit_passes_and_one_byte_more_is_refused():
    room = MAX_PAYLOAD_BYTES - len('{"k":""}')
    size = len(encode_payload({"k": "x" * room}))
    assert size == MAX_PAYLOAD_BYTES
    with pytest.raises(
        InvalidPayloadError, match=f"{MAX_PAYLOAD_BYTES + 1} bytes of JSON: at most {MAX_PAYLOAD_BYTES}"
    ) as caught:
        encode_payload({"k": "x" * (room + 1)})
    say(f"a payload of {size} bytes is accepted, one byte more is refused: {caught.value}")


def test_pydantic_models_dataclasses_and_mappings_are_objects():
    assert payload_object(Address(street_name="x")) == {"streetName": "x", "extra": None}
    assert payload_object(Point(1, Point(2))) == {"x": 1, "inner": {"x": 2, "inner": None}}
    assert payload_object(MappingProxyType({"a": 1})) == {"a": 1}
    assert payload_object(None) == {}


@pytest.mark.parametrize("payload", [[], "x", 5, Address, Point, dict, object(), b"{}", [("a", 1)]])
def test_what_is_no_object_is_refused(payload):
    with pytest.raises(InvalidPayloadError, match="must be a JSON object"):
        payload_object(payload)


@pytest.mark.parametrize(
    "payload",
    [Address(street_name="x", extra=object()), Address(street_name="x", extra=b"\xff"), Point(1, threading.Lock())],
)
def test_a_model_that_cannot_be_written_as_json_is_an_invalid_payload(payload):
    with pytest.raises(InvalidPayloadError, match="cannot be written as JSON"):
        payload_object(payload)


@pytest.mark.parametrize("name", ["a", "A.b_c:d/e-9", "x" * 128, "0"])
def test_names_within_the_rule_pass(name):
    assert check_name(name, "queue") == name


@pytest.mark.parametrize("name", ["", " ", "a b", "x" * 129, "é", "a\n", "a\0", None, 5, b"a", ["a"], "a;b", "a'b"])
def test_names_outside_the_rule_are_refused_with_value_and_rule(name):
    with pytest.raises(InvalidNameError) as caught:
        check_name(name, "queue")
    assert "invalid queue" in str(caught.value)
    assert "1 to 128 characters of A-Z a-z 0-9 _ . : / -" in str(caught.value)


@pytest.mark.parametrize("name", ["", "1a", "A", "a-b", "a.b", 'a"b', "x" * 49, None])
def test_schema_names_are_strict_because_they_are_written_into_sql(name):
    with pytest.raises(InvalidNameError):
        check_schema_name(name)


@given(st.text() | st.integers() | st.binary() | st.lists(st.text()))
def test_shorten_prints_anything_in_80_ascii_characters(value):
    text = shorten(value)
    assert text.isascii()
    assert len(text) <= 80
    assert "\n" not in text

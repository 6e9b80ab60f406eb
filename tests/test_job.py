"""The state table, the drawing of it, and what `encode` makes of a NewJob."""

from __future__ import annotations

import dataclasses
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from pgqueue import Job, JobOptions, JobState, NewJob, Priority
from pgqueue.errors import InvalidArgumentError, InvalidNameError, InvalidPayloadError
from pgqueue.job import FINISHED_STATES, LIVE_STATES, TRANSITIONS, encode
from pgqueue.schema import tables

DRAWING = Path(__file__).parents[1] / "docs" / "state_machine.md"
SOON = datetime(2030, 1, 1, tzinfo=UTC)
TAGS = [f"{number}{'x' * 127}" for number in range(7)] + ["y" * 97]  # 1 000 bytes with the commas


def test_transitions_are_the_arrows_of_the_drawing():
    text = DRAWING.read_text()
    diagram = re.search(r"```mermaid\n(.*?)```", text, re.DOTALL)
    assert diagram
    arrows = set(re.findall(r"^\s*(\w+) --> (\w+)\s*$", diagram[1], re.MULTILINE))
    assert arrows == {(source.value, target.value) for source, targets in TRANSITIONS.items() for target in targets}
    sinks = set(re.findall(r"^\s*(\w+) --> \[\*\]", diagram[1], re.MULTILINE))
    assert sinks == {state.value for state in FINISHED_STATES}


def test_each_move_of_the_drawing_says_who_makes_it():
    text = DRAWING.read_text()
    told = set(re.findall(r"^- `(\w+) --> (\w+)`: \w.*\.?$", text, re.MULTILINE))
    assert told == {(source.value, target.value) for source, targets in TRANSITIONS.items() for target in targets}


def test_finished_states_are_sinks_and_every_state_is_in_the_table():
    assert set(TRANSITIONS) == set(JobState)
    assert {state for state in JobState if state.finished} == {"completed", "failed", "cancelled"}
    assert set(LIVE_STATES) | set(FINISHED_STATES) == set(JobState)
    assert not set(LIVE_STATES) & set(FINISHED_STATES)


def test_the_enum_of_the_database_has_the_same_labels():
    assert tables().tables["pgqueue.jobs"].c.state.type.enums == [state.value for state in JobState]


def test_encode_fills_the_defaults_that_are_not_the_types():
    encoded = encode(NewJob("a"))
    assert (encoded.type, encoded.queue, encoded.priority, encoded.payload, encoded.payload_text) == (
        "a", "default", 0, {}, "{}",
    )  # fmt: skip
    assert (encoded.max_attempts, encoded.timeout, encoded.delay, encoded.run_at) == (None, None, None, None)
    assert encoded.unique_hash is None


def test_encode_takes_options_and_keywords_beat_them():
    options = JobOptions(
        queue="o", priority=Priority.HIGH, max_attempts=3, delay=5, timeout=6, unique_key="u", concurrency_key="c"
    )
    from_options = encode(NewJob("a", options=options))
    assert from_options.queue == "o"
    assert from_options.priority == -10
    assert (from_options.max_attempts, from_options.delay, from_options.timeout) == (3, 5.0, 6.0)
    assert (from_options.unique_key, from_options.concurrency_key) == ("u", "c")
    beaten = encode(NewJob("a", queue="k", priority=0, delay=0, max_attempts=1, options=options))
    assert (beaten.queue, beaten.priority, beaten.delay, beaten.max_attempts) == ("k", 0, 0.0, 1)


def test_a_due_time_among_the_keywords_replaces_the_options_due_time():
    assert encode(NewJob("a", run_at=SOON, options=JobOptions(delay=5))).delay is None
    assert encode(NewJob("a", delay=1, options=JobOptions(run_at=SOON))).run_at is None


@pytest.mark.parametrize(
    "new", [NewJob("a", delay=1, run_at=SOON), NewJob("a", options=JobOptions(delay=1, run_at=SOON))]
)
def test_both_delay_and_run_at_are_refused(new):
    with pytest.raises(InvalidArgumentError, match="both delay and run_at"):
        encode(new)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"delay": -1}, "delay"),
        ({"delay": float("nan")}, "delay"),
        ({"delay": float("inf")}, "delay"),
        ({"delay": 10**400}, "delay"),
        ({"delay": timedelta(days=4000)}, "delay"),
        ({"delay": timedelta}, "delay"),
        ({"delay": True}, "delay"),
        ({"delay": "5"}, "delay"),
        ({"timeout": -0.1}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": float("-inf")}, "timeout"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": 1.0}, "max_attempts"),
        ({"max_attempts": 10**9}, "max_attempts"),
        ({"priority": 32_768}, "priority"),
        ({"priority": -32_769}, "priority"),
        ({"priority": False}, "priority"),
        ({"run_at": datetime(2030, 1, 1)}, "run_at"),  # noqa: DTZ001 - that it is naive is the point
        ({"run_at": datetime.min.replace(tzinfo=UTC)}, "run_at"),
        ({"run_at": datetime.max.replace(tzinfo=UTC)}, "run_at"),
        ({"run_at": "2030-01-01T00:00:00Z"}, "run_at"),
        ({"queue": "no spaces"}, "queue"),
        ({"queue": ""}, "queue"),
        ({"unique_key": ""}, "unique_key"),
        ({"unique_key": "a\0b"}, "unique_key"),
        ({"unique_key": 5}, "unique_key"),
        ({"unique_key": "x" * (1024 * 1024 + 1)}, "unique_key"),
        ({"concurrency_key": "\ud800"}, "concurrency_key"),
        ({"concurrency_key": "é" * 501}, "invalid concurrency_key .*: 1002 bytes, at most 1000 are allowed"),
        ({"options": JobOptions(concurrency_key="x" * 1001)}, "concurrency_key .*: 1001 bytes, at most 1000"),
        ({"tags": [*TAGS, "z"]}, "invalid tags .*: 1002 bytes with commas between them, at most 1000 are allowed"),
        ({"options": {"delay": 1}}, "options"),
    ],
)
def test_a_wrong_option_is_refused_and_named(options, names):
    with pytest.raises(InvalidArgumentError, match=names):
        encode(NewJob("a", **options))


def test_options_at_their_limits_pass():
    for options in (
        {"priority": 32_767},
        {"priority": -32_768},
        {"max_attempts": 1},
        {"delay": 0},
        {"delay": timedelta(milliseconds=1)},
        {"timeout": 0},
        {"run_at": SOON},
        {"unique_key": "x" * 1024 * 1024},
        {"concurrency_key": "é" * 500},
        {"tags": [*TAGS, TAGS[0]]},
    ):
        assert encode(NewJob("a", **options)).type == "a"


def test_a_type_that_breaks_the_naming_rule_is_refused_with_the_rule():
    with pytest.raises(InvalidNameError, match=r"invalid job type 'a b': must be 1 to 128 characters"):
        encode(NewJob("a b"))


def test_what_is_not_a_new_job_is_refused():
    with pytest.raises(InvalidArgumentError, match="is not a NewJob"):
        encode({"type": "a"})  # type: ignore[arg-type]


def test_the_payload_limit_counts_bytes_not_characters():
    assert encode(NewJob("a", {"k": "é"}), max_payload_bytes=10).payload_text == '{"k":"é"}'
    with pytest.raises(InvalidPayloadError, match="10 bytes of JSON: at most 9"):
        encode(NewJob("a", {"k": "é"}), max_payload_bytes=9)


def test_the_unique_hash_is_of_type_and_key_together():
    hashes = {encode(NewJob(kind, unique_key=key)).unique_hash for kind, key in (("a", "b"), ("a", "c"), ("ab", "b"))}
    assert len(hashes) == 3
    assert all(value and len(value) == 32 for value in hashes)


def test_as_dict_is_plain_json():
    job = Job(1, "a", {"k": [1]}, run_at=SOON, worker_id=uuid4(), state=JobState.COMPLETED)
    record = json.loads(json.dumps(job.as_dict()))
    assert record["run_at"] == "2030-01-01T00:00:00+00:00"
    assert record["worker_id"] == str(job.worker_id)
    assert record["state"] == "completed"
    assert set(record) == {field.name for field in dataclasses.fields(Job)}


@pytest.mark.parametrize(
    ("attempt", "released", "max_attempts", "last"),
    [(1, 0, None, True), (1, 0, 2, False), (2, 0, 2, True), (3, 2, 2, False), (3, 1, 2, True)],
)
def test_the_last_attempt_does_not_count_released_runs(attempt, released, max_attempts, last):
    job = Job(1, "a", {}, attempt=attempt, released=released, max_attempts=max_attempts)
    assert job.is_last_attempt is last


def test_priority_names_run_lower_first():
    assert (Priority.CRITICAL, Priority.HIGH, Priority.NORMAL, Priority.LOW) == (-20, -10, 0, 10)

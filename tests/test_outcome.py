"""`decide()`: each way a run can end has one typed answer."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqueue import Job, JobState
from pgqueue.errors import InvalidPayloadError, UnknownJobTypeError
from pgqueue.job import TRANSITIONS, Reason
from pgqueue.outcome import (
    MAX_MESSAGE_CHARACTERS,
    MAX_TRACEBACK_CHARACTERS,
    JobCancelledError,
    JobLostError,
    JobReleasedError,
    JobTimeoutError,
    decide,
    storable_text,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)
ENDINGS = [
    None,
    {"ok": True},
    ValueError("x"),
    SystemExit(3),
    KeyboardInterrupt(),
    TimeoutError(),
    JobTimeoutError("t"),
    JobLostError("l"),
    JobCancelledError(),
    JobReleasedError(),
    InvalidPayloadError("p"),
    UnknownJobTypeError("u"),
]


class RudeError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text from me")


def job(attempt: int = 1, released: int = 0, max_attempts: int | None = 1) -> Job:
    return Job(7, "a", {}, state=JobState.PROCESSING, attempt=attempt, released=released, max_attempts=max_attempts)


@pytest.mark.parametrize("result", [None, 0, "", [], {"ok": True}])
def test_a_result_completes_the_job_and_is_kept(result):
    outcome = decide(job(), result, now=NOW)
    assert (outcome.id, outcome.attempt, outcome.state, outcome.reason) == (7, 1, JobState.COMPLETED, None)
    assert outcome.result == result
    assert outcome.error is None


@pytest.mark.parametrize(
    ("ending", "state", "reason"),
    [
        (ValueError("x"), "failed", "error"),
        (SystemExit(3), "failed", "error"),
        (TimeoutError(), "failed", "error"),
        (JobTimeoutError("ran 5 s"), "failed", "timeout"),
        (InvalidPayloadError("bad"), "failed", "invalid_payload"),
        (UnknownJobTypeError("unknown job type: a"), "failed", "unknown_type"),
        (JobLostError("worker gone"), "failed", "lost"),
        (JobCancelledError(), "cancelled", "cancelled"),
        (JobReleasedError(), "pending", "shutdown"),
    ],
)
def test_each_way_to_end_has_its_state_and_reason(ending, state, reason):
    outcome = decide(job(), ending, now=NOW)
    assert (outcome.state, outcome.reason) == (state, reason)


def test_a_lost_job_with_attempts_left_is_scheduled_after_a_delay():
    outcome = decide(job(attempt=1, max_attempts=2), JobLostError("gone"), now=NOW)
    assert (outcome.state, outcome.reason, outcome.delay) == (JobState.SCHEDULED, Reason.LOST, 1.0)
    assert outcome.error is not None


def test_a_released_job_burns_no_attempt_and_leaves_no_error():
    outcome = decide(job(), JobReleasedError(), now=NOW)
    assert (outcome.released, outcome.error) == (1, None)
    again = job(attempt=2, released=1, max_attempts=2)
    assert decide(again, JobLostError("gone"), now=NOW).state is JobState.SCHEDULED


@given(
    st.integers(1, 50),
    st.integers(0, 50),
    st.none() | st.integers(1, 50),
    st.sampled_from(ENDINGS),
    st.text(max_size=5),
)
def test_every_outcome_is_a_legal_move_and_storable(attempt, released, max_attempts, ending, where):
    outcome = decide(job(attempt, released, max_attempts), ending, now=NOW, where=where)
    assert outcome.state in TRANSITIONS[JobState.PROCESSING]
    assert outcome.attempt == attempt
    assert outcome.delay >= 0
    if outcome.state is JobState.SCHEDULED:
        assert attempt - released < (max_attempts or 1)
    if outcome.error is not None:
        assert json.loads(json.dumps(outcome.error))["attempt"] == attempt


def test_the_error_entry_says_what_when_where_and_how_without_locals():
    secret_value = "hunter2"
    try:
        raise ValueError("no such file: " + secret_value[:0] + "a.txt")
    except ValueError as error:
        entry = decide(job(attempt=3, max_attempts=3), error, now=NOW, where="host:1").error
    assert entry is not None
    assert (entry["attempt"], entry["at"], entry["where"]) == (3, "2030-01-01T00:00:00+00:00", "host:1")
    assert (entry["class"], entry["message"]) == ("ValueError", "no such file: a.txt")
    assert "test_outcome.py" in entry["traceback"]
    assert secret_value not in json.dumps(entry).replace('secret_value = "hunter2"', "")


def test_an_error_that_cannot_say_its_message_is_still_recorded():
    entry = decide(job(), RudeError(), now=NOW).error
    assert entry is not None
    assert entry["message"] == "<RudeError whose message could not be made>"


def test_texts_are_cut_and_made_storable():
    try:
        raise ValueError("\0\ud800" + "x" * 100_000)
    except ValueError as error:
        entry = decide(job(), error, now=NOW).error
    assert entry is not None
    assert len(entry["message"]) == MAX_MESSAGE_CHARACTERS
    assert len(entry["traceback"]) <= MAX_TRACEBACK_CHARACTERS
    for text in entry["message"], entry["traceback"]:
        assert "\0" not in text
        assert text.encode()


@given(st.text(st.characters(exclude_categories=[])), st.integers(1, 50))
def test_storable_text_is_always_utf8_without_nul_and_short(text, limit):
    stored = storable_text(text, limit)
    assert "\0" not in stored
    assert len(stored) <= limit
    assert stored.encode().decode() == stored

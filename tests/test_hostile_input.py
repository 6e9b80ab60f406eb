"""Whatever payloads, names, keys and arguments are: stored as they are, or refused whole with the right error."""

from __future__ import annotations

import string
from collections import Counter

import pytest
from cli_tools import invoke
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from soak import count, say
from support import finished

from pgqueue import NewJob, Registry
from pgqueue.errors import InvalidArgumentError, InvalidPayloadError

EXAMPLES = count(100, 10_000)
hostile = settings(
    deadline=None,
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
SPICE = st.sampled_from(
    ["'", '"', "\\", "\0", "\ud800", "%s", "%(x)s", "{}", "$1", "--", ";DROP TABLE t", "\r\n", "\x1b[2J", "\u2028"]
)
TEXTS = st.one_of(st.text(), st.lists(st.one_of(st.text(max_size=5), SPICE), max_size=5).map("".join))
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.integers(min_value=-(2**5000), max_value=2**5000),
        st.floats(), TEXTS, st.binary(max_size=5),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)  # fmt: skip
PAYLOADS = st.one_of(st.dictionaries(TEXTS, VALUES, max_size=5), VALUES)
NAMES = st.one_of(TEXTS, st.text(string.ascii_letters + string.digits + "_.:/-", min_size=1, max_size=140))
FLAWS = {
    "must be a JSON object": "as no object",
    "a NUL character": "for a NUL",
    "is not a JSON number": "for NaN or infinity",
    "a lone surrogate": "for a surrogate",
}
QUOTES = ("'", '"', ";", "--", "%s")


def same(stored, given):
    """Equal as JSON: a large float comes back as the integer that is written the same, 1e17 as 100000000000000000."""
    if isinstance(given, dict):
        return stored.keys() == given.keys() and all(same(stored[key], given[key]) for key in given)
    if isinstance(given, list):
        return len(stored) == len(given) and all(map(same, stored, given))
    return float(stored) == given if isinstance(given, float) else stored == given


@pytest.fixture
def counted(sql):
    """How many jobs there are; the database is as it was, but for those."""
    schema = "SELECT md5(string_agg(oid || relname || relnatts, ',' ORDER BY oid)) FROM pg_class"
    before = sql(schema)
    yield lambda: sql("SELECT count(*) FROM pgqueue.jobs")[0][0]
    assert sql(schema) == before


@pytest.fixture
def told():
    """How many examples there were and what became of them, said after the last."""
    ends = Counter()
    yield ends
    say(", ".join(f"{number} {what}" for what, number in ends.items()))


@pytest.mark.soak
@pytest.mark.timeout(1800)
@hostile
@given(PAYLOADS)
def test_whatever_a_payload_is_it_is_stored_as_it_is_or_refused_whole(queue, counted, told, payload):
    before, refused = counted(), None
    told["payloads"] += 1
    try:
        job = queue.enqueue("any", payload)
    except InvalidPayloadError as error:
        refused = error
    if refused is None:
        assert job.payload == ({} if payload is None else payload)
        assert same(queue.get(job.id).payload, job.payload)
        assert counted() == before + 1
        told["stored as they are"] += 1
        return
    assert str(refused).encode()
    with pytest.raises(InvalidPayloadError):
        queue.enqueue_many([NewJob("any"), NewJob("any", payload)])
    assert counted() == before
    told[
        "refused whole " + next((why for flaw, why in FLAWS.items() if flaw in str(refused)), "for something else")
    ] += 1


@pytest.mark.soak
@pytest.mark.timeout(1800)
@hostile
@given(NAMES, NAMES, TEXTS, TEXTS)
def test_whatever_a_name_is_it_is_stored_as_it_is_or_refused_whole(queue, counted, told, job_type, name, unique, key):
    before, refused = counted(), None
    told["pairs of names with two keys"] += 1
    told["of them with quotes or SQL"] += any(one in job_type + name + unique + key for one in QUOTES)
    try:
        job = queue.enqueue(job_type, queue=name, unique_key=unique, concurrency_key=key)
    except InvalidArgumentError as error:  # of a name, or of a key
        refused = error
    if refused is not None:
        assert str(refused).encode()
        assert counted() == before
        told["refused whole"] += 1
        return
    found = queue.get(job.id)
    assert (found.type, found.unique_key) == (job_type, unique)
    assert job.existing or (found.queue, found.concurrency_key) == (name, key)
    assert counted() == before + (not job.existing)
    told["met by a job of their key" if job.existing else "stored as they are"] += 1


ARGUMENTS = st.lists(
    st.one_of(
        TEXTS,
        st.sampled_from(
            ["enqueue", "jobs", "list", "show", "cancel", "types", "queues", "explain", "stats", "--json", "--priority",
             "--delay", "--at", "--unique-key", "--queue", "--state", "-", "any", "{}", '{"a": 1}', "[1]", "1", "-1",
             "99999999999999999999", "nan", "1e400", "@/nothing", "--help", "--"]
        ),
    ),
    max_size=6,
)  # fmt: skip
COMMANDS = st.sampled_from(
    [("enqueue",), ("jobs", "list"), ("jobs", "show"), ("jobs", "cancel"), ("types", "list"), ("explain",)]
)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@hostile
@given(COMMANDS, ARGUMENTS)
def test_whatever_the_arguments_are_the_command_line_says_so_in_a_line_and_makes_a_job_or_none(
    dsn, counted, command, arguments
):
    before = counted()
    result = invoke(*command, *arguments, env={"PGQUEUE_DATABASE_URL": dsn}, input="{}")
    assert result.exit_code in {0, 1, 2, 5, 6}, (command, arguments, result.output)
    made = counted() - before
    if command == ("enqueue",):
        assert made in ({0, 1} if result.exit_code == 0 else {0}), arguments
    else:
        assert made <= 0, (command, arguments)
    assert "\x1b" not in result.output


def test_a_row_that_was_made_undecodable_by_hand_fails_alone(queue, sql, started):
    registry = Registry()

    @registry.executor("any")
    async def any_payload(job, context):
        return job.payload["n"]

    before, after = queue.enqueue("any", {"n": 1}), queue.enqueue("any", {"n": 2})
    bad = queue.enqueue("any", {"n": 3}, priority=-1)
    sql("UPDATE pgqueue.jobs SET payload = CAST(%s AS jsonb) WHERE id = %s", '{"a": ' + "9" * 5000 + "}", bad.id)
    started(registry)
    assert [finished(queue, job).result for job in (before, after)] == [1, 2]
    rows = sql("SELECT state::text, reason FROM pgqueue.finished_jobs WHERE id = %s", bad.id)
    assert rows == [("failed", "invalid_payload")]
    say(f"{EXAMPLES} payloads, names and argument lists each; a row that cannot be read failed alone")

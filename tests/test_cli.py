"""The commands as their users and scripts meet them: what they do, print, refuse."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from cli_tools import assert_one_error, data, environment, invoke

from pgqueue import Inspector


@pytest.fixture
def pgq(dsn, monkeypatch):
    """Run the command line on the test's database."""
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", dsn)
    return invoke


# Enqueue


def test_enqueue_prints_the_id_of_the_job_it_made(pgq, queue):
    result = pgq("enqueue", "resize", '{"width": 3}', "--priority", "-5", "--queue", "images", "--max-attempts", 4,
                 "--timeout", "2.5", "--concurrency-key", "c", "--unique-key", "u")  # fmt: skip
    assert result.exit_code == 0, result.output
    job = queue.get(int(result.stdout))
    assert (job.type, job.payload, job.priority, job.queue) == ("resize", {"width": 3}, -5, "images")
    assert (job.max_attempts, job.timeout, job.concurrency_key, job.unique_key) == (4, 2.5, "c", "u")


def test_enqueue_reads_the_payload_from_stdin_or_a_file(pgq, queue, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "payload.json").write_text('{"from": "a file"}')
    from_stdin = pgq("enqueue", "a", "-", input='{"from": "stdin"}')
    from_file = pgq("enqueue", "a", "@payload.json")
    without = pgq("enqueue", "a")
    assert [queue.get(int(result.stdout)).payload for result in (from_stdin, from_file, without)] == [
        {"from": "stdin"},
        {"from": "a file"},
        {},
    ]


def test_enqueue_later(pgq, queue):
    delayed = data("enqueue", "a", "--delay", "3600")
    timed = data("enqueue", "a", "--at", "2031-01-31T09:00:00+02:00")
    assert delayed["state"] == timed["state"] == "scheduled"
    assert abs(queue.get(delayed["id"]).run_at - datetime.now(UTC) - timedelta(hours=1)) < timedelta(minutes=1)
    assert queue.get(timed["id"]).run_at == datetime(2031, 1, 31, 7, tzinfo=UTC)


def test_enqueue_with_a_unique_key_in_use_prints_the_job_there_is(pgq):
    first = data("enqueue", "a", "--unique-key", "k")
    again = pgq("enqueue", "a", "--unique-key", "k", "--json")
    assert json.loads(again.stdout)["id"] == first["id"]
    assert json.loads(again.stdout)["existing"] is True
    assert "nothing was enqueued" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["a", '{"a": 1,}'], ["not JSON", "line 1 column"]),
        (["a", "[1]"], ["must be a JSON object"]),
        (["a", "null"], ["payload is null: must be a JSON object"]),
        (["a", '{"a": NaN}'], ["not a JSON number", "$.a"]),
        (["a", '{"a": "\\u0000"}'], ["NUL"]),
        (["a", '{"a": "\\ud800"}'], ["surrogate"]),
        (["a", "[" * 100_000], ["not JSON"]),
        (["a", '{"a": ' + "9" * 5000 + "}"], ["not JSON"]),
        (["a", "@missing.json"], ["missing.json", "No such file"]),
        (["a", "@."], ["cannot be read"]),
        (["bad name", "{}"], ["'bad name'", "A-Z a-z"]),
        (["a\x1b[31m", "{}"], ["\\x1b"]),
        (["a", "--at", "2030-01-31T09:00:00"], ["no time zone", "+02:00"]),
        (["a", "--at", "tomorrow"], ["'tomorrow'", "ISO 8601"]),
        (["a", "--at", "2030-01-31T09:00Z", "--delay", "1"], ["both delay and run_at"]),
        (["a", "--delay", "nan"], ["delay nan", "number of seconds"]),
        (["a", "--delay", "-1"], ["between 0"]),
        (["a", "--delay", "soon"], ["not a valid float"]),
        (["a", "--priority", "40000"], ["32767"]),
        (["a", "--max-attempts", "0"], ["max_attempts"]),
        (["a", "--unique-key", ""], ["unique_key"]),
        (["a", "{}", "{}"], ["unexpected extra argument"]),
        ([], ["Missing argument 'TYPE'"]),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_no_job(pgq, queue, arguments, parts):
    assert_one_error(pgq("enqueue", *arguments), 2, *parts)
    assert sum(queue.counts().values()) == 0


def test_payload_that_is_not_utf8_is_refused(pgq):
    assert_one_error(pgq("enqueue", "a", "-", input=b'{"a": "\xff"}'), 2, "not UTF-8", "stdin")


# Jobs


def test_jobs_list_filters_and_pages(pgq, queue):
    ids = [queue.enqueue(job_type, queue=name).id for job_type in ("a", "b") for name in ("x", "y")]
    queue.cancel(ids[0])
    assert [job["id"] for job in data("jobs", "list")] == ids[::-1]
    assert [job["id"] for job in data("jobs", "list", "--limit", 2)] == ids[:1:-1]
    assert [job["id"] for job in data("jobs", "list", "--before", ids[1])] == [ids[0]]
    assert [job["id"] for job in data("jobs", "list", "--type", "b", "--queue", "x")] == [ids[2]]
    assert [job["id"] for job in data("jobs", "list", "--state", "cancelled")] == [ids[0]]
    assert data("jobs", "list")[0] == queue.get(ids[3]).as_dict()
    lines = pgq("jobs", "list").stdout.splitlines()
    assert lines[0].split() == ["id", "type", "queue", "state", "reason", "attempt", "created", "took", "payload"]
    assert [line.split()[0] for line in lines[1:]] == [str(number) for number in ids[::-1]]
    assert_one_error(pgq("jobs", "list", "--state", "done"), 2, "'done'", "completed")
    assert_one_error(pgq("jobs", "list", "--limit", 0), 2, "limit")


def test_jobs_show(pgq, queue):
    job = queue.enqueue("a", {"key": "value" * 40})
    assert data("jobs", "show", job.id) == {**queue.get(job.id).as_dict(), "parents": [], "children": []}
    assert "value" * 40 in pgq("jobs", "show", job.id).stdout
    assert_one_error(pgq("jobs", "show", 12345), 5, "no job 12345")
    assert_one_error(pgq("jobs", "show", 2**70), 2, "job id")


def test_jobs_cancel(pgq, queue, sql):
    pending, running = queue.enqueue("a"), queue.enqueue("a")
    sql("UPDATE pgqueue.jobs SET state = 'processing', attempt = 1 WHERE id = %s", running.id)
    assert pgq("jobs", "cancel", pending.id).exit_code == 0
    assert queue.get(pending.id).state == "cancelled"
    assert_one_error(pgq("jobs", "cancel", pending.id), 6, "cancelled already")
    told = pgq("jobs", "cancel", running.id)
    assert (told.exit_code, told.stderr) == (0, f"job {running.id} is told to stop\n")
    assert_one_error(pgq("jobs", "cancel", 12345), 5, "no job 12345")


def test_no_control_character_of_a_job_reaches_the_terminal(pgq, queue, sql):
    evil = "\x1b]0;owned\x07\x9b31m\u202etxt.exe\r\nforged line"
    job = queue.enqueue("a", {"text": evil}, unique_key=evil)
    entry = json.dumps([{"attempt": 1, "at": evil, "where": evil, "class": "E", "message": evil, "traceback": evil}])
    sql("UPDATE pgqueue.jobs SET errors = %s::jsonb", entry)
    for arguments in (["jobs", "list"], ["jobs", "show", job.id]):
        for extra in ([], ["--json"]):
            text = pgq(*arguments, *extra).stdout
            assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
    shown = pgq("jobs", "show", job.id).stdout
    assert "\\x1b]0;owned" in shown
    assert "\nforged" not in shown


def test_a_terminal_gets_a_table_and_no_markup_of_a_job(dsn, queue):
    queue.enqueue("a", {"text": "[red]\x1b[2J"})
    reader, writer = pty.openpty()
    command = [sys.executable, "-m", "pgqueue", "jobs", "list", "--database-url", dsn]
    with subprocess.Popen(command, stdout=writer, env=environment(COLUMNS="160", TERM="xterm")) as process:
        os.close(writer)
        shown = b""
        while chunk := _read(reader):
            shown += chunk
        assert process.wait(30) == 0
    os.close(reader)
    text = shown.decode()
    assert "─" in text
    assert "[red]" in text
    assert "\x1b[2J" not in text


def _read(descriptor):
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux's way to say that nobody writes any more
        return b""


# Types, queues, workers, leader, stats


def test_rules_of_types_and_queues_are_set_checked_and_forgotten(pgq, sql):
    assert pgq("types", "set", "resize", "max_per_key=3", "rate_limit=100/m", "strict_order=true").exit_code == 0
    assert pgq("types", "set", "resize", "max_per_key=none", "strict_order=default").exit_code == 0
    (row,) = [one for one in data("types", "list") if one["type"] == "resize"]
    assert row["operator"] == {"max_per_key": None, "rate_limit": "100/60"}
    assert row["rules"] == {"rate_limit": "100/60"}
    assert pgq("queues", "set", "low", "weight=5", "ageing=30", "max_pending=100").exit_code == 0
    (row,) = [one for one in data("queues", "list") if one["queue"] == "low"]
    assert (row["weight"], row["rules"]["ageing"], row["rules"]["max_pending"]) == (5, 30.0, 100)
    for command, word, text in (
        ("types", "colour=red", "unknown rule 'colour': known are max_concurrency"),
        ("types", "max_per_key", "write RULE=VALUE"),
        ("types", "max_per_key=0", "invalid max_per_key 0"),
        ("types", "rate_limit=fast", "must be COUNT/PERIOD"),
        ("queues", "weight=0", "invalid weight 0"),
        ("queues", "max_per_key=1", "unknown rule"),
    ):
        assert_one_error(pgq(command, "set", "resize", word), 2, text)
    assert sql("SELECT count(*) FROM pgqueue.audit") == [(3,)]


def test_pause_and_resume_are_written_with_who_did_it(pgq, sql):
    assert pgq("queues", "pause", "low").stderr == "queue low is paused\n"
    assert pgq("types", "pause", "resize", "--for", "60").stderr == "type resize is paused for 60 s\n"
    rows = "SELECT paused, resume_at IS NOT NULL, paused_by LIKE '%@%' FROM pgqueue."
    assert sql(rows + "queues") == [(True, False, True)]
    assert sql(rows + "job_types") == [(True, True, True)]
    assert pgq("queues", "resume", "low").exit_code == pgq("types", "resume", "resize").exit_code == 0
    assert sql("SELECT paused FROM pgqueue.queues UNION ALL SELECT paused FROM pgqueue.job_types") == [(False,)] * 2
    actions = [action for (action,) in sql("SELECT action FROM pgqueue.audit ORDER BY id")]
    assert actions == ["queues.pause", "types.pause", "queues.resume", "types.resume"]
    assert_one_error(pgq("types", "pause", "a", "--for", "1", "--until", "2030-01-01T00:00Z"), 2, "give one of them")
    assert_one_error(pgq("types", "pause", "a", "--until", "2001-01-01T00:00Z"), 2, "time of the pause")


def test_jobs_are_replayed_and_moved(pgq, queue):
    job = queue.enqueue("a", {"n": 1}, delay=3600)
    assert pgq("jobs", "run-now", job.id).exit_code == 0
    assert queue.get(job.id).state == "pending"
    assert data("jobs", "reschedule", job.id, "--delay", "60")["state"] == "scheduled"
    assert data("jobs", "set-priority", job.id, "-5")["priority"] == -5
    assert_one_error(pgq("jobs", "replay", job.id), 6, "only a finished job can be replayed")
    queue.cancel(job.id)
    assert_one_error(pgq("jobs", "replay", job.id, "null"), 2, "payload is null: must be a JSON object")
    assert_one_error(pgq("jobs", "run-now", job.id), 6, "only a job that has not started")
    assert_one_error(pgq("jobs", "run-now", 12345), 5, "no job 12345")
    again = int(pgq("jobs", "replay", job.id, '{"n": 2}').stdout)
    assert (queue.get(again).replay_of, queue.get(again).payload) == (job.id, {"n": 2})


def test_set_limit_beats_the_code_lifts_and_goes_back(pgq, sql):
    sql(
        "INSERT INTO pgqueue.job_types (type, declared, declared_at) VALUES ('resize', %s, now())",
        '{"max_concurrency": 5}',
    )

    def row():
        return next((one["limit"], one["limit_from"]) for one in data("types", "list") if one["type"] == "resize")

    assert row() == (5, "code")
    for word, expected in (("3", (3, "operator")), ("none", (None, "operator")), ("default", (5, "code"))):
        assert pgq("types", "set-limit", "resize", word).exit_code == 0
        assert row() == expected
    assert [details for (details,) in sql("SELECT details FROM pgqueue.audit ORDER BY id")] == [
        {"max_concurrency": 3, "forgotten": []},
        {"max_concurrency": None, "forgotten": []},
        {"forgotten": ["max_concurrency"]},
    ]
    for wrong in ("0", "1.5", "many", "1000001", "\u0663"):
        assert_one_error(pgq("types", "set-limit", "resize", wrong), 2, "1 to 1000000")
    assert_one_error(pgq("types", "set-limit", "bad name", "1"), 2, "A-Z a-z")
    assert "none" in pgq("types", "set-limit", "resize", "none").stderr


def test_an_idle_queue_in_figures(pgq, queue):
    queue.enqueue("a")
    queue.enqueue("a", delay=60)
    assert data("queues", "list")[0]["queue"] == "default"
    assert data("workers", "list") == []
    leader = data("leader")
    assert (leader["name"], leader["holder"], leader["epoch"], leader["alive"]) == ("default", None, 0, False)
    assert data("leader", "--leader-name", "other")["name"] == "other"
    assert "nobody leads" in pgq("leader").stderr
    assert data("leader", "--elections") == []
    figures = data("stats")
    assert (figures["pending"], figures["scheduled"], figures["processing"], figures["retrying"]) == (1, 1, 0, 0)
    assert figures["jobs_per_second"] == 0
    assert figures["oldest_pending"] >= 0
    assert figures["leader"] is None
    for command in (["queues", "list"], ["workers", "list"], ["leader"], ["stats"], ["types", "list"]):
        assert pgq(*command).exit_code == 0


def test_a_noun_alone_is_its_list_with_the_flags_of_its_list(pgq, dsn, queue):
    queue.enqueue("a")
    for noun in ("types", "queues", "schedules", "triggers", "workers"):
        assert pgq(noun).exit_code == 0
        assert pgq(noun).stdout == pgq(noun, "list").stdout
        assert data(noun) == data(noun, "list")
        assert "\nCommands:\n" in pgq(noun, "--help").stdout
    assert data("types", "--database-url", dsn)[0]["type"] == "a"
    assert_one_error(pgq("types", "--colour"), 2, "--colour")
    assert_one_error(pgq("types", "colour"), 2, "No such command 'colour'")


def test_what_the_commands_read_is_the_inspectors(pgq, dsn, queue):
    queue.enqueue("a")
    with Inspector(dsn) as inspector:
        assert data("queues", "list") == inspector.queues()
        assert data("types", "list") == inspector.types()

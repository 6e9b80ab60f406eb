"""`pgqueue schedules`: what the commands do, print and refuse."""

from __future__ import annotations

import pytest
from cli_tools import assert_one_error, data, invoke


@pytest.fixture
def pgq(dsn, monkeypatch):
    """Run the command line on the test's database."""
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", dsn)
    return invoke


ADD = (
    "schedules",
    "add",
    "nightly",
    '{"depth": 3}',
    "--cron",
    "0 2 * * *",
    "--type",
    "report",
    "--tz",
    "Europe/Berlin",
)


def test_add_says_when_it_fires_and_what_keeps_its_jobs_from_running(pgq):
    result = pgq(*ADD, "--queue", "reports", "--max-attempts", 3, "--priority", 4, "--timeout", 60, "--missed", "skip",
                 "--max-age", 90, "--overlap", "queue", "--jitter", 5, "--unique-key", "u",
                 "--concurrency-key", "c")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "schedule nightly fires at 02:00 every day, Europe/Berlin; next at " in result.stderr
    assert "schedule nightly: nobody serves its queue reports now" in result.stderr
    assert "schedule nightly: no live worker has its type report" in result.stderr
    shown = data("schedules", "show", "nightly")
    assert shown["operator"] == {
        "cron": "0 2 * * *", "type": "report", "tz": "Europe/Berlin", "payload": {"depth": 3}, "queue": "reports",
        "max_attempts": 3, "priority": 4, "timeout": 60.0, "missed": "skip", "max_age": 90.0, "overlap": "queue",
        "jitter": 5.0, "unique_key": "u", "concurrency_key": "c",
    }  # fmt: skip
    assert (shown["state"], shown["in_words"], shown["fires"]) == ("active", "at 02:00 every day, Europe/Berlin", [])


def test_list_show_next_and_run(pgq, queue):
    assert data("schedules", "list") == []
    made = data(*ADD)
    assert made["name"] == "nightly"
    assert data("schedules", "list") == [{**made}]
    table = pgq("schedules", "list").stdout
    assert "nightly" in table
    assert "Europe/Berlin" in table
    following = data("schedules", "next", "nightly", "--count", 3)
    assert [one[11:16] for one in following] == ["02:00"] * 3
    assert len(pgq("schedules", "next", "nightly").stdout.splitlines()) == 5
    job = queue.get(int(pgq("schedules", "run", "nightly").stdout))
    assert (job.type, job.payload) == ("report", {"depth": 3})
    assert [fire["job_id"] for fire in data("schedules", "show", "nightly")["fires"]] == [job.id]
    assert str(job.id) in pgq("schedules", "show", "nightly").stdout


def test_set_pause_resume_and_remove(pgq, queue):
    pgq(*ADD)
    result = pgq("schedules", "set", "nightly", "cron=@every 5m", 'payload={"a": 1}', "priority=3", "max_age=60",
                 "enabled=true", "queue=none", "tz=default")  # fmt: skip
    assert "schedule nightly fires every 5 minutes; next at" in result.stderr
    rules = queue.schedules.get("nightly").rules
    assert (rules.cron, rules.payload, rules.priority, rules.max_age) == ("@every 5m", {"a": 1}, 3, 60.0)
    assert (rules.enabled, rules.queue, rules.tz) == (True, None, None)
    pgq("schedules", "pause", "nightly")
    assert data("schedules", "show", "nightly")["state"] == "paused"
    assert pgq("schedules", "resume", "nightly").exit_code == 0
    assert data("schedules", "set", "nightly", "enabled=false")["state"] == "disabled"
    assert pgq("schedules", "remove", "nightly").exit_code == 0
    assert data("schedules", "list") == []


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["add", "a b", "--cron", "@daily", "--type", "t"], 2, "invalid schedule 'a b'"),
        (["add", "s", "--cron", "* * * *", "--type", "t"], 2, "invalid cron '* * * *': must be five fields"),
        (["add", "s", "--cron", "@daily", "--type", "t", "--tz", "Nowhere"], 2, "invalid tz 'Nowhere'"),
        (["add", "s", "[1]", "--cron", "@daily", "--type", "t"], 2, "must be a JSON object"),
        (["add", "s", "null", "--cron", "@daily", "--type", "t"], 2, "payload is null: must be a JSON object"),
        (["set", "nightly", "payload=null"], 2, "payload is null: must be a JSON object"),
        (["add", "nightly", "--cron", "@daily", "--type", "t"], 6, "there is a schedule nightly already"),
        (["show", "other"], 5, "there is no schedule other"),
        (["next", "nightly", "--count", "0"], 2, "invalid number of fires 0"),
        (["set", "nightly", "cron"], 2, "'cron' is no rule: write RULE=VALUE"),
        (["set", "nightly", "colour=red"], 2, "unknown rule 'colour'"),
        (["set", "nightly", "priority=high"], 2, "invalid priority 'high': must be a number"),
        (["set", "nightly", "enabled=perhaps"], 2, "must be true or false"),
        (["set", "nightly", "type=default"], 2, "a schedule needs type"),
        (["pause", "other"], 5, "there is no schedule other"),
        (["resume", "other"], 5, "there is no schedule other"),
        (["run", "other"], 5, "there is no schedule other"),
        (["remove", "other"], 5, "there is no schedule other"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_an_exit_code(arguments, code, text, pgq):
    assert pgq(*ADD).exit_code == 0
    assert_one_error(pgq("schedules", *arguments), code, text)
    assert data("schedules", "show", "nightly")["cron"] == "0 2 * * *"

"""Log lines: key=value or JSON, with the run they belong to; nobody forges one, and no payload is in them."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime, timedelta

import pytest
from soak import say
from support import DispatcherProcess, eventually

from pgqueue import Registry, logs

MARKS = {"inline": "async", "thread": "sync", "process": "isolated"}


def formatted(form: str, message: str, *arguments: object, error: bool = False, **extra: object) -> str:
    record = logging.getLogger("x").makeRecord(
        "x", logging.ERROR, "", 0, message, arguments, sys.exc_info() if error else None, extra=extra
    )
    return logs.LineFormatter(form).format(record)


@pytest.mark.parametrize("form", ["text", "json"])
def test_log_lines_cannot_be_forged(form):
    try:
        raise ValueError("boom\n2030-01-01 INFO forged \x1b[31m")
    except ValueError:
        text = formatted(
            form, "one\r\ntwo \x1b[2J %s", "postgresql://u:s3cret@h/d", error=True, key="a\nb\x1b \u202e", number=3
        )
    control = [character for character in text if not character.isprintable() and character != "\n"]
    assert not control
    assert "s3cret" not in text
    if form == "text":
        first, *rest = text.splitlines()
        assert " ERROR one\\r\\ntwo \\x1b[2J postgresql://u:***@" in first
        assert first.endswith("number=3")
        assert rest[-1].startswith("  ")
        assert all(line.startswith("  ") for line in rest)
    else:
        assert "\n" not in text
        line = json.loads(text)
        assert line["event"].startswith("one\\r\\ntwo \\x1b[2J postgresql://u:***@")
        assert line["level"] == "error"
        assert line["number"] == 3
        assert "forged" in line["exception"]
    begun = [one for one in text.splitlines() if not one.startswith("  ")]
    below = len(text.splitlines()) - len(begun)
    say(f"a message with forged lines, {form}: {len(begun)} log line, {below} below it, control codes {len(control)}")


def test_a_message_without_a_run_has_only_what_its_caller_said():
    assert formatted("text", "leader (epoch %d)", 7).endswith(" ERROR leader (epoch 7)")
    assert formatted("text", "x", word="two words").endswith('x word="two words"')
    assert json.loads(formatted("json", "x")).keys() == {"timestamp", "level", "logger", "event"}


def test_each_move_that_the_leader_makes_is_said_with_its_job_at_debug(queue, started, sql, caplog):
    caplog.set_level(logging.DEBUG, "pgqueue")
    registry = Registry()
    registry.register("noop", lambda *_: None)
    ran = queue.enqueue("noop", delay=3600)
    late = queue.enqueue("noop", delay=3600, expires_at=datetime.now(UTC) + timedelta(hours=1))
    lost = queue.enqueue("noop", delay=3600)
    strange = queue.enqueue("strange")
    sql("UPDATE pgqueue.jobs SET run_at = now() WHERE id = %s", ran.id)
    sql("UPDATE pgqueue.jobs SET expires_at = now() WHERE id = %s", late.id)
    sql(
        "UPDATE pgqueue.jobs SET state = 'processing', attempt = 1, worker_id = gen_random_uuid(), started_at = now() "
        "WHERE id = %s",
        lost.id,
    )
    started(registry, strict_types=True, worker_lease_duration=2.5)
    for line in (
        f"job {ran.id}: scheduled -> pending",
        f"job {ran.id}: pending -> processing (attempt 1)",
        f"job {ran.id}: processing -> completed",
        f"job {late.id}: not started -> cancelled, reason expired",
        f"job {lost.id}: processing -> failed, reason lost",
        f"job {strange.id}: pending -> failed, reason unknown_type",
    ):
        eventually(lambda: line in caplog.messages, message=line)  # noqa: B023 - called at once


def test_what_handlers_log_carries_their_run_and_no_payload(dsn, tmp_path, queue):
    secret = "payload-never-in-a-log"
    process = DispatcherProcess(
        dsn,
        tmp_path / "log",
        app="log_handlers:registry",
        log_format="json",
        log_level="DEBUG",
        workspace_root=tmp_path,
    )
    try:
        jobs = {name: queue.enqueue(f"say_{name}", {"secret": secret}) for name in MARKS}
        failing = queue.enqueue("say_badly", {"secret": secret})
        eventually(lambda: sum(queue.counts()[state] for state in ("completed", "failed")) == 4)
        assert process.stop() == 0
    finally:
        process.kill()
    text = process.text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert {"leader (epoch 1)", "stopped"} <= {line["event"] for line in lines}, "talk is JSON too"
    for name, job in jobs.items():
        said = [line for line in lines if line["event"] == f"hello from {MARKS[name]}"]
        assert len(said) == 3, "by context.logger, by logging, by structlog"
        for line in said:
            assert (line["job_id"], line["job_type"], line["attempt"]) == (job.id, f"say_{name}", 1)
            assert line["epoch"] == 1
            assert len(line["worker"]) == 36
    (told,) = [line for line in lines if line["event"].startswith("job failed: ")]
    assert told["event"] == f"job failed: id {failing.id}, type say_badly, attempt 1, reason error"
    assert told["job_id"] == failing.id
    assert secret not in text
    say(f"{len(lines)} log lines of {len(jobs) + 1} jobs with a secret in their payload: it is in {text.count(secret)}")

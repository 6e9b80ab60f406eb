"""Notifications from a job's end to whoever is told: written with the end, delivered at least once."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from support import eventually

from pgqueue import Cancel, Registry
from pgqueue.backoff import Backoff
from pgqueue.errors import ConfigurationError, InvalidArgumentError
from pgqueue.notifications import (
    Inbox,
    InboxChannel,
    JobNotificationConfig,
    register_builtin_channels,
    register_channel,
)
from pgqueue.notifications.delivery import DEFAULTS
from pgqueue.notifications.message import message_of


class Heard:
    """A channel that keeps what it is sent, after failing some times."""

    def __init__(self, failures=0):
        self.messages = []
        self.failures = failures

    async def send(self, message):
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the channel is down")
        self.messages.append(message)


@pytest.fixture
def inbox(dsn):
    with Inbox(dsn) as made:
        yield made


async def nothing(job, context):
    pass


def notifying(channels=("ops",), recipients=(), **options):
    registry = Registry()

    async def handler(job, context):
        if job.payload.get("cancel"):
            raise Cancel
        if job.payload.get("fail"):
            raise ValueError("no such picture")
        return {"size": 4}

    registry.register("resize", handler, **options)
    registry.register("quiet", handler)
    registry.notify("resize", JobNotificationConfig(event_type="job.resize", channels=channels, recipients=recipients))
    return registry


def test_a_completion_and_a_failure_are_told_a_cancellation_and_other_types_are_not(queue, started, sql):
    registry, heard = notifying(), Heard()
    register_channel(registry, "ops", heard)
    started(registry)
    done = queue.enqueue("resize")
    failed = queue.enqueue("resize", {"fail": True})
    for payload in ({"cancel": True}, {"cancel": True, "fail": True}):
        queue.enqueue("resize", payload)
    queue.enqueue("quiet")
    eventually(lambda: len(heard.messages) == 2 and queue.counts()["pending"] + queue.counts()["processing"] == 0)
    by_job = {message.job_id: message for message in heard.messages}
    assert by_job[done.id].message == f'Resize job {done.id} has completed successfully: {{"size": 4}}'
    assert by_job[failed.id].title == "Resize Failed"
    assert by_job[failed.id].message.endswith("failed: no such picture")
    assert sql("SELECT count(*) FROM pgqueue.all_jobs WHERE type = 'notify:ops'") == [(2,)]


def test_a_retry_tells_nothing_until_the_last_attempt(queue, started):
    registry, heard = notifying(max_attempts=3, backoff="fixed:0"), Heard()
    register_channel(registry, "ops", heard)
    started(registry)
    queue.enqueue("resize", {"fail": True})
    eventually(lambda: heard.messages)
    assert [message.state for message in heard.messages] == ["failed"]


def test_a_channel_that_is_down_delays_only_itself_and_is_tried_again(queue, started):
    registry, down, up = notifying(channels=("down", "up")), Heard(failures=2), Heard()
    register_channel(registry, "down", down, backoff="fixed:0.2")
    register_channel(registry, "up", up)
    started(registry)
    queue.enqueue("resize")
    eventually(lambda: up.messages and down.messages)
    assert down.failures == 0
    assert down.messages[0].delivery_id != up.messages[0].delivery_id


def test_the_notification_is_there_if_and_only_if_the_job_s_end_is(queue, started, sql):
    """Written by the schema's own function, in the transaction of the end."""
    registry = notifying()
    started(registry)  # nobody delivers to this channel here
    for _ in range(20):
        queue.enqueue("resize")
    eventually(lambda: queue.counts()["completed"] == 20)
    rows = sql(
        "SELECT told.created_at - job.finished_at < interval '1 s', told.xmin = job.xmin "
        "FROM pgqueue.jobs AS told "
        "JOIN pgqueue.finished_jobs AS job ON job.id = CAST(told.payload->>'jobId' AS bigint) "
        "WHERE told.type = 'notify:ops'"
    )
    assert Counter(rows) == {(True, True): 20}


def test_a_config_that_is_gone_from_the_code_tells_nobody(queue, started, sql):
    first = started(notifying())
    eventually(lambda: first.is_leader)
    first.stop()
    assert sql("SELECT notification->>'event_type' FROM pgqueue.job_types WHERE type = 'resize'") == [("job.resize",)]
    registry = Registry()
    registry.register("resize", nothing)
    started(registry)
    job = queue.enqueue("resize")
    eventually(lambda: queue.get(job.id).state == "completed")
    assert sql("SELECT count(*) FROM pgqueue.jobs") == [(0,)]


def test_an_inbox_keeps_a_notification_for_each_recipient_until_it_is_read(queue, started, inbox):
    registry = notifying(channels=("inbox",), recipients=("ann", "bob"))
    register_channel(registry, "inbox", InboxChannel(inbox))
    started(registry)
    jobs = [queue.enqueue("resize") for _ in range(3)]
    eventually(lambda: inbox.unread("ann") == inbox.unread("bob") == 3)
    newest, *older = inbox.list("ann")
    assert {item.job_id for item in (newest, *older)} == {job.id for job in jobs}
    assert (newest.title, newest.event_type, newest.priority, newest.read_at) == (
        "Resize Completed", "job.resize", "medium", None,
    )  # fmt: skip
    assert inbox.mark_read("ann", [newest.id]) == 1
    assert inbox.mark_read("bob", [newest.id]) == 0, "not one of bob's"
    assert [item.id for item in inbox.list("ann", unread=True)] == [item.id for item in older]
    assert [item.id for item in inbox.list("ann", before=newest.id, limit=1)] == [older[0].id]
    assert (inbox.mark_read("ann"), inbox.unread("ann"), inbox.unread("bob")) == (2, 0, 3)
    with pytest.raises(InvalidArgumentError):
        inbox.list("")


def test_a_repeated_delivery_leaves_one_notification(inbox):
    config = JobNotificationConfig(event_type="e", recipients=("ann",))
    payload = {
        "config": config.as_json(), "jobId": 7, "type": "resize", "queue": "default", "state": "completed",
        "attempt": 1, "at": "2026-11-25T12:00:00+00:00",
    }  # fmt: skip
    for _ in range(2):
        asyncio.run(InboxChannel(inbox).send(message_of(payload, 99)))
    assert inbox.unread("ann") == 1


def test_old_notifications_go(dsn, inbox, sql):
    from pgqueue import db, store

    sql(
        "INSERT INTO pgqueue.notifications "
        "(recipient, delivery_id, job_id, event_type, title, message, priority, tags, at) "
        "SELECT 'ann', n, n, 'e', 't', 'm', 'low', '{}', clock_timestamp() - n * interval '1 day' "
        "FROM generate_series(1, 10) AS n"
    )
    with db.connect(dsn, autocommit=True) as connection:
        assert db.run(connection, store.inbox.forget(5.5 * 86_400, limit=3)) is True
        assert db.run(connection, store.inbox.forget(5.5 * 86_400, limit=3)) is False
    assert inbox.unread("ann") == 5


def test_the_builtin_channels_are_added_where_they_are_missing():
    registry, own = Registry(), Heard()
    register_channel(registry, "log", own)
    register_builtin_channels(registry)
    assert {one.type for one in registry} == {"notify:log", "notify:inbox"}


def test_the_page_says_how_far_apart_the_attempts_of_a_delivery_are():
    backoff = Backoff.parse(DEFAULTS["backoff"])
    waits = [backoff.delay(failures) for failures in range(1, DEFAULTS["max_attempts"])]
    page = (Path(__file__).parents[1] / "docs/notifications.md").read_text(encoding="utf-8")
    assert f"(10 attempts, {waits[0]:g} s to {waits[-1] / 60:.0f} minutes apart)" in page
    assert f"{len(waits) + 1} attempts within about {sum(waits) / 60:.0f} minutes" in register_channel.__doc__


def test_what_is_no_config_is_refused():
    registry = notifying()
    with pytest.raises(ConfigurationError, match="already"):
        registry.notify("resize", JobNotificationConfig(event_type="e"))
    with pytest.raises(ConfigurationError, match="JobNotificationConfig"):
        registry.notify("other", {"event_type": "e"})

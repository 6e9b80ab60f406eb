"""Notifications by mail through a real SMTP server: one each, tried again where it helps, never twice for nothing."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from mail_tools import SmtpServer
from support import eventually
from test_notification_channels import MESSAGE

from pgqueue import Discard, Registry, Settings
from pgqueue.errors import MailError
from pgqueue.notifications import JobNotificationConfig, MailChannel, register_builtin_channels, register_channel

TO_TWO = dataclasses.replace(MESSAGE, recipients=("ann@example.com", "bob@example.com"))


@pytest.fixture
def server():
    with SmtpServer() as made:
        yield made


def recipients(server):
    return [envelope.rcpt_tos for envelope, _message in server.received]


def test_a_job_s_end_is_mailed_to_each_recipient_by_the_settings_server(server, queue, started):
    registry = Registry()
    registry.register("resize", lambda _job, _context: "fünf Bilder")
    config = JobNotificationConfig(event_type="e", channels=("mail",), recipients=TO_TWO.recipients)
    registry.notify("resize", config)
    settings = Settings(
        smtp_host="localhost", smtp_port=server.port, smtp_security="plain", smtp_sender="Shop <shop@example.com>"
    )
    register_builtin_channels(registry, settings)
    started(registry)
    job = queue.enqueue("resize")
    eventually(lambda: len(server.received) == 2)
    assert recipients(server) == [["ann@example.com"], ["bob@example.com"]]
    mails = [message for _envelope, message in server.received]
    assert [mail["To"] for mail in mails] == ["ann@example.com", "bob@example.com"]
    assert {(mail["Subject"], mail["From"]) for mail in mails} == {("Resize Completed", "Shop <shop@example.com>")}
    assert f"Resize job {job.id} has completed successfully: fünf Bilder" in mails[0].get_content()
    assert mails[0]["Message-ID"] != mails[1]["Message-ID"]


def test_a_channel_s_server_that_is_away_gets_the_mail_after_its_restart(queue, started):
    server = SmtpServer()
    registry = Registry()
    registry.register("resize", lambda _job, _context: None)
    registry.notify(
        "resize", JobNotificationConfig(event_type="e", channels=("mail",), recipients=("ann@example.com",))
    )
    register_channel(registry, "mail", MailChannel(server.settings()), backoff="fixed:0.1", max_attempts=1000)
    started(registry)
    queue.enqueue("resize")
    eventually(lambda: [one for one in [queue.counts()] if one["completed"] == 1 and one["scheduled"] == 1])
    with server:
        eventually(lambda: server.received)


def test_who_has_the_mail_is_not_sent_it_again_when_another_s_is_put_off(server):
    channel = MailChannel(server.settings())
    server.replies["rcpt"] = ["450 later"]
    with pytest.raises(MailError, match="450 later"):
        asyncio.run(channel.send(TO_TWO))
    assert recipients(server) == [["bob@example.com"]]
    asyncio.run(channel.send(TO_TWO))
    assert recipients(server) == [["bob@example.com"], ["ann@example.com"]]


def test_a_retry_has_the_same_message_id(server):
    for _ in range(2):
        asyncio.run(MailChannel(server.settings()).send(TO_TWO))  # as after a restart of the process
    first = [message["Message-ID"] for _envelope, message in server.received]
    assert first[:2] == first[2:]


def test_a_refusal_for_good_is_final_once_the_others_have_theirs(server):
    server.replies["rcpt"] = ["550 no such user"]
    with pytest.raises(Discard, match="550 no such user"):
        asyncio.run(MailChannel(server.settings()).send(TO_TWO))
    assert recipients(server) == [["bob@example.com"]]


@pytest.mark.parametrize(("given", "words"), [((), "no recipients"), (("ann",), "'ann' is no mail address")])
def test_recipients_that_are_no_addresses_end_the_delivery(server, given, words):
    with pytest.raises(Discard, match=words):
        asyncio.run(MailChannel(server.settings()).send(dataclasses.replace(MESSAGE, recipients=given)))
    assert server.received == []


def test_a_title_of_two_lines_makes_no_header(server):
    message = dataclasses.replace(TO_TWO, title="a\r\nBcc: eve@example.com", recipients=("ann@example.com",))
    asyncio.run(MailChannel(server.settings()).send(message))
    ((_envelope, mail),) = server.received
    assert (mail["Subject"], mail["Bcc"]) == ("a Bcc: eve@example.com", None)
